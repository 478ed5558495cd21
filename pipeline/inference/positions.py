"""How many tokens a model has positions for, which prompts leave room for a completion, and what a chat can keep."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from pipeline.model.loading import position_limit
from pipeline.model.tokens import encode_prompts
from pipeline.runtime.errors import UserError
from pipeline.runtime.messages import Message

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from pipeline.data.loading import Data
    from pipeline.runtime.record import Run


def fitting(
    run: Run,
    data: Data,
    tokenizer: PreTrainedTokenizerBase,
    config: PretrainedConfig,
    new_tokens: int,
    tools: Sequence[Callable] | None = None,
) -> Data:
    """The data without the rows whose prompt and a completion of ``new_tokens`` exceed the model's positions.

    How many those are is printed and recorded (``prompts_too_long``, ``eval_prompts_too_long``): tokens beyond the
    last position would be sampled and learned at positions that the model was never trained on.

    Args:
        run: the run that reports and records it.
        data: rows with a ``prompt``; a stream is left as it is.
        config: the model's config.
        new_tokens: longest completion in tokens.
        tools: what the model may call; a prompt lists them.

    Raises:
        UserError: no row is left to train on.
    """
    limit = position_limit(config)
    if limit is None:
        return data
    parts: dict[str, object] = {}
    for name, prefix in (("train", ""), ("evaluation", "eval_")):
        rows = getattr(data, name)
        if not rows or not hasattr(rows, "__len__"):
            continue
        lengths = [len(ids) for ids in encode_prompts(tokenizer, [row["prompt"] for row in rows], tools)]
        kept = [index for index, length in enumerate(lengths) if length + new_tokens <= limit]
        lost = len(lengths) - len(kept)
        run.add_metrics({f"{prefix}prompts_too_long": lost})
        if not lost:
            continue
        what = (
            f"{lost} of {len(lengths)} {name} prompts (the longest has {max(lengths)} tokens) and a completion of "
            f"{new_tokens} tokens do not fit into the model's {limit} positions"
        )
        if not kept and name == "train":
            raise UserError(f"{what}: no row is left; lower max_completion_length, or shorten the prompts")
        run.say(f"left out: {what}")
        places = getattr(data, f"{name}_places")
        parts |= {name: _selected(rows, kept) if kept else None, f"{name}_places": [places[i] for i in kept if places]}
    return dataclasses.replace(data, **parts)


def _selected(rows: Dataset | list, kept: Sequence[int]) -> Dataset | list:
    return rows.select(kept) if hasattr(rows, "select") else [rows[index] for index in kept]


def recent_turns(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], room: int
) -> tuple[list[Message], int]:
    """The dialogue without its oldest turns, as many as it takes to fit, and how many messages those are.

    A turn is a user's message with what follows it up to the next; the system message and the last turn stay.

    Args:
        room: tokens that the prompt may have.
    """
    kept = list(messages)
    while len(encode_prompts(tokenizer, [kept])[0]) > room:
        users = [place for place, message in enumerate(kept) if message["role"] == "user"]
        if len(users) < 2:
            break
        del kept[users[0] : users[1]]
    return kept, len(messages) - len(kept)
