"""The config: what it refuses, what its presets and formulas say."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pipeline.model import NarLMConfig, NarLMForCausalLM
from pipeline.model.narlm.configuration_narlm import PRESETS


def test_defaults_are_the_paper_s():
    """(13) LayerNorm, (14) RoPE with base 10000, (17) GELU of width 4d with biases, (7) with b_out, W_out not tied."""
    config = NarLMConfig(hidden_size=48, num_attention_heads=4)
    assert (config.norm_type, config.position_embedding_type, config.ffn_type) == ("layernorm", "rope", "gelu")
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": 10000.0}
    assert (config.hidden_act, config.intermediate_size, config.mlp_bias) == ("gelu", 192, True)
    assert (config.output_bias, config.tie_word_embeddings, config.norm_eps) == (True, False, 1e-5)
    assert (config.head_dim, config.num_key_value_heads, config.sliding_window) == (12, 4, None)


def test_derived_values():
    """SwiGLU's width is 8d/3 rounded up to 64: 128 for d = 48, 2048 for d = 768. One window means every layer."""
    assert NarLMConfig(hidden_size=48, num_attention_heads=4, ffn_type="swiglu").intermediate_size == 128
    assert NarLMConfig(hidden_size=768, ffn_type="swiglu").intermediate_size == 2048
    assert NarLMConfig(num_hidden_layers=2, sliding_window=8).layer_types == ["sliding_attention"] * 2
    assert NarLMConfig(num_hidden_layers=2).layer_types == ["full_attention"] * 2
    assert NarLMConfig(position_embedding_type="learned").rope_parameters is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"position_embedding_type": "alibi"}, "position_embedding_type is 'alibi': choose one of rope, learned"),
        ({"norm_type": "batchnorm"}, "norm_type is 'batchnorm'"),
        ({"ffn_type": "relu"}, "ffn_type is 'relu'"),
        ({"hidden_act": "silu"}, "hidden_act 'silu' does not make a gelu"),
        ({"ffn_type": "swiglu", "hidden_act": "gelu"}, "hidden_act 'gelu' does not make a swiglu"),
        ({"num_attention_heads": 12, "num_key_value_heads": 5}, "num_key_value_heads .5. must divide"),
        ({"head_dim": 7}, "head_dim is 7: make it even"),
        ({"hidden_size": 8, "num_attention_heads": 12}, "smaller than num_attention_heads"),
        (
            {"position_embedding_type": "sinusoidal", "hidden_size": 9, "num_attention_heads": 3},
            "hidden_size is 9: make it even",
        ),
        ({"layer_types": ["sliding_attention"] * 12}, "sliding_window is None: set the window length"),
        ({"sliding_window": 0}, "sliding_window is 0"),
        ({"sliding_window": 4, "layer_types": ["full_attention"] * 12}, "no layer in layer_types"),
        ({"layer_types": ["full_attention"] * 3}, "names 3 layers but num_hidden_layers is 12"),
        ({"layer_types": ["linear_attention"] * 12}, "layer_types has linear_attention"),
        ({"position_embedding_type": "learned", "rope_parameters": {"rope_theta": 1e4}}, "remove them or set"),
        ({"rope_parameters": {"rope_type": "axial", "rope_theta": 1e4}}, "rope_type 'axial' is unknown"),
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "rotates the whole head"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "one set of rope_parameters for all layers"),
        ({"attention_dropout": 1.0}, "attention_dropout is 1.0"),
        ({"initializer_range": 0.0}, "initializer_range is 0.0"),
        ({"vocab_size": 0}, "vocab_size is 0"),
    ],
)
def test_a_wrong_combination_is_a_value_error_that_says_what_to_change(options, message):
    with pytest.raises(ValueError, match=message):
        NarLMConfig(**options)


def test_round_trip(tmp_path):
    config = NarLMConfig.from_preset("micro", sliding_window=16, rope_theta=5e5, num_labels=3)
    config.save_pretrained(tmp_path)
    loaded = NarLMConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() == config.to_dict()
    assert loaded.rope_parameters["rope_theta"] == 5e5


def test_unknown_preset():
    with pytest.raises(ValueError, match="no preset 'giga': choose one of nano, micro"):
        NarLMConfig.from_preset("giga")


@pytest.mark.parametrize("name", PRESETS)
def test_parameter_count_of_presets(name):
    """The formula against the module itself, built without memory."""
    config = NarLMConfig.from_preset(name)
    with torch.device("meta"):
        model = NarLMForCausalLM(config)
    assert config.parameter_count() == model.num_parameters()


def test_known_parameter_counts():
    """GPT-2 has 124,439,808 parameters; Llama 3.2 1B has 1,235,814,400; both are public figures."""
    assert NarLMConfig.from_preset("gpt2-124m").parameter_count() == 124_439_808
    assert NarLMConfig.from_preset("llama-like-1b").parameter_count() == 1_235_814_400


@pytest.mark.parametrize("kind", ["paper", "llama", "learned", "sinusoidal"])
def test_parameter_count_and_flops_of_every_part(narlm, tokens, kind):
    """Formula against module for every kind of part, with and without embeddings, and FLOPs against a counter.

    The counter counts the products of (7) and (14)-(17); eager attention computes the masked scores
    too, as the formula says.
    """
    model = narlm(kind, head_dim=6, attention_bias=True)
    config = model.config
    assert config.parameter_count() == model.num_parameters()
    embeddings = {id(model.model.embed_tokens.weight), id(model.lm_head.weight)}
    if kind == "learned":
        embeddings.add(id(model.model.embed_positions.weight))
    others = sum(p.numel() for p in model.parameters() if id(p) not in embeddings)
    assert config.parameter_count(embeddings=False) == others
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(tokens, use_cache=False)
    assert counter.get_total_flops() == tokens.numel() * config.flops_per_token(tokens.shape[1])
    with FlopCounterMode(display=False) as counter:
        model.train()(tokens, labels=tokens, use_cache=False).loss.backward()
    assert counter.get_total_flops() == tokens.numel() * config.flops_per_token(tokens.shape[1], training=True)


def test_training_compute_in_the_paper():
    """25,000 A100s (312 TFLOP/s) for 100 days could do 6.7e25 FLOPs, 2.2e25 at a third of that: not 3e23."""
    peak = 25_000 * 312e12 * 100 * 86_400
    assert peak == pytest.approx(6.74e25, rel=1e-2)
    assert peak / 3e23 > 200
