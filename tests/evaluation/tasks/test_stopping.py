"""Savings by hand, the pairing of completions, and every mistake of the options in one line."""

import json

import pytest

from pipeline.evaluation.tasks import stopping as module
from pipeline.evaluation.tasks.stopping import Kept, reasons, saving, stopping
from pipeline.inference.decoding import Completion, sample
from pipeline.inference.stopping import NO_STOPS, Stops
from pipeline.runtime.errors import UserError
from tests.tiny_models import tiny_model, tiny_tokenizer

FREE = [[Kept(10, 4, 2.0, "length")], [Kept(6, 2, 2.0, "eos")]]
STOPPED = [[Kept(4, 2, 2.0, "high_entropy")], [Kept(6, 2, 2.0, "eos")]]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [{"prompt": f"{i} a", "answer": "a", "values": ["a", "b"]} for i in range(4)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_savings_by_hand():
    """6 of 16 tokens are saved; 4 of 6 claims were right and 4 of 4 of those left: the loss is -1/3, none is lost."""
    got = saving(FREE, STOPPED)
    assert got["tokens_saved"] == pytest.approx(6 / 16)
    assert (got["accuracy"], got["accuracy_lost"]) == (1, pytest.approx(-1 / 3))
    assert got["right_claims_lost"] == 0
    worse = saving(FREE, [[Kept(4, 1, 0.0, "repetition")], FREE[1]])  # 2 of 3 are right, and half of the 4 is gone
    assert (worse["accuracy_lost"], worse["right_claims_lost"]) == (pytest.approx(0), pytest.approx(0.5))
    assert saving(FREE, FREE)["tokens_saved"] == 0
    assert "accuracy" not in saving([[Kept(3, 0, 0.0, "eos")]], [[Kept(1, 0, 0.0, "repetition")]])


def test_reasons_by_hand():
    ended, stopped = reasons(FREE, STOPPED)
    assert ended == {
        "reason": "eos", "completions": 0.5, "tokens saved": 0, "accuracy kept": 1, "accuracy cut": None,
    }  # fmt: skip
    assert stopped == {
        "reason": "high_entropy", "completions": 0.5, "tokens saved": pytest.approx(0.6), "accuracy kept": 1,
        "accuracy cut": 0,
    }  # fmt: skip


def test_a_stopped_completion_is_the_beginning_of_the_other():
    """The same random numbers with and without a rule: what is compared is what was cut."""
    model, tokenizer = tiny_model(), tiny_tokenizer()
    free, stopped = (
        sample(model, tokenizer, ["1 a", "2 b"], n=3, max_new_tokens=24, seed=5, stops=stops)
        for stops in (NO_STOPS, Stops(high_entropy=(0.3, 3)))
    )
    pairs = [(a.token_ids, b.token_ids) for x, y in zip(free, stopped) for a, b in zip(x, y)]
    assert all(a[: len(b)] == b for a, b in pairs)
    assert any(len(b) < len(a) for a, b in pairs)


def test_figures_of_the_evaluation(file, monkeypatch):
    """Four prompts, without rules `b a a` (one of two values right), with repetition `b`: the right claim is lost."""
    seen = []

    def fake(model, tokenizer, prompts, *, stops, seed, **options):
        seen.append(seed)
        said = ("b", [1], "repetition") if stops.repetition else ("b and a", [1, 1, 1], "eos")
        return [[Completion(*said)] for _ in prompts]

    monkeypatch.setattr(module, "sample", fake)
    result = stopping(
        None,
        None,
        dataset=file,
        split="train",
        claims="answer",
        rules={"repetition": [[4, 2]], "eos_probability": [0.5]},
    )
    got = result.metrics
    assert (got["tokens"], got["accuracy"]) == (3, pytest.approx(0.5))
    assert got["repetition 4 2/tokens_saved"] == pytest.approx(2 / 3)
    assert got["repetition 4 2/accuracy_lost"] == pytest.approx(0.5)
    assert got["repetition 4 2/right_claims_lost"] == 1
    assert got["eos_probability 0.5/tokens_saved"] == 0
    points = result.curves["accuracy lost over tokens saved"]
    assert [point["rule"] for point in points] == ["eos_probability 0.5", "repetition 4 2"]
    assert [row["reason"] for row in result.tables["by reason"]] == ["repetition", "eos"]
    assert len(set(seen)) == 1


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ({}, "is no rule; give lists of settings of eos_probability"),
        ({"entropy": [[0.5, 4]]}, "'entropy' is no rule"),
        ({"high_entropy": 0.5}, "high_entropy is 0.5; give a list of settings"),
        ({"high_entropy": [0.5]}, "has the setting 0.5; give a pair"),
        ({"eos_probability": [[0.5, 2]]}, r"has the setting \[0.5, 2\]; give a number"),
        ({"eos_probability": [1.5]}, "stop_eos_probability is 1.5"),
        ({"repetition": [[4, 1]]}, "stop_repetition is 4 1"),
    ],
)
def test_a_mistake_is_named_before_the_model_is_used(file, rules, words):
    with pytest.raises(UserError, match=words):
        stopping(None, None, dataset=file, split="train", rules=rules)
