"""Prompts worth training on: those that the start neither always nor never solves, easiest first if asked.

In GRPO a prompt whose answers all have the same reward has no advantage and teaches nothing. Measuring each prompt's
pass rate once, with the model the run starts from, spends a little sampling to save a lot of it.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Protocol

import datasets
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.inference.decoding import sample
from pipeline.model.policy import Policy
from pipeline.rewards.judging import Reward, score
from pipeline.rewards.resolve import weighted
from pipeline.runtime.errors import UserError
from pipeline.runtime.files import write_json
from pipeline.runtime.record import Run

if TYPE_CHECKING:
    from trl import GRPOConfig


class PrefilterFields(Protocol):
    """The fields of the stage that are read here; `grpo.GRPOArguments` says what they mean."""

    prefilter_samples: int
    curriculum: bool


def prefilter(
    run: Run,
    policy: Policy,
    dataset: datasets.Dataset,
    rewards: Sequence[Reward],
    own: PrefilterFields,
    config: "GRPOConfig",
) -> datasets.Dataset:
    """The rows that are worth sampling from in training, by ``prefilter_samples`` answers of the start to each; with 0
    of them, all.

    What was dropped goes into the run record, the pass rates into ``pass_rates.json`` in the run's folder. Under a
    curriculum the order of the rows stays: ``shuffle_dataset`` is switched off.

    Raises:
        UserError: nothing is left.
    """
    if not own.prefilter_samples:
        return dataset
    reward = weighted(rewards, config.reward_weights)
    rates = pass_rates(
        policy.model, policy.tokenizer, dataset, reward, samples=own.prefilter_samples,
        max_new_tokens=config.max_completion_length, temperature=config.temperature, seed=config.seed,
        cache=run.folder / "pass_rates.json",
    )  # fmt: skip
    kept, metrics = drop_uninformative_prompts(dataset, rates, easiest_first=own.curriculum, reward=reward)
    run.add_metrics(metrics)
    config.shuffle_dataset = config.shuffle_dataset and not own.curriculum
    return kept


def pass_rates(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dataset: datasets.Dataset,
    reward: Reward,
    *,
    samples: int,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    cache: Path,
) -> list[float | None]:
    """Mean reward of ``samples`` answers to each prompt; None where no answer could be scored.

    Computed on the main process, kept in ``cache`` so that a resumed run trains on the same prompts, and sent to all.

    Args:
        model: the policy the run starts from.
        dataset: rows with ``prompt`` and the columns that the reward reads.
        cache: a JSON file in the run's folder.
    """
    rates: list[list[float | None] | None] = [None]
    state = PartialState()
    if state.is_main_process:
        if cache.is_file():
            rates[0] = json.loads(cache.read_text())
        else:
            rows = list(dataset)
            answers = sample(
                model.to(state.device), tokenizer, [row["prompt"] for row in rows],
                n=samples, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed,
            )  # fmt: skip
            flat = [(row, answer) for row, group in zip(rows, answers) for answer in group]
            texts, ids = [answer.text for _, answer in flat], [answer.token_ids for _, answer in flat]
            scores = score(reward, [row for row, _ in flat], texts, ids)
            groups = [scores[start : start + samples] for start in range(0, len(scores), samples)]
            known = [[value for value in group if value is not None] for group in groups]
            rates[0] = [fmean(group) if group else None for group in known]
            write_json(cache, rates[0])
    broadcast_object_list(rates)
    return rates[0]


def drop_uninformative_prompts(
    dataset: datasets.Dataset, rates: list[float | None], *, easiest_first: bool, reward: Reward | None = None
) -> tuple[datasets.Dataset, dict[str, float]]:
    """The rows whose pass rate lies strictly between 0 and 1, and what was dropped.

    Args:
        rates: pass rate per row; None counts as unscorable and is dropped.
        easiest_first: order by falling pass rate (a curriculum) instead of leaving the order.
        reward: says why it gave no score, where it gave none.

    Raises:
        UserError: nothing is left.
    """
    kept = [index for index, rate in enumerate(rates) if rate is not None and 0.0 < rate < 1.0]
    if easiest_first:
        kept.sort(key=lambda index: -rates[index])
    metrics = {
        "prefilter/always_solved": sum(rate is not None and rate >= 1.0 for rate in rates),
        "prefilter/never_solved": sum(rate is not None and rate <= 0.0 for rate in rates),
        "prefilter/unscorable": sum(rate is None for rate in rates),
        "prefilter/kept": len(kept),
    }
    if not kept:
        why = reward.no_scores() if hasattr(reward, "no_scores") else None
        raise UserError(
            f"prefilter_samples: of {len(rates)} prompts {metrics['prefilter/always_solved']} are always solved, "
            f"{metrics['prefilter/never_solved']} never, {metrics['prefilter/unscorable']} cannot be scored: nothing "
            "is left to learn; " + (why or "take other prompts, more samples, or a better start")
        )
    return dataset.select(kept), metrics
