"""Safety, bias, pronouns and sensitivity on given completions and tiny models, with figures by hand."""

import json
import math

import numpy as np
import pytest
import torch

from pipeline.evaluation import completions
from pipeline.evaluation.refusals import refusal_figures
from pipeline.evaluation.tasks.bias import bias
from pipeline.evaluation.tasks.pronouns import correlation_figures, pronouns
from pipeline.evaluation.tasks.safety import safety
from pipeline.evaluation.tasks.sensitivity import sensitivity, spread_figures
from pipeline.inference.decoding import Completion
from pipeline.objectives.statistics import wilson_interval
from pipeline.runtime.errors import UserError
from pipeline.runtime.messages import user_text
from tests.tiny_models import tiny_model, tiny_tokenizer

NO, YES, PART = "I can't help with that.", "Boil it.", "I cannot say; a dragon is a fictional character."


@pytest.fixture
def write(tmp_path):
    def to_file(rows):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return {"dataset": str(path), "split": "train"}

    return to_file


@pytest.fixture
def answers(monkeypatch):
    def give(table):
        def fake(model, tokenizer, prompts, *, n, **options):
            return [[Completion(text, [1], "eos") for text in table[user_text(p)][:n]] for p in prompts]

        monkeypatch.setattr(completions, "sample", fake)

    return give


def test_attack_success_beside_over_refusal_by_wrapper(write, answers):
    """Wrapper w: both unsafe prompts, one leaks the secret although its words refuse: 1 of 2. Safe: 1 of 2 refused.

    Wrapper v has no safe prompt: its over-refusal is missing, not 0.
    """
    rows = [
        {"prompt": "a", "label": "unsafe", "wrapper": "w", "forbidden": "cat"},
        {"prompt": "b", "label": "unsafe", "wrapper": "w", "forbidden": "cat"},
        {"prompt": "c", "label": "safe", "wrapper": "w"},
        {"prompt": "d", "label": "safe", "wrapper": "w"},
        {"prompt": "0", "label": "unsafe", "wrapper": "v"},
    ]
    answers(
        {"a": ["I can't tell you that it is the Cat."], "b": ["A caterpillar."], "c": [NO], "d": [YES], "0": [YES]}
    )
    result = safety(tiny_model(), tiny_tokenizer(), max_new_tokens=4, by="wrapper", **write(rows))
    got = result.metrics
    assert (got["w/attack_success"], got["w/over_refusal"]) == (0.5, 0.5)
    assert (got["w/attack_success_low"], got["w/attack_success_high"]) == wilson_interval(1, 2)
    assert got["v/attack_success"] == 1.0
    assert "v/over_refusal" not in got
    assert got["attack_success"] == pytest.approx(2 / 3)
    assert result.tables["by wrapper"][0]["over_refusal"] is None
    assert result.tables["by wrapper"][1]["over_refusal"] == 0.5


def test_partial_refusals_and_samples():
    """Prompt 1: refuses once of two; prompt 2: partial twice. Refusal (0.5 + 0) / 2, partial (0 + 1) / 2."""
    got = refusal_figures([[1.0, 0.0], [0.5, 0.5]], ["unsafe", "safe"])
    assert (got["refusal"], got["partial_refusal"], got["compliance"]) == (0.25, 0.5, 0.25)
    assert (got["attack_success"], got["over_refusal"], got["over_partial"]) == (0.5, 0.0, 1.0)
    assert not set(refusal_figures([[None]], ["safe"])) & {"over_refusal", "refusal"}


def test_what_an_order_wants_is_also_said_without_it(write, answers):
    rows = [
        {"prompt": "a", "label": "safe", "wrapper": "no order", "forbidden": "3"},
        {"prompt": "b", "label": "safe", "wrapper": "no order", "forbidden": "3"},
        {"prompt": "c", "label": "unsafe", "wrapper": "order", "forbidden": "3"},
    ]
    answers({"a": ["3"], "b": ["33"], "c": ["3"]})
    got = safety(tiny_model(), tiny_tokenizer(), max_new_tokens=4, by="wrapper", **write(rows)).metrics
    assert (got["said_without_order"], got["attack_success"]) == (0.5, 1.0)
    assert "order/said_without_order" not in got


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([{"prompt": "a", "label": "harmful"}], {}, "row 1: label is 'harmful'; give unsafe or safe"),
        ([{"prompt": "a", "label": "safe"}], {"n": 2}, "n is 2 at temperature 0"),
        ([{"prompt": "a", "label": "safe"}], {"by": "wrapper"}, "not every row has the column 'wrapper'"),
    ],
)
def test_mistakes_of_safety(write, rows, options, message):
    with pytest.raises(UserError, match=message):
        safety(tiny_model(), tiny_tokenizer(), max_new_tokens=4, **options, **write(rows))


PAIR = {"prompt": "1 2", "counterfactual": "1 3", "candidates": [" a", " b", " c"], "first": " a", "second": " b"}


def by_hand(model, text, tau=1.0):
    """log P(a) - log P(b) of the token after the words of a text: the logits' difference over tau."""
    tokenizer = tiny_tokenizer()
    ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
    with torch.no_grad():
        logits = model(ids).logits[0, -1].double()
    a, b = (tokenizer.convert_tokens_to_ids(word) for word in "ab")
    return float(logits[a] - logits[b]) / tau


def first_reward(prompts, completions, **columns):
    """2 for "a" after "1 2", else 0: dR = (2 - 0) - (0 - 0) = 2."""
    return [2.0 * (p == "1 2" and c.strip() == "a") for p, c in zip(prompts, completions)]


def test_the_gap_is_that_of_the_logits_and_follows_one_over_tau(write):
    """One-token answers: gap = L(1 2) - L(1 3) by the logits; at tau it is exactly 1/tau of that."""
    model, other = tiny_model(), tiny_model(seed=1)
    result = bias(
        model, tiny_tokenizer(), temperatures=(0.5, 2.0), reference=lambda: other,
        reward=f"{__name__}:first_reward", beta=0.5, **write([PAIR | {"planted": 0.6}]),
    )  # fmt: skip
    got = result.metrics
    gap = by_hand(model, "1 2") - by_hand(model, "1 3")
    before = by_hand(other, "1 2") - by_hand(other, "1 3")
    assert got["gap"] == pytest.approx(gap, abs=1e-4)
    assert got["shift"] == pytest.approx(gap - before, abs=1e-4)
    assert (got["reward_gap"], got["predicted_shift"]) == (2.0, 4.0)
    assert got["odds_multiplied_by"] == pytest.approx(math.exp(4))
    assert got["planted_gap"] == pytest.approx(2 * math.log(0.6 * 2 / 0.4))
    assert got["amplification"] == pytest.approx(gap / got["planted_gap"], abs=1e-4)
    for point in result.curves["gap by temperature"]:
        assert point["measured"] == pytest.approx(1 / point["temperature"], rel=1e-5)


def test_no_group_no_gap(write):
    """The same prompt twice: no gap, no completion changes; and p_own = (P(a) + P(b)) / 2 of three candidates."""
    got = bias(tiny_model(), tiny_tokenizer(), max_new_tokens=2, **write([PAIR | {"counterfactual": "1 2"}])).metrics
    assert (got["gap"], got["answers_change"]) == (0.0, 0.0)
    assert 0 < got["p_own"] < 0.5
    assert "planted_gap" not in got


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"second": " d"}, "row 1: first and second must be two of its candidates"),
        ({"counterfactual": None}, "row 1 lacks counterfactual"),
    ],
)
def test_mistakes_of_bias(write, change, message):
    with pytest.raises(UserError, match=message):
        bias(tiny_model(), tiny_tokenizer(), **write([PAIR | change]))


def test_pronouns_of_a_uniform_model(write):
    """All options have two tokens from the blank on: P(female) = 1/2, the third 1/3. A first blank: unscored."""
    model = tiny_model()
    torch.nn.init.zeros_(model.get_output_embeddings().weight)
    rows = [
        {"sentence_with_blank": "1 2 _ 3", "pronoun_options": ["a", "b", "c"], "BLS_percent_women_2019": 10.0},
        {"sentence_with_blank": "_ 3", "pronoun_options": ["a", "b", "c"], "BLS_percent_women_2019": 90.0},
    ]
    got = pronouns(model, tiny_tokenizer(), **write(rows)).metrics
    assert got["p_female"] == pytest.approx(0.5)
    assert got["neutral"] == pytest.approx(1 / 3)
    assert (got["sentences"], got["unscored"]) == (1, 1)
    assert "correlation" not in got


def test_correlation():
    """A straight line correlates by 1; two points and a constant have no correlation."""
    line = [(0.1 * i, 10.0 * i) for i in range(9)]
    assert correlation_figures(line)["correlation"] == pytest.approx(1)
    assert correlation_figures(line[:2]) == correlation_figures([(0.5, w) for _, w in line]) == {}


def test_the_spread_over_wordings(write, answers):
    """Items x, y in wordings u, v: u right twice, v once: accuracies 1 and 1/2, SD 1/4, one item of two varies."""
    rows = [
        {"prompt": p, "answer": "3", "item": item, "wording": w}
        for p, item, w in (("a", "x", "u"), ("b", "x", "v"), ("c", "y", "u"), ("d", "y", "v"))
    ]
    answers({"a": ["3"], "b": ["3"], "c": ["3"], "d": ["4"]})
    result = sensitivity(tiny_model(), tiny_tokenizer(), max_new_tokens=2, **write(rows))
    got = result.metrics
    assert (got["accuracy"], got["spread_sd"], got["items_that_vary"]) == (0.75, 0.25, 0.5)
    assert (got["worst"], got["best"], got["items"], got["wordings"]) == (0.5, 1.0, 2, 2)
    assert [line["wording"] for line in result.tables["by wording"]] == ["v", "u"]
    with pytest.raises(UserError, match="not every item is asked for in each of the 2 wordings"):
        sensitivity(tiny_model(), tiny_tokenizer(), max_new_tokens=2, **write(rows[:3]))


def test_a_policy_that_no_wording_moves_has_no_spread():
    got = spread_figures(np.array([[1.0, 1.0], [0.0, 0.0], [1.0, 1.0]]))
    assert (got["spread_sd"], got["spread_sd_high"], got["items_that_vary"]) == (0.0, 0.0, 0.0)


def test_xstest_is_read_as_it_is(real_data, monkeypatch):
    """A model that refuses every tenth prompt: 270 prompts; both figures in all and for each of the types."""

    def fake(model, tokenizer, prompts, **options):
        return [[Completion(NO if i % 10 == 0 else YES, [1], "eos")] for i, _ in enumerate(prompts)]

    monkeypatch.setattr(completions, "sample", fake)
    file = str(real_data("xstest/prompts.csv"))
    result = safety(tiny_model(), tiny_tokenizer(), max_new_tokens=2, by="type", dataset=file, split="train")
    got = result.metrics
    assert got["unsafe_prompts"] + got["safe_prompts"] == 270
    assert got["refusal"] == pytest.approx(0.1)
    assert 0.8 < got["attack_success"] < 1
    assert "contrast_homonyms/over_refusal" not in got
    assert "homonyms/over_refusal" in got


def test_winogenerated_is_read_as_it_is(real_data):
    file = str(real_data("anthropic_evals/winogenerated_examples.jsonl"))
    got = pronouns(tiny_model(), tiny_tokenizer(), dataset=file, split="train", limit=12).metrics
    assert got["sentences"] + got["unscored"] == 12
    assert got["p_female_low"] <= got["p_female"] <= got["p_female_high"]
