"""Where a completion ends. Every sampler (generate, assess, rollouts, rejection sampling, vLLM) asks `stop_token_ids`.

Three places hold end tokens: the tokenizer (its eos), the model's ``generation_config`` (one id or a list), and the
chat template, whose end of turn is often neither: plain ChatML over a base ends a turn with ``<|im_end|>`` while the
base's eos is ``<|endoftext|>``. `declare_stops` writes the union into ``generation_config``, from where ``generate()``
of transformers and vLLM take it.
"""

from collections.abc import Mapping

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.model.dialogue_tokens import closing_token
from pipeline.runtime.messages import is_dialogue


def stop_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, chat: bool) -> list[int]:
    """Ids at which a completion stops, sorted.

    The tokenizer's eos, the eos ids of the model's generation config (many chat models list several), and, for chat
    prompts, the token with which the chat template closes an assistant turn.
    """
    listed = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ids = {tokenizer.eos_token_id, *(listed if isinstance(listed, list | tuple) else [listed])}
    if chat and tokenizer.chat_template:
        ids.add(closing_token(tokenizer, tokenizer.get_chat_template()))
    ids.discard(None)
    return sorted(ids)


def declare_stops(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, row: Mapping[str, object]) -> list[int]:
    """Write the stop ids of a model that trains on rows like this one into its ``generation_config``; return them.

    A dialogue (messages in any column) adds the template's end of turn, so that the saved model stops there under
    any ``generate()``.
    """
    ids = stop_token_ids(
        model,
        tokenizer,
        chat=any(is_dialogue(row.get(name)) for name in ("messages", "prompt", "completion", "chosen")),
    )
    model.generation_config.eos_token_id = ids[0] if len(ids) == 1 else ids
    model.generation_config._from_model_config = False  # else it may be rebuilt from the model's config on loading
    return ids
