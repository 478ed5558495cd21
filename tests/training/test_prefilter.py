"""Which prompts are kept, in which order, and that a resumed run keeps the same ones."""

import datasets
import pytest

from pipeline.runtime.errors import UserError
from pipeline.training.prefilter import drop_uninformative_prompts, pass_rates


def test_always_never_and_unscorable_prompts_are_dropped_and_counted():
    data = datasets.Dataset.from_dict({"prompt": list("abcdef")})
    rates = [0.0, 0.25, 1.0, 0.75, None, 0.5]
    kept, metrics = drop_uninformative_prompts(data, rates, easiest_first=False)
    assert kept["prompt"][:] == ["b", "d", "f"]
    assert metrics == {
        "prefilter/always_solved": 1, "prefilter/never_solved": 1, "prefilter/unscorable": 1, "prefilter/kept": 3
    }  # fmt: skip
    kept, _ = drop_uninformative_prompts(data, rates, easiest_first=True)
    assert kept["prompt"][:] == ["d", "f", "b"]
    with pytest.raises(UserError, match="of 2 prompts 1 are always solved, 1 never"):
        drop_uninformative_prompts(data.select([0, 2]), [0.0, 1.0], easiest_first=False)


def test_a_reward_that_scores_nothing_says_why():
    from pipeline.rewards.registry import get_reward

    reward = get_reward("numeric")
    reward(None, ["#### 1", "#### 2"], answer=["not known", "neither"])
    data = datasets.Dataset.from_dict({"prompt": ["a", "b"]})
    with pytest.raises(UserError, match=r"2 cannot be scored.*reward 'numeric' gave none of 2 .*is not one number"):
        drop_uninformative_prompts(data, [None, None], easiest_first=False, reward=reward)


def test_pass_rates_are_the_mean_reward_and_are_kept(tmp_path):
    """A reward that alternates 1, 0, None over the answers: of 4 answers to one prompt the mean is over those scored.

    Prompt a: 1, 0, None, 1 -> 2/3. Prompt b: 0, None, 1, 0 -> 1/3.
    """
    from tests.tiny_models import tiny_model, tiny_tokenizer

    calls = []

    def alternating(prompts, completions, completion_ids, answer):
        calls.append((prompts, answer))
        return [(1.0, 0.0, None)[index % 3] for index in range(len(completions))]

    data = datasets.Dataset.from_dict({"prompt": ["a b", "b a"], "answer": ["x", "y"]})
    common = {"samples": 4, "max_new_tokens": 2, "temperature": 1.0, "seed": 0, "cache": tmp_path / "rates.json"}
    model, tokenizer = tiny_model(), tiny_tokenizer()
    rates = pass_rates(model, tokenizer, data, alternating, **common)
    assert rates == pytest.approx([2 / 3, 1 / 3])
    assert calls == [(["a b"] * 4 + ["b a"] * 4, ["x"] * 4 + ["y"] * 4)]
    assert pass_rates(None, None, data, alternating, **common) == rates  # read back, nothing sampled
    assert len(calls) == 1
