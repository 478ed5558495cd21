"""Counterfactual bias (the paper's Part 4, section 3): swap the group in a prompt, see what changes, and by how much.

    L(x) = log P(first | x) - log P(second | x),   gap = L(x) - L(x'),   x' = x with the other group

At temperature tau the log-odds of one-token answers are multiplied by 1/tau; the optimum of E[R] - beta KL moves them
by dR/beta, so the odds by exp(dR/beta), dR = [R(x, first) - R(x, second)] - [R(x', first) - R(x', second)]. Both are
reported beside what is measured. Where P(first | x) = P(second | x') = p is planted and the other answers share the
rest, an exact learner's gap is 2 log(p (C - 1) / (1 - p)).

Rows: ``prompt``, ``counterfactual``, ``candidates`` (complete answers), ``first`` and ``second`` (two of them: the
one that goes with the prompt's group and the one that goes with the other's), optional ``planted``.

Figures with bootstrap intervals over rows: ``gap`` in nats (tau = 1); ``p_own``, the probability among the
candidates of the one that goes with the group; with ``planted`` ``planted_gap``, ``p_planted`` and
``amplification`` = gap / planted gap; with ``reference`` ``reference_gap`` and ``shift`` = gap - reference gap;
with ``reward`` ``reward_gap`` = mean dR, with ``beta`` too ``predicted_shift`` = mean dR / beta and the factor on
the odds ``odds_multiplied_by``; with ``max_new_tokens`` ``answers_change``, the share of prompts whose greedy
completion differs under the swap. The curve "gap by temperature" has gap(tau) / gap(1) beside 1/tau.
"""

import math
from collections.abc import Callable, Sequence
from statistics import fmean

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.evaluation.completions import complete, sample_rows
from pipeline.evaluation.registry import Result
from pipeline.evaluation.rows import read_rows
from pipeline.inference.likelihood import Sampler, candidate_log_probabilities
from pipeline.model.tokens import encode_candidates
from pipeline.objectives.statistics import bootstrap_interval, mean_interval, with_interval
from pipeline.rewards.judging import Reward, score
from pipeline.rewards.resolve import resolve
from pipeline.runtime.errors import UserError
from pipeline.runtime.files import Json
from pipeline.runtime.messages import Turn


def bias(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    temperatures: Sequence[float] = (0.5, 1.0, 2.0),
    reference: Callable[[], PreTrainedModel] | None = None,
    reward: str | Sequence[str] | None = None,
    beta: float | None = None,
    max_new_tokens: int = 0,
    batch_size: int = 256,
    seed: int = 0,
    **data: object,
) -> Result:
    """The gap of log-odds under a swap of the group, exactly, beside what was planted, 1/tau and exp(dR/beta).

    Args:
        temperatures: of the curve.
        reference: loads the model before alignment; default: the one in the model's run record.
        reward: what ``resolve`` takes; default: the one in the run record. Judged on the candidates.
        beta: weight of the KL; default: from the run record.
        max_new_tokens: longest greedy completion in tokens; 0: no completions.
        batch_size: sequences per forward pass.
        seed: random seed of the intervals.
        data: which rows, see ``rows.read_rows``.
    """
    rows, source = _pairs(data)
    if not temperatures or any(not t > 0 for t in temperatures):
        raise UserError(f"temperatures is {temperatures}: give temperatures above 0")
    scorer = resolve(reward, rows=rows) if reward is not None else None
    taus = sorted({1.0, *map(float, temperatures)})
    laws = _log_odds(model, tokenizer, rows, taus, batch_size)
    gaps = {tau: [here - there for here, there in zip(*laws[tau]["odds"], strict=True)] for tau in taus}
    metrics = _mean("gap", gaps[1.0], seed)
    metrics |= _mean("p_own", [(a + b) / 2 for a, b in zip(*laws[1.0]["own"], strict=True)], seed)
    metrics |= _planted(rows, gaps[1.0], seed)
    if reference is not None:
        before = _log_odds(reference(), tokenizer, rows, [1.0], batch_size)[1.0]["odds"]
        earlier = [here - there for here, there in zip(*before, strict=True)]
        metrics |= _mean("reference_gap", earlier, seed)
        metrics |= _mean("shift", [now - then for now, then in zip(gaps[1.0], earlier, strict=True)], seed)
    if scorer is not None:
        metrics |= _reward_figures(scorer, rows, beta, seed)
    samples: list[Json] = []
    if max_new_tokens:
        changed, samples = _completions(model, tokenizer, rows, max_new_tokens, batch_size, seed)
        metrics |= with_interval("answers_change", fmean(changed), mean_interval(changed))
    curve = [
        {"temperature": tau, "measured": fmean(gaps[tau]) / fmean(gaps[1.0]), "1/tau": 1 / tau}
        for tau in taus
        if fmean(gaps[1.0])
    ]
    table = [
        {"temperature": tau, **_mean("gap", gaps[tau], seed), "p own": fmean(map(fmean, zip(*laws[tau]["own"])))}
        for tau in taus
    ]
    metrics["prompts"] = len(rows)
    return Result(
        metrics, samples, [source], curves={"gap by temperature": curve}, tables={"gap by temperature": table}
    )


def _pairs(data: dict[str, object]) -> tuple[list[Json], Json]:
    """The rows, each with both prompts and the two candidates that are compared.

    Raises:
        UserError: a row lacks a column, or its two answers are not two of its candidates.
    """
    rows, source = read_rows(kind="prompt", **data)
    for number, row in enumerate(rows, 1):
        if lacking := [name for name in ("counterfactual", "candidates", "first", "second") if row.get(name) is None]:
            raise UserError(f"row {number} lacks {', '.join(lacking)}: bias swaps the group and reads two candidates")
        if not {row["first"], row["second"]} <= set(row["candidates"]) or row["first"] == row["second"]:
            raise UserError(f"row {number}: first and second must be two of its candidates")
    return rows, source


def _planted(rows: Sequence[Json], gaps: Sequence[float], seed: int) -> dict[str, float]:
    """The gap against what the data planted; {} where a row does not say it."""
    planted = [row.get("planted") for row in rows]
    if None in planted:
        return {}
    expected = fmean(
        2 * math.log(p * (len(row["candidates"]) - 1) / (1 - p)) for p, row in zip(planted, rows, strict=True)
    )
    figures = {"planted_gap": expected, "p_planted": fmean(planted)}
    return figures | _mean("amplification", [gap / expected for gap in gaps], seed)


def _mean(name: str, values: Sequence[float], seed: int) -> dict[str, float]:
    return with_interval(name, fmean(values), bootstrap_interval(values, seed=seed))


def _log_odds(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Json], taus: Sequence[float], size: int
) -> dict[float, dict[str, tuple[list[float], list[float]]]]:
    """Per temperature ``odds``, L(x) and L(x') of every row, and ``own``: P of the candidate that goes with the group
    of x, and of x'.
    """
    samplers = [Sampler(tau) for tau in taus]
    sides = [
        _laws(model, tokenizer, [row[side] for row in rows], rows, samplers, size)
        for side in ("prompt", "counterfactual")
    ]
    found = {}
    for s, tau in enumerate(taus):
        odds: tuple[list[float], list[float]] = ([], [])
        own: tuple[list[float], list[float]] = ([], [])
        for side, laws in enumerate(sides):
            for row, law in zip(rows, laws, strict=True):
                first, second = (law[s][row["candidates"].index(row[name])] for name in ("first", "second"))
                odds[side].append(float(first - second))
                own[side].append(float((second if side else first).exp()))
        found[tau] = {"odds": odds, "own": own}
    return found


def _laws(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Turn],
    rows: Sequence[Json],
    samplers: Sequence[Sampler],
    size: int,
) -> list[torch.Tensor]:
    coded = [encode_candidates(tokenizer, p, row["candidates"]) for p, row in zip(prompts, rows, strict=True)]
    return candidate_log_probabilities(
        model, [x for x, _ in coded], [y for _, y in coded], samplers=samplers, normalised=True, batch_size=size
    )


def _reward_figures(scorer: Reward, rows: Sequence[Json], beta: float | None, seed: int) -> dict[str, float]:
    """``reward_gap``, and ``predicted_shift`` where beta is known; {} where the reward scores none of the rows."""
    sides = []
    for side in ("prompt", "counterfactual"):
        asked = [row | {"prompt": row[side]} for row in rows]
        sides.append([score(scorer, asked, [row[name] for row in rows]) for name in ("first", "second")])
    gaps = [(a - b) - (c - d) for a, b, c, d in zip(*sides[0], *sides[1], strict=True) if None not in (a, b, c, d)]
    if not gaps:
        return {}
    figures = _mean("reward_gap", gaps, seed)
    if beta:
        figures |= _mean("predicted_shift", [gap / beta for gap in gaps], seed)
        figures["odds_multiplied_by"] = math.exp(min(fmean(gaps) / beta, 700.0))
    return figures


def _completions(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Json],
    max_new_tokens: int,
    batch_size: int,
    seed: int,
) -> tuple[list[float], list[Json]]:
    """Whether each greedy completion changes under the swap, and the completions of both prompts as samples."""
    both = [*rows, *(row | {"prompt": row["counterfactual"]} for row in rows)]
    drawn = complete(
        model, tokenizer, both, template=None, n=1, max_new_tokens=max_new_tokens, temperature=0.0,
        batch_size=batch_size, seed=seed,
    )  # fmt: skip
    texts = [group[0].text for group in drawn]
    changed = [float(a != b) for a, b in zip(texts, texts[len(rows) :])]
    return changed, sample_rows(both, drawn)
