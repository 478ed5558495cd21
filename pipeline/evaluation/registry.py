"""Evaluations by name, and what one of them returns.

An evaluation is a function ``(model, tokenizer, **options) -> Result``. A YAML of ``assess.py`` names it by a name of
the table below, or by the dotted path of a user's function, ``package.module:function``. It reads its rows and checks
its options before it uses model or tokenizer: `rehearse` runs it up to there before anything is loaded. An option with
the default None that the YAML leaves out comes from the model's run record, where that has it (`defaults_for`).
"""

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

from pipeline.runtime.errors import UserError, did_you_mean
from pipeline.runtime.files import Json
from pipeline.runtime.registry import find

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Entry = dict[str, Any]  # an evaluation in the YAML, or options by name

EVALUATIONS = {
    "loss": "pipeline.evaluation.tasks.loss:loss",
    "trigram": "pipeline.evaluation.tasks.trigram:trigram",
    "accuracy": "pipeline.evaluation.tasks.accuracy:accuracy",
    "reward": "pipeline.evaluation.tasks.reward:reward",
    "samples": "pipeline.evaluation.tasks.samples:samples",
    "preference": "pipeline.evaluation.tasks.preference:preference",
    "best_of_n": "pipeline.evaluation.tasks.best_of_n:best_of_n",
    "objective": "pipeline.evaluation.tasks.objective:objective",
    "retrieval": "pipeline.evaluation.tasks.retrieval:retrieval",
    "cache": "pipeline.evaluation.tasks.cache:cache",
    "in_context": "pipeline.evaluation.tasks.in_context:in_context",
    "hallucination": "pipeline.evaluation.tasks.hallucination:hallucination",
    "dynamics": "pipeline.evaluation.tasks.dynamics:dynamics",
    "jacobian": "pipeline.evaluation.tasks.jacobian:jacobian",
    "stopping": "pipeline.evaluation.tasks.stopping:stopping",
    "looking": "pipeline.evaluation.tasks.looking:looking",
    "objects": "pipeline.evaluation.tasks.looking:objects",
    "lm_eval": "pipeline.evaluation.tasks.lm_eval:lm_eval",
    "prompting": "pipeline.evaluation.tasks.prompting:prompting",
    "sycophancy": "pipeline.evaluation.tasks.sycophancy:sycophancy",
    "safety": "pipeline.evaluation.tasks.safety:safety",
    "bias": "pipeline.evaluation.tasks.bias:bias",
    "pronouns": "pipeline.evaluation.tasks.pronouns:pronouns",
    "sensitivity": "pipeline.evaluation.tasks.sensitivity:sensitivity",
}


@dataclass
class Result:
    """What an evaluation returns.

    Attributes:
        metrics: figures by name; a figure ``x`` with a 95% interval has ``x_low`` and ``x_high`` beside it.
        samples: one mapping per prompt (prompt, completions, scores, …), for ``samples.jsonl`` and the report.
        data: what it was measured on, as the run record lists data.
        files: rows to be written beside ``samples.jsonl``, by the file's name.
        curves: points by the curve's name, each point a mapping of its coordinates, x first: what the report draws.
        tables: rows by the table's name, each row a mapping of its columns.
    """

    metrics: dict[str, float]
    samples: list[Json] = field(default_factory=list)
    data: list[Json] = field(default_factory=list)
    files: dict[str, list[Json]] = field(default_factory=dict)
    curves: dict[str, list[Json]] = field(default_factory=dict)
    tables: dict[str, list[Json]] = field(default_factory=dict)


def require_recorded(**options: object) -> None:
    """Refuse to evaluate a model with options that neither the YAML nor the model's run record has.

    Raises:
        UserError: one of them is None.
    """
    for name, value in options.items():
        if value is None:
            option = "reference_model_name_or_path" if name == "reference" else name
            raise UserError(f"{option} is not in the model's run.json; pass it explicitly")


def get_evaluation(kind: str) -> Callable[..., Result]:
    """The evaluation function of a registry name or a dotted path ``package.module:function``.

    Raises:
        UserError: no such evaluation.
    """
    return find(kind, EVALUATIONS, "type")


def check_entries(entries: list[Entry]) -> None:
    """Check the list of evaluations before any model is loaded.

    Raises:
        UserError: an entry that is no mapping, has no or a repeated name, an unknown type, or an unknown option.
    """
    if not entries:
        raise UserError("evaluations: the list is empty; name at least one evaluation")
    seen = set()
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry, dict):
            raise UserError(f"evaluations: entry {number} is {entry!r}; each one is a mapping with name and type")
        name = label(entry)
        if not re.fullmatch(r"[\w .+-]+", name):
            raise UserError(f"evaluations: entry {number} has the name {name!r}; use letters, digits, spaces and _.+-")
        if name in seen:
            raise UserError(f"evaluations: duplicate name {name!r}; give each evaluation its own `name:`")
        seen.add(name)
        _check_options(name, get_evaluation(str(entry.get("type"))), entry)


def label(entry: Entry) -> str:
    """The name of an entry: its ``name``, else its type (of a dotted path the function)."""
    return str(entry.get("name", str(entry.get("type")).rpartition(":")[2]))


def defaults_for(entry: Entry, defaults: Entry, recorded: Entry) -> Entry:
    """The defaults of one entry: those of every evaluation, and what the model's run recorded for options whose own
    default is None (of ``objective``: reward, beta and max_new_tokens).
    """
    parameters = inspect.signature(get_evaluation(entry["type"])).parameters
    open_options = {name for name, parameter in parameters.items() if parameter.default is None}
    return {name: value for name, value in recorded.items() if name in open_options} | defaults


def run_entry(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", entry: Entry, **defaults: object
) -> Result:
    """Run one entry of the list, with those of the ``defaults`` that its evaluation takes and the entry leaves out.

    Raises:
        UserError: as the evaluation raises it, with the entry's name in front.
    """
    function = get_evaluation(entry["type"])
    taken = options_of(function)
    options = {name: value for name, value in defaults.items() if name in taken}
    options |= {name: value for name, value in entry.items() if name not in ("name", "type")}
    try:
        return function(model, tokenizer, **options)
    except UserError as error:
        raise UserError(f"evaluation {label(entry)}: {error}") from error


class _Untouched:
    """Stands for model, tokenizer and reference while none is loaded; any use of it raises ``_Touched``."""

    def __getattr__(self, name: str) -> NoReturn:
        raise _Touched

    def __call__(self, *args: object, **kwargs: object) -> NoReturn:
        raise _Touched

    def __len__(self) -> int:
        raise _Touched


class _Touched(Exception):
    """The rows are read and the options checked; what follows needs the model."""


def rehearse(entry: Entry, **defaults: object) -> None:
    """Run one entry up to where it needs the model, so that its mistakes show before other evaluations run.

    Raises:
        UserError: a mistake in its options, dataset or columns, with the entry's name in front.
    """
    if "reference" in defaults:
        defaults["reference"] = _Untouched()
    try:
        run_entry(_Untouched(), _Untouched(), entry, **defaults)
    except (_Touched, UserError) as stopped:
        if isinstance(stopped, UserError):
            raise
    except Exception:
        if entry["type"] in EVALUATIONS:
            raise  # a user's function may not expect this: it runs in its turn


def takes(entry: Entry, option: str) -> bool:
    """Whether the entry's evaluation has an option of this name."""
    return option in inspect.signature(get_evaluation(entry["type"])).parameters


def headline(metrics: dict[str, float]) -> str:
    """The figures of one evaluation worth a line in the terminal: those with an interval, else all."""
    main_figures = [name for name in metrics if f"{name}_low" in metrics] or list(metrics)
    # A lenient score that equals the strict one adds nothing.
    main_figures = [
        n for n in main_figures if metrics[n] != metrics.get(n.removesuffix("_lenient")) or "_len" not in n
    ]
    shown = []
    for name in main_figures:
        interval = (
            f" [{metrics[f'{name}_low']:.3f}, {metrics[f'{name}_high']:.3f}]" if f"{name}_low" in metrics else ""
        )
        shown.append(f"{name} {metrics[name]:.3f}{interval}")
    return ", ".join(shown)


def options_of(function: Callable[..., Result]) -> dict[str, inspect.Parameter]:
    """The options of an evaluation by name; one that takes any keyword passes what it does not know to `read_rows`."""
    parameters = inspect.signature(function).parameters.values()
    found = {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY}
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        from pipeline.evaluation.rows import read_rows  # not at the top: it imports torch

        reading = inspect.signature(read_rows).parameters
        found = {name: p for name, p in reading.items() if name not in ("kind", "images")} | found
    return found


def _check_options(name: str, function: Callable[..., Result], entry: Entry) -> None:
    options = options_of(function)
    known, needed = set(options), {p.name for p in options.values() if p.default is p.empty}
    given = set(entry) - {"name", "type"}
    for option in sorted(given - known):
        hint = did_you_mean(option, known, f"it takes {', '.join(sorted(known))}")
        raise UserError(f"evaluation {name}: unknown option {option!r}{hint}")
    if missing := sorted(needed - given):
        raise UserError(f"evaluation {name}: the option {missing[0]} is missing")
