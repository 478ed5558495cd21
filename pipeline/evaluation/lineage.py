"""Where a model comes from, by the run records: its ancestors, and the rows that must not judge it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.evaluation.registry import label
from pipeline.runtime.errors import UserError
from pipeline.runtime.record import read_record


def ancestors(folder: str | Path) -> list[tuple[str, dict[str, Any]]]:
    """(folder, run record) of a model and of everything it was made from, the model first."""
    found, waiting, seen = [], [str(folder)], set()
    while waiting:
        path = waiting.pop(0)
        key = str(Path(path).resolve())
        record = read_record(Path(path))
        if key in seen or record is None:
            continue
        seen.add(key)
        found.append((path, record))
        waiting += [parent["path"] for parent in record.get("parents", []) if "path" in parent]
    return found


def refuse_training_rows(model: str, entries: Sequence[dict[str, Any]]) -> None:
    """Hold evaluations to data that neither the model nor its ancestors were trained on, by their run records.

    Raises:
        UserError: an evaluation names a training split of the model's lineage.
    """
    for folder, record in ancestors(model):
        for source in record.get("data", []):
            if source.get("role", "train") != "train":
                continue
            for entry in entries:
                dataset, split = entry.get("dataset"), str(entry.get("split", "test"))
                if dataset is not None and _same_rows(source, str(dataset), split):
                    raise UserError(
                        f"evaluation {label(entry)}: {dataset}, split {split}, holds rows that {folder} was "
                        f"trained on (split {source['split']}); name held-out ones, another split or file"
                    )


def _same_rows(source: dict[str, Any], dataset: str, split: str) -> bool:
    """Whether a training source and a named split share rows; two slices of one split are taken to be apart."""
    name = str(source["name"])
    if Path(dataset).expanduser().is_file():
        return Path(name).exists() and Path(name).resolve() == Path(dataset).expanduser().resolve()
    if dataset.strip("/") != name.strip("/"):
        return False
    (base, one, _), (other_base, other, _) = (text.partition("[") for text in (split, str(source["split"])))
    return base == other_base and not (one and other and split != source["split"])
