"""Which folders a run may write to: none that it reads, that a living run writes to, or whose past is not known."""

import os
from collections.abc import Mapping
from pathlib import Path

from pipeline.runtime.checkpoints import checkpoints
from pipeline.runtime.errors import UserError
from pipeline.runtime.files import Json
from pipeline.runtime.process import LEASE_S, process_identity, process_is_alive


def require_output_folder(folder: Path, given: Mapping[str, object]) -> None:
    """Refuse an output folder that cannot be one, or is an input of the same run, which would be overwritten.

    Args:
        folder: the run's ``output_dir``.
        given: every argument as it was given.

    Raises:
        UserError: it is.
    """
    try:
        if folder.is_file():
            raise UserError(f"output_dir: {folder} is a file; name a folder")
    except OSError as error:
        raise UserError(f"output_dir: {str(folder)[:80]}…: {error.strerror}; choose another") from None
    for name, value in given.items():
        texts = [text for text in (value if isinstance(value, list) else [value]) if isinstance(text, str) and text]
        if name in ("output_dir", "config"):
            continue
        if any(Path(text).expanduser().resolve() == folder.resolve() for text in texts if len(text) < 1024):
            raise UserError(f"output_dir: {folder} is also {name}, which would be overwritten; choose another")


def require_no_running(folder: Path, previous: Json | None) -> None:
    """Refuse a folder in which another process is running.

    Raises:
        UserError: the record says so, and its process is alive.
    """
    if not (previous and previous["status"] == "running" and process_is_alive(previous)):
        return
    process = previous["process"]
    where = f"output_dir: another process ({process['pid']}) is running in {folder}"
    if process["host"] != process_identity()["host"]:
        where += f" on host {process['host']} (dead, if it gives no sign for {LEASE_S // 60} minutes)"
    raise UserError(f"{where}; wait for it")


def make_folder(folder: Path) -> None:
    """Make a run's folder, before anything is computed for it.

    Raises:
        UserError: it cannot be made, or nothing can be written to it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output_dir: {folder} cannot be made ({error.strerror}); choose another") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"output_dir: nothing can be written to {folder} (it is read-only); choose another")


def unknown_past(folder: Path) -> str | None:
    """Why a folder without a readable record is not used: something was there. None where nothing was."""
    if (folder / "run.json").exists():
        found = "a run.json that is damaged or somebody else's"
    elif checkpoints(folder):
        found = "checkpoints, but no run.json, so what they were trained on is not known"
    else:
        return None
    return f"output_dir: {folder} holds {found}; choose another folder, or --force to rename it and start again"
