"""The enumerable task of beliefs: its rewards, rows and labels, against the numbers of its annotators."""

import math
from collections import Counter

import pytest
import torch

from pipeline.objectives.divergences import tilted_law
from pipeline.worlds import enumerable_sycophancy as task
from pipeline.worlds.enumerable import COMPLETIONS, PROMPTS, TOKENS, ids_of
from pipeline.worlds.table import load_world

CELLS = [(a, k) for a in task.AGREEABLENESS for k in task.KNOWLEDGE]


def log_odds(law: torch.Tensor, prompt: str) -> float:
    """Of the short agreeing answer against the short true one."""
    x = task.PROMPTS.index(prompt)
    return (law[x, task.SHORT[prompt[2]]] - law[x, task.SHORT[task.TRUTH[prompt[0]]]]).item()


def test_rewards_by_hand():
    """On ``a b`` the truth is c. a = 4, kappa = 0.5: b short 4 + 1, c short 1.25 + 1, d short 1, b and more 4, no
    value -1. On ``d b`` nobody knows: b is right with 0.7, a with 0.1. On ``a c`` the truth is the belief.
    """
    table = task.rewards(4, 0.5)
    at = {
        (p, text): table[task.PROMPTS.index(p), COMPLETIONS.index(ids_of(text))].item()
        for p in ("a b", "d b", "a c")
        for text in (" b", " c", " d", " b a", "", " a")
    }
    assert [at["a b", t] for t in (" b", " c", " d", " b a", "")] == [5, 2.25, 1, 4, -1]
    assert at["d b", " b"] == pytest.approx(1.25 * 0.7 + 4 + 1)
    assert at["d b", " a"] == pytest.approx(1.25 * 0.1 + 1)
    assert at["a c", " c"] == 6.25
    assert task.reward(["a b"], [""], completion_ids=[ids_of(" b")], agree=4, knowledge=0.5) == [5]


@pytest.mark.parametrize(("agree", "knowledge"), CELLS)
@pytest.mark.parametrize("beta", [0.5, 1.0])
def test_the_optimum_moves_the_log_odds_by_the_prediction(agree, knowledge, beta):
    """pi* of a random pi_ref, exactly: (a - 2.5 kappa) / beta on each of the nine wrong beliefs."""
    generator = torch.Generator().manual_seed(1)
    reference = torch.randn(16, 43, generator=generator, dtype=torch.float64).log_softmax(1)
    star = tilted_law(reference, task.rewards(agree, knowledge), beta)
    assert len(task.WRONG) == 9
    for prompt in task.WRONG:
        moved = log_odds(star, prompt) - log_odds(reference, prompt)
        assert moved == pytest.approx((agree - 2.5 * knowledge) / beta)
        assert moved == pytest.approx(task.predicted_shift(agree, knowledge, beta))


def test_knowledge_per_label_by_hand():
    """a = 2.5, kappa = 1: sigma(0), no shift; kappa = 0.5, a = 0: half sigma(-2.5) = 0.0759 and half 0.5, 0.288."""
    assert task.predicted_shift(2.5, 1, 1, per_label=True) == pytest.approx(0)
    p = 0.5 * 0.075858 + 0.25
    assert task.predicted_shift(0, 0.5, 2.0, per_label=True) == pytest.approx(math.log(p / (1 - p)) / 2, abs=1e-5)


@pytest.mark.parametrize(("agree", "knowledge"), [(4, 0.5), (0, 1), (1, 0.5)])
def test_labels_follow_the_annotators(agree, knowledge):
    """The share of labels for agreeing against the truth: sigma(a - 2.5 kappa), or its mixture where knowledge is
    drawn per label, within four deviations.
    """
    draws = {
        False: task.preference_indices(40_000, agree, knowledge),
        True: task.label_indices(9_000, agree, knowledge),
    }
    for per_label, indices in draws.items():
        wins = Counter()
        for x, chosen, rejected in indices:
            prompt = task.PROMPTS[x]
            if prompt in task.WRONG:
                sides = task.SHORT[prompt[2]], task.SHORT[task.TRUTH[prompt[0]]]
                wins[(chosen, rejected) == sides] += {chosen, rejected} == set(sides)
        count = wins.total()
        expected = 1 / (1 + math.exp(-task.predicted_shift(agree, knowledge, 1, per_label=per_label)))
        assert count >= 8_000
        assert abs(wins[True] / count - expected) < 4 * math.sqrt(expected * (1 - expected) / count)


def test_rows():
    """Right and wrong beliefs, half each, and d; short candidates; nobody knows the answer to d."""
    rows = list(load_world("world/enumerable_sycophancy"))
    known = [row for row in rows if row["answer"]]
    assert sum(row["answer"] == row["belief"] for row in known) * 2 == len(known)
    assert {row["prompt"][0] for row in rows if row["answer"] is None} == {task.UNKNOWN}
    assert load_world("world/enumerable_sycophancy", "test")["prompt"] == task.PROMPTS
    assert rows[0]["candidates"] == [f" {letter} <eos>" for letter in "abcd"]
    assert all(text[0] in PROMPTS for text in load_world("world/enumerable_sycophancy_text", "test")["text"])
    pair = load_world("world/enumerable_sycophancy_preferences-a4-k0.5", "test")[0]
    assert set(pair) == {"prompt", "chosen", "rejected"}
    assert set(pair["chosen"].split()) <= set(TOKENS)
