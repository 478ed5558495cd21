"""Where a completion ends: the end-of-sequence tokens of model and tokenizer, and a chat template's end of turn."""

from typing import Any

_PROBE = "narlm probe"


def stop_token_ids(model: Any, tokenizer: Any, *, chat: bool) -> list[int]:
    """Ids at which a completion stops, sorted.

    The tokenizer's eos, the eos ids of the model's generation config (many chat models list several), and, for chat
    prompts, the token with which the chat template closes an assistant turn.
    """
    ids = {tokenizer.eos_token_id}
    listed = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ids.update(listed if isinstance(listed, list | tuple) else [listed])
    if chat:
        ids.add(end_of_turn_id(tokenizer))
    ids.discard(None)
    return sorted(ids)


def end_of_turn_id(tokenizer: Any) -> int | None:
    """The special token that the chat template writes right after an assistant's content, or None."""
    if not getattr(tokenizer, "chat_template", None):
        return None
    turn = [{"role": "user", "content": "narlm"}, {"role": "assistant", "content": _PROBE}]
    text = tokenizer.apply_chat_template(turn, tokenize=False)
    tail = text[text.rindex(_PROBE) + len(_PROBE) :] if _PROBE in text else ""
    ids = tokenizer(tail, add_special_tokens=False)["input_ids"] if tail.strip() else []
    special = [*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder]
    return ids[0] if ids and ids[0] in special else None
