"""Configuration of NarLM, the nonlinear autoregressive language model with attention of arXiv:2602.00426.

The names are Hugging Face's; the paper's letters are beside them. This file, ``modeling_narlm.py`` and
``versions_narlm.py`` are saved with every model, so they import nothing of this package but each other.
"""

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

POSITION_EMBEDDING_TYPES = ("rope", "learned", "sinusoidal")
NORM_TYPES = ("layernorm", "rmsnorm")
# FFN type -> the nonlinearities sigma that make it what it is called in (17).
FFN_ACTIVATIONS = {
    "gelu": ("gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu_python"),
    "swiglu": ("silu", "swish"),
}
# Written into every config: a folder saved by one head then also loads, from its own code files, with another.
AUTO_MAP = {
    "AutoConfig": "configuration_narlm.NarLMConfig",
    "AutoModel": "modeling_narlm.NarLMModel",
    "AutoModelForCausalLM": "modeling_narlm.NarLMForCausalLM",
    "AutoModelForSequenceClassification": "modeling_narlm.NarLMForSequenceClassification",
    "AutoModelForTokenClassification": "modeling_narlm.NarLMForTokenClassification",
}

_LLAMA_LIKE = {
    "norm_type": "rmsnorm",
    "ffn_type": "swiglu",
    "mlp_bias": False,
    "output_bias": False,
}
_GPT2 = {
    "vocab_size": 50257,
    "max_position_embeddings": 1024,
    "position_embedding_type": "learned",
    "hidden_act": "gelu_new",
    "attention_bias": True,
    "output_bias": False,
    "tie_word_embeddings": True,
    "bos_token_id": 50256,
    "eos_token_id": 50256,
}
PRESETS: dict[str, dict] = {
    # Learns the embedded world in two minutes on two CPU cores.
    "nano": {
        "vocab_size": 640,
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
        "initializer_range": 0.08,
        "tie_word_embeddings": True,
        **_LLAMA_LIKE,
        "output_bias": True,
    },
    "micro": {
        "vocab_size": 4096,
        "hidden_size": 256,
        "intermediate_size": 768,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "max_position_embeddings": 1024,
        "initializer_range": 0.05,
        "tie_word_embeddings": True,
        **_LLAMA_LIKE,
        "output_bias": True,
    },
    # GPT-2's shapes; weights come from `pipeline.model.conversion.from_gpt2`.
    "gpt2-124m": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, **_GPT2},
    "gpt2-355m": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, **_GPT2},
    # The shapes of small open Llama-type models.
    "llama-like-160m": {
        "vocab_size": 32000,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "max_position_embeddings": 2048,
        **_LLAMA_LIKE,
    },
    "llama-like-1b": {
        "vocab_size": 128256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "tie_word_embeddings": True,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        **_LLAMA_LIKE,
    },
}


@strict
class NarLMConfig(PreTrainedConfig):
    r"""Shape of a NarLM. The defaults are the paper's choices: pre-LN LayerNorm (13), RoPE (14), GELU (17), b_out (7).

    Args:
        vocab_size: V.
        hidden_size: d, the width of the hidden state.
        intermediate_size: rows of W in (17); 4d for GELU and about 8d/3 for SwiGLU when not given.
        num_hidden_layers: L.
        num_attention_heads: n_head.
        num_key_value_heads: heads of keys and values; each serves n_head / num_key_value_heads query heads.
        head_dim: d_h; d / n_head when not given.
        position_embedding_type: "rope" (R_u in (14)), "learned" (the matrix P of Appendix A, remark iv) or
            "sinusoidal" (p_t of remark i); the last two are added to the token embeddings.
        norm_type: "layernorm" or "rmsnorm".
        ffn_type: "gelu" or "swiglu".
        hidden_act: sigma of (17); exact GELU or SiLU when not given.
        sliding_window: Delta, the number of tokens a window layer attends to, the current one included; None for all.
        layer_types: one of "full_attention" and "sliding_attention" a layer; every layer has the window when only
            ``sliding_window`` is given.
        max_position_embeddings: longest sequence; with learned positions a hard limit.
        attention_bias: biases on W_Q, W_K, W_V and W_O.
        mlp_bias: b_1 and b_2 of (17).
        output_bias: b_out of (7).
        tie_word_embeddings: W_out = W_emb^T.
        norm_eps: epsilon of the normalisations.
        attention_dropout: dropout on the attention weights (15) in training.
        initializer_range: standard deviation of the normal initialisation of every matrix.
        rope_parameters: ``{"rope_type": ..., "rope_theta": ...}`` as in transformers; only with "rope".

    Raises:
        ValueError: a combination that means nothing, with what to change.
    """

    model_type = "narlm"
    keys_to_ignore_at_inference = ["past_key_values", "cache"]  # either name, as transformers 5.24 renamed it
    base_model_tp_plan = {
        "layers.*.self_attn.q_proj": "colwise",
        "layers.*.self_attn.k_proj": "colwise",
        "layers.*.self_attn.v_proj": "colwise",
        "layers.*.self_attn.o_proj": "rowwise",
        "layers.*.mlp.gate_proj": "colwise",
        "layers.*.mlp.up_proj": "colwise",
        "layers.*.mlp.down_proj": "rowwise",
    }
    base_model_pp_plan = {
        "embed_tokens": (["input_ids"], ["inputs_embeds"]),
        "layers": (["hidden_states", "attention_mask"], ["hidden_states"]),
        "norm": (["hidden_states"], ["hidden_states"]),
    }

    vocab_size: int = 32000
    hidden_size: int = 768
    intermediate_size: int | None = None
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    position_embedding_type: str = "rope"
    norm_type: str = "layernorm"
    ffn_type: str = "gelu"
    hidden_act: str | None = None
    sliding_window: int | None = None
    layer_types: list[str] | None = None
    max_position_embeddings: int = 2048
    attention_bias: bool = False
    mlp_bias: bool = True
    output_bias: bool = True
    tie_word_embeddings: bool = False
    norm_eps: float = 1e-5
    attention_dropout: float | int = 0.0
    initializer_range: float = 0.02
    rope_parameters: dict | None = None
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __post_init__(self, **kwargs):
        if self.intermediate_size is None:
            # A gated FFN has three matrices, so 8d/3 (rounded up to 64) keeps the cost of 4d with two.
            self.intermediate_size = (
                4 * self.hidden_size if self.ffn_type == "gelu" else -(-8 * self.hidden_size // (3 * 64)) * 64
            )
        if self.head_dim is None and self.num_attention_heads > 0:
            self.head_dim = self.hidden_size // self.num_attention_heads
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.hidden_act is None and self.ffn_type in FFN_ACTIVATIONS:
            self.hidden_act = FFN_ACTIVATIONS[self.ffn_type][0]
        if self.layer_types is None:
            kind = "full_attention" if self.sliding_window is None else "sliding_attention"
            self.layer_types = [kind] * self.num_hidden_layers
        if self.position_embedding_type != "rope":
            if self.rope_parameters or kwargs.get("rope_scaling"):
                raise ValueError(
                    f"rope_parameters were given but position_embedding_type is {self.position_embedding_type!r}: "
                    "remove them or set position_embedding_type='rope'."
                )
            kwargs.pop("rope_theta", None)
        kwargs.setdefault("auto_map", dict(AUTO_MAP))
        super().__post_init__(**kwargs)
        if self.position_embedding_type != "rope":
            self.rope_parameters = None  # the base class fills in the default
            self.base_model_pp_plan = None  # a later stage would add the positions to its input again
        if self.ffn_type == "gelu":
            plan = type(self).base_model_tp_plan
            self.base_model_tp_plan = {name: how for name, how in plan.items() if "gate_proj" not in name}
        self.validate_architecture()  # here too: an error that @strict meets is wrapped and no longer a ValueError

    def validate_architecture(self):
        """Every rule between fields; run when a config is made and, by ``@strict``, when it is saved."""
        for name, allowed in (
            ("position_embedding_type", POSITION_EMBEDDING_TYPES),
            ("norm_type", NORM_TYPES),
            ("ffn_type", tuple(FFN_ACTIVATIONS)),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}: choose one of {', '.join(allowed)}.")
        for name in (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_attention_heads",
            "num_key_value_heads",
            "max_position_embeddings",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least 1.")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_key_value_heads ({self.num_key_value_heads}) must divide num_attention_heads "
                f"({self.num_attention_heads}): each key-value head serves the same number of query heads."
            )
        if self.head_dim < 1:
            raise ValueError(
                f"hidden_size ({self.hidden_size}) is smaller than num_attention_heads ({self.num_attention_heads}): "
                "set head_dim or use fewer heads."
            )
        if self.position_embedding_type == "rope" and self.head_dim % 2:
            raise ValueError(
                f"RoPE rotates pairs of coordinates, but head_dim is {self.head_dim}: make it even, or set "
                "position_embedding_type to 'learned' or 'sinusoidal'."
            )
        if self.position_embedding_type == "sinusoidal" and self.hidden_size % 2:
            raise ValueError(
                f"sinusoidal positions are pairs of sine and cosine, but hidden_size is {self.hidden_size}: "
                "make it even."
            )
        if self.hidden_act not in FFN_ACTIVATIONS[self.ffn_type]:
            raise ValueError(
                f"hidden_act {self.hidden_act!r} does not make a {self.ffn_type} feed-forward layer: choose one of "
                f"{', '.join(FFN_ACTIVATIONS[self.ffn_type])}, or another ffn_type."
            )
        if "sliding_attention" in self.layer_types and self.sliding_window is None:
            raise ValueError("layer_types has 'sliding_attention' but sliding_window is None: set the window length.")
        if self.sliding_window is not None:
            if self.sliding_window < 1:
                raise ValueError(
                    f"sliding_window is {self.sliding_window}: it counts the current token, so at least 1."
                )
            if self.layer_types and "sliding_attention" not in self.layer_types:
                raise ValueError(
                    f"sliding_window is {self.sliding_window} but no layer in layer_types is 'sliding_attention': "
                    "remove the window or name the layers that have it."
                )
        if len(self.layer_types) != self.num_hidden_layers:
            raise ValueError(
                f"layer_types names {len(self.layer_types)} layers but num_hidden_layers is {self.num_hidden_layers}: "
                "make them agree, or leave layer_types out."
            )
        if extra := set(self.layer_types) - {"full_attention", "sliding_attention"}:
            raise ValueError(
                f"layer_types has {', '.join(sorted(extra))}: choose 'full_attention' or 'sliding_attention'."
            )
        rope = self.rope_parameters or {}
        if any(isinstance(value, dict) for value in rope.values()):
            raise ValueError(
                "rope_parameters are nested by layer type: give one set of rope_parameters for all layers."
            )
        rope_types = ("default", *ROPE_INIT_FUNCTIONS)
        if rope.get("rope_type", "default") not in rope_types:
            raise ValueError(f"rope_type {rope['rope_type']!r} is unknown: choose one of {', '.join(rope_types)}.")
        if rope.get("partial_rotary_factor", 1.0) != 1.0:
            raise ValueError(
                f"partial_rotary_factor is {rope['partial_rotary_factor']}: (14) rotates the whole head; remove it."
            )
        if not 0.0 <= self.attention_dropout < 1.0:
            raise ValueError(f"attention_dropout is {self.attention_dropout}: it must be in [0, 1).")
        if not self.initializer_range > 0.0:
            raise ValueError(f"initializer_range is {self.initializer_range}: it must be positive.")

    @classmethod
    def from_preset(cls, name: str, **overrides) -> "NarLMConfig":
        """A named shape, e.g. ``from_preset("nano", vocab_size=1000)``; ``PRESETS`` lists them."""
        if name not in PRESETS:
            raise ValueError(f"no preset {name!r}: choose one of {', '.join(PRESETS)}.")
        return cls(**{**PRESETS[name], **overrides})

    def parameter_count(self, embeddings: bool = True) -> int:
        """Parameters of ``NarLMForCausalLM``, by formula.

        Args:
            embeddings: count W_emb, the learned position matrix P and an untied W_out too.
        """
        D, F, V = self.hidden_size, self.intermediate_size, self.vocab_size
        Q = self.num_attention_heads * self.head_dim
        KV = self.num_key_value_heads * self.head_dim
        norm = D if self.norm_type == "rmsnorm" else 2 * D
        attention = 2 * D * Q + 2 * D * KV + self.attention_bias * (Q + 2 * KV + D)
        up = 1 if self.ffn_type == "gelu" else 2
        ffn = (up + 1) * D * F + self.mlp_bias * (up * F + D)
        count = self.num_hidden_layers * (attention + ffn + 2 * norm) + norm + self.output_bias * V
        if embeddings:
            count += V * D * (1 if self.tie_word_embeddings else 2)
            count += self.max_position_embeddings * D * (self.position_embedding_type == "learned")
        return count

    def flops_per_token(self, context_length: int, training: bool = False) -> int:
        """FLOPs a token of a forward pass over ``context_length`` tokens (2 a multiply-add), averaged, by formula.

        Matrix products only. Scores and weighted sums are counted as dense attention does them, masked entries
        too: ``4 * context_length * n_head * d_h`` a layer. A training step costs three times as much.
        """
        D, F = self.hidden_size, self.intermediate_size
        Q = self.num_attention_heads * self.head_dim
        KV = self.num_key_value_heads * self.head_dim
        matrices = 2 * D * Q + 2 * D * KV + (2 if self.ffn_type == "gelu" else 3) * D * F
        layer = 2 * matrices + 4 * context_length * Q
        forward = self.num_hidden_layers * layer + 2 * self.vocab_size * D
        return 3 * forward if training else forward


__all__ = ["PRESETS", "NarLMConfig"]
