"""The mean reward of a policy's samples."""

from collections.abc import Sequence
from statistics import fmean

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.evaluation.completions import complete, judge_completions, length_figures, sample_rows
from pipeline.evaluation.registry import Result
from pipeline.evaluation.rows import read_rows
from pipeline.objectives.statistics import bootstrap_interval, with_interval
from pipeline.rewards.judging import part_means
from pipeline.rewards.resolve import resolve
from pipeline.runtime.errors import UserError


def reward(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    reward: str | Sequence[str],
    reward_weights: Sequence[float] | None = None,
    max_new_tokens: int,
    n: int = 1,
    temperature: float = 1.0,
    top_p: float = 1.0,
    template: str | None = None,
    batch_size: int = 256,
    seed: int = 0,
    allow_unsafe_code_execution: bool = False,
    **data: object,
) -> Result:
    """Mean reward E[R(x, y)] of samples y ~ pi(. | x) on held-out prompts, with a bootstrap interval over prompts.

    Args:
        reward: what ``resolve`` takes, a learned reward too; of several, ``reward_parts/<name>`` is each one's mean.
        reward_weights: of several rewards, one each.
        max_new_tokens: longest completion in tokens.
        n: samples per prompt.
        temperature: 1 samples the policy itself.
        top_p: nucleus of the samples.
        template: as in ``accuracy``.
        batch_size: sequences decoded together.
        seed: random seed of the samples and the interval.
        allow_unsafe_code_execution: see ``resolve``.
        data: which rows, see ``rows.read_rows``.

    Raises:
        UserError: no completion got a reward.
    """
    rows, source = read_rows(kind="prompt", images=True, **data)
    given = resolve(reward, reward_weights, rows=rows, allow_unsafe_code_execution=allow_unsafe_code_execution)
    drawn = complete(
        model, tokenizer, rows, template=template, n=n, max_new_tokens=max_new_tokens,
        temperature=temperature, top_p=top_p, batch_size=batch_size, seed=seed,
    )  # fmt: skip
    judgements = judge_completions(given, rows, drawn)
    scores = [[j.score for j in group] for group in judgements]
    means = [fmean(known) for row in scores if (known := [s for s in row if s is not None])]
    if not means:
        raise UserError("the reward scored none of the completions: check its columns, or its messages above")
    metrics = {
        **with_interval("reward", fmean(means), bootstrap_interval(means, seed=seed)),
        **part_means(j for group in judgements for j in group),
        "prompts": len(rows),
        "unscored": sum(s is None for row in scores for s in row),
        **length_figures(drawn),
    }
    return Result(metrics, sample_rows(rows, drawn, scores), [source])
