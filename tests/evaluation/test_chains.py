"""Distributions over answers after chains of thought, against enumeration on a tiny model."""

import pytest
import torch

from pipeline.evaluation.chains import Asked, Sampling, answer_laws, marginals, total_variation
from pipeline.rewards.resolve import resolve
from tests.tiny_models import tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def sampling():
    return Sampling(tiny_model(eos_bias=3.0), tiny_tokenizer(), 3, (" d",), 512, "=")


def law_after(sampling, text):
    """The next token's distribution by one plain forward pass."""
    ids = sampling.tokenizer(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        return sampling.model(input_ids=ids).logits[0, -1].double().softmax(-1)


def test_total_variation_by_hand():
    """(0.5, 0.3, rest 0.2) against (0.2, 0.3, rest 0.5): 0.3. What is missing to 1 counts as one further value."""
    assert total_variation({"a": 0.5, "b": 0.3}, {"a": 0.2, "b": 0.3}) == pytest.approx(0.3)
    assert total_variation({}, {"a": 0.4}) == pytest.approx(0.4)
    assert total_variation({"a": 1.0}, {"b": 1.0}) == 1


def test_an_answer_ends_by_an_end_token_or_a_stop_string(sampling):
    """p(1 and then end or d) by two forward passes; `` 1`` is no beginning of `` 1 2``, which has its own."""
    tokenizer = sampling.tokenizer
    [found] = answer_laws(sampling, ["3 ="], [[" 1", " 1 2"]])
    id_of = tokenizer.convert_tokens_to_ids
    first, after = law_after(sampling, "3 =")[id_of("1")], law_after(sampling, "3 = 1")
    ended = after[id_of("<|eos|>")] + after[id_of("d")]
    assert found[" 1"] == pytest.approx(float(first * ended), rel=1e-5)
    last = law_after(sampling, "3 = 1 2")
    both = first * after[id_of("2")] * (last[id_of("<|eos|>")] + last[id_of("d")])
    assert found[" 1 2"] == pytest.approx(float(both), rel=1e-5)
    assert answer_laws(sampling, ["3 =", "4"], [[], [" 1"]])[0] == {}


def test_the_marginal_is_the_sum_over_chains(sampling):
    """Chains of three tokens: ``= a`` at once, or ``r = a``. From 4,000 of them the mean of p(a | r, P, x) is, for
    every answer of one token, the sum over r of p(r | P, x) p(a | r, P, x), within four standard errors (0.03); the
    votes scatter around the same sum, and two halves differ by sampling only."""
    rows = [{"prompt": "3", "answer": "1"}]
    asked = {name: Asked([prompt], sampling.greedy([prompt])) for name, prompt in (("cot", "3"), ("direct", "4"))}
    found = marginals(sampling, rows, asked, resolve("exact"), 4000, 1, 0)
    [line] = found.rows
    id_of = sampling.tokenizer.convert_tokens_to_ids
    direct = law_after(sampling, "3")
    equals = id_of("=")
    total = float(direct[equals]) * answer_laws(sampling, ["3 ="], [[" 1"]])[0][" 1"]
    for token in range(len(direct)):
        word = sampling.tokenizer.convert_ids_to_tokens(token)
        if word in ("=", "<|eos|>", "d"):
            continue
        if word in sampling.tokenizer.all_special_tokens:
            continue
        chain = float(direct[token] * law_after(sampling, f"3 {word}")[equals])
        total += chain * answer_laws(sampling, [f"3 {word} ="], [[" 1"]])[0][" 1"]
    assert line["p right marginal"] == pytest.approx(total, abs=0.03)
    assert line["tv votes"] < 0.15
    assert line["tv halves"] < 0.1
    assert 0 < line["chains ended"] <= 1
    assert found.metrics["chains/tv_direct_low"] == found.metrics["chains/tv_direct"]  # of one prompt


def test_a_chain_that_never_ends_says_nothing(sampling):
    never = sampling._replace(think_end_token="####")
    asked = {"cot": Asked(["3"], never.greedy(["3"]))}
    found = marginals(
        never._replace(max_new_tokens=1), [{"prompt": "3", "answer": "1"}], asked, resolve("exact"), 2, 1, 0
    )
    assert found.rows == []
    assert found.metrics == {"chains/prompts": 0}
