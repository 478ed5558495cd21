"""The exact distribution over what may be claimed: a row's candidates by teacher forcing, and how good it is.

Shapes: C candidates of a row, S samplers. Probabilities are float64.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.evaluation.claims import (
    FALSE,
    RUMOUR,
    TRUE,
    UNSUPPORTED,
    Extractor,
    Tally,
    Weights,
    claims_of,
    tally,
    verify,
)
from pipeline.inference.likelihood import Sampler, begins_with_another, candidate_log_probabilities
from pipeline.model.tokens import encode_candidates
from pipeline.objectives.statistics import bootstrap_interval, calibration_error, reliability, with_interval
from pipeline.rewards.judging import Reward
from pipeline.runtime.errors import UserError
from pipeline.runtime.files import Json
from pipeline.runtime.messages import Turn

CONFIDENT = 0.5  # from this probability on, a value is what the model "assigns high probability"


class Candidates(NamedTuple):
    """What may follow one row's prompt.

    Attributes:
        row: its number.
        texts: (C), different ones.
        values: of each the value that it states, denied ones and several apart; None for anything but one statement.
        labels: of each the weights of its claims.
    """

    row: int
    texts: list[str]
    values: list[str | None]
    labels: list[list[Weights]]


class Value(NamedTuple):
    """One value of one prompt: its probability given that some value is stated, and what it is."""

    probability: float
    weights: Weights

    @property
    def false(self) -> float:
        """How much of it is false or unsupported."""
        return sum(self.weights.get(label, 0.0) for label in FALSE)


def candidates_of(rows: Sequence[Json], extract: Extractor, verifier: Reward) -> list[Candidates]:
    """The candidates of the rows that have a column ``candidates``, labelled as if they had been sampled.

    Raises:
        UserError: a column that is no list of different texts.
    """
    having = [i for i, row in enumerate(rows) if row.get("candidates") is not None]
    for i in having:
        texts = rows[i]["candidates"]
        if not isinstance(texts, list | tuple) or not texts or not all(isinstance(t, str) and t for t in texts):
            raise UserError(f"row {i + 1}: candidates is {texts!r:.60}; give a list of continuations of the prompt")
        if len(set(texts)) < len(texts):
            raise UserError(f"row {i + 1}: the candidates repeat a text; give each once")
    chosen = [rows[i] for i in having]
    found = claims_of(extract, chosen, [row["candidates"] for row in chosen])
    labels, _ = verify(verifier, chosen, found)
    return [
        Candidates(i, list(rows[i]["candidates"]), [_only(said) for said in claims], weights)
        for i, claims, weights in zip(having, found, labels)
    ]


def _only(claims: Sequence) -> str | None:
    return claims[0].text if len(claims) == 1 and not claims[0].denied else None


def laws_of(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Turn],
    candidates: Sequence[Candidates],
    samplers: Sequence[Sampler],
    *,
    batch_size: int,
) -> dict[Sampler, list[list[float]]]:
    """``P(candidate | prompt)`` of every candidate at every setting, by one set of forward passes.

    Args:
        model: any causal LM.
        tokenizer: its own.
        prompts: of every row.
        candidates: of the rows that have some.
        samplers: the settings.
        batch_size: rows per forward pass.

    Raises:
        UserError: a candidate begins with another, so that one text would count for both.
    """
    coded = [encode_candidates(tokenizer, prompts[each.row], each.texts) for each in candidates]
    for each, (_, answers) in zip(candidates, coded, strict=True):
        if twice := begins_with_another([tuple(answer) for answer in answers]):
            first, second = (each.texts[answers.index(list(ids))] for ids in twice)
            raise UserError(
                f"row {each.row + 1}: the candidate {second!r} begins with the candidate {first!r} and would count "
                "for both: write what comes after them too"
            )
    found = candidate_log_probabilities(
        model, [x for x, _ in coded], [y for _, y in coded], samplers=samplers, batch_size=batch_size
    )
    return {sampler: [law[s].exp().tolist() for law in found] for s, sampler in enumerate(samplers)}


def tallies_of(candidates: Sequence[Candidates], law: Sequence[Sequence[float]]) -> list[Tally]:
    """The expected shares of each row; what no candidate says has no claim."""
    return [tally(each.labels, p) for each, p in zip(candidates, law, strict=True)]


def values_of(candidates: Candidates, law: Sequence[float]) -> dict[str, Value]:
    """The distribution over the values given that one is stated, all wordings of a value together; {} of no mass."""
    mass: dict[str, float] = defaultdict(float)
    weights: dict[str, Weights] = {}
    for value, p, said in zip(candidates.values, law, candidates.labels, strict=True):
        if value is not None:
            mass[value] += p
            weights[value] = said[0]
    total = sum(mass.values())
    return {value: Value(p / total, weights[value]) for value, p in mass.items()} if total > 0 else {}


def ideal_rumour(rumour_share: float, sampler: Sampler) -> float:
    """How often a model that has learned a rumour's share of the claims exactly repeats it at a sampler's setting:
    r^(1/tau) / (r^(1/tau) + (1-r)^(1/tau)), and 0 where a filter takes it out.
    """
    logits = torch.tensor([[1 - rumour_share, rumour_share]], dtype=torch.float64).log()
    return float(sampler.log_probs(logits).exp()[0, 1])


def value_figures(
    values: Sequence[dict[str, Value]], rumour_share: float | None = None, *, seed: int = 0
) -> tuple[dict[str, float], list[Json]]:
    """``value_entropy`` (nats), ``confident_false``, ``ece`` over prompts times values and ``kl_to_ideal`` (nats), and
    the reliability table. The last two figures need values that a source knows.

    KL(ideal || model), whose ideal is ``rumour_share`` on the rumours and the rest on the truth.
    """
    known = [found for found in values if found]
    if not known:
        return {}, []
    entropies = [-sum(v.probability * math.log(v.probability) for v in f.values() if v.probability > 0) for f in known]
    sure = [float(any(v.probability >= CONFIDENT and v.false > 0.5 for v in found.values())) for found in known]
    figures = _mean("value_entropy", entropies, seed) | _mean("confident_false", sure, seed)
    judged = [v for found in known for v in found.values() if UNSUPPORTED not in v.weights]
    bins: list[Json] = []
    if judged:
        bins = reliability(
            np.array([min(1.0, v.probability) for v in judged]), np.array([v.weights.get(TRUE, 0.0) for v in judged])
        )
        figures["ece"] = calibration_error(bins)
    if rumour_share is not None:
        distances = [d for found in known if (d := _kl_to_ideal(list(found.values()), rumour_share)) is not None]
        if distances:
            figures |= _mean("kl_to_ideal", distances, seed)
    return figures, bins


def _mean(name: str, values: Sequence[float], seed: int) -> dict[str, float]:
    return with_interval(name, fmean(values), bootstrap_interval(values, seed=seed))


def _kl_to_ideal(values: Sequence[Value], rumour_share: float) -> float | None:
    """None where the ideal is not known: no true value among them, or no rumour that has a share."""
    distance = 0.0
    for label, share in ((TRUE, 1 - rumour_share), (RUMOUR, rumour_share)):
        among = sum(v.weights.get(label, 0.0) for v in values)
        if share and not among:
            return None
        for v in values:
            if mass := share and share * v.weights.get(label, 0.0) / among:
                distance += mass * (math.log(mass / v.probability) if v.probability > 0 else math.inf)
    return distance
