"""Prompting (Part 5): accuracy by the number of examples and with a chain of thought, and what the chain is worth.

    p(a | P, x; theta) = sum_r p(r | P, x) p(a | r, P, x),   estimated by  mean_r p(a | r, P, x)

Beside accuracy: the share of the best possible reader where the rows bring one; the distribution over answers by
marginalising sampled chains, against the majority vote and the direct answer (errata, line 11b); and two controls,
filler tokens in place of the chain, and a chain with one corrupted step (``pipeline.evaluation.chains``).

Figures: ``<method>@<shots>``; ``<method>_lenient@<shots>`` where the verifier has a lenient score; of every other
method ``<method>_minus_direct@<shots>`` with a bootstrap interval over prompts, which all methods and shots share.
Rows may bring ``examples`` of their own (prompt, completion; the first k are shown), ``ideal`` and ``baseline``: the
accuracies, by number of shots, of the best reader and of one who infers nothing. Then
``share_of_ideal_<method>@<shots>`` is accuracy over the ideal's. The method called ``direct`` shows the answers of its
examples without their reasoning.
"""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Literal, NamedTuple

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.evaluation.chains import Asked, Sampling, controls, marginals
from pipeline.evaluation.completions import sample_rows
from pipeline.evaluation.registry import Result
from pipeline.evaluation.rows import read_rows
from pipeline.evaluation.tasks.accuracy import groups_by
from pipeline.inference.decoding import Completion
from pipeline.inference.prompting import (
    EXAMPLE_TEMPLATE,
    STEP_BY_STEP,
    Example,
    Form,
    answer_after,
    ask,
    check_form,
    direct_answer,
    draw_examples,
    read_examples,
)
from pipeline.objectives.statistics import bootstrap_interval, wilson_interval, with_interval
from pipeline.rewards.judging import Judgement, Reward, judge_rows
from pipeline.rewards.resolve import resolve
from pipeline.runtime.errors import UserError
from pipeline.runtime.files import Json
from pipeline.runtime.messages import Turn, is_dialogue

DIRECT = "direct"
METHODS = {DIRECT: "{prompt}", "cot": STEP_BY_STEP}


class Cell(NamedTuple):
    """What one method did with one number of shots: per row its completion, its judgement, and how it was asked."""

    prompts: list
    completions: list[Completion]
    judged: list[Judgement]


def prompting(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    reward: str | Sequence[str],
    max_new_tokens: int,
    shots: Sequence[int] = (0, 1, 3),
    methods: Mapping[str, str] | None = None,
    examples: str | None = None,
    examples_split: str = "train",
    shots_as: Literal["auto", "text", "turns"] = "auto",
    example_template: str = EXAMPLE_TEMPLATE,
    think_end_token: str | None = None,
    chains: int = 0,
    chain_prompts: int = 100,
    filler: str | None = None,
    stop: Sequence[str] = (),
    by: str | None = None,
    batch_size: int = 256,
    seed: int = 0,
    allow_unsafe_code_execution: bool = False,
    **data: object,
) -> Result:
    """Accuracy of every method at every number of shots, greedy, with Wilson's intervals; chains and their controls.

    Args:
        reward: the verifier.
        max_new_tokens: longest completion in tokens.
        shots: numbers of examples.
        methods: name -> template with ``{prompt}``. Default: direct, and cot by ``Let's think step by step.``
        examples: rows to draw examples from, by seed and row; one whose prompt is asked is never shown.
        examples_split: their split.
        shots_as: as turns of the chat or as text; auto: turns where prompts are dialogues.
        example_template: an example as text.
        think_end_token: end of the reasoning; only what follows it is judged.
        chains: sampled per prompt (method ``cot``, the most shots) for the distribution over the answers.
        chain_prompts: prompts of it, evenly spaced.
        filler: a token's text, in place of a chain of the same length (method ``filler``, or ``cot`` without one).
        stop: a completion ends before the first of these strings.
        by: a column; every figure is also given for each of its values, as ``<value>/<name>``.
        batch_size: sequences decoded together.
        seed: of the examples, chains and intervals.
        allow_unsafe_code_execution: see ``resolve``.
        data: which rows, see ``rows.read_rows``.
    """
    plan = _planned(methods or METHODS, shots, shots_as, example_template, bool(chains or filler), think_end_token)
    rows, source = read_rows(kind="prompt", **data)
    groups = groups_by(rows, by)
    verifier = resolve(reward, allow_unsafe_code_execution=allow_unsafe_code_execution)
    verifier.require_columns(rows)
    shown = _examples(rows, examples, examples_split, plan.shots[-1], seed)
    sampling = Sampling(model, tokenizer, max_new_tokens, tuple(stop), batch_size, think_end_token)
    cells = _cells(sampling, rows, shown, plan, verifier)
    result = _measured(rows, groups, plan, cells, source, seed)
    if think_end_token is not None and "cot" in plan.methods:
        _add_chains(result, sampling, rows, plan, cells, verifier, filler, (chains, chain_prompts, seed))
    return result


class Plan(NamedTuple):
    """The methods with their templates, the numbers of shots ascending, and how examples are written."""

    methods: dict[str, str]
    shots: list[int]
    shots_as: str
    example_template: str

    def asked(self, method: str, k: int, rows: Sequence[Json], shown: Sequence[Sequence[Example]]) -> list[Turn]:
        """The prompts of one method with k examples; the direct method shows their answers alone."""
        turns = self.shots_as == "turns" or (self.shots_as == "auto" and is_dialogue(rows[0]["prompt"]))
        form, short = Form(self.methods[method], turns, self.example_template), method == DIRECT
        picked = [[e._replace(completion=direct_answer(e.completion)) if short else e for e in s[:k]] for s in shown]
        return [ask(row["prompt"], group, form) for row, group in zip(rows, picked, strict=True)]


def _planned(
    methods: Mapping[str, str],
    shots: Sequence[int],
    shots_as: str,
    example_template: str,
    needs_chain: bool,
    think_end_token: str | None,
) -> Plan:
    """The options of how to ask, checked.

    Raises:
        UserError: a number of shots or a template that cannot be, or chains without an end.
    """
    shots = sorted(set(shots))
    if not shots or shots[0] < 0:
        raise UserError("shots: give one or several numbers of examples, each 0 or more")
    if needs_chain and ("cot" not in methods or think_end_token is None):
        raise UserError("chains and filler need a method cot, and think_end_token: where a chain ends")
    for template in methods.values():
        check_form(Form(template, example_template=example_template))
    return Plan(dict(methods), shots, shots_as, example_template)


def _cells(
    sampling: Sampling, rows: Sequence[Json], shown: Sequence[Sequence[Example]], plan: Plan, verifier: Reward
) -> dict[tuple[str, int], Cell]:
    """What every method did with every number of shots."""
    cells = {}
    for method in plan.methods:
        for k in plan.shots:
            prompts = plan.asked(method, k, rows, shown)
            drawn = sampling.greedy(prompts)
            texts = [answer_after(sampling.tokenizer, one, sampling.think_end_token) for one in drawn]
            cells[method, k] = Cell(prompts, drawn, judge_rows(verifier, rows, texts, [c.token_ids for c in drawn]))
    return cells


def _measured(
    rows: Sequence[Json],
    groups: Mapping[str, Sequence[int]],
    plan: Plan,
    cells: Mapping[tuple[str, int], Cell],
    source: Json,
    seed: int,
) -> Result:
    """Figures, curves and the table of all cells; the samples are the last method's."""
    metrics, table = _figures(rows, groups, cells, seed)
    last = cells[list(plan.methods)[-1], plan.shots[-1]]
    samples = sample_rows(rows, [[c] for c in last.completions], [[judgement.score] for judgement in last.judged])
    curves = _curves(rows, groups, plan.methods, plan.shots, cells)
    return Result(metrics, samples, [source], curves=curves, tables={"accuracy by shots": table})


def _add_chains(
    result: Result,
    sampling: Sampling,
    rows: Sequence[Json],
    plan: Plan,
    cells: Mapping[tuple[str, int], Cell],
    verifier: Reward,
    filler: str | None,
    sampled: tuple[int, int, int],
) -> None:
    """Put the controls, and the marginals where chains are sampled (their number, prompts and seed), into a result."""
    each = {m: Asked(*cells[m, plan.shots[-1]][:2]) for m in plan.methods}
    if table := controls(sampling, rows, each, verifier, filler):
        result.tables["controls"] = table
        result.metrics |= {f"{row['case']}/{name}": row[name] for row in table for name in row if name != "case"}
    if sampled[0]:
        found = marginals(sampling, rows, each, verifier, *sampled)
        result.metrics |= found.metrics
        result.tables["chains of thought"] = found.rows


def _examples(rows: Sequence[Json], name: str | None, split: str, most: int, seed: int) -> list[list[Example]]:
    """The examples of each row, as many as the largest number of shots.

    Raises:
        UserError: there are none, or too few.
    """
    if not most:
        return [[] for _ in rows]
    if name is not None:
        seeds = [seed * len(rows) + place for place in range(len(rows))]
        return draw_examples(read_examples(name, split), [row["prompt"] for row in rows], most, seeds)
    own = [row.get("examples") for row in rows]
    short = next((i for i, given in enumerate(own, 1) if not isinstance(given, list) or len(given) < most), None)
    if short is not None:
        raise UserError(
            f"examples is missing: row {short} brings {len(own[short - 1] or [])} of its own, and shots goes up to "
            f"{most}; name a dataset of prompt and completion, or shots: [0]"
        )
    return [[Example(str(e["prompt"]), str(e["completion"])) for e in given[:most]] for given in own]


def _figures(
    rows: Sequence[Json], groups: Mapping[str, Sequence[int]], cells: Mapping[tuple[str, int], Cell], seed: int
) -> tuple[dict[str, float], list[Json]]:
    """Metrics and the table of all cells, for all rows and each group; a group's intervals are in the table."""
    metrics: dict[str, float] = {"prompts": len(rows), "unscored": 0}
    table = []
    for prefix, members in groups.items():
        for (method, k), cell in cells.items():
            known = [i for i in members if cell.judged[i].score is not None]
            metrics["unscored"] += 0 if prefix else len(members) - len(known)
            if not known:
                continue
            scores = [float(cell.judged[i].score or 0) for i in known]
            accuracy = fmean(scores)
            line = {"group": prefix.rstrip("/") or "all", "method": method, "shots": k, "n": len(known)}
            figures = with_interval("accuracy", accuracy, wilson_interval(sum(scores), len(scores)))
            lenient = [cell.judged[i].lenient for i in known]
            if None not in lenient:
                figures |= with_interval("lenient", fmean(lenient), wilson_interval(sum(lenient), len(lenient)))
            figures |= _against_direct(cells, method, k, known, seed)
            for column in ("ideal", "baseline"):
                values = [rows[i].get(column) for i in known]
                if all(isinstance(v, list) and len(v) > k for v in values):
                    figures[column] = fmean(v[k] for v in values)
            if figures.get("ideal"):
                ends = [figures[name] / figures["ideal"] for name in ("accuracy_low", "accuracy_high")]
                figures |= with_interval("share_of_ideal", accuracy / figures["ideal"], (ends[0], ends[1]))
            figures["tokens"] = fmean(len(cell.completions[i].token_ids) for i in known)
            figures["finished"] = fmean(cell.completions[i].finished for i in known)
            table.append(line | figures)
            kept = [name for name in figures if not prefix or not name.endswith(("_low", "_high"))]
            metrics |= {prefix + _named(name, method, k): figures[name] for name in kept}
    return metrics, table


def _against_direct(
    cells: Mapping[tuple[str, int], Cell], method: str, k: int, members: Sequence[int], seed: int
) -> dict[str, float]:
    """How much a method is right more often than the direct answer, on the same prompts."""
    if method == DIRECT or (DIRECT, k) not in cells:
        return {}
    direct = cells[DIRECT, k].judged
    gains = [
        float(cells[method, k].judged[i].score or 0) - float(direct[i].score or 0)
        for i in members
        if direct[i].score is not None
    ]
    return with_interval("minus_direct", fmean(gains), bootstrap_interval(gains, seed=seed)) if gains else {}


def _named(name: str, method: str, k: int) -> str:
    """``accuracy_low`` of cot at 3 shots -> ``cot@3_low``: an interval's ends keep their suffix at the end."""
    for end in ("_low", "_high"):
        if name.endswith(end):
            return _named(name.removesuffix(end), method, k) + end
    if name in ("ideal", "baseline"):
        return f"{name}@{k}"
    if name == "share_of_ideal":
        return f"{name}_{method}@{k}"
    return f"{method}@{k}" if name == "accuracy" else f"{method}_{name}@{k}"


def _curves(
    rows: Sequence[Json],
    groups: Mapping[str, Sequence[int]],
    methods: Mapping[str, str],
    shots: Sequence[int],
    cells: Mapping[tuple[str, int], Cell],
) -> dict[str, list[Json]]:
    """Accuracy over the number of shots, one line per method, with ideal and baseline where the rows bring them."""
    curves = {}
    for prefix, members in groups.items():
        points = []
        for k in shots:
            point: Json = {"shots": k}
            for method in methods:
                point[method] = fmean(float(cells[method, k].judged[i].score or 0) for i in members)
            for column in ("ideal", "baseline"):
                values = [rows[i].get(column) for i in members]
                if all(isinstance(v, list) and len(v) > k for v in values):
                    point[column] = fmean(v[k] for v in values)
            points.append(point)
        curves[f"accuracy by shots{f', {prefix[:-1]}' if prefix else ''}"] = points
    return curves if len(shots) > 1 else {}
