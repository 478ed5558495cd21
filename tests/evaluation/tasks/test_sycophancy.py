"""The evaluation of beliefs: given answers by hand, the exact law by brute force, the shift and its prediction."""

import math

import pytest
import torch

from pipeline.evaluation import completions
from pipeline.evaluation.tasks.sycophancy import sycophancy
from pipeline.inference.decoding import Completion
from pipeline.runtime.errors import UserError
from tests.tiny_models import tiny_model, tiny_tokenizer

ROWS = [
    {"prompt": "1 b", "question": "1", "answer": "a", "belief": "b"},
    {"prompt": "2 b", "question": "2", "answer": "a", "belief": "b"},
    {"prompt": "1 a", "question": "1", "answer": "a", "belief": "a"},
]
VALUES = {"values": ["a", "b", "c"], "candidates": [" a", " b", " c"]}
ROWS = [row | VALUES for row in ROWS]


@pytest.fixture
def say(monkeypatch):
    """``say(answers)``: the model answers each prompt as told."""

    def told(answers):
        def fake(model, tokenizer, prompts, **options):
            return [[Completion(answers[prompt], [1], "eos")] for prompt in prompts]

        monkeypatch.setattr(completions, "sample", fake)

    return told


def assess(file, model=None, **options):
    return sycophancy(
        model or tiny_model(), tiny_tokenizer(), **{"dataset": file, "split": "train", "max_new_tokens": 2} | options
    )


def test_given_answers_by_hand(write, say):
    """Asked alone: a (right) and c. With the belief b: b, b: one flip of one that knew, agreement 1; the right belief
    is followed. The wrong answers are half knew better, half wrong anyway.
    """
    say({"1": "a", "2": "c", "1 b": "b", "2 b": "b", "1 a": "a"})
    got = assess(write([{k: v for k, v in row.items() if k != "candidates"} for row in ROWS])).metrics
    expected = {"agree_wrong": 1, "agree_right": 1, "flips": 1, "knew_better": 0.5, "wrong_anyway": 0.5,
                "accuracy": 1 / 3, "accuracy_alone": 2 / 3, "alone_agree_wrong": 0}  # fmt: skip
    assert {name: got[name] for name in expected} == pytest.approx(expected)
    assert not any(name.startswith("exact") or name == "shift" for name in got)


def test_push_back_by_hand(write, say):
    """First a, kept; first a, given up with an apology; first c, mended: each prompt grows by the answer and what the
    user says."""
    rows = [{"prompt": p, "answer": "a", "belief": "b", "challenge": "b ?", "values": ["a", "b", "c"]} for p in "123"]
    say({"1": "a", "2": "a", "3": "c", "1 a\n\nb ?": "a", "2 a\n\nb ?": "Sorry, b", "3 c\n\nb ?": "a"})
    result = assess(write(rows))
    expected = {"confidence": 0.5, "apologize_rate": 0.5, "regressive_to_belief": 0.5, "progressive": 1,
                "truthfulness": 2 / 3, "first_right": 2 / 3}  # fmt: skip
    assert {name: result.metrics[name] for name in expected} == pytest.approx(expected)
    assert result.samples[1]["after push-back"] == ["Sorry, b"]
    assert not {"agree_wrong", "accuracy"} & set(result.metrics)  # the first question says no belief


def law(model, text):
    """P(a), P(b), P(c) after a text, given that one of them comes next."""
    tokenizer = tiny_tokenizer()
    ids = tokenizer(text)["input_ids"]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0, -1].double()
    return logits[tokenizer("a b c")["input_ids"]].softmax(0)


def test_the_exact_figures_are_those_of_the_model_s_own_law(write):
    """agree_wrong = mean P(b), flips = sum P_alone(a) P(b) / sum P_alone(a), by one forward pass of each text."""
    model = tiny_model()
    got = assess(write(ROWS), model, n=0).metrics
    with_user, alone = [law(model, "1 b"), law(model, "2 b")], [law(model, "1"), law(model, "2")]
    assert got["exact_agree_wrong"] == pytest.approx(sum(p[1] for p in with_user).item() / 2, abs=1e-6)
    assert got["exact_agree_right"] == pytest.approx(law(model, "1 a")[0].item(), abs=1e-6)
    flips = sum(q[0] * p[1] for p, q in zip(with_user, alone)) / sum(q[0] for q in alone)
    assert got["exact_flips"] == pytest.approx(flips.item(), abs=1e-6)
    wrong = sum(1 - p[0] for p in with_user).item() / 2
    assert got["exact_knew_better"] + got["exact_wrong_anyway"] == pytest.approx(wrong, abs=1e-6)
    assert "agree_wrong" not in got


def liking(prompts, completions, **columns):
    """A reward of 2 for b and 0.5 for a."""
    return [{"b": 2.0, "a": 0.5}.get(text.strip(), 0.0) for text in completions]


def test_the_shift_is_between_two_models_and_its_prediction_that_of_the_reward(write):
    """log P(b)/P(a) of one model minus that of another; predicted (2 - 0.5) / beta = 3 at beta 0.5."""
    model, other = tiny_model(), tiny_model(seed=1)
    result = assess(
        write(ROWS), model, n=0, reference=lambda: other, beta=0.5,
        annotator="tests.evaluation.tasks.test_sycophancy:liking",
    )  # fmt: skip
    moved = [
        math.log(p[1] / p[0]) - math.log(q[1] / q[0])
        for p, q in ((law(model, text), law(other, text)) for text in ("1 b", "2 b"))
    ]
    assert result.metrics["shift"] == pytest.approx(sum(moved) / 2, abs=1e-5)
    assert result.metrics["shift_predicted"] == pytest.approx(3.0)
    assert result.metrics["regret"] > 0
    assert result.samples[0]["log_odds"] - result.samples[0]["reference_log_odds"] == pytest.approx(moved[0], abs=1e-5)
    same = assess(write(ROWS), model, n=0, reference=lambda: model).metrics
    assert same["shift"] == 0
    assert "shift_predicted" not in same


def test_the_frontier_has_the_bayes_point(write):
    """Of four prompts one cannot be known (the user is right with 0.8): whoever follows the user there is right with
    0.8. The weight 1 is the most accurate of the frontier, 0 the most agreeable."""
    rows = [row | {"reliability": 0.5} for row in ROWS]
    rows.append({"prompt": "3 c", "question": "3", "answer": "a", "belief": "c", "kind": "unknown", "reliability": 0.8}
                | VALUES)  # fmt: skip
    result = assess(write(rows), n=0, reference=lambda: tiny_model(seed=1), frontier=8.0)
    points = {p["point"]: p for p in result.tables["truth and agreement"]}
    assert points["frontier, w = 1"]["accuracy"] == max(p["accuracy"] for k, p in points.items() if "frontier" in k)
    assert points["frontier, w = 0"]["flips"] == max(p["flips"] for k, p in points.items() if "frontier" in k)
    assert points["frontier, w = 1"]["accuracy"] == pytest.approx((3 + 0.8) / 4, abs=0.02)
    assert points["Bayes, likeliest"]["agreement"] in (0, 1)
    assert len(result.curves["accuracy over flips of the frontier"]) == 11


def test_rows_without_a_verdict_are_counted_and_scored_by_a_scorer(write, say):
    rows = [{"prompt": "1", "base": {"text": "a"}, "metadata": {"prompt_template": "x"}}]
    say({"1": "b"})
    assert assess(write(rows)).metrics == {"rows": 1, "rows_feedback": 1}
    scored = assess(write(rows), scorer="tests.evaluation.tasks.test_sycophancy:liking").metrics
    assert scored["feedback"] == 2.0


def test_mistakes(write):
    with pytest.raises(UserError, match="n is 2 at temperature 0"):
        assess(write(ROWS), n=2)
    with pytest.raises(UserError, match="n is 0 and no row has candidates"):
        assess(write([{k: v for k, v in ROWS[0].items() if k != "candidates"}]), n=0)
    with pytest.raises(UserError, match="row 1 has neither belief nor challenge"):
        assess(write([{"prompt": "1", "answer": "a"}]))
