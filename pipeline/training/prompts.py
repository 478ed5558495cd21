"""Prompts as the policy of a stage that samples gets them: with retrieved passages, and with room for a completion."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from pipeline.data.seen import for_rollouts
from pipeline.inference.positions import fitting
from pipeline.inference.retrieval.context import context_limit, with_passages

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from pipeline.data.loading import Data
    from pipeline.inference.retrieval.arguments import RetrievalArguments
    from pipeline.runtime.record import Run


def sampled_prompts(
    run: Run,
    data: Data,
    retrieval: RetrievalArguments,
    tokenizer: PreTrainedTokenizerBase,
    config: PretrainedConfig,
    new_tokens: int,
    tools: Sequence[Callable] | None = None,
) -> Data:
    """The data with passages in its prompts where they are asked for, without the prompts that are then too long.

    Args:
        run: reports and records what was added and what was left out.
        data: rows with a ``prompt``, text or a dialogue.
        retrieval: the stage's own options of it.
        config: the model's config.
        new_tokens: longest completion in tokens.
        tools: what the model may call; a prompt lists them.

    Raises:
        UserError: as `with_passages` and `fitting`.
    """
    data = for_rollouts(data)
    data = with_passages(run, data, retrieval, tokenizer, "prompt", context_limit(config, new_tokens))
    return fitting(run, data, tokenizer, config, new_tokens, tools)
