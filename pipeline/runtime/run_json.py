"""``run.json`` read without a run: what a folder's record says, and what goes into one."""

import itertools
import json
import math
import socket
import time
from datetime import datetime
from pathlib import Path

from pipeline.runtime.errors import UserError
from pipeline.runtime.files import Json, as_json, is_local, setup_sha256, weights_sha256
from pipeline.runtime.process import LEASE_S, process_is_alive

RECIPE_VARIABLE = "NARLM_RECIPE"  # set by pipeline.run: the recipe of which this run is an entry
NEEDED = {"stage", "status"}  # without these a run.json is somebody else's, or damaged
SECRETS = ("token", "hub_token", "vllm_api_key")


def read_record(folder: Path) -> Json | None:
    """The run record of a folder, or None where there is none (or it is not ours to read).

    A run on another host whose heartbeat has stopped is interrupted: a container that started again has a new name.
    """
    file = Path(folder) / "run.json"
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        silent_s = time.time() - file.stat().st_mtime
    except (OSError, ValueError):
        return None
    if not isinstance(record, dict) or not record.keys() >= NEEDED:
        return None
    elsewhere = record.get("process", {}).get("host") != socket.gethostname()
    if record["status"] == "running" and elsewhere and silent_s > LEASE_S:
        record["status"] = "interrupted"
    return record


def set_aside(folder: Path) -> Path:
    """Rename a run's folder so that a new run can take its place; returns the new name. Nothing is deleted.

    Raises:
        UserError: it cannot be renamed: the current folder, a mount point, a parent that is read-only.
    """
    if folder.resolve() == Path.cwd():
        raise UserError(f"force: {folder} is the current folder, which cannot be renamed; run it from another one")
    stamp = f"{folder.name}.old-{datetime.now().strftime('%Y%m%d-%H%M%S')}"
    names = (folder.with_name(f"{stamp}-{number}" if number else stamp) for number in itertools.count())
    try:
        return folder.rename(next(name for name in names if not name.exists()))
    except OSError as error:
        raise UserError(f"force: {folder} cannot be renamed ({error.strerror}); choose another output_dir") from None


def status_of(record: Json) -> str:
    """The record's status, with a run whose process is dead counted as interrupted."""
    if record["status"] == "running" and not process_is_alive(record):
        return "interrupted"
    return record["status"]


def parent_of(name_or_path: str, revision: str | None = None) -> Json:
    """A record's entry for a model: ``{"path", "sha256", "setup_sha256"}`` of a folder, ``{"repo", "sha256",
    "revision"}`` else. An adapter's has ``base``, the same of the model that it adapts."""
    if is_local(name_or_path):
        folder = Path(name_or_path).expanduser()
        found = {"path": str(name_or_path), "sha256": weights_sha256(folder), "setup_sha256": setup_sha256(folder)}
        base = _adapted(folder)
        return found | ({"base": parent_of(base)} if base else {})
    return {"repo": name_or_path, "sha256": None, "revision": revision or "main"}


def _adapted(folder: Path) -> str | None:
    """The base that an adapter's folder names."""
    try:
        return json.loads((folder / "adapter_config.json").read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError):
        return None


def recorded(values: Json) -> Json:
    """Values as ``run.json`` holds them: plain, and without secrets."""
    return {key: value for key, value in as_json(values).items() if key not in SECRETS}


def finite_rows(found: dict[str, list[Json]]) -> dict[str, list[Json]]:
    """Curves or tables as JSON can hold them: what is not finite becomes null."""
    return {
        name: [
            {
                key: None if isinstance(value, float) and not math.isfinite(value) else value
                for key, value in row.items()
            }
            for row in rows
        ]
        for name, rows in found.items()
    }
