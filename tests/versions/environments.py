"""Environments beside this one: everything of it is visible in them, except what they install at another version."""

import subprocess
import sys
import sysconfig
import venv
from importlib.metadata import distributions
from pathlib import Path

BUILD = Path(__file__).resolve().parents[2] / "build" / "versions"
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")


def newest_minors(package: str, count: int) -> list[str]:
    """The newest release of each of the ``count`` newest minor versions that the package index has, newest first.

    Raises:
        SystemExit: the index does not answer, with pip's message.
    """
    done = subprocess.run([*PIP, "index", "versions", package], capture_output=True, text=True)
    line = next((line for line in done.stdout.splitlines() if line.startswith("Available versions:")), None)
    if done.returncode or line is None:
        raise SystemExit(f"error: the package index does not list {package}: {done.stderr.strip()}")
    newest = {}  # minor version -> its newest release: pip lists the newest first
    for version in line.partition(":")[2].split(","):
        public = version.strip().partition("+")[0]
        newest.setdefault(".".join(public.split(".")[:2]), public)
    return list(newest.values())[:count]


def overlay(name: str, requirements: list[str], upgrade: tuple[str, ...] = ()) -> Path:
    """The Python of an environment in which this one's packages are visible beneath the given requirements.

    Args:
        name: of its folder in ``build/versions``; an environment that has the requirements is used again.
        requirements: as ``package==version``, installed there, with what they need that this environment lacks.
        upgrade: packages to take in the newest version that pip accepts.

    Raises:
        SystemExit: pip could not install them, with its message.
    """
    folder = BUILD / name
    python = folder / "bin" / "python"
    site = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder)}))
    if not python.exists():
        venv.create(folder, with_pip=False)
        packages = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
        (site / "beneath.pth").write_text("\n".join(packages) + "\n")
    here = {f"{found.metadata['Name'].lower()}=={found.version}" for found in distributions(path=[str(site)])}
    missing = [requirement for requirement in requirements if requirement not in here]
    if missing:
        # Also what lies beneath at this very version, so that its commands (accelerate) start this Python.
        _install(python, "--no-deps", "--ignore-installed", *missing)
        _install(python, *missing)
    if upgrade:
        _install(python, "--upgrade", *upgrade)
    return python


def _install(python: Path, *words: str) -> None:
    """pip's warnings stay off the terminal: that narlm pins other versions is why these are installed here."""
    done = subprocess.run([*PIP, "--python", str(python), "install", *words], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"error: cannot install {' '.join(words)}:\n{done.stderr.strip()}")
