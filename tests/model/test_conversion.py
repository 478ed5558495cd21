"""Parity with the library's own models by copying weights, both ways."""

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from pipeline.model.conversion import convert, from_gpt2, from_llama, from_mistral, to_gpt2, to_llama, to_mistral
from pipeline.runtime.errors import UserError

SHAPE = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 16,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LONG = {"rope_theta": 5e5, "factor": 4.0, "original_max_position_embeddings": 8}
ROPES = {
    "default": {"rope_theta": 5e5},
    "linear": {"rope_theta": 1e4, "factor": 2.0},
    "dynamic": {"rope_theta": 1e4, "factor": 2.0},
    "yarn": LONG,
    "longrope": {**LONG, "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [1.0, 2.0, 3.0, 4.0]},
    "llama3": {**LONG, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
}


def llama(**options):
    return LlamaForCausalLM(LlamaConfig(**{**SHAPE, **options}))


def mistral(**options):
    return MistralForCausalLM(MistralConfig(**{**SHAPE, "sliding_window": 5, **options}))


def gpt2(**options):
    shape = {"vocab_size": 61, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 32}
    return GPT2LMHeadModel(GPT2Config(**{**shape, "bos_token_id": 1, "eos_token_id": 2, **options}))


MODELS = {
    "llama": (llama, from_llama, to_llama, {}),
    "llama with biases, tied": (
        llama,
        from_llama,
        to_llama,
        {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True, "head_dim": 12},
    ),
    **{
        f"llama, {kind} rope": (llama, from_llama, to_llama, {"rope_parameters": {"rope_type": kind, **values}})
        for kind, values in ROPES.items()
    },
    "mistral": (mistral, from_mistral, to_mistral, {}),
    "mistral without window": (mistral, from_mistral, to_mistral, {"sliding_window": None}),
    "gpt2": (gpt2, from_gpt2, to_gpt2, {}),
    "gpt2, other width, exact GELU, head not tied": (
        gpt2,
        from_gpt2,
        to_gpt2,
        {"n_inner": 40, "activation_function": "gelu", "tie_word_embeddings": False},
    ),
}


@torch.no_grad()
def randomise(model):
    """Every parameter matters: matrices N(0, 0.15), norms around 1, biases N(0, 0.3)."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter.normal_(std=0.15)
        else:
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model.eval()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", MODELS)
def test_logits_agree_and_nothing_is_lost_on_the_way_back(name, attention):
    """fp32, 24 tokens (longer than some models' trained length), max abs difference at most 1e-5; and a round trip."""
    make, there, back, options = MODELS[name]
    original = randomise(make(**options))
    original.set_attn_implementation(attention)
    x = torch.randint(3, 61, (2, 24), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = original(x).logits
        assert expected.std() > 0.3  # else a difference of 1e-5 would say little
        ours = there(original)
        ours.set_attn_implementation(attention)
        assert (ours(x).logits - expected).abs().max() <= 1e-5
        returned = back(ours)
    assert type(returned) is type(original)
    state, expected_state = returned.state_dict(), original.state_dict()
    assert state.keys() == expected_state.keys()
    assert all(torch.equal(state[key], expected_state[key]) for key in state)
    # GPT-2's own dropouts have no counterpart, and what it leaves to a default comes back spelled out.
    dropped = {"embd_pdrop", "resid_pdrop", "n_inner", "_name_or_path", "architectures", "dtype"}
    configs = [{k: v for k, v in m.config.to_dict().items() if k not in dropped} for m in (original, returned)]
    assert configs[0] == configs[1]
    assert ours.config.parameter_count() == original.num_parameters()
    assert not ours.training


@pytest.mark.parametrize("name", ["llama", "mistral", "gpt2"])
def test_gradients_agree(name):
    """The gradient of the loss reaches the embeddings as it does in the original."""
    make, there, _, options = MODELS[name]
    original = randomise(make(**options))
    ours = there(original)
    x = torch.randint(3, 61, (2, 12), generator=torch.Generator().manual_seed(1))
    for model in (original, ours):
        model(x, labels=x).loss.backward()
    gradients = [model.get_input_embeddings().weight.grad for model in (original, ours)]
    assert gradients[0].abs().max() > 1e-2
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["llama", "mistral", "gpt2"])
def test_convert_keeps_generation_config_and_dtype(name):
    make, there, _, options = MODELS[name]
    original = randomise(make(**options)).to(torch.bfloat16)
    original.generation_config.max_new_tokens = 7
    ours = convert(original, "narlm")
    assert type(ours) is type(there(original))
    returned = convert(ours, name)
    assert type(returned) is type(original)
    for model in (ours, returned):
        assert model.dtype == torch.bfloat16
        assert model.generation_config.max_new_tokens == 7


def test_convert_goes_from_llama_to_mistral_by_way_of_narlm():
    original = randomise(llama())
    x = torch.randint(3, 61, (1, 8), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = convert(original, "mistral")
        assert type(found) is MistralForCausalLM
        torch.testing.assert_close(found(x).logits, original(x).logits, atol=1e-5, rtol=0)


def test_convert_refuses_others():
    qwen = Qwen2ForCausalLM(Qwen2Config(**SHAPE))
    with pytest.raises(UserError, match="a qwen2 model cannot be converted, only gpt2, llama, mistral and narlm"):
        convert(qwen, "narlm")
    with pytest.raises(UserError, match="is a llama model already"):
        convert(llama(), "llama")


@pytest.mark.parametrize(
    ("kind", "back", "options", "message"),
    [
        ("paper", to_llama, {}, "Llama needs norm_type='rmsnorm', but this NarLM has norm_type='layernorm'"),
        ("window", to_llama, {}, "Llama needs sliding_window=None"),
        ("llama", to_llama, {}, "b_out .* is not zero"),
        ("llama", to_mistral, {"attention_bias": True}, "Mistral needs attention_bias=False"),
        (
            "window",
            to_mistral,
            {"output_bias": False, "layer_types": ["full_attention", "sliding_attention"]},
            "same window in every layer",
        ),
        ("paper", to_gpt2, {}, "GPT-2 needs position_embedding_type='learned'"),
        ("learned", to_gpt2, {"num_key_value_heads": 2}, "GPT-2 needs num_key_value_heads=4"),
        ("learned", to_gpt2, {"output_bias": True}, "b_out"),
    ],
)
def test_what_the_other_cannot_hold_is_refused(narlm, kind, back, options, message):
    with pytest.raises(UserError, match=message):
        back(narlm(kind, **options))


def test_a_zero_output_bias_may_go(narlm, tokens):
    model = narlm("llama")
    model.lm_head.bias.data.zero_()
    with torch.no_grad():
        torch.testing.assert_close(to_llama(model)(tokens).logits, model(tokens).logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale_attn_by_inverse_layer_idx": True}, "scales its attention by layer"),
        ({"activation_function": "relu"}, "uses relu, not a GELU"),
    ],
)
def test_gpt2_variants_that_narlm_cannot_hold(options, message):
    with pytest.raises(UserError, match=message):
        from_gpt2(gpt2(**options))
