"""Shapes of models, for what can be computed without their weights."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.runtime.errors import UserError


@dataclass(frozen=True)
class Shape:
    """A decoder-only transformer, by the names of its config.

    Attributes:
        gated: the feed-forward block has three matrices instead of two.
        positions: rows of a learned position table (GPT-2), 0 where positions are rotated.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    tied: bool
    gated: bool = True
    positions: int = 0

    @property
    def block_weights(self) -> int:
        """Weights of one layer's matrices: queries, keys, values, output, feed-forward."""
        queries, keys = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        attention = self.hidden_size * (2 * queries + 2 * keys)
        return attention + (3 if self.gated else 2) * self.hidden_size * self.intermediate_size

    @property
    def embedding_weights(self) -> int:
        """Weights of the embedding and of the head, which may be one matrix."""
        return (1 if self.tied else 2) * self.vocab_size * self.hidden_size + self.positions * self.hidden_size

    @property
    def parameters(self) -> int:
        """All weights; norms are counted, biases (a few parts in a thousand) are not."""
        norms = (2 * self.num_hidden_layers + 1) * self.hidden_size
        return self.embedding_weights + self.num_hidden_layers * self.block_weights + norms

    @property
    def backbone_weights(self) -> int:
        """All weights but those of a head of its own."""
        return self.parameters - (0 if self.tied else self.vocab_size * self.hidden_size)

    def lora_parameters(self, rank: int) -> int:
        """Weights of a LoRA adapter on all linear layers but the head."""
        queries, keys = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        attention = 2 * (self.hidden_size + queries) + 2 * (self.hidden_size + keys)
        feed_forward = (3 if self.gated else 2) * (self.hidden_size + self.intermediate_size)
        return rank * self.num_hidden_layers * (attention + feed_forward)


# The models that configs/ and docs/ name, so that their estimate needs no network.
SHAPES = {
    "HuggingFaceTB/SmolLM2-135M": Shape(49152, 576, 1536, 30, 9, 3, 64, True),
    "HuggingFaceTB/SmolLM2-360M": Shape(49152, 960, 2560, 32, 15, 5, 64, True),
    "Qwen/Qwen3-0.6B-Base": Shape(151936, 1024, 3072, 28, 16, 8, 128, True),
    "Qwen/Qwen3-1.7B-Base": Shape(151936, 2048, 6144, 28, 16, 8, 128, True),
    "Qwen/Qwen3-4B-Base": Shape(151936, 2560, 9728, 36, 32, 8, 128, True),
    "Qwen/Qwen3-8B-Base": Shape(151936, 4096, 12288, 36, 32, 8, 128, False),
    "Qwen/Qwen3-14B-Base": Shape(151936, 5120, 17408, 40, 40, 8, 128, False),
    "Qwen/Qwen3-32B": Shape(151936, 5120, 25600, 64, 64, 8, 128, False),
    "meta-llama/Llama-3.1-70B": Shape(128256, 8192, 28672, 80, 64, 8, 128, False),
}


def shape_of(config: Mapping) -> Shape:
    """A model's shape from its ``config.json``, whatever family's names it uses.

    Raises:
        UserError: it is not a decoder whose sizes are known by these names.
    """
    config = config.get("text_config", config)
    try:
        hidden = config.get("hidden_size") or config["n_embd"]
        heads = config.get("num_attention_heads") or config["n_head"]
        old = "n_embd" in config  # GPT-2
        return Shape(
            vocab_size=config["vocab_size"],
            hidden_size=hidden,
            intermediate_size=config.get("intermediate_size") or config.get("n_inner") or 4 * hidden,
            num_hidden_layers=config.get("num_hidden_layers") or config["n_layer"],
            num_attention_heads=heads,
            num_key_value_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or hidden // heads,
            tied=bool(config.get("tie_word_embeddings", True)),
            gated=not old and config.get("ffn_type", "swiglu") in ("swiglu", "geglu"),
            positions=config.get("n_positions", 0) if old else 0,
        )
    except (KeyError, TypeError) as error:
        raise UserError(f"the model's config.json does not say its {error}: its memory cannot be estimated") from error


def shape_by_name(name: str) -> Shape:
    """The shape of a model folder, an adapter folder (its base's), or a model of the Hub.

    Raises:
        UserError: neither here, nor in the cache, nor reachable.
    """
    if name in SHAPES:
        return SHAPES[name]
    folder = Path(name)
    if (folder / "adapter_config.json").is_file():
        return shape_by_name(json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"])
    if (folder / "config.json").is_file():
        return shape_of(json.loads((folder / "config.json").read_text()))
    from huggingface_hub import hf_hub_download

    try:
        return shape_of(json.loads(Path(hf_hub_download(name, "config.json")).read_text()))
    except (OSError, ValueError) as error:
        raise UserError(f"{name}: its config.json is neither here nor on a Hub that can be reached") from error


def new_shape(given: Mapping) -> Shape:
    """The shape of a NarLM that pretraining makes of its arguments."""
    from pipeline.model import NarLMConfig

    known = NarLMConfig().to_dict()
    fields = {name: value for name, value in given.items() if name in known}
    preset = given.get("preset")
    config = NarLMConfig.from_preset(preset, **fields) if preset else NarLMConfig(**fields)
    return shape_of(config.to_dict())
