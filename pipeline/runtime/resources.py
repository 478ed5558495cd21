"""Files that travel with the package: ``configs/`` and ``model_cards/``, in a checkout and in an installed wheel."""

from pathlib import Path

from pipeline.runtime.errors import UserError


def resource(folder: str, name: str) -> Path:
    """Path of ``<folder>/<name>``, beside the package in a checkout, inside it when installed.

    Raises:
        UserError: no such file in either place.
    """
    package = Path(__file__).resolve().parents[1]
    for root in (package.parent, package):
        path = root / folder / name
        if path.exists():
            return path
    raise UserError(f"there is no {folder}/{name}, neither beside the package nor inside it")
