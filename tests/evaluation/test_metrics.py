"""The ``evaluate.Metric`` modules: loaded by path, offline, with the figures that the evaluations give."""

from pathlib import Path

import pytest

from pipeline.evaluation import metrics
from pipeline.evaluation.claims import sampled_figures
from pipeline.evaluation.verified import verified_figures
from pipeline.objectives.statistics import (
    agreement_figures,
    bootstrap_interval,
    preference_figures,
    ratio_with_interval,
    wilson_interval,
)
from pipeline.rewards.registry import get_reward

FOLDER = Path(metrics.__file__).parent


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    import evaluate

    cache = str(tmp_path_factory.mktemp("metrics"))
    return lambda name: evaluate.load(str(FOLDER / name), cache_dir=cache)


def test_every_folder_is_a_metric_and_loads_by_path(load):
    names = sorted(path.name for path in FOLDER.iterdir() if path.is_dir() and path.name != "__pycache__")
    assert names == [
        "annotator_agreement",
        "hallucination",
        "pass_at_k",
        "preference_accuracy",
        "refusal",
        "sycophancy",
        "token_loss",
        "verified_accuracy",
    ]
    for name in names:
        assert "Examples" in load(name).inputs_description


def test_token_loss(load):
    got = load("token_loss").compute(predictions=[[-1.0, -3.0], [-2.0]])
    assert got == ratio_with_interval([4.0, 2.0], [2, 1])
    assert got["loss"] == 2.0


def test_pass_at_k(load):
    got = load("pass_at_k").compute(predictions=[[1.0, 0.0], [0.0, 0.0]], k=[1, 2])
    assert (got["pass@1"], got["pass@2"]) == (0.25, 0.5)
    assert (got["pass@2_low"], got["pass@2_high"]) == bootstrap_interval([1.0, 0.0])
    with pytest.raises(ValueError, match="pass@3 needs at least 3 samples per prompt, one has 2"):
        load("pass_at_k").compute(predictions=[[1.0, 0.0], [0.0, 0.0, 1.0]], k=[1, 3])


def test_preference_accuracy(load):
    metric = load("preference_accuracy")
    margins = [0.5, 0.0, -1.0, 2.0]
    assert metric.compute(predictions=margins) == preference_figures(margins)
    assert metric.compute(predictions=margins, true_margins=[1.0] * 4)["share_of_bayes"] == 0.625


def test_verified_accuracy(load):
    """One right by its marker, one by its last number only, one without a readable gold answer."""
    got = load("verified_accuracy").compute(
        predictions=["so 6*7 is #### 42", "about 41", "#### 3"], references=["42", "41", "three"]
    )
    assert (got["accuracy"], got["accuracy_lenient"], got["unscored"]) == (0.5, 1.0, 1)
    assert (got["accuracy_low"], got["accuracy_high"]) == wilson_interval(1, 2)
    assert (
        load("verified_accuracy").compute(predictions=[" Rome"], references=["Rome"], verifier="exact")["accuracy"]
        == 1
    )


def test_a_metric_and_the_evaluation_compute_by_one_function(load):
    """Every figure of both modules is the one that the evaluation gives of the same judgements and scores."""
    texts, gold = ["so 6*7 is #### 42", "about 41", "#### 3"], ["42", "41", "three"]
    judgements = [[j] for j in get_reward("numeric").judge(None, texts, answer=gold)]
    found = load("verified_accuracy").compute(predictions=texts, references=gold)
    assert found == verified_figures(judgements)
    scores = [[j.score for j in group] * 2 for group in judgements[:2]]
    sampled = verified_figures([group * 2 for group in judgements[:2]], k=[1, 2])
    assert {f"pass@{k}" for k in (1, 2)} <= set(sampled)
    for name, value in load("pass_at_k").compute(predictions=scores, k=[1, 2]).items():
        assert value == sampled[name], name


def test_hallucination(load):
    """One true claim; a rumour and a true one; nothing; one of no source: 2 false claims of 4, in 20 tokens."""
    metric = load("hallucination")
    labels = [[["true"], ["rumour", "true"]], [[], ["unsupported"]]]
    got = metric.compute(predictions=labels, tokens=[[5, 5], [5, 5]])
    assert got == sampled_figures(labels, [[5, 5], [5, 5]])
    assert (got["hall"], got["no_claim"], got["claims_per_100_tokens"]) == (0.5, 0.25, 20.0)
    assert metric.compute(predictions=labels)["hall"] == 0.5
    assert "hall" not in metric.compute(predictions=[[[]]])


def test_sycophancy(load):
    """One of two that were right alone repeats the belief; a first answer is kept, another given up with an apology;
    without an eligible answer a figure is missing."""
    metric = load("sycophancy")
    got = metric.compute(predictions=["belief", "truth"], beliefs=["wrong"] * 2, alone=["truth"] * 2)
    assert (got["flips"], got["agree_wrong"], got["accuracy"], got["knew_better"]) == (0.5, 0.5, 0.5, 0.5)
    pushed = metric.compute(predictions=["truth", "belief"], first=["truth"] * 2, apologies=[False, True])
    assert (pushed["confidence"], pushed["apologize_rate"], pushed["truthfulness"]) == (0.5, 0.5, 0.5)
    none = metric.compute(predictions=["other"], first=["other"])
    assert not {"confidence", "apologize_rate"} & set(none)
    with pytest.raises(ValueError, match="give beliefs"):
        metric.compute(predictions=["truth"])


def test_annotator_agreement(load):
    """3 of 4 agree. Chance: 1/2 * 1/4 + 1/2 * 3/4 = 1/2; kappa = (3/4 - 1/2) / (1/2) = 1/2. All alike: no kappa."""
    got = load("annotator_agreement").compute(predictions=["a", "a", "b", "b"], references=["a", "b", "b", "b"])
    assert (got["agreement"], got["chance"], got["kappa"]) == (0.75, 0.5, 0.5)
    assert (got["agreement_low"], got["agreement_high"]) == wilson_interval(3, 4)
    assert got["kappa_low"] <= 0.5 <= got["kappa_high"]
    assert "kappa" not in agreement_figures(["a", "a"], ["a", "a"])
    assert agreement_figures([], []) == {}


def test_refusal(load):
    """Of three unsafe prompts one is answered, of two safe ones one refused. No safe prompt, no over-refusal."""
    metric = load("refusal")
    no, yes = "I'm sorry, but I can't help with that.", "Open the lid and pour."
    labels = ["unsafe", "unsafe", "unsafe", "safe", "safe"]
    got = metric.compute(predictions=[no, yes, "", yes, no], references=labels)
    assert (got["attack_success"], got["over_refusal"]) == (pytest.approx(1 / 3), 0.5)
    assert (got["attack_success_low"], got["attack_success_high"]) == wilson_interval(1, 3)
    assert (got["refusal"], got["compliance"], got["partial_refusal"]) == (0.6, 0.4, 0.0)
    only = metric.compute(predictions=[no], references=["unsafe"], prompts=["How?"])
    assert (only["attack_success"], only["safe_prompts"]) == (0.0, 0)
    assert not any(name.startswith("over_") for name in only)
