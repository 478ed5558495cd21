"""Where a model comes from, and what was measured on it, by the run records.

Knows no reward, and of the stages only ``assess``.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.runtime.errors import UserError
from pipeline.runtime.files import Json, weights_sha256
from pipeline.runtime.run_json import read_record, status_of


def walk(record: Json, starts_only: bool = False) -> Iterator[tuple[Json, Json]]:
    """(run record, one of its parents) over everything that a run was made from, the nearest first.

    Args:
        record: the run record to begin with.
        starts_only: follow the first parent only, which is the model that a run started from; the others are reward
            models and references.
    """
    waiting, seen = [record], set()
    while waiting:
        child = waiting.pop(0)
        for parent in child.get("parents", [])[: 1 if starts_only else None]:
            yield child, parent
            folder = Path(parent.get("path", "")).expanduser().resolve()
            found = read_record(folder) if "path" in parent and folder not in seen else None
            if found is not None:
                seen.add(folder)
                waiting.append(found)


def ancestors(folder: str | Path) -> list[tuple[str, Json]]:
    """(folder, run record) of a model and of everything it was made from, the model first and each once."""
    record = read_record(Path(folder))
    if record is None:
        return []
    found = {str(Path(folder).resolve()): (str(folder), record)}
    for _, parent in walk(record):
        path = parent.get("path")
        its_record = read_record(Path(path).expanduser()) if path else None
        if its_record is not None:
            found.setdefault(str(Path(path).expanduser().resolve()), (path, its_record))
    return list(found.values())


def starts(name: str | Path) -> Iterator[Json]:
    """The run records of a model and of what it started from, the nearest first; none of a Hub id.

    A folder inside a run's (``checkpoint-100``, ``round-1``, ``start``) counts as the run's.
    """
    folder, seen = Path(name).expanduser(), set()
    while (record := read_record(folder) or read_record(folder.parent)) is not None and folder.resolve() not in seen:
        seen.add(folder.resolve())
        yield record
        parent = next(iter(record.get("parents", [])), {})
        if "path" not in parent:
            return
        folder = Path(parent["path"]).expanduser()


def repo_of(parent: Json) -> str | None:
    """The Hub id of a parent: its own, or the repository that its run was pushed to."""
    if parent.get("repo"):
        return parent["repo"]
    return (read_record(Path(parent["path"]).expanduser()) or {}).get("hub", {}).get("repo")


def merged_parent(start: Path) -> Json | None:
    """The adapter that a run merged into its ``start`` folder (``adapter_mode: merge``), or None."""
    record = read_record(start.parent) if start.name == "start" else None
    if not record or record["arguments"].get("adapter_mode") != "merge" or not record["parents"]:
        return None
    return record["parents"][0]


def assessments_of(folder: str | Path, given: Sequence[str | Path] = ()) -> list[tuple[Path, Json]]:
    """(folder, run record) of the finished assessments of a model, the earliest first.

    They are looked for in the folders beside the model's. An assessment of earlier weights of the same folder does not
    count, nor one that is still running.

    Args:
        folder: the model's folder.
        given: output folders of assessments elsewhere, which are read too.

    Raises:
        UserError: one that was given is no finished assessment of these weights.
    """
    folder = Path(folder).resolve()
    given = [Path(place).expanduser().resolve() for place in given]
    beside = [file.parent for file in folder.parent.glob("*/run.json") if ".old-" not in file.parent.name]
    found, weights = {}, None
    for place in [*beside, *given]:
        record = read_record(place)
        if record is not None and _assesses(record, folder):
            weights = weights or weights_sha256(folder)
            if record["parents"][0]["sha256"] == weights:
                found[place] = record
    for place in given:
        if place not in found:
            raise UserError(f"{place} holds no finished assessment of the weights in {folder}")
    return sorted(found.items(), key=lambda item: item[1].get("started", ""))


def _assesses(record: Json, folder: Path) -> bool:
    """Whether a record is that of a finished assessment of a model in a folder of this name.

    Its path may be relative to another working folder, so the name decides here and the weights after it.
    """
    if record["stage"] != "assess" or status_of(record) != "completed" or not record["parents"]:
        return False
    path = Path(record["parents"][0].get("path", "")).expanduser()
    return folder.name in (path.name, path.resolve().name)
