"""The run record: what a stage ran on, how far it got, and whether it has to run at all.

Every stage's output folder holds ``run.json``. A finished stage run again with the same inputs does nothing; an
interrupted one resumes from its newest complete checkpoint; ``--force`` renames the old folder and starts again.
"""

import contextlib
import math
import os
import signal
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

from pipeline.runtime.arguments import defaults, instances, parse, typed
from pipeline.runtime.checkpoints import newest_checkpoint, step_of
from pipeline.runtime.coercion import is_true
from pipeline.runtime.command_table import as_typed
from pipeline.runtime.comparison import changed_data, changed_inputs, named_checkpoint, refusal
from pipeline.runtime.defaults import LEARNING_RATE, dependent_defaults, rate_in_words, reasons
from pipeline.runtime.distributed import is_main, processes, require_one_world
from pipeline.runtime.errors import UserError
from pipeline.runtime.files import Json, write_json
from pipeline.runtime.given import read_given
from pipeline.runtime.hardware import in_words, settle
from pipeline.runtime.needs import require_needs
from pipeline.runtime.output_dir import make_folder, require_no_running, require_output_folder, unknown_past
from pipeline.runtime.process import Heartbeat, peak_memory_bytes, process_identity, versions
from pipeline.runtime.run_json import RECIPE_VARIABLE, finite_rows, parent_of, read_record, recorded, set_aside
from pipeline.runtime.trackers import check_trackers

SCHEMA = 1


class Run:
    """One run of one stage: a context manager that keeps ``run.json`` true whatever happens inside it.

    Attributes:
        folder: the output folder.
        done: the same inputs were already run to the end; the stage returns at once.
        record: the content of ``run.json``.
        push: the finished run goes to the Hub.
        helping: nothing is run: ``--help_all`` only lists the fields.
    """

    def __init__(self, stage: str, argv: list[str] | None = None):
        """Read what was given and what the output folder says about it; light, so a finished run answers at once.

        A folder that may not be used as it is (a run of other inputs, or ``--force``) is left alone until ``parse``
        has found the arguments good.

        Raises:
            UserError: no output_dir, or the folder holds a run that is still running.
        """
        self.stage = stage
        self.argv = list(sys.argv[1:] if argv is None else argv)
        self.given = read_given(self.argv)
        self.done = False
        self.is_main = is_main()
        self.stop_signal: int | None = None
        self.push = False
        self._training = False
        self.helping = "--help_all" in self.argv
        if self.helping:
            return
        if not self.given.get("output_dir"):
            require_needs(stage, self.given)
        self.folder = Path(str(self.given["output_dir"])).expanduser()
        require_output_folder(self.folder, self.given)
        previous = read_record(self.folder)
        self._forced = is_true(self.given.get("force"))
        self._refusal: str | None = None
        self._claimed = False
        self._set_aside: Path | None = None
        self._moved_said = False
        self._named_checkpoint: Path | None = None
        if self.is_main:
            require_no_running(self.folder, previous)
        if self._forced:
            previous = None
        self.done = self._settle(previous) if self.is_main else self._matches_finished(previous)
        # What this run continues: its inputs must be the same as then, and stay recorded until they are read again.
        self._before = None if previous is None or self._forced or self._is_alone() else previous
        self.record = self._new_record(previous)
        if self.done and self.is_main:
            print(f"{stage}: {self.folder} is up to date, nothing to do (--force runs it again)", flush=True)
            if is_true(self.given.get("push_to_hub")) and "hub" not in self.record:
                repo = self.given.get("hub_model_id") or self.folder.name
                print(f"to push it: {as_typed('push')} {self.folder} {repo}", flush=True)

    # ------------------------------------------------------------------ life

    def __enter__(self) -> "Run":
        if not (self.done or self.helping):
            self._handlers = {}
            with contextlib.suppress(ValueError):  # only the main thread may set handlers
                for number in (signal.SIGINT, signal.SIGTERM):
                    self._handlers[number] = signal.signal(number, self._on_signal)
            self._started = time.monotonic()
            if self.is_main:
                self._heartbeat = Heartbeat(self.folder / "run.json")
            if not (self._forced or self._refusal):
                self._claim()
        return self

    def __exit__(self, kind, error, traceback) -> None:
        if self.done or self.helping:
            return
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if self.is_main:
            self._heartbeat.stop()
        if self.record["status"] == "completed":
            return  # finished before; what failed since then (a push) takes nothing from it
        if kind is None:
            self.complete()
            return
        if not self._claimed:
            return  # the folder is as it was
        if issubclass(kind, (KeyboardInterrupt, SystemExit)):
            status = "interrupted"
        else:
            status = "failed"
            self.record["error"] = f"{kind.__name__}: {error}"
        if issubclass(kind, UserError) and self._is_alone():
            # A mistyped argument leaves nothing behind that the corrected command would have to be forced over.
            self._remove_trace()
            return
        self._finish(status)

    def complete(self, card: Callable[[Path, Json], object] | None = None) -> None:
        """Everything a user needs is on disk: say so in the record, with the time and memory it took.

        Args:
            card: writes the card of the finished run, from its folder and record. The record is written after it: a
                run that says completed has its card, whenever it is killed.
        """
        self._finish("completed", card)

    def _claim(self) -> None:
        """Make the folder this run's: move aside what ``--force`` gives up, and write the record.

        Raises:
            UserError: the folder holds something else.
        """
        if self._claimed:
            return
        if self._refusal:
            raise UserError(self._refusal)
        if self._forced and self.is_main and self.folder.exists() and any(self.folder.iterdir()):
            self._set_aside = set_aside(self.folder)
        if self.is_main:
            make_folder(self.folder)
        self._claimed = True
        self.write()

    def _say_moved(self) -> None:
        """Say once where the old run is: before that, a mistake of the user's puts it back in its place."""
        if self._set_aside is not None and not self._moved_said:
            self._moved_said = True
            print(f"{self.stage}: the old {self.folder} is now {self._set_aside}", flush=True)

    def _finish(self, status: str, card: Callable[[Path, Json], object] | None = None) -> None:
        self._claim()
        self._say_moved()
        self.record["seconds"] = round(self.record["seconds"] + time.monotonic() - self._started, 3)
        self._started = time.monotonic()
        self.record["peak_memory_bytes"] = max(self.record["peak_memory_bytes"], peak_memory_bytes())
        if card is not None and self.is_main:
            card(self.folder, self.record | {"status": status})
        self.record["status"] = status
        self.write()

    def parse(self, *dataclass_types: type) -> tuple:
        """The stage's argument classes from the same YAML and flags, recorded in full in the run record."""
        if self.helping:
            if self.stage in LEARNING_RATE:
                print(
                    f"Defaults that differ from those below: learning_rate {rate_in_words(self.stage)}; use_cpu true "
                    "without an accelerator; bf16 false where it is not faster; gradient_checkpointing false where "
                    "the activations fit in memory.\n"
                )
            parse(self.argv, *dataclass_types, prog=f"{self.stage}.py")  # prints and exits
        values = typed(self.argv, *dataclass_types)
        ours = dependent_defaults(self.stage, values)
        usual = defaults(ours, *dataclass_types)
        ours = {name: value for name, value in ours.items() if name in usual and usual[name] != value}
        parsed = instances(ours | values, *dataclass_types)
        require_one_world(parsed)
        self.given = values
        self.record["given"] = recorded(values)
        kept = {name: value for name, value in ours.items() if name in values}
        self.record["defaults"] = recorded(defaults(values, *dataclass_types) | kept)
        self.record["arguments"] = {key: value for part in parsed for key, value in recorded(vars(part)).items()}
        self.record["seed"] = self.record["arguments"].get("seed", 42)
        for part in parsed:
            # Trainer would make the repository before it trains: a dead Hub must not cost a run. We push at the end.
            if getattr(part, "push_to_hub", False):
                self.push, part.push_to_hub = True, False
            check_trackers(getattr(part, "report_to", None) or [])
        if (checkpoint := values.get("resume_from_checkpoint")) is not None:
            self._named_checkpoint = named_checkpoint(checkpoint, self.folder, self.stage, values)
        self._claim()
        self.write()
        self._say_chosen({name: value for name, value in ours.items() if name not in values})
        return parsed

    def _say_chosen(self, chosen: Json) -> None:
        """Say what the method and the machine decided where nothing was given, and record the machine."""
        self.record["hardware"] = settle(self.record["arguments"]) | {"chosen": recorded(chosen)}
        self.write()
        method, machine = (reasons(chosen, of_machine) for of_machine in (False, True))
        if method:
            self.say(f"not given: {method}")
        self.say(f"hardware: {in_words(self.record['hardware'])}{'; not given: ' if machine else ''}{machine}")

    def add_parent(self, name_or_path: str, revision: str | None = None) -> None:
        """Record a model this run starts from or is evaluated with: a folder by its weights' hash, a Hub id by
        revision."""
        self.record["parents"].append(parent_of(name_or_path, revision))
        self.write()

    def add_data(self, sources: list[Json]) -> None:
        """Record the datasets a run reads: name, split, rows, fingerprint and what was dropped from them.

        Raises:
            UserError: the run is to evaluate, and none of them is for that; or it continues one that read other rows.
        """
        strategy = self.record["arguments"].get("eval_strategy", "no")
        roles = {source.get("role") for source in sources}
        if strategy != "no" and "train" in roles and "evaluation" not in roles:
            raise UserError(
                f"eval_strategy {strategy}: there are no rows to evaluate on; give eval_rows above 0, "
                "eval_dataset_name or dataset_test_split, or set eval_strategy: no"
            )
        changes = changed_data((self._before or {}).get("data", []), sources)
        if changes:
            raise UserError(refusal(self.folder, changes, newest_checkpoint(self.folder)))
        self.record["data"].extend(sources)
        self.write()

    def note(self, key: str, value: object, entry: str | None = None) -> None:
        """Record a fact of this run under its own key, as JSON can hold it.

        Args:
            key: the key in ``run.json``.
            value: what is recorded there; it replaces an earlier value.
            entry: the value is this entry of a mapping under ``key``, whose other entries stay.
        """
        if entry is None:
            self.record[key] = value
        else:
            self.record.setdefault(key, {})[entry] = value

    def say(self, line: str) -> None:
        """One line on the terminal, from the first process only, with the stage's name in front."""
        if self.is_main:
            print(f"{self.stage}: {line}", flush=True)

    def warn(self, line: str) -> None:
        """One line on the terminal, from the first process only, that says what may be wrong."""
        if self.is_main:
            print(f"warning: {line}", flush=True)

    def add_metrics(self, metrics: Json) -> None:
        """Add flat ``name: number`` metrics; whatever is not a number is left out, non-finite becomes null."""
        for name, value in metrics.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                continue
            self.record["metrics"][name] = value if math.isfinite(value) else None

    def add_curves(self, topic: str, curves: dict[str, list[Json]]) -> None:
        """Record curves, ``{name: [{x: …, y: …}, …]}``, of an evaluation or of one topic of the stage."""
        self._add_rows("curves", topic, curves)

    def add_tables(self, topic: str, tables: dict[str, list[Json]]) -> None:
        """Record tables, ``{name: [{column: …}, …]}``, of an evaluation or of one topic of the stage."""
        self._add_rows("tables", topic, tables)

    def _add_rows(self, kind: str, topic: str, found: dict[str, list[Json]]) -> None:
        if found:
            self.record.setdefault(kind, {}).setdefault(topic, {}).update(finite_rows(found))

    @property
    def checkpoint(self) -> Path | None:
        """The checkpoint this run resumes from: the one that was named, or the newest complete one in its folder."""
        return self.checkpoint_in(self.folder)

    def checkpoint_in(self, folder: Path) -> Path | None:
        """The same of one of the run's rounds or corpora.

        A checkpoint of another folder counts until this one has a newer: the run resumes from what it made of it.
        """
        named, newest = self._named_checkpoint, newest_checkpoint(folder)
        if named is None or (self.folder.resolve() in named.parents and named.parent != folder.resolve()):
            return newest
        if named.parent == folder.resolve() or newest is None or step_of(newest) <= step_of(named):
            return named
        return newest

    def write(self) -> None:
        """Write ``run.json`` atomically, on the main process only.

        Inputs that are not read again yet are those of the run that is continued: killed now, it is still known.
        """
        if self.is_main:
            known = {key: (self._before or {}).get(key, []) for key in ("parents", "data") if not self.record[key]}
            write_json(self.folder / "run.json", self.record | known)

    # ------------------------------------------------------------------ signals

    @contextlib.contextmanager
    def training(self):
        """Inside, SIGINT and SIGTERM ask the trainer for a checkpoint and a stop (see ``callbacks.StopOnSignal``)."""
        self._say_moved()
        self._training = True
        try:
            yield
        finally:
            self._training = False
        if self.stop_signal is not None:
            raise SystemExit(128 + self.stop_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._training and self.stop_signal is None:
            self.stop_signal = number
            if self.is_main:
                print("stopping: the step is finished and a checkpoint written; again to stop at once", flush=True)
            return
        raise SystemExit(128 + number)

    # ------------------------------------------------------------------ the folder's past

    def _settle(self, previous: Json | None) -> bool:
        """Decide on the main process: True if up to date, False to start or resume, or to refuse in ``_claim``."""
        if previous is None:
            self._refusal = None if self._forced else unknown_past(self.folder)
            return False
        if previous.get("stage") != self.stage:
            self._refusal = (
                f"output_dir: {self.folder} holds a {previous.get('stage')} run; choose another folder or --force"
            )
            return False
        changes = changed_inputs(previous, self.given)
        if previous["status"] == "failed" and newest_checkpoint(self.folder) is None:
            # A corrected mistake starts again without being forced; what the failed start made of other inputs goes.
            self._forced = bool(changes) and not self._is_alone()
            return False
        if changes:
            self._refusal = refusal(self.folder, changes, newest_checkpoint(self.folder))
            return False
        return previous["status"] == "completed"

    def _matches_finished(self, previous: Json | None) -> bool:
        """The other ranks' view of ``_settle``: they only need to agree with the main process that it is done."""
        return bool(previous and previous.get("status") == "completed" and not changed_inputs(previous, self.given))

    def _new_record(self, previous: Json | None) -> Json:
        if self.done:
            return previous
        # Only a run that left a checkpoint is continued; its seconds count on, so the total stays honest.
        resumed = previous if previous and newest_checkpoint(self.folder) else None
        return {
            "schema": SCHEMA,
            "stage": self.stage,
            "recipe": os.environ.get(RECIPE_VARIABLE),
            "status": "running",
            "parents": [],
            "given": recorded(self.given),
            "arguments": {},
            "data": [],
            "versions": versions(),
            "seed": 42,
            "metrics": {},
            "seconds": resumed["seconds"] if resumed else 0.0,
            "peak_memory_bytes": resumed["peak_memory_bytes"] if resumed else 0,
            "resumed": bool(resumed),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "process": process_identity(),
            "processes": processes(),
        }

    def _is_alone(self) -> bool:
        """Whether the record is all that the folder holds, so that nothing was done yet."""
        return not self.folder.exists() or {path.name for path in self.folder.iterdir()} <= {"run.json"}

    def _remove_trace(self) -> None:
        if self.is_main:
            (self.folder / "run.json").unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                self.folder.rmdir()  # only if it is empty
            if self._set_aside is not None and not self.folder.exists():
                self._set_aside.rename(self.folder)
