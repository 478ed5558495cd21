"""Hallucination (the paper's Part 3): what of the claims is true, imitated, invented, and how decoding moves it.

    Hall = E_x E_{y ~ pi(.|x)} [false or unsupported claims] / E_x E_y [claims]

Two estimators: (a) sampled completions, whose claims an extractor finds and a verifier judges; (b) the exact
distribution over the ``candidates`` of a row by teacher forcing, which has no sampling noise and sees the unlikely.
Both label claims by the same functions (``pipeline.evaluation.claims``).

A model that has learned the law of its data repeats a rumour that a share r of the claims spreads with probability
r^(1/tau) / (r^(1/tau) + (1-r)^(1/tau)), 1/(1 + 9^(1/tau)) at r = 0.1: that much is imitation. What lies above it, and
every other false value, is fabrication: two curves, with the ideal drawn in.

Rows: ``prompt``; what the verifier needs (``answer``), None where no source knows; ``rumour``, a false value or
several that some source states; ``values``, what an answer may be; ``candidates``, continuations of the prompt
(complete answers after a user's turn) for the exact estimator.

Figures: the shares and ``hall`` with bootstrap intervals over prompts, ``claims``, ``claims_per_100_tokens``; the same
shares as ``exact_*``, whose ``exact_no_claim`` is the probability of no candidate; of the distribution over the values
given that one is stated (tau = 1, no filter) ``value_entropy`` in nats, ``confident_false``, the share of prompts with
a false or unsupported value of probability 0.5 or more, ``ece`` over prompts times values, and ``kl_to_ideal`` in
nats. There is no ``hall`` where nothing is claimed.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.evaluation.claim_law import (
    Candidates,
    Value,
    candidates_of,
    ideal_rumour,
    laws_of,
    tallies_of,
    value_figures,
    values_of,
)
from pipeline.evaluation.claims import (
    CLAIMED,
    NO_CLAIM,
    TRUE,
    Extractor,
    claims_of,
    get_extractor,
    hall_figures,
    sampled_figures,
    verify,
)
from pipeline.evaluation.completions import Drawn, complete, length_figures, prompts_of, sample_rows
from pipeline.evaluation.registry import Result
from pipeline.evaluation.rows import read_rows
from pipeline.inference.filters import check_options
from pipeline.inference.likelihood import PLAIN, Sampler
from pipeline.rewards.judging import Reward
from pipeline.rewards.resolve import resolve
from pipeline.runtime.errors import UserError
from pipeline.runtime.files import Json
from pipeline.runtime.messages import Turn

SWEPT = Sampler._fields
BRINGS_ANSWERS = ("numeric", "statements")  # extractors whose claims need no column of the row
COLUMNS = (*CLAIMED, NO_CLAIM, "hall", "hall_low", "hall_high", "claims_per_100_tokens")  # of the tables
BySetting = Mapping[Sampler, Mapping[str, float]]  # setting -> figures
Measured = Mapping[str, BySetting]  # by estimator


def hallucination(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_new_tokens: int,
    claims: str = "answer",
    reward: str | Sequence[str] = "exact",
    n: int = 1,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    sweep: Mapping[str, Sequence[float]] | None = None,
    rumour_share: float | None = None,
    template: str | None = None,
    stop: Sequence[str] = (),
    batch_size: int = 256,
    seed: int = 0,
    allow_unsafe_code_execution: bool = False,
    **data: object,
) -> Result:
    """The shares true, rumour, other false, unsupported and no claim, and Hall, by samples and exactly.

    Args:
        max_new_tokens: longest completion in tokens.
        claims: what finds the claims of a completion: ``answer``, ``numeric``, ``statements``, or the dotted path
            ``package.module:function`` of a function (text, row) -> list of claims.
        reward: the verifier V in [0, 1]: a registry name or what ``resolve`` takes.
        n: samples per prompt at every setting; 0 for the exact estimator alone.
        temperature: of the figures; above 0, since one answer has no distribution.
        top_p: nucleus of the figures.
        top_k: likeliest tokens of the figures.
        sweep: options of sampling (temperature, top_p, top_k, min_p) with the values each takes while the others stay.
        rumour_share: the share of a row's rumour in the data, against its answer; gives the ideal.
        template: for base models: the plain text of a prompt, with ``{prompt}`` where the user's words go.
        stop: a completion ends before the first of these strings.
        batch_size: sequences decoded together.
        seed: random seed of the samples and intervals.
        allow_unsafe_code_execution: see ``resolve``.
        data: which rows, see ``rows.read_rows``.
    """
    main = Sampler(temperature, top_p, top_k)
    sweeps = _sweeps(main, sweep or {}, n)
    if rumour_share is not None and not 0 <= rumour_share < 1:
        raise UserError(f"rumour_share is {rumour_share}: give a share from 0 to below 1")
    asked, source = _asked(data, template, claims, reward, allow_unsafe_code_execution)
    if not n and not asked.candidates:
        raise UserError("n is 0 and no row has candidates: give a column of texts that may follow the prompt, or n: 1")
    settings = list(dict.fromkeys([main, *(setting for line in sweeps.values() for setting in line)]))
    result, measured = Result({}, data=[source]), {"exact": {}, "sampled": {}}
    if asked.candidates:
        measured["exact"], known = _exact(model, tokenizer, asked, settings, batch_size, seed)
        _add_values(result, known, rumour_share, seed)
    if n:
        options = {"template": template, "stop": stop, "n": n, "max_new_tokens": max_new_tokens, "seed": seed}
        drawn = functools.partial(complete, model, tokenizer, asked.rows, batch_size=batch_size, **options)
        measured["sampled"], result.samples = _sampled(drawn, asked, settings, seed)
    rumoured = any(row.get("rumour") is not None for row in asked.rows)
    _add_shares(result, measured, main, sweeps, rumour_share if rumoured else None)
    result.metrics["prompts"] = len(asked.rows)
    return result


class Asked(NamedTuple):
    """What is asked, and what tells the claims of the answers apart."""

    rows: list[Json]
    prompts: list[Turn]
    candidates: list[Candidates]
    extract: Extractor
    verifier: Reward


def _asked(
    data: Mapping[str, object], template: str | None, claims: str, reward: str | Sequence[str], unsafe: bool
) -> tuple[Asked, Json]:
    """The rows with their candidates, labelled, and the rows' entry for the run record."""
    rows, source = read_rows(kind="prompt", **data)
    extract, needed = get_extractor(claims), None if claims in BRINGS_ANSWERS else rows
    verifier = resolve(reward, rows=needed, allow_unsafe_code_execution=unsafe)
    candidates = candidates_of(rows, extract, verifier)
    return Asked(rows, prompts_of(rows, template), candidates, extract, verifier), source


def _exact(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    asked: Asked,
    settings: Sequence[Sampler],
    batch_size: int,
    seed: int,
) -> tuple[BySetting, list[dict[str, Value]]]:
    """Figures by the distribution over the candidates at every setting, and the values of each prompt without any."""
    every = list(dict.fromkeys([*settings, PLAIN]))
    laws = laws_of(model, tokenizer, asked.prompts, asked.candidates, every, batch_size=batch_size)
    found = {s: hall_figures(tallies_of(asked.candidates, laws[s]), seed=seed) for s in settings}
    return found, [values_of(each, law) for each, law in zip(asked.candidates, laws[PLAIN], strict=True)]


def _sampled(
    complete: Callable[..., Drawn], asked: Asked, settings: Sequence[Sampler], seed: int
) -> tuple[BySetting, list[Json]]:
    """Figures of samples at every setting; of the first, that of the figures, the samples with their claims."""
    found, samples = {}, []
    for setting in settings:
        found[setting], labelled = _labelled(complete(**setting._asdict()), asked, seed)
        samples = samples or labelled
    return found, samples


def _add_values(result: Result, known: Sequence[dict[str, Value]], rumour_share: float | None, seed: int) -> None:
    """What the model believes of the values of each prompt: figures, and how far its probabilities come true."""
    metrics, bins = value_figures(known, rumour_share, seed=seed)
    result.metrics |= metrics
    if bins:
        drawn = [{name: b[name] for name in ("predicted", "observed")} | {"calibrated": b["predicted"]} for b in bins]
        result.curves["calibration"], result.tables["calibration"] = drawn, bins


def _add_shares(
    result: Result, measured: Measured, main: Sampler, sweeps: Mapping[str, Sequence[Sampler]], share: float | None
) -> None:
    """The shares of claims by both estimators: figures, and for each swept option curves and a table."""
    exact = {f"exact_{name}": value for name, value in measured["exact"].get(main, {}).items()}
    result.metrics = {**measured["sampled"].get(main, {}), **exact, **result.metrics}
    for name, line in sweeps.items():
        lines, table = _swept(name, line, measured, share)
        result.curves |= lines
        result.tables[f"shares by {name}"] = table


def _sweeps(main: Sampler, sweep: Mapping[str, Sequence[float]], n: int) -> dict[str, list[Sampler]]:
    """The settings of each swept option, by rising values, checked.

    Raises:
        UserError: an option that is none of sampling, values that are no list, or one out of range.
    """
    if not isinstance(sweep, Mapping) or (wrong := [name for name in sweep if name not in SWEPT]):
        given = wrong[0] if isinstance(sweep, Mapping) else sweep
        raise UserError(f"sweep: {given!r} is no option of sampling; give lists of values of {', '.join(SWEPT)}")
    lines = {}
    for name, values in sweep.items():
        if not isinstance(values, list | tuple) or not values or not all(isinstance(v, int | float) for v in values):
            raise UserError(f"sweep: {name} is {values!r:.60}; give a list of numbers")
        lines[name] = [main._replace(**{name: value}) for value in sorted(set(values))]
    if n < 0:
        raise UserError(f"n is {n}: give the samples per prompt, or 0 for the exact estimator alone")
    for setting in (main, *(setting for line in lines.values() for setting in line)):
        check_options(**setting._asdict())
        if not setting.temperature:
            raise UserError("temperature is 0: one answer has no distribution; give a temperature above 0")
    return lines


def _labelled(drawn: Drawn, asked: Asked, seed: int) -> tuple[dict[str, float], list[Json]]:
    """Figures of sampled completions, and the completions with their claims for ``samples.jsonl``."""
    found = claims_of(asked.extract, asked.rows, [[c.text for c in group] for group in drawn])
    labels, failed = verify(asked.verifier, asked.rows, found)
    figures = sampled_figures(labels, [[len(c.token_ids) for c in group] for group in drawn], seed=seed)
    figures |= length_figures(drawn) | {"unscored": failed}
    samples = [
        {
            **sample,
            "claims": [
                [
                    {"text": claim.text, "denied": claim.denied, **{k: v for k, v in weights.items() if v}}
                    for claim, weights in zip(said, judged, strict=True)
                ]
                for said, judged in zip(claims, group, strict=True)
            ],
        }
        for sample, claims, group in zip(sample_rows(asked.rows, drawn), found, labels, strict=True)
    ]
    return figures, samples


def _swept(
    name: str, line: Sequence[Sampler], measured: Measured, rumour_share: float | None
) -> tuple[dict[str, list[Json]], list[Json]]:
    """Of a swept option: imitation and fabrication with the ideal (by the exact estimator where there is one), Hall by
    both estimators where anything can be true, and the table of all shares.
    """
    kinds = {kind: found for kind, found in measured.items() if found}
    best = next(iter(kinds.values()))
    kept = [label for label in CLAIMED[1:] if any(best[setting][label] for setting in line)]
    points, halls, table = [], [], []
    for setting in line:
        at = {name: getattr(setting, name)}
        points.append(at | {label.replace("_", " "): best[setting][label] for label in kept})
        if rumour_share is not None:
            points[-1]["ideal rumour"] = ideal_rumour(rumour_share, setting)
        halls.append(at | {kind: found[setting].get("hall") for kind, found in kinds.items()})
        for kind, found in kinds.items():
            shown = {column.replace("_", " "): found[setting].get(column) for column in COLUMNS}
            table.append(at | {"estimator": kind} | shown)
    curves = {f"imitation and fabrication by {name}": points}
    if any(best[setting][TRUE] for setting in line):  # of people of no source Hall is 1
        curves[f"Hall by {name}"] = halls
    return curves, table
