"""Llama, Mistral, GPT-2 and Llava as NarLM, and NarLM as any of them where nothing is lost.

Weights are copied, not approximated: the logits agree to rounding. What the other architecture has no place for (an
output bias that is not zero, a window in some layers only, another FFN) is a ``UserError`` that names it.
`python -m pipeline.merge --as` is the command.
"""

import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
    MistralForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
)

from pipeline.model.narlm.configuration_narlm import FFN_ACTIVATIONS, NarLMConfig
from pipeline.model.narlm.configuration_vision_narlm import NarLMVisionConfig
from pipeline.model.narlm.modeling_narlm import NarLMForCausalLM
from pipeline.model.narlm.modeling_vision_narlm import NarLMForConditionalGeneration
from pipeline.runtime.errors import UserError

Weights = dict[str, torch.Tensor]  # a state dict
# Fields that mean the same in LlamaConfig, MistralConfig and NarLMConfig.
_SHARED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "attention_dropout",
    "tie_word_embeddings",
    "rope_parameters",
    "use_cache",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
)
# GPT2Config's field -> NarLMConfig's.
_GPT2_FIELDS = {
    "vocab_size": "vocab_size",
    "n_embd": "hidden_size",
    "n_inner": "intermediate_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_positions": "max_position_embeddings",
    "activation_function": "hidden_act",
    "layer_norm_epsilon": "norm_eps",
    "attn_pdrop": "attention_dropout",
    "initializer_range": "initializer_range",
    "tie_word_embeddings": "tie_word_embeddings",
    "use_cache": "use_cache",
    "pad_token_id": "pad_token_id",
    "bos_token_id": "bos_token_id",
    "eos_token_id": "eos_token_id",
    "dtype": "dtype",
}
# GPT-2 module -> ours, below h.i and layers.i; its Conv1D keeps weights transposed.
_GPT2_LAYER = {
    "ln_1": "input_layernorm",
    "attn.c_proj": "self_attn.o_proj",
    "ln_2": "post_attention_layernorm",
    "mlp.c_fc": "mlp.up_proj",
    "mlp.c_proj": "mlp.down_proj",
}
_GPT2_CONV = ("c_attn", "c_proj", "c_fc")
_GPT2_TOP = {
    "transformer.wte": "model.embed_tokens",
    "transformer.wpe": "model.embed_positions",
    "transformer.ln_f": "model.norm",
}


def narlm_shape(config: PretrainedConfig) -> NarLMConfig | None:
    """The config of the NarLM that computes as a NarLM's, Llama's or Mistral's does; None for another architecture."""
    if isinstance(config, NarLMConfig) or config.model_type == NarLMConfig.model_type:
        return NarLMConfig(**config.to_diff_dict())
    if isinstance(config, LlamaConfig):
        return _from_llama_config(config, attention_bias=config.attention_bias, mlp_bias=config.mlp_bias)
    if isinstance(config, MistralConfig):
        return _from_llama_config(config, sliding_window=config.sliding_window)
    return None


def from_llama(model: LlamaForCausalLM) -> NarLMForCausalLM:
    """NarLM with the weights of a Llama (RMSNorm, SwiGLU, RoPE, grouped queries)."""
    return _build(NarLMForCausalLM, narlm_shape(model.config), model.state_dict(), model)


def from_mistral(model: MistralForCausalLM) -> NarLMForCausalLM:
    """NarLM with the weights of a Mistral (as Llama, with a window Delta in every layer)."""
    return _build(NarLMForCausalLM, narlm_shape(model.config), model.state_dict(), model)


def from_gpt2(model: GPT2LMHeadModel) -> NarLMForCausalLM:
    """NarLM with the weights of a GPT-2 (LayerNorm, GELU, learned positions, biases, tied head).

    GPT-2's dropout of embeddings and residuals has no counterpart here and is left out; evaluation has none.

    Raises:
        UserError: attention not scaled by 1/sqrt(d_h), cross-attention, or an activation that is no GELU.
    """
    old = model.config
    if not old.scale_attn_weights or old.scale_attn_by_inverse_layer_idx or old.add_cross_attention:
        raise UserError(
            "this GPT-2 scales its attention by layer, not at all, or attends to an encoder: NarLM cannot hold it"
        )
    if old.activation_function not in FFN_ACTIVATIONS["gelu"]:
        raise UserError(f"this GPT-2 uses {old.activation_function}, not a GELU: NarLM cannot hold it")
    fields = {ours: getattr(old, theirs) for theirs, ours in _GPT2_FIELDS.items()}
    fields["intermediate_size"] = old.n_inner or 4 * old.n_embd
    config = NarLMConfig(position_embedding_type="learned", attention_bias=True, output_bias=False, **fields)
    return _build(NarLMForCausalLM, config, _from_gpt2_weights(model.state_dict()), model)


def _from_gpt2_weights(theirs: Weights) -> Weights:
    weights = {}
    for name, tensor in theirs.items():
        if name.startswith("transformer.h."):
            _, _, index, rest = name.split(".", 3)
            module, kind = rest.rsplit(".", 1)
            if kind == "weight" and module.endswith(_GPT2_CONV):
                tensor = tensor.T
            if module == "attn.c_attn":  # queries, keys and values in one matrix
                for part, piece in zip(("q_proj", "k_proj", "v_proj"), tensor.chunk(3, dim=0)):
                    weights[f"model.layers.{index}.self_attn.{part}.{kind}"] = piece.contiguous()
            elif module in _GPT2_LAYER:
                weights[f"model.layers.{index}.{_GPT2_LAYER[module]}.{kind}"] = tensor.contiguous()
        else:
            module, kind = name.rsplit(".", 1)
            weights[f"{_GPT2_TOP.get(module, module)}.{kind}"] = tensor
    return weights


def to_llama(model: NarLMForCausalLM) -> LlamaForCausalLM:
    """The same model as Llama.

    Raises:
        UserError: NarLM has a part that Llama lacks (another norm, FFN or position embedding, b_out, a window).
    """
    target = _llama_config(model.config)
    return _build(LlamaForCausalLM, target, _without_output_bias(model, "Llama"), model)


def _llama_config(config: NarLMConfig) -> LlamaConfig:
    _demand(
        config, "Llama", position_embedding_type="rope", norm_type="rmsnorm", ffn_type="swiglu", sliding_window=None
    )
    return LlamaConfig(
        **_shared(config), rms_norm_eps=config.norm_eps, attention_bias=config.attention_bias, mlp_bias=config.mlp_bias
    )


def to_mistral(model: NarLMForCausalLM) -> MistralForCausalLM:
    """The same model as Mistral.

    Raises:
        UserError: NarLM has a part that Mistral lacks, or a window in some layers only.
    """
    config = model.config
    _demand(
        config,
        "Mistral",
        position_embedding_type="rope",
        norm_type="rmsnorm",
        ffn_type="swiglu",
        attention_bias=False,
        mlp_bias=False,
    )
    if len(set(config.layer_types)) > 1:
        raise UserError("Mistral has the same window in every layer, but layer_types of this NarLM mixes two kinds")
    target = MistralConfig(**_shared(config), rms_norm_eps=config.norm_eps, sliding_window=config.sliding_window)
    return _build(MistralForCausalLM, target, _without_output_bias(model, "Mistral"), model)


def to_gpt2(model: NarLMForCausalLM) -> GPT2LMHeadModel:
    """The same model as GPT-2, without dropout of embeddings and residuals.

    Raises:
        UserError: NarLM has a part that GPT-2 lacks (another norm, FFN or position embedding, b_out, a window, grouped
            keys and values, no biases).
    """
    config = model.config
    _demand(
        config,
        "GPT-2",
        position_embedding_type="learned",
        norm_type="layernorm",
        ffn_type="gelu",
        attention_bias=True,
        mlp_bias=True,
        num_key_value_heads=config.num_attention_heads,
        head_dim=config.hidden_size // config.num_attention_heads,
        sliding_window=None,
    )
    fields = {theirs: getattr(config, ours) for theirs, ours in _GPT2_FIELDS.items()}
    target = GPT2Config(embd_pdrop=0.0, resid_pdrop=0.0, **fields)
    weights = _to_gpt2_weights(_without_output_bias(model, "GPT-2"), config.num_hidden_layers)
    return _build(GPT2LMHeadModel, target, weights, model)


def _to_gpt2_weights(ours: Weights, layers: int) -> Weights:
    tops = {new: old for old, new in _GPT2_TOP.items()}
    modules = {new: old for old, new in _GPT2_LAYER.items()}
    weights, projections = {}, {}
    for name, tensor in ours.items():
        if not name.startswith("model.layers."):
            module, kind = name.rsplit(".", 1)
            weights[f"{tops.get(module, module)}.{kind}"] = tensor
            continue
        _, _, index, rest = name.split(".", 3)
        module, kind = rest.rsplit(".", 1)
        if module in modules:
            transposed = kind == "weight" and modules[module].endswith(_GPT2_CONV)
            weights[f"transformer.h.{index}.{modules[module]}.{kind}"] = (
                tensor.T.contiguous() if transposed else tensor
            )
        else:
            projections[index, kind, module] = tensor
    for index in range(layers):
        for kind in ("weight", "bias"):
            parts = [projections[str(index), kind, f"self_attn.{part}_proj"] for part in "qkv"]
            joined = torch.cat(parts, dim=0)
            weights[f"transformer.h.{index}.attn.c_attn.{kind}"] = (
                joined.T.contiguous() if kind == "weight" else joined
            )
    return weights


# Fields that mean the same in LlavaConfig and NarLMVisionConfig.
_VISION = ("image_token_id", "vision_feature_layer", "vision_feature_select_strategy", "projector_hidden_act")


def from_llava(model: LlavaForConditionalGeneration) -> NarLMForConditionalGeneration:
    """NarLM that sees, with the weights of a Llava on a Llama or Mistral (an MLP projector, any encoder of patches).

    Raises:
        UserError: another text model, or an encoder with no class token, whose first patch this Llava leaves out.
    """
    old = model.config
    text = narlm_shape(old.text_config)
    if text is None:
        raise UserError(f"this Llava has a text model of type {old.text_config.model_type}: NarLM cannot hold it")
    size = old.vision_config.image_size
    with torch.no_grad():
        pixels = torch.zeros(1, 3, size, size, dtype=model.dtype, device=model.device)
        features = model.model.vision_tower(pixels).last_hidden_state.shape[1]
    patches = (size // old.vision_config.patch_size) ** 2
    full = old.vision_feature_select_strategy == "full"
    if not full and features != patches + 1:
        raise UserError(
            f"this Llava leaves out the first of {features} features, and {patches} are patches: NarLM drops what is "
            "no patch"
        )
    config = NarLMVisionConfig(
        text_config=text,
        vision_config=old.vision_config,
        image_seq_length=features if full else patches,
        projector_type="mlp",
        projector_bias=old.multimodal_projector_bias,
        dtype=old.dtype,
        **{name: getattr(old, name) for name in _VISION},
    )
    return _build(NarLMForConditionalGeneration, config, model.state_dict(), model)


def to_llava(model: NarLMForConditionalGeneration) -> LlavaForConditionalGeneration:
    """The same model as a Llava on a Llama.

    Raises:
        UserError: a linear projector, features of the encoder's output rather than of a layer, an encoder without a
            class token, or a text model that Llama has no place for.
    """
    config = model.config
    _demand(config, "Llava", projector_type="mlp")
    if config.vision_feature_layer is None:
        raise UserError("Llava reads a layer of its encoder, but vision_feature_layer of this NarLM is None")
    if config.vision_feature_select_strategy == "default" and config.vision_config.model_type.startswith("siglip"):
        raise UserError("Llava leaves out the first feature, but this NarLM's encoder has no class token")
    target = LlavaConfig(
        text_config=_llama_config(config.text_config),
        vision_config=config.vision_config,
        image_seq_length=config.image_seq_length,
        multimodal_projector_bias=config.projector_bias,
        tie_word_embeddings=config.tie_word_embeddings,
        dtype=config.dtype,
        **{name: getattr(config, name) for name in _VISION},
    )
    return _build(LlavaForConditionalGeneration, target, _without_output_bias(model, "Llava"), model)


_FROM = {"llama": from_llama, "mistral": from_mistral, "gpt2": from_gpt2}
_TO = {"llama": to_llama, "mistral": to_mistral, "gpt2": to_gpt2}


def convert(model: PreTrainedModel, target: str) -> PreTrainedModel:
    """A causal language model in another architecture, with the same logits.

    Args:
        model: a NarLM, Llama, Mistral or GPT-2; or one that sees, a NarLM or Llava.
        target: ``narlm``, ``llama``, ``mistral`` or ``gpt2``; of one that sees ``narlm`` or ``llava``.

    Raises:
        UserError: another architecture, one that the target has no place for, or the target itself.
    """
    source = model.config.model_type
    if source == "llava" and target == "narlm":
        return from_llava(model)
    if source == "narlm_vision" and target == "llava":
        return to_llava(model)
    if "llava" in (source, target) or source == "narlm_vision":
        raise UserError(f"--as {target}: of models that see, Llava becomes narlm and NarLM becomes llava")
    if source == target:
        raise UserError(f"--as {target}: the model is a {source} model already")
    if source != "narlm" and source not in _FROM:
        raise UserError(
            f"--as {target}: a {source} model cannot be converted, only {', '.join(sorted(_FROM))} and narlm; train "
            "it as it is, every stage takes any causal language model"
        )
    narlm = model if source == "narlm" else _FROM[source](model)
    return narlm if target == "narlm" else _TO[target](narlm)


def _shared(config: PretrainedConfig) -> dict[str, object]:
    return {**{name: getattr(config, name) for name in _SHARED}, "dtype": config.dtype}


def _from_llama_config(config: LlamaConfig | MistralConfig, **others: object) -> NarLMConfig:
    shared = {"mlp_bias": False, **_shared(config), **others}
    return NarLMConfig(
        **shared, norm_type="rmsnorm", ffn_type="swiglu", output_bias=False, norm_eps=config.rms_norm_eps
    )


def _demand(config: NarLMConfig | NarLMVisionConfig, target: str, **values: object) -> None:
    for name, value in values.items():
        if getattr(config, name) != value:
            raise UserError(f"{target} needs {name}={value!r}, but this NarLM has {name}={getattr(config, name)!r}")


def _without_output_bias(model: NarLMForCausalLM | NarLMForConditionalGeneration, target: str) -> Weights:
    weights = model.state_dict()
    bias = weights.pop("lm_head.bias", None)
    if bias is not None and bias.any():
        raise UserError(f"{target} has no output bias, but b_out (lm_head.bias) of this NarLM is not zero")
    return weights


def _build(
    kind: type[PreTrainedModel], config: PretrainedConfig, weights: Weights, source: PreTrainedModel
) -> PreTrainedModel:
    model = kind.from_pretrained(None, config=config, state_dict=weights, dtype=source.dtype)
    model.generation_config = source.generation_config
    return model.to(source.device)
