"""The exact distribution over claims: against brute force on a tiny model, the ideal and the calibration by hand."""

import math

import pytest
import torch

from pipeline.evaluation.claim_law import (
    Value,
    candidates_of,
    ideal_rumour,
    laws_of,
    tallies_of,
    value_figures,
    values_of,
)
from pipeline.evaluation.claims import answer
from pipeline.inference.likelihood import PLAIN, Sampler
from pipeline.rewards.registry import get_reward
from pipeline.runtime.errors import UserError
from tests.tiny_models import tiny_model, tiny_tokenizer

ROW = {
    "prompt": "1 2",
    "answer": "a",
    "rumour": "b",
    "values": ["a", "b", "c"],
    "candidates": [" a", " b", " c", " d a", " d c"],
}


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_the_exact_law_is_the_softmax_over_the_candidates(temperature):
    """``a b c`` are one token and ``d a``, ``d c`` two: P(a) = p(a) + p(d) p(a | d), by two forward passes."""
    model, tokenizer = tiny_model(), tiny_tokenizer()
    ids = tokenizer("1 2")["input_ids"]
    a, b, c, d = tokenizer("a b c d")["input_ids"]
    with torch.no_grad():
        first, then = (
            (model(input_ids=torch.tensor([row])).logits[0, -1].double() / temperature).softmax(-1)
            for row in (ids, [*ids, d])
        )
    (found,) = candidates_of([ROW], answer, get_reward("exact"))
    assert found.values == ["a", "b", "c", "a", "c"]
    sampler = Sampler(temperature)
    (law,) = laws_of(model, tokenizer, ["1 2"], [found], [sampler], batch_size=2)[sampler]
    by_hand = [first[a], first[b], first[c], first[d] * then[a], first[d] * then[c]]
    assert law == pytest.approx([float(p) for p in by_hand], abs=1e-6)
    (shares,) = tallies_of([found], [law])
    assert shares.shares["true"] == pytest.approx(float(by_hand[0] + by_hand[3]), abs=1e-6)
    assert shares.shares["rumour"] == pytest.approx(float(by_hand[1]), abs=1e-6)
    assert sum(shares.shares.values()) == pytest.approx(1, abs=1e-9)
    values = values_of(found, law)
    assert {v: values[v].probability for v in values} == pytest.approx(
        {v: float(p / sum(by_hand)) for v, p in
         (("a", by_hand[0] + by_hand[3]), ("b", by_hand[1]), ("c", by_hand[2] + by_hand[4]))}, abs=1e-6
    )  # fmt: skip


def test_the_ideal_learner_repeats_a_rumour():
    """1 / (1 + 9^(1/tau)) at tau 0.3, 0.7, 1, 1.5; top-k 1 and top-p 0.9 leave the truth alone; no rumour: 0."""
    found = [ideal_rumour(0.1, Sampler(tau)) for tau in (0.3, 0.7, 1.0, 1.5)]
    assert found == pytest.approx([0.000659, 0.0415, 0.1, 0.1877], abs=1e-4)
    assert found == pytest.approx([1 / (1 + 9 ** (1 / tau)) for tau in (0.3, 0.7, 1.0, 1.5)])
    assert ideal_rumour(0.1, Sampler(top_k=1)) == ideal_rumour(0.1, Sampler(top_p=0.9)) == 0.0
    assert ideal_rumour(0.1, Sampler(top_p=0.95)) == pytest.approx(0.1)
    assert ideal_rumour(0.0, Sampler(1.5)) == 0.0


def values(*triples):
    return {name: Value(p, {label: 1.0}) for name, p, label in triples}


def test_calibration_and_distance_by_hand():
    """Two prompts: (0.9 true, 0.1 rumour), the ideal, and (0.35 true, 0.65 rumour). Bins of a tenth: 0.1 (one value,
    observed 0), 0.35 (1), 0.65 (0), 0.9 (1): ECE = (0.1 + 0.65 + 0.65 + 0.1) / 4 = 0.375. The KL to the ideal is 0 and
    0.9 log(0.9 / 0.35) + 0.1 log(0.1 / 0.65). The second prompt is confidently false.
    """
    one = values(("x", 0.9, "true"), ("y", 0.1, "rumour"))
    other = values(("x", 0.35, "true"), ("y", 0.65, "rumour"))
    got, bins = value_figures([one, other], 0.1)
    assert got["ece"] == pytest.approx(0.375)
    assert [b["rows"] for b in bins] == [1, 1, 1, 1]
    distance = 0.9 * math.log(0.9 / 0.35) + 0.1 * math.log(0.1 / 0.65)
    assert got["kl_to_ideal"] == pytest.approx(distance / 2)
    assert got["confident_false"] == 0.5
    assert value_figures([one], 0.0)[0]["kl_to_ideal"] == pytest.approx(-math.log(0.9))


def test_values_of_no_source_have_no_calibration():
    """Evenly spread over two: log 2 nats of entropy; no truth, so neither ECE nor a distance to an ideal."""
    got, bins = value_figures([values(("x", 0.5, "unsupported"), ("y", 0.5, "unsupported"))], 0.1)
    assert got["value_entropy"] == pytest.approx(math.log(2))
    assert got["confident_false"] == 1.0
    assert "ece" not in got
    assert "kl_to_ideal" not in got
    assert bins == []
    assert value_figures([{}], 0.1) == ({}, [])


@pytest.mark.parametrize(
    ("candidates", "words"),
    [
        ("a", "row 1: candidates is 'a'; give a list of continuations"),
        ([], "row 1: candidates is"),
        ([" a", " a"], "row 1: the candidates repeat a text"),
    ],
)
def test_candidates_that_are_none(candidates, words):
    with pytest.raises(UserError, match=words):
        candidates_of([{**ROW, "candidates": candidates}], answer, get_reward("exact"))


def test_a_candidate_that_begins_with_another_counts_twice_and_is_refused():
    (found,) = candidates_of([{**ROW, "candidates": [" a", " a b"]}], answer, get_reward("exact"))
    with pytest.raises(UserError, match="begins with the candidate"):
        laws_of(tiny_model(), tiny_tokenizer(), ["1 2"], [found], [PLAIN], batch_size=2)
