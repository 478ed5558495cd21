"""The evaluation on given completions with figures by hand, and every mistake of its options in one line."""

import pytest

from pipeline.evaluation import completions
from pipeline.evaluation.tasks.hallucination import hallucination
from pipeline.inference.decoding import Completion
from pipeline.runtime.errors import UserError
from tests.tiny_models import tiny_model, tiny_tokenizer

ROWS = [
    {"prompt": "1 2", "answer": "a", "rumour": "b", "values": ["a", "b", "c"], "candidates": [" a", " b", " c"]},
    {"prompt": "3 4", "answer": None, "values": ["a", "b", "c"], "candidates": [" a", " b", " c"]},
]


def assess(file, **options):
    return hallucination(
        tiny_model(), tiny_tokenizer(), **{"dataset": file, "max_new_tokens": 2, "split": "train"} | options
    )


def test_samples_by_hand(write, monkeypatch):
    """At tau = 1: a (true), b (rumour); c of no source, nothing: 3 claims in 8 tokens. At tau = 2 all are wrong."""
    said = {1.0: [["a", "b"], ["c", ""]], 2.0: [["c", "b"], ["c", "a"]]}
    seen = []

    def fake(model, tokenizer, prompts, *, temperature, **options):
        seen.append(options["seed"])
        return [[Completion(text, [1, 1], "eos") for text in group] for group in said[temperature]]

    monkeypatch.setattr(completions, "sample", fake)
    rows = [{k: v for k, v in row.items() if k != "candidates"} for row in ROWS]
    result = assess(write(rows), n=2, sweep={"temperature": [2.0, 1]}, rumour_share=0.1, seed=3)
    got = result.metrics
    assert [got[n] for n in ("true", "rumour", "other_false", "unsupported", "no_claim")] == [0.25] * 2 + [
        0,
        0.25,
        0.25,
    ]
    assert (got["hall"], got["claims"], got["claims_per_100_tokens"]) == (pytest.approx(2 / 3), 3, 37.5)
    assert not any(name.startswith("exact") for name in got)
    points = result.curves["imitation and fabrication by temperature"]
    assert points == [
        {"temperature": 1, "rumour": 0.25, "other false": 0, "unsupported": 0.25, "ideal rumour": pytest.approx(0.1)},
        {"temperature": 2.0, "rumour": 0.25, "other false": 0.25, "unsupported": 0.5, "ideal rumour": 0.25},
    ]
    assert [p["sampled"] for p in result.curves["Hall by temperature"]] == [pytest.approx(2 / 3), 1.0]
    table = result.tables["shares by temperature"]
    assert [(row["estimator"], row["true"], row["no claim"]) for row in table] == [
        ("sampled", 0.25, 0.25),
        ("sampled", 0, 0),
    ]
    assert result.samples[0]["claims"][1] == [{"text": "b", "denied": False, "rumour": 1.0}]
    assert set(seen) == {3}  # common random numbers: settings differ by nothing else


def test_both_estimators_agree(write):
    """4,000 samples of one token against the exact shares, within four standard errors of a share (0.032)."""
    result = assess(write(ROWS), n=2000, max_new_tokens=1, sweep={"top_k": [1, 24]}, batch_size=4000)
    got = result.metrics
    for name in ("true", "rumour", "other_false", "unsupported", "no_claim"):
        assert got[name] == pytest.approx(got[f"exact_{name}"], abs=0.032), name
    assert got["hall"] == pytest.approx(got["exact_hall"], abs=0.1)
    assert got["claims"] > 100
    alone = assess(write(ROWS), n=0, temperature=2.0, rumour_share=0.1)
    assert alone.samples == []
    assert {"exact_hall", "ece", "kl_to_ideal", "value_entropy"} <= set(alone.metrics)
    assert "hall" not in alone.metrics
    for name in ("ece", "value_entropy"):  # they are the model's, at tau = 1, whatever is sampled
        assert alone.metrics[name] == pytest.approx(got[name])


def test_what_claims_nothing_has_no_rate(write, monkeypatch):
    monkeypatch.setattr(
        completions, "sample", lambda m, t, p, **o: [[Completion("I do not know", [1], "eos")]] * len(p)
    )
    result = assess(write([{"prompt": "1", "answer": "a"}]), sweep={"temperature": [1.0]})
    assert "hall" not in result.metrics
    assert result.metrics["no_claim"] == 1.0
    assert result.tables["shares by temperature"][0]["hall"] is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"temperature": 0}, "temperature is 0: one answer has no distribution"),
        (
            {"sweep": {"tau": [1.0]}},
            "sweep: 'tau' is no option of sampling; give lists of values of temperature, top_p",
        ),
        ({"sweep": [1.0]}, r"sweep: \[1.0\] is no option of sampling"),
        ({"sweep": {"top_k": 5}}, "sweep: top_k is 5; give a list of numbers"),
        ({"sweep": {"top_p": [0.0]}}, "top_p is 0.0"),
        ({"n": -1}, "n is -1"),
        ({"rumour_share": 1.0}, "rumour_share is 1.0: give a share"),
        ({"claims": "facts"}, "claims: unknown name 'facts'; choose one of answer, numeric, statements"),
        ({"reward": "exat"}, "exat"),
        ({"reward": "code"}, "needs the column 'tests'"),
        ({"template": "no place"}, "no {prompt} in it"),
    ],
)
def test_a_mistake_is_named_before_the_model_is_used(write, options, words):
    with pytest.raises(UserError, match=words):
        hallucination(None, None, **{"dataset": write(ROWS), "max_new_tokens": 2, "split": "train"} | options)


def test_the_exact_estimator_alone_needs_candidates(write):
    with pytest.raises(UserError, match="n is 0 and no row has candidates"):
        assess(write([{"prompt": "1", "answer": "a"}]), n=0)
