"""``run.json`` read without a run: what a folder's record says, and what goes into one."""

import json
from datetime import datetime
from pathlib import Path

from pipeline.runtime.files import Json, as_json, is_local, weights_sha256
from pipeline.runtime.process import process_is_alive

RECIPE_VARIABLE = "NARLM_RECIPE"  # set by pipeline.run: the recipe of which this run is an entry
SECRETS = ("token", "hub_token", "vllm_api_key")


def read_record(folder: Path) -> Json | None:
    """The run record of a folder, or None where there is none (or it is not ours to read)."""
    try:
        record = json.loads((Path(folder) / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and "stage" in record else None


def set_aside(folder: Path) -> Path:
    """Rename a run's folder so that a new run can take its place; returns the new name. Nothing is deleted."""
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    return folder.rename(folder.with_name(f"{folder.name}.old-{stamp}"))


def status_of(record: Json) -> str:
    """The record's status, with a run whose process is dead counted as interrupted."""
    if record["status"] == "running" and not process_is_alive(record):
        return "interrupted"
    return record["status"]


def parent_of(name_or_path: str, revision: str | None = None) -> Json:
    """A record's entry for a model: ``{"path", "sha256"}`` of a folder, ``{"repo", "sha256", "revision"}`` else."""
    if is_local(name_or_path):
        return {"path": str(name_or_path), "sha256": weights_sha256(Path(name_or_path).expanduser())}
    return {"repo": name_or_path, "sha256": None, "revision": revision or "main"}


def recorded(values: Json) -> Json:
    """Values as ``run.json`` holds them: plain, and without secrets."""
    return {key: value for key, value in as_json(values).items() if key not in SECRETS}
