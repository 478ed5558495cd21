"""What learning a sequence of corpora does to a model: row after row of R, drift, overlap, retained skills."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import datasets
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from pipeline.data.loading import Data
from pipeline.evaluation.registry import label, run_entry
from pipeline.evaluation.tasks import forgetting
from pipeline.model.loading import engine, load_model
from pipeline.model.policy import Policy
from pipeline.model.routing import Router, routed
from pipeline.publish.cards import public_name
from pipeline.runtime.errors import UserError
from pipeline.runtime.record import Run

if TYPE_CHECKING:
    from trl import DPOConfig, SFTConfig

PROBES = 24  # rows of a corpus that gradients and hidden states are measured on


class SequenceFields(Protocol):
    """The field of the stage that is read here: evaluations as in assess.py, run before and after every corpus."""

    retained: list[dict[str, Any]] | None


class SequenceEvaluation:
    """What is measured around each corpus of a run, on held-out rows of all of them.

    Args:
        run: its record gets the figures.
        own: the stage's fields; ``retained`` are the evaluations run before and after every corpus.
        model_name: the run's start.
        config: the run's training arguments.
        corpora: training and held-out rows of every corpus, in order.
        names: of the corpora.
        old: rows of what was learned before the first corpus.
    """

    def __init__(
        self,
        run: Run,
        own: SequenceFields,
        model_name: str,
        config: "SFTConfig | DPOConfig",
        corpora: Sequence[Data],
        names: Sequence[str],
        old: Data | None = None,
    ):
        self.run, self.own, self.config = run, own, config
        self.origin, self.remote = model_name, config.trust_remote_code
        self.corpora = list(corpora)
        self.old_rows = [] if old is None else list(old.train)
        names = [public_name(name) for name in names]
        columns = [corpus.evaluation for corpus in self.corpora]
        if old is not None:
            columns, names = [old.evaluation, *columns], ["before", *names]
        self._check(columns, names)
        self.columns = [list(column) for column in columns]
        self.first = 1 if old is None else 0
        self.matrix = forgetting.Matrix(run.folder, names, self.columns, self.first)
        self.watch: forgetting.WatchOverlap | None = None
        self.path: forgetting.WatchPath | None = None
        self._probes: list[torch.Tensor] | None = None
        self._router: Router | None = None

    def _check(self, columns: Sequence[datasets.Dataset | None], names: Sequence[str]) -> None:
        forms = {}
        for name, column in zip(names, columns, strict=True):
            if column is None:
                raise UserError(f"{name}: every corpus needs held-out rows to evaluate on; eval_rows must be above 0")
            forms[tuple(sorted(column.column_names))] = name
        if len(forms) > 1:
            kinds = "; ".join(f"{name} has {', '.join(form)}" for form, name in forms.items())
            raise UserError(f"the corpora of a sequence must have the same columns, for rows are replayed: {kinds}")

    def before(self, number: int, policy: Policy) -> None:
        """Row 0 of R: the run's start, before the first corpus."""
        if number == 1 and self.run.is_main:
            self._measure(0, self._base() if engine() else policy.model, policy.tokenizer)

    def callbacks(self, number: int, tokenizer: PreTrainedTokenizerBase) -> list[TrainerCallback]:
        """Watch gradients while corpus ``number`` is learned, where one process has them all: their overlap with the
        old ones, and what the path does to the old losses.
        """
        if engine():
            return []
        place = number - self.first
        old = [self._coded(tokenizer, column) for column in self.columns[:place]]
        self.watch = forgetting.WatchOverlap(self._coded(tokenizer, self.corpora[number - 1].train), old)
        self.path = forgetting.WatchPath(old)
        return [self.watch, self.path]

    def after(
        self,
        number: int,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        folder: Path,
        router: Router | None = None,
    ) -> None:
        """Row ``number`` of R, into the folder, the run record and the terminal; ``model`` was saved in ``folder``; a
        router chooses the adapter of every row.
        """
        self._router = router
        if engine() and router is None:
            model = load_model(str(folder), trust_remote_code=self.remote).to(model.device)
        more = {"drift": self._drift(model, tokenizer)}
        if self.watch is not None and self.watch.points:
            more["gradient_overlap"] = self.watch.mean
        if self.path is not None and self.path.rises:
            more["path_interference"] = self.path.rises
        self._measure(number, model, tokenizer, **more)
        figures = self.matrix.metrics()
        self.run.add_metrics(figures)
        if number == len(self.corpora):
            tables = {"scores": self.matrix.rows(), "path interference": self.matrix.paths()}
            self.run.add_tables("forgetting", {name: rows for name, rows in tables.items() if rows})
            plot(self.matrix.content, self.run.folder / "plots" / "forgetting.png")
        said = {"average": "mean of all corpora", "plasticity": "when just learned", "forgetting": "forgotten since"}
        text = ", ".join(f"{figures[name]:.3f} {what}" for name, what in said.items() if name in figures)
        self.run.say(f"after corpus {number} of {len(self.corpora)}: held-out token accuracy {text}")

    def prompts(self, number: int, tokenizer: PreTrainedTokenizerBase) -> tuple[list[list[int]], list[list[int]]]:
        """Token ids of what corpus ``number`` asks, and of the rows known before: what a router learns from."""
        width = self.config.max_length
        asked, known = (
            [forgetting.prompt_ids(row) for row in forgetting.supervised(tokenizer, list(rows), width)]
            for rows in (self.corpora[number - 1].train, self.old_rows)
        )
        return asked, known

    def _measure(
        self, number: int, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, **more: float | list[float]
    ) -> None:
        retained = {}
        for item in self.own.retained or ():
            chat = self.run.record.get("chat") or {"as_chat": False, "system": None}
            defaults = {
                "seed": self.config.seed, "reference": self._base, "as_chat": chat["as_chat"], "system": chat["system"]
            }  # fmt: skip
            metrics = run_entry(model, tokenizer, item, **defaults).metrics
            retained |= {f"{label(item)}/{name}": value for name, value in metrics.items()}
        if retained:
            more["retained"] = retained
        width = self.config.max_length
        through = self._routed(forgetting.forward)
        self.matrix.add(
            number, lambda rows: forgetting.score(model, tokenizer, rows, max_length=width, through=through), **more
        )

    def _drift(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> float:
        """How far the hidden states of the first column's rows have moved from the run's start."""
        rows = self._coded(tokenizer, self.columns[0])
        if self._probes is None:
            self._probes = forgetting.hidden_states(self._base().to(model.device), rows)
        return forgetting.drift(self._routed(forgetting.hidden_states)(model, rows), self._probes)

    def _routed(self, function: Callable[..., list]) -> Callable[..., list]:
        return function if self._router is None else routed(self._router, function, forgetting.prompt_ids)

    def _coded(
        self, tokenizer: PreTrainedTokenizerBase, rows: datasets.Dataset | list[dict]
    ) -> list[forgetting.Scored]:
        rows = rows.select(range(min(PROBES, len(rows)))) if isinstance(rows, datasets.Dataset) else rows[:PROBES]
        return forgetting.supervised(tokenizer, rows, self.config.max_length)

    def _base(self) -> PreTrainedModel:
        return load_model(self.origin, trust_remote_code=self.remote)


def plot(content: dict, path: Path) -> None:
    """R of accuracies as a heat map, for the card."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    table = [[cell["accuracy"] for cell in row["scores"]] for row in content["rows"]]
    figure, axes = pyplot.subplots(figsize=(1.8 + 0.9 * len(table[0]), 1.2 + 0.5 * len(table)), layout="constrained")
    axes.imshow(table, vmin=0, vmax=1, cmap="Blues", aspect="auto")
    for i, row in enumerate(table):
        for j, value in enumerate(row):
            axes.text(j, i, f"{value:.2f}", ha="center", va="center", color="white" if value > 0.6 else "black")
    axes.set_xticks(range(len(table[0])), content["names"], rotation=20, ha="right")
    axes.set_yticks(range(len(table)), ["start", *(f"after {i}" for i in range(1, len(table)))])
    axes.set_title("held-out accuracy")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
