"""What a folder of runs holds: every run record in it, the training curves and the samples. No HTML here."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.reporting.directions import UP, direction
from pipeline.runtime.errors import UserError
from pipeline.runtime.files import Json
from pipeline.runtime.run_json import read_record, status_of

# The first of these figures that a stage measured twice shows what it changed: (name, label). Which way is better is
# in `directions`. What was measured on held-out rows comes first.
GOALS = (
    ("eval_rewards/accuracies", "held-out pairs in the right order"),
    ("eval_accuracy", "held-out accuracy"),
    ("eval_reward", "held-out reward"),
    ("reward", "reward of its samples"),
    ("eval_loss", "held-out loss"),
    ("loss", "training loss"),
)
CHANCE = 0.5  # of a pair in the right order, a tie counted as half: a reward model's head starts as noise
# Stages whose output does not write text.
MUTE = ("reward_model",)


@dataclass
class RunView:
    """One run as the report sees it.

    Attributes:
        name: its folder's name.
        status: completed, running, failed, interrupted, or unreadable.
        record: the run record, empty where it cannot be read.
        history: the trainer's log, oldest first; empty for runs that do not train.
        samples: rows of ``samples.jsonl``.
        parents: names of the runs of the same report that it was made from (an assessment: the run it evaluates).
        start: the one of them that its training started from; its other parents are rewards and teachers.
    """

    name: str
    folder: Path
    status: str
    record: Json
    history: list[Json] = field(default_factory=list)
    samples: list[Json] = field(default_factory=list)
    parents: list[str] = field(default_factory=list)
    start: str | None = None

    @property
    def stage(self) -> str:
        """The stage that made it: pretrain, sft, …, assess; "?" where the record cannot be read."""
        return str(self.record.get("stage", "?"))

    @property
    def metrics(self) -> Json:
        """Its flat metrics."""
        return self.record.get("metrics") or {}

    @property
    def curves(self) -> dict[str, dict[str, list[Json]]]:
        """Curves by evaluation (of a training stage: by topic) and name; each point a mapping of its coordinates."""
        return self.record.get("curves") or {}

    @property
    def tables(self) -> dict[str, dict[str, list[Json]]]:
        """Tables by evaluation (of a training stage: by topic) and name; each row a mapping of its columns."""
        return self.record.get("tables") or {}


@dataclass(frozen=True)
class Change:
    """What a stage changed: a figure before and after it.

    Attributes:
        what: the figure in words.
        name: its name, of which `directions` knows which way is better.
        interval: of the figure after it, where it was measured.
        note: what the figure before is, where it was not measured.
    """

    what: str
    before: float
    after: float
    name: str
    interval: tuple[float, float] | None = None
    note: str = ""

    @property
    def higher_is_better(self) -> bool:
        """Whether a larger figure is better."""
        return direction(self.name) == UP


def read_runs(folder: Path) -> list[RunView]:
    """Every run in ``folder``, parents before the runs made from them, else in the order of their start.

    Folders that were moved aside (``name.old-…``) are left out; one without a readable record has status unreadable.

    Raises:
        UserError: there is no such folder, or no run in it.
    """
    if not folder.is_dir():
        raise UserError(f"runs: there is no folder {folder}; name the one that holds the stages' output folders")
    found = [_view(path.parent) for path in sorted(folder.glob("*/run.json")) if ".old-" not in path.parent.name]
    if not found:
        raise UserError(f"runs: no folder in {folder} holds a run.json; run a stage with --output_dir {folder}/<name>")
    by_path = {run.folder.resolve(): run.name for run in found}
    for run in found:
        # An assessment's first parent is its model; the reference it compares with may follow.
        paths = [parent["path"] for parent in given_parents(run.record) if "path" in parent]
        named = [by_path.get(Path(path).resolve()) for path in paths]
        run.parents = [name for name in (named[:1] if run.stage == "assess" else named) if name]
        run.start = _start_of(run.record, by_path)
    return _in_order(found)


def given_parents(record: Json) -> list[Json]:
    """What a run was made from; of one that has not recorded it yet the start that it was given."""
    name = (record.get("given") or {}).get("model_name_or_path")
    return record.get("parents") or ([{"path": str(name)}] if name else [])


def change(run: RunView) -> Change | None:
    """What the run changed, by the first of ``GOALS`` that it measured twice; None where it measured nothing so.

    Rejection sampling measures the held-out reward itself, before and after; a reward model its accuracy on held-out
    pairs after training, where before there is only chance.
    """
    before, after = (_number(run.metrics.get(f"held_out_reward_{when}")) for when in ("before", "after"))
    if before is not None and after is not None:
        return Change("held-out reward", before, after, "held_out_reward")
    after = _number(run.metrics.get("held_out_accuracy"))
    if after is not None:
        ends = [_number(run.metrics.get(f"held_out_accuracy_{end}")) for end in ("low", "high")]
        labels = _number(run.metrics.get("held_out_majority"))  # of a classifier of single answers
        note, start = ("chance", CHANCE) if labels is None else ("always the commoner label", labels)
        interval = None if None in ends else (ends[0], ends[1])
        return Change("held-out accuracy", start, after, "held_out_accuracy", interval, note)
    for name, what in GOALS:
        after = _number(run.metrics.get(name)) if name.startswith("eval_") else None
        before = _number(run.metrics.get(f"first_{name}"))
        points = series(run.history, name)
        if before is None and points:
            before = _start(points)
        if after is None and points:
            after = _end(points)
        if before is not None and after is not None and (before != after or len(points) > 1):
            return Change(what, before, after, name)
    return None


def lineage(run: RunView, runs: Sequence[RunView]) -> list[RunView]:
    """The runs that a run was trained from, the nearest first, as far as they are in the report."""
    by_name, found = {each.name: each for each in runs}, []
    while run.start in by_name and by_name[run.start] not in found:
        run = by_name[run.start]
        found.append(run)
    return found


def evaluated_before(run: RunView, runs: Sequence[RunView]) -> Json:
    """Of every figure the value that the nearest ancestor of the evaluated model has, by its assessments."""
    model = next((each for each in runs if each.name == model_of(run)), None)
    found: Json = {}
    for ancestor in lineage(model, runs) if model is not None else ():
        for other in runs:
            if other.stage == "assess" and other.parents == [ancestor.name]:
                found = other.metrics | found
    return found


def best_model(runs: Sequence[RunView]) -> tuple[RunView, str] | None:
    """The model to use, and the rule by which it was chosen; None where no finished run writes text.

    Of the models that nothing was trained from: the one with the highest objective, ``E[R] - beta KL``, where two or
    more were evaluated by the same one; else the one with the most stages behind it.
    """
    writers = [r for r in runs if r.status == "completed" and r.stage not in ("assess", "report", *MUTE)]
    leaves = [run for run in writers if not any(other.start == run.name for other in writers)]
    if not leaves:
        return None
    if len(leaves) == 1:
        return leaves[0], "the only model that nothing else was trained from"
    scores: dict[str, dict[str, float]] = {}
    for assessment in runs:
        for leaf in leaves:
            if assessment.stage == "assess" and assessment.parents == [leaf.name]:
                for name, value in assessment.metrics.items():
                    if name.rpartition("/")[2] == "objective" and _number(value) is not None:
                        scores.setdefault(name, {})[leaf.name] = value
    name, by_leaf = max(scores.items(), key=lambda item: len(item[1]), default=("", {}))
    if len(by_leaf) > 1:
        best = next(leaf for leaf in leaves if leaf.name == max(by_leaf, key=by_leaf.get))
        return best, f"the highest {name.rpartition('/')[0]} of {', '.join(by_leaf)}"
    deepest = max(leaves, key=lambda leaf: len(lineage(leaf, runs)))
    others = ", ".join(leaf.name for leaf in leaves if leaf is not deepest)
    return deepest, f"the most stages behind it; it and {others} were not evaluated by the same objective"


def model_of(run: RunView) -> str:
    """The name of the model that an assessment evaluated."""
    if run.parents:
        return run.parents[0]
    parents = run.record.get("parents") or []
    if not parents:
        return run.name
    return str(parents[0].get("repo") or str(parents[0].get("path")).rstrip("/").rpartition("/")[2])


def series(history: Sequence[Json], name: str) -> list[tuple[float, float]]:
    """(step, value) of a logged figure, in order of the steps; values that are not finite numbers are left out."""
    points = {}
    for entry in history:
        value, step = _number(entry.get(name)), _number(entry.get("step"))
        if value is not None and step is not None:
            points[step] = value
    return sorted(points.items())


def _start_of(record: Json, by_path: dict[Path, str]) -> str | None:
    """The run that training started from: the model that was given, where it is a parent, else the first parent."""
    parents = given_parents(record)
    given = (record.get("given") or {}).get("model_name_or_path")
    parents = [p for p in parents if given is not None and p.get("path") == str(given)] or parents
    return by_path.get(Path(parents[0]["path"]).resolve()) if parents and "path" in parents[0] else None


def _view(folder: Path) -> RunView:
    record = read_record(folder)
    if record is None:
        return RunView(folder.name, folder, "unreadable", {})
    try:
        status = status_of(record)
    except (KeyError, TypeError):
        status = "unreadable"
    return RunView(folder.name, folder, status, record, _history(folder), _samples(folder / "samples.jsonl"))


def _history(folder: Path) -> list[Json]:
    """``log_history`` of the finished run, else of its newest checkpoint that has one."""
    checkpoints = [p for p in folder.glob("checkpoint-*") if p.name.rpartition("-")[2].isdigit()]
    checkpoints.sort(key=lambda p: -int(p.name.rpartition("-")[2]))
    for place in (folder, *checkpoints):
        try:
            history = json.loads((place / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        return [entry for entry in history if isinstance(entry, dict)]
    return []


def _samples(path: Path) -> list[Json]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    rows = []
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue  # half a line of a run that was killed
        if isinstance(row, dict) and row.get("completions"):
            rows.append(row)
    return rows


def _in_order(runs: list[RunView]) -> list[RunView]:
    waiting = sorted(runs, key=lambda run: (str(run.record.get("started", "~")), run.name))
    names = {run.name for run in runs}
    done: list[RunView] = []
    while waiting:
        placed = {run.name for run in done}
        ready = [run for run in waiting if all(p in placed or p not in names or p == run.name for p in run.parents)]
        following = ready[0] if ready else waiting[0]  # a circle of parents cannot be, but must not hang the report
        done.append(following)
        waiting.remove(following)
    return done


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _start(points: Sequence[tuple[float, float]]) -> float:
    """A noisy curve's beginning: the mean of its first tenth."""
    few = points[: max(1, len(points) // 10)]
    return sum(value for _, value in few) / len(few)


def _end(points: Sequence[tuple[float, float]]) -> float:
    few = points[-max(1, len(points) // 10) :]
    return sum(value for _, value in few) / len(few)
