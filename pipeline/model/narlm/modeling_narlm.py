"""NarLM: the paper's transformer (Parts 1 and 3, Appendix A of arXiv:2602.00426) as a Hugging Face model.

Equation numbers beside the lines are the paper's. The paper writes columns; here vectors are rows, as in PyTorch.

Shapes, one letter for one thing:
    B batch    T tokens given    S tokens attended to (cached ones and T)    V vocabulary    D hidden (the paper's d)
    H query heads    G key-value heads    K head dim (d_h)    F feed-forward width    L layers    Delta sliding_window

Where this differs from the paper, and why:
    - a final norm follows the last layer: (13) has none, every pre-LN model needs one;
    - W_O multiplies the concatenated heads from the left, W_O[...], as the shapes demand; (14) reads LayerNorm(h);
    - RoPE pairs coordinate j with j + K/2, not 2j with 2j + 1: the same up to a fixed permutation of the head
      dimension, and what published checkpoints expect.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation import GenerationMixin
from transformers.integrations import use_kernel_forward_from_hub
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.modeling_layers import (
    GenericForSequenceClassification,
    GenericForTokenClassification,
    GradientCheckpointingLayer,
)
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS, dynamic_rope_update
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_narlm import NarLMConfig
from .versions_narlm import CACHE_NAME, CACHE_NAMES, given_cache, slice_logits_to_keep


@use_kernel_forward_from_hub("RMSNorm")
class NarLMRMSNorm(nn.Module):
    """z / sqrt(mean(z^2) + eps) * gamma: LayerNorm without mean and shift."""

    def __init__(self, hidden_size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.variance_epsilon = eps

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        # mean of squares = norm^2 / D: one reduction, and half the passes of x.pow(2).mean() in the backward
        x = hidden_states.float() if hidden_states.element_size() < 4 else hidden_states
        mean_square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square() / x.shape[-1]
        return self.weight * (x * torch.rsqrt(mean_square + self.variance_epsilon)).to(hidden_states.dtype)


class NarLMLayerNorm(nn.LayerNorm):
    """gamma * (z - mu) / sqrt(sigma^2 + eps) + beta, over the D coordinates of one token."""


NORMS = {"layernorm": NarLMLayerNorm, "rmsnorm": NarLMRMSNorm}


class NarLMRotaryEmbedding(nn.Module):
    """The angles of R_u: u theta_j for every position u, with theta_j = base^{-2(j-1)/K} or a scaled variant of it."""

    def __init__(self, config: NarLMConfig):
        super().__init__()
        self.config = config
        self.max_seq_len_cached = config.max_position_embeddings
        self.original_max_seq_len = config.max_position_embeddings
        self.rope_type = config.rope_parameters["rope_type"]
        initialise = ROPE_INIT_FUNCTIONS.get(self.rope_type, self.compute_default_rope_parameters)
        inv_freq, self.attention_scaling = initialise(config)
        self.inv_freq = nn.Buffer(inv_freq, persistent=False)
        self.original_inv_freq = nn.Buffer(inv_freq.clone(), persistent=False)

    @staticmethod
    def compute_default_rope_parameters(config: NarLMConfig, **kwargs) -> tuple[torch.Tensor, float]:
        return inverse_frequencies(config.rope_parameters["rope_theta"], config.head_dim), 1.0

    @torch.no_grad()
    @dynamic_rope_update
    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Positions (B, T) -> cosines and signed sines, each (B, T, K), in the dtype of ``x``."""
        angles = position_ids[..., None].float() * self.inv_freq.to(device=x.device, dtype=torch.float)
        cos, sin = angles.cos() * self.attention_scaling, angles.sin() * self.attention_scaling
        return torch.cat((cos, cos), dim=-1).to(x.dtype), torch.cat((-sin, sin), dim=-1).to(x.dtype)


class NarLMSinusoidalEmbedding(nn.Module):
    """p_t(2j) = sin(t / 10000^{2j/D}), p_t(2j + 1) = cos(t / 10000^{2j/D}): Appendix A, remark (i)."""

    def __init__(self, config: NarLMConfig):
        super().__init__()
        self.hidden_size = config.hidden_size
        self.inv_freq = nn.Buffer(inverse_frequencies(10000.0, config.hidden_size), persistent=False)

    def forward(self, position_ids: torch.Tensor) -> torch.Tensor:
        """(B, T) -> (B, T, D) in float32."""
        angles = position_ids[..., None].float() * self.inv_freq
        return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)


def inverse_frequencies(base: float, dim: int) -> torch.Tensor:
    """theta_j = base^{-2(j-1)/dim} for j = 1..dim/2, shape (dim/2,)."""
    return 1.0 / (base ** (torch.arange(0, dim, 2, dtype=torch.float) / dim))


def rotate(x: torch.Tensor, cos: torch.Tensor, signed_sin: torch.Tensor) -> torch.Tensor:
    """R_u x for every position u: x (B, H, T, K), cos and signed_sin (B, 1, T, K) -> (B, H, T, K).

    The coordinates j and j + K/2 form the plane that theta_j turns, so the partner of every coordinate is half a head
    away: R_u x = x cos + swap(x) sin, where the sign of the sine is minus on the first half.
    """
    half = x.shape[-1] // 2
    return x * cos + torch.cat((x[..., half:], x[..., :half]), dim=-1) * signed_sin


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Unpack[TransformersKwargs],
) -> tuple[torch.Tensor, torch.Tensor]:
    """(14)-(16): query (B, H, T, K), key and value (B, G, S, K), additive mask (B, 1, T, S) -> (B, T, H, K) and the
    weights (B, H, T, S).

    The H/G query heads of one key-value head are stacked along the rows of one product, so grouped keys and values are
    never copied.
    """
    B, H, T, K = query.shape
    G, S = key.shape[1:3]
    rows = query.reshape(B, G, H // G * T, K) * scaling
    scores = torch.matmul(rows, key.transpose(2, 3)).view(B, H, T, S)  # (14)
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = F.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)  # (15)
    weights = F.dropout(weights, p=dropout, training=module.training)
    heads = torch.matmul(weights.view(B, G, H // G * T, S), value)  # (16)
    return heads.view(B, H, T, K).transpose(1, 2), weights


class NarLMAttention(nn.Module):
    """MultiHead of (13): n_head bilinear-softmax-linear maps (14)-(16), concatenated, times W_O."""

    def __init__(self, config: NarLMConfig, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_dropout
        self.is_causal = True
        self.sliding_window = config.sliding_window if config.layer_types[layer_idx] == "sliding_attention" else None
        width, kv_width = config.num_attention_heads * self.head_dim, config.num_key_value_heads * self.head_dim
        self.q_proj = nn.Linear(config.hidden_size, width, bias=config.attention_bias)
        self.k_proj = nn.Linear(config.hidden_size, kv_width, bias=config.attention_bias)
        self.v_proj = nn.Linear(config.hidden_size, kv_width, bias=config.attention_bias)
        self.o_proj = nn.Linear(width, config.hidden_size, bias=config.attention_bias)

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        attention_mask: torch.Tensor | None = None,
        cache: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(B, T, D) -> (B, T, D) and, from eager attention, the weights (B, H, T, S)."""
        B, T = hidden_states.shape[:2]
        # q = W_Q h, k = W_K h, v = W_V h, in heads: (B, H or G, T, K)
        query = self.q_proj(hidden_states).view(B, T, -1, self.head_dim).transpose(1, 2)
        key = self.k_proj(hidden_states).view(B, T, -1, self.head_dim).transpose(1, 2)
        value = self.v_proj(hidden_states).view(B, T, -1, self.head_dim).transpose(1, 2)
        if position_embeddings is not None:
            # q_t^T R_t^T R_s k_s of (14) is the inner product of the rotated vectors
            query, key = rotate(query, *position_embeddings), rotate(key, *position_embeddings)
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)  # S_t = S_{t-1} with (k_t, v_t)

        attend: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        heads, weights = attend(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            sliding_window=self.sliding_window,
            **kwargs,
        )
        return self.o_proj(heads.reshape(B, T, -1)), weights


class NarLMFeedForward(nn.Module):
    """(17): W_2 sigma(W x + b_1) + b_2; for SwiGLU sigma is gated by a second product."""

    def __init__(self, config: NarLMConfig):
        super().__init__()
        D, width, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_proj = nn.Linear(D, width, bias=bias) if config.ffn_type == "swiglu" else None
        self.up_proj = nn.Linear(D, width, bias=bias)
        self.down_proj = nn.Linear(width, D, bias=bias)
        # GPT-2's "gelu_new" in one pass instead of eight
        self.act_fn = ACT2FN["gelu_pytorch_tanh" if config.hidden_act == "gelu_new" else config.hidden_act]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.gate_proj is None:
            return self.down_proj(self.act_fn(self.up_proj(x)))
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class NarLMDecoderLayer(GradientCheckpointingLayer):
    """One Layer^(l) of F_theta, (13)."""

    def __init__(self, config: NarLMConfig, layer_idx: int):
        super().__init__()
        norm = NORMS[config.norm_type]
        self.hidden_size = config.hidden_size
        self.input_layernorm = norm(config.hidden_size, eps=config.norm_eps)
        self.self_attn = NarLMAttention(config, layer_idx)
        self.post_attention_layernorm = norm(config.hidden_size, eps=config.norm_eps)
        self.mlp = NarLMFeedForward(config)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = False,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        cache: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        attended, _ = self.self_attn(
            self.input_layernorm(hidden_states),
            position_embeddings=position_embeddings,
            attention_mask=attention_mask,
            cache=given_cache(past_key_values, cache, kwargs),
            position_ids=position_ids,
            **kwargs,
        )
        hidden_states = hidden_states + attended  # (13), first line
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))  # (13), second line


class NarLMPreTrainedModel(PreTrainedModel):
    """What all heads share: the config, initialisation, and what transformers may do with the model."""

    config: NarLMConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["NarLMDecoderLayer"]
    _skip_keys_device_placement = list(CACHE_NAMES)
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _can_compile_fullgraph = True
    _supports_attention_backend = True
    _can_record_outputs = {"hidden_states": NarLMDecoderLayer, "attentions": NarLMAttention}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if "SinusoidalEmbedding" in type(module).__name__:
            init.copy_(module.inv_freq, inverse_frequencies(10000.0, module.hidden_size))


class NarLMModel(NarLMPreTrainedModel):
    """F_theta of (4): token indices to hidden states s_t, without the output layer."""

    def __init__(self, config: NarLMConfig):
        super().__init__(config)
        self.padding_idx = config.pad_token_id
        self.vocab_size = config.vocab_size
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, self.padding_idx)  # W_emb
        self.rotary_emb = NarLMRotaryEmbedding(config) if config.position_embedding_type == "rope" else None
        self.embed_positions = None
        if config.position_embedding_type == "learned":
            self.embed_positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        elif config.position_embedding_type == "sinusoidal":
            self.embed_positions = NarLMSinusoidalEmbedding(config)
        self.layers = nn.ModuleList(NarLMDecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = NORMS[config.norm_type](config.hidden_size, eps=config.norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        cache: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPast:
        """input_ids (B, T) -> hidden states S = F_theta(W_emb[x]) (B, T, D).

        Packed documents are distinguished by position_ids that start anew (leave attention_mask out); padded ones by a
        2D attention_mask on either side. Without position_ids a token's position counts the unmasked tokens before it.

        Raises:
            TypeError: two caches, or a cache under an unknown name.
            ValueError: both or neither of input_ids and inputs_embeds; more tokens than learned positions.
        """
        cache = given_cache(past_key_values, cache, kwargs)
        if (input_ids is None) ^ (inputs_embeds is not None):
            raise ValueError("You must specify exactly one of input_ids or inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)  # e_t = W_emb[x_t]
        T = inputs_embeds.shape[1]
        longest = self.config.max_position_embeddings if self.config.position_embedding_type == "learned" else T
        # Packed documents may fill a longer row, as the positions of each start anew.
        if longest < T and (position_ids is None or position_ids.max() >= longest):
            raise ValueError(
                f"{T} tokens were given but only {longest} positions are learned (max_position_embeddings): "
                "shorten the input."
            )

        # The masks are made before an empty cache is: packed documents are recognised without a cache only.
        mask_arguments = {
            "config": self.config,
            "inputs_embeds": inputs_embeds,
            "attention_mask": attention_mask,
            CACHE_NAME: cache,
            "position_ids": position_ids,
        }
        masks = attention_mask
        if not isinstance(attention_mask, dict):  # generate() may have made them already
            masks = {}
            if "full_attention" in self.config.layer_types:
                masks["full_attention"] = create_causal_mask(**mask_arguments)
            if "sliding_attention" in self.config.layer_types:
                masks["sliding_attention"] = create_sliding_window_causal_mask(**mask_arguments)

        if position_ids is None:
            if isinstance(attention_mask, torch.Tensor) and attention_mask.dim() == 2:
                position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -T:]
            else:
                seen = cache.get_seq_length() if cache is not None else 0
                position_ids = torch.arange(T, device=inputs_embeds.device)[None] + seen
        if use_cache and cache is None:
            cache = DynamicCache(config=self.config)

        hidden_states = inputs_embeds  # H_0 = E
        position_embeddings = None
        if self.rotary_emb is not None:
            cos, signed_sin = self.rotary_emb(hidden_states, position_ids)
            position_embeddings = cos.unsqueeze(1), signed_sin.unsqueeze(1)  # the same for every head
        else:
            hidden_states = hidden_states + self.embed_positions(position_ids).to(hidden_states)  # e_t + p_t
        for layer, layer_type in zip(self.layers, self.config.layer_types):
            hidden_states = layer(
                hidden_states,
                attention_mask=masks[layer_type],
                position_ids=position_ids,
                use_cache=use_cache,
                position_embeddings=position_embeddings,
                **{CACHE_NAME: cache},  # gradient checkpointing takes it away, by this name
                **kwargs,
            )
        return BaseModelOutputWithPast(last_hidden_state=self.norm(hidden_states), **{CACHE_NAME: cache})


class NarLMForCausalLM(NarLMPreTrainedModel, GenerationMixin):
    """The next-token distribution (8): softmax of the logits (7)."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}
    _pp_plan = {"lm_head": (["hidden_states"], ["logits"])}
    _fsdp_plan = {"lm_head": "keep_full_weight"}

    def __init__(self, config: NarLMConfig):
        super().__init__(config)
        self.model = NarLMModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=config.output_bias)  # W_out, b_out
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        cache: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CausalLMOutputWithPast:
        """input_ids (B, T) -> logits (B, T, V) and, with labels (B, T), the mean of (9) in nats per token.

        Labels are the input itself, shifted inside; -100 leaves a token out. ``logits_to_keep`` n keeps the last n
        positions only (0: all), a tensor the positions that it names.
        """
        outputs: BaseModelOutputWithPast = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            cache=cache,
            **kwargs,
        )
        logits = self.lm_head(slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep))  # (7)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)  # (9)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            **{CACHE_NAME: getattr(outputs, CACHE_NAME)},
        )


class NarLMForSequenceClassification(GenericForSequenceClassification, NarLMPreTrainedModel):
    """A linear score of the last token that is not padding; with ``num_labels=1`` the reward R_phi of Part 2."""

    def __init__(self, config: NarLMConfig):
        # The generic class would build its base through AutoModel, which asks again whether to trust remote code.
        NarLMPreTrainedModel.__init__(self, config)
        self.num_labels = config.num_labels
        self.model = NarLMModel(config)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)
        self.post_init()


class NarLMForTokenClassification(GenericForTokenClassification, NarLMPreTrainedModel):
    """A linear score of every token."""

    def __init__(self, config: NarLMConfig):
        NarLMPreTrainedModel.__init__(self, config)
        self.num_labels = config.num_labels
        self.model = NarLMModel(config)
        self.dropout = nn.Dropout(getattr(config, "classifier_dropout", None) or 0.0)
        self.score = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()


__all__ = [
    "NarLMForCausalLM",
    "NarLMForSequenceClassification",
    "NarLMForTokenClassification",
    "NarLMModel",
    "NarLMPreTrainedModel",
]
