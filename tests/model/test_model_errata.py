"""Where the paper's statements about the model had to be corrected; the numbers are those of docs/errata.md."""

import pytest
import torch
from transformers import DynamicCache

from pipeline.model import NarLMConfig
from pipeline.model.narlm.modeling_narlm import NarLMFeedForward, eager_attention_forward


@torch.no_grad()
def run(model, x) -> tuple[DynamicCache, torch.Tensor]:
    """The cache after the tokens, and the logits of the last."""
    cache = DynamicCache(config=model.config)
    return cache, model(x, past_key_values=cache, use_cache=True).logits[:, -1]


def keys(cache) -> torch.Tensor:
    return torch.stack([layer.keys for layer in cache.layers])


def test_14_the_cache_alone_does_not_fix_the_next_distribution(narlm, tokens):
    """W_K = W_V = 0: two last tokens leave equal caches S_t, and the logits differ. The state is (S_{t-1}, x_t): from
    the cache before it, the token has to be fed, and gives the logits again.
    """
    model = narlm("paper")
    for layer in model.model.layers:
        for projection in (layer.self_attn.k_proj, layer.self_attn.v_proj):
            projection.weight.data.zero_()
    other = tokens.clone()
    other[:, -1] = (other[:, -1] + 1) % 50 + 3
    (cache, logits), (same, different) = run(model, tokens), run(model, other)
    for one, two in zip(cache.layers, same.layers):
        assert torch.equal(one.keys, two.keys)
        assert torch.equal(one.values, two.values)
    assert (logits - different).abs().max() > 0.1
    before, _ = run(model, tokens[:, :-1])
    with torch.no_grad():
        again = model(tokens[:, -1:], past_key_values=before, use_cache=True).logits[:, -1]
    torch.testing.assert_close(again, logits, atol=5e-5, rtol=0)


def test_15_a_crop_of_the_input_cannot_be_cached_and_a_window_can(narlm, tokens):
    """After a crop (listing 4) the second layer's keys of the tokens that stay are others: the cache would be wrong.
    With a window of 4 in each layer the last three keys and values are all that is needed, and they do not change.
    """
    cropped, whole = (
        run(narlm("sinusoidal", sliding_window=None), tokens[:, 1:9])[0],
        run(narlm("sinusoidal", sliding_window=None), tokens[:, :9])[0],
    )
    assert (keys(cropped)[1] - keys(whole)[1][..., 1:, :]).abs().max() > 1e-2
    model = narlm("window")
    cache, _ = run(model, tokens[:, :11])
    assert keys(cache).shape[-2] == 3
    with torch.no_grad():
        stepped = model(tokens[:, 11:], past_key_values=cache, use_cache=True).logits[:, -1]
        torch.testing.assert_close(stepped, model(tokens).logits[:, -1], atol=5e-5, rtol=0)


def test_16_equation_3_holds_no_residual(narlm, tokens):
    """L_theta = W_V = 0 makes the argument of phi in (3) 0 for every token, so by (3) all tokens would leave the layer
    alike; with the residual of (13) they do not.
    """
    model = narlm("paper")
    model.model.layers[0].self_attn.v_proj.weight.data.zero_()
    with torch.no_grad():
        out = model(tokens, output_hidden_states=True).hidden_states[1]
    assert (out[0, 0] - out[0, 1]).abs().max() > 0.1


def test_16_swiglu_is_no_pointwise_function_of_one_affine_map():
    """One unit with gate (1, 0) and up (0, 1): its value changes along both directions, while sigma(W x + b) of one
    unit is constant across its W.
    """
    shape = {"hidden_size": 2, "intermediate_size": 1, "num_attention_heads": 1, "position_embedding_type": "learned"}
    moved = []
    for kind in ("swiglu", "gelu"):
        layer = NarLMFeedForward(NarLMConfig(**shape, ffn_type=kind, mlp_bias=False))
        layer.up_proj.weight.data = torch.tensor([[0.0, 1.0]])
        if kind == "swiglu":
            layer.gate_proj.weight.data = torch.tensor([[1.0, 0.0]])
        layer.down_proj.weight.data.fill_(1.0)
        moved.append((layer(torch.tensor([2.0, 1.0])) - layer(torch.tensor([1.0, 1.0]))).abs().max().item())
    assert moved[0] > 0.1
    assert moved[1] == 0.0


def test_16_the_context_is_shorter_than_delta_at_first_and_d_h_must_be_even():
    """|C_t| = min(t, Delta): with Delta = 3 the weights of tokens 1 to 5 spread over 1, 2, 3, 3, 3 tokens. d = 6 is
    even, yet two heads of d_h = 3 cannot be rotated.
    """
    lag = torch.arange(5)[:, None] - torch.arange(5)
    mask = torch.zeros(5, 5).masked_fill((lag < 0) | (lag >= 3), -torch.inf)[None, None]
    q, k, v = torch.randn(3, 1, 1, 5, 4, generator=torch.Generator().manual_seed(0))
    module = torch.nn.Module()
    module.training = False
    weights = eager_attention_forward(module, q, k, v, mask, 0.5)[1][0, 0]
    assert (weights > 0).sum(-1).tolist() == [1, 2, 3, 3, 3]
    with pytest.raises(ValueError, match="head_dim is 3: make it even"):
        NarLMConfig(hidden_size=6, num_attention_heads=2)


def test_21_earlier_tokens_have_no_residual_path(narlm):
    """Where the sublayers add nothing the layer is the identity: the Jacobian of a token to itself is I, with singular
    values 1, and to an earlier token 0. With attention scaled by 0.1 the latter is a tenth: nothing in it is an
    identity.
    """
    model = narlm("paper").model
    layer = model.layers[0]
    layer.mlp.down_proj.weight.data.zero_()
    layer.mlp.down_proj.bias.data.zero_()
    whole = layer.self_attn.o_proj.weight.data.clone()
    x = torch.randn(1, 3, 32, generator=torch.Generator().manual_seed(0))

    def jacobian(scale, token):
        layer.self_attn.o_proj.weight.data = scale * whole

        def out(y):
            inputs = torch.cat([x[:, :token], y[None, None], x[:, token + 1 :]], 1)
            return model(inputs_embeds=inputs, output_hidden_states=True).hidden_states[1][0, 2]

        return torch.autograd.functional.jacobian(out, x[0, token])

    torch.testing.assert_close(jacobian(0.0, 2), torch.eye(32))
    assert jacobian(0.0, 0).abs().max() == 0
    earlier = jacobian(1.0, 0)
    assert earlier.abs().max() > 1e-2
    torch.testing.assert_close(jacobian(0.1, 0), 0.1 * earlier, atol=1e-6, rtol=1e-3)


def test_22_positions_without_a_target_token_are_masked(narlm, tokens):
    """Four embeddings of an image in front of eight tokens: (9) has no target there, so the label is -100 and the loss
    is the mean over the terms whose target is text, the first of which is predicted from the last visual position.
    """
    model = narlm("paper")
    image = torch.randn(2, 4, 32, generator=torch.Generator().manual_seed(0))
    embedded = torch.cat([image, model.get_input_embeddings()(tokens[:, :8])], 1)
    labels = torch.cat([torch.full((2, 4), -100), tokens[:, :8]], 1)
    with torch.no_grad():
        out = model(inputs_embeds=embedded, labels=labels)
    logs = out.logits.log_softmax(-1)
    terms = torch.stack([-logs[:, 3 + t].gather(1, tokens[:, t, None]) for t in range(8)])
    torch.testing.assert_close(out.loss, terms.mean())


def test_23_small_figures():
    """7.389 + 2.718 + 1.105 = 11.212. 25,000 A100s of 0.4 kW for 100 days, with half as much again for cooling and the
    rest, at $0.10 a kWh: 25,000 * 0.4 * 2,400 * 1.5 * 0.1 = $3.6M of $100M. 96 layers of 12 d^2 weights with d = 12288
    are 174e9: GPT-3's 175e9.
    """
    assert round(sum(torch.exp(torch.tensor([2.0, 1.0, 0.1], dtype=torch.float64)).tolist()), 2) == 11.21
    assert pytest.approx(3.6e6) == 25_000 * 0.4 * 2_400 * 1.5 * 0.1
    config = NarLMConfig(
        vocab_size=1, hidden_size=12288, num_hidden_layers=96, num_attention_heads=96, intermediate_size=4 * 12288
    )
    assert config.parameter_count(embeddings=False) == pytest.approx(175e9, rel=0.01)
