"""Where a completion ends. Every sampler (generate, assess, rollouts, rejection sampling, vLLM) asks `stop_token_ids`.

Three places know an end token: the tokenizer (its eos), the model's ``generation_config`` (one id or a list), and the
chat template, whose end of turn is often neither: plain ChatML over a base ends a turn with ``<|im_end|>`` while the
base's eos is ``<|endoftext|>``. `declare_stops` writes the union into ``generation_config``, from where ``generate()``
of transformers and vLLM take it.
"""

from collections.abc import Mapping
from typing import Any

from pipeline.runtime.messages import assistant_turn, is_dialogue, user_turn

_PROBE = "narlm probe"


def stop_token_ids(model: Any, tokenizer: Any, *, chat: bool) -> list[int]:
    """Ids at which a completion stops, sorted.

    The tokenizer's eos, the eos ids of the model's generation config (many chat models list several), and, for chat
    prompts, the token with which the chat template closes an assistant turn.
    """
    listed = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ids = {tokenizer.eos_token_id, *(listed if isinstance(listed, list | tuple) else [listed])}
    if chat:
        ids.add(end_of_turn_id(tokenizer))
    ids.discard(None)
    return sorted(ids)


def declare_stops(model: Any, tokenizer: Any, row: Mapping[str, Any]) -> list[int]:
    """Write the stop ids of a model that trains on rows like this one into its ``generation_config``; return them.

    A dialogue (messages in any column) adds the template's end of turn, so that the saved model stops there under
    anybody's ``generate()``.
    """
    ids = stop_token_ids(
        model,
        tokenizer,
        chat=any(is_dialogue(row.get(name)) for name in ("messages", "prompt", "completion", "chosen")),
    )
    model.generation_config.eos_token_id = ids[0] if len(ids) == 1 else ids
    model.generation_config._from_model_config = False  # else a reader may rebuild it from the model's config
    return ids


def end_of_turn_id(tokenizer: Any) -> int | None:
    """The special token that the chat template writes after an assistant's content (white space aside), or None."""
    if not getattr(tokenizer, "chat_template", None):
        return None
    turn = [*user_turn("narlm"), *assistant_turn(_PROBE)]
    text = tokenizer.apply_chat_template(turn, tokenize=False)
    tail = text[text.rindex(_PROBE) + len(_PROBE) :].strip() if _PROBE in text else ""
    ids = tokenizer(tail, add_special_tokens=False)["input_ids"] if tail else []
    special = [*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder]
    return ids[0] if ids and ids[0] in special else None
