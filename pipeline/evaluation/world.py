"""The embedded world's own judgement of a completion, as a reward: what its preference pairs were drawn from."""

from typing import Any

from pipeline.data.world import true_reward as reward_of
from pipeline.evaluation.prompts import user_text
from pipeline.rewards.judging import completion_text


def true_reward(prompts: list, completions: list, **columns: Any) -> list[float]:
    """The true reward r(x, y) of each completion: 2.5 for a right answer and the reward of its style."""
    return [
        reward_of(user_text(prompt), completion_text(completion))
        for prompt, completion in zip(prompts, completions, strict=True)
    ]
