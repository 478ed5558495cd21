"""An assessment, one evaluation after another: each result is kept, so that a stopped run continues where it was."""

import dataclasses
import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.data.schemas import FORMS
from pipeline.evaluation.registry import Entry, Result, headline, label, run_entry
from pipeline.runtime.comparison import changed_inputs
from pipeline.runtime.files import Json, write_json, write_rows
from pipeline.runtime.record import Run

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Results:
    """One file per evaluation in a folder of the run, valid for the same entry, defaults, models and data.

    Args:
        folder: they are kept there until the run is complete.
        parents: the run record's entries of the model and its reference, which show changed weights.
    """

    def __init__(self, folder: Path, parents: list[Json]):
        self.folder, self.parents = folder, parents

    def read(self, entry: Entry, defaults: Entry) -> Result | None:
        """The result of an earlier start of this run, if nothing that it depends on has changed since."""
        file = self._file(entry)
        if not file.is_file():
            return None
        found = json.loads(file.read_text(encoding="utf-8"))
        same = found.pop("of") == self._inputs(entry, defaults)
        return Result(**found) if same and not changed_inputs({"data": found["data"]}, {}) else None

    def write(self, entry: Entry, defaults: Entry, result: Result) -> None:
        """Keep a result; the file is complete or absent."""
        write_json(self._file(entry), {"of": self._inputs(entry, defaults), **dataclasses.asdict(result)})

    def clear(self) -> None:
        """Remove all of them, once the run's files have everything."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _file(self, entry: Entry) -> Path:
        return self.folder / f"{label(entry)}.json"

    def _inputs(self, entry: Entry, defaults: Entry) -> Entry:
        plain = {name: value for name, value in defaults.items() if name != "reference"}  # among the parents
        return json.loads(json.dumps({"entry": entry, "defaults": plain, "parents": self.parents}))


def assess_all(
    run: Run,
    results: Results,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    entries: Sequence[tuple[Entry, Entry]],
) -> None:
    """Run every evaluation, and put its figures, samples and files into the run's record and folder as they come.

    Args:
        results: those of an earlier start are taken, new ones kept.
        entries: each evaluation with its defaults.
    """
    samples: list[Json] = []
    for number, (entry, defaults) in enumerate(entries, 1):
        started = time.monotonic()
        result = results.read(entry, defaults)
        kept = result is not None
        if not kept:
            result = run_entry(model, tokenizer, entry, **defaults)
            results.write(entry, defaults, result)
        name = label(entry)
        _say_reading(run, result.data)
        run.add_data(result.data)
        run.add_metrics({f"{name}/{metric}": value for metric, value in result.metrics.items()})
        run.add_curves(name, result.curves)
        run.add_tables(name, result.tables)
        samples += [{"evaluation": name, **sample} for sample in result.samples]
        for file, rows in {"samples.jsonl": samples, **result.files}.items():
            write_rows(run.folder / file, rows)
        spent = "measured before" if kept else f"{time.monotonic() - started:.1f} s"
        print(f"[{number}/{len(entries)}] {name}: {headline(result.metrics)} ({spent})", flush=True)
        run.write()


def _say_reading(run: Run, sources: Sequence[Json]) -> None:
    """Say how a dataset was read, where its columns have other names; once for all evaluations that read it so."""
    plain = {" + ".join(form) for forms in FORMS.values() for form in forms}
    said = {(source["name"], source.get("read_as")) for source in run.record["data"]}
    for source in sources:
        name, reading = source["name"], source.get("read_as")
        if reading and reading not in plain and (name, reading) not in said:
            said.add((name, reading))
            run.say(f"{name}: read as {reading}")
