"""A new model for pretraining: its tokenizer from the corpus, its weights from the initialisation."""

from itertools import islice
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from pipeline.model import NarLMConfig, NarLMForCausalLM
from pipeline.model.loading import load_tokenizer
from pipeline.model.tokenizer import train_tokenizer
from pipeline.runtime.errors import UserError
from pipeline.worlds import enumerable, maps

TOKENIZER_DOCUMENTS = 1_000_000  # merges settle long before; a stream never ends
WORLD_TOKENIZERS = {"world/enumerable": enumerable.tokenizer, "world/maps": maps.tokenizer}


def new_tokenizer(arguments: Any, documents: Any, folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer named, else the one an interrupted run already trained, else one trained on the documents.

    Args:
        arguments: ``PretrainArguments``: tokenizer_name, vocab_size, split_digits.
        documents: a dataset with a ``text`` column, or a stream with ``texts()``; the first million are read.
        folder: the run's output folder, where the trained tokenizer is kept from the first minute.
    """
    if arguments.tokenizer_name in WORLD_TOKENIZERS:
        return WORLD_TOKENIZERS[arguments.tokenizer_name]()
    if arguments.tokenizer_name:
        return load_tokenizer(arguments.tokenizer_name, for_training=True)
    if (folder / "tokenizer.json").is_file():
        return load_tokenizer(str(folder))
    texts = documents.texts() if hasattr(documents, "texts") else documents["text"]
    tokenizer = train_tokenizer(islice(texts, TOKENIZER_DOCUMENTS), arguments.vocab_size, arguments.split_digits)
    tokenizer.save_pretrained(folder)
    return tokenizer


def new_start(arguments: Any, documents: Any, folder: Path) -> tuple[NarLMConfig, PreTrainedTokenizerBase]:
    """Config and tokenizer of a new model, as ``policy.read_start`` reads those of one that exists.

    Args:
        arguments: ``PretrainArguments``: preset, the shape fields, max_length, and those of `new_tokenizer`.
        documents: see `new_tokenizer`.
        folder: see `new_tokenizer`.

    Raises:
        UserError: an unknown preset, or a shape that cannot be.
    """
    tokenizer = new_tokenizer(arguments, documents, folder)
    shape = arguments.shape() | {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    try:
        config = NarLMConfig.from_preset(arguments.preset, **shape) if arguments.preset else NarLMConfig(**shape)
    except (ValueError, TypeError) as error:
        raise UserError(f"the model's shape: {' '.join(str(error).split())}") from error
    config.max_position_embeddings = max(config.max_position_embeddings, arguments.max_length)
    return config, tokenizer


def build_narlm(config: NarLMConfig, attn_implementation: str | None) -> NarLMForCausalLM:
    """A NarLM of the given shape with random weights.

    Args:
        attn_implementation: eager is the fastest for small models on CPU; None lets transformers choose.
    """
    model = NarLMForCausalLM._from_config(config, attn_implementation=attn_implementation)
    model.generation_config.pad_token_id = config.pad_token_id
    return model
