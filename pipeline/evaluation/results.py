"""Results of an assessment, each kept as it comes: a run that is stopped or fails continues with what is missing."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

from pipeline.evaluation.registry import Result, label
from pipeline.runtime.comparison import changed_inputs
from pipeline.runtime.files import write_json


class Results:
    """One file per evaluation in a folder of the run, valid for the same entry, defaults, models and data.

    Args:
        folder: where they are kept until the run is complete.
        parents: the run record's entries of the judged model and its reference, by which changed weights show.
    """

    def __init__(self, folder: Path, parents: list[dict[str, Any]]):
        self.folder, self.parents = folder, parents

    def read(self, entry: dict[str, Any], defaults: dict[str, Any]) -> Result | None:
        """What an earlier start of this run found, if nothing that it depends on has changed since."""
        file = self._file(entry)
        if not file.is_file():
            return None
        found = json.loads(file.read_text(encoding="utf-8"))
        same = found.pop("of") == self._inputs(entry, defaults)
        return Result(**found) if same and not changed_inputs({"data": found["data"]}, {}) else None

    def write(self, entry: dict[str, Any], defaults: dict[str, Any], result: Result) -> None:
        """Keep a result; the file is there whole or not at all."""
        write_json(self._file(entry), {"of": self._inputs(entry, defaults), **dataclasses.asdict(result)})

    def clear(self) -> None:
        """Remove them all, once the run's own files hold everything."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _file(self, entry: dict[str, Any]) -> Path:
        return self.folder / f"{label(entry)}.json"

    def _inputs(self, entry: dict[str, Any], defaults: dict[str, Any]) -> Any:
        plain = {name: value for name, value in defaults.items() if name != "reference"}  # among the parents
        return json.loads(json.dumps({"entry": entry, "defaults": plain, "parents": self.parents}))
