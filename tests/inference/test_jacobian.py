"""Derivatives against finite differences and autograd, and spectra against those of known maps."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

from pipeline.evaluation.tasks.in_context import eager_attention
from pipeline.inference.jacobian import LinearMap, decoder_layers, layer_calls, push_forward, spectrum, state_map
from tests.tiny_models import tiny_model

IDS = torch.tensor([[7, 8, 9, 10, 11], [9, 12, 7, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])


@pytest.fixture(scope="module", params=["llama", "narlm"])
def model(request):
    if request.param == "llama":
        return tiny_model("llama").double()
    from pipeline.model import NarLMConfig, NarLMForCausalLM

    torch.manual_seed(0)
    config = NarLMConfig(vocab_size=24, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
                         num_attention_heads=2, initializer_range=0.3)  # fmt: skip
    return NarLMForCausalLM(config).double().eval()


def test_a_push_forward_is_the_derivative(model):
    """Against central differences at 3e-3, for a layer and the logits; padding reaches nothing. Softmax and RMSNorm
    work in float32 whatever the dtype, which limits the agreement.
    """
    clean = model.get_input_embeddings()(IDS).detach()
    delta = torch.zeros_like(clean)
    delta[:, 1] = 0.1 * torch.randn(2, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def hidden(e):
        output = model(inputs_embeds=e, attention_mask=MASK, output_hidden_states=True, use_cache=False)
        return output.hidden_states[1], output.logits

    with torch.no_grad(), eager_attention(model):
        pushed = push_forward(model, clean, MASK, delta)
        up, down = hidden(clean + 3e-3 * delta), hidden(clean - 3e-3 * delta)
    assert len(pushed.hidden) == len(pushed.moved) == 3
    for got, plus, minus in zip((pushed.moved[1], pushed.logits_moved), up, down):
        expected = (plus - minus) / 6e-3
        torch.testing.assert_close(got[MASK.bool()], expected[MASK.bool()], rtol=5e-3, atol=2e-3)
    assert pushed.moved[0].equal(delta)
    assert not pushed.moved[2][:, 0].any()  # nothing before the token that moves


def test_maps_are_the_jacobians(model):
    """d s_3 / d e_1 and one layer's d h_3 / d h_3 against autograd; products with J and J' agree with the matrix."""
    ids = IDS[:1]
    with eager_attention(model):
        embeddings = model.get_input_embeddings()(ids).detach()
        full = torch.autograd.functional.jacobian(
            lambda e: model(inputs_embeds=e, output_hidden_states=True, use_cache=False).hidden_states[-1], embeddings
        )[0, :, :, 0]  # (T, D, T, D)
        linear = state_map(model, embeddings, 1, 3)
        matrix = linear.matrix()
        torch.testing.assert_close(matrix, full[3, :, 1], rtol=1e-4, atol=1e-5)
        v = torch.randn(4, 16, dtype=torch.float64)
        torch.testing.assert_close(linear.apply(v), v @ matrix.T, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(linear.adjoint(v), v @ matrix, rtol=1e-4, atol=1e-5)
        assert not state_map(model, embeddings, 3, 1).matrix().any()  # a later token is not seen
        first, second = layer_calls(model, ids)
        same = second.map(3, 3).matrix()
        step = torch.autograd.functional.jacobian(
            lambda h: second.layer(h, *second.rest, **second.options), second.hidden
        )[0, 3, :, 0, 3]
        torch.testing.assert_close(same, step, rtol=1e-4, atol=1e-5)
    assert first.hidden.equal(embeddings)


def test_spectra():
    """Singular values 1.05 (half of them), 3 (a quarter) and 0.2: exactly, and by quadrature.

    Three different values are found by three Lanczos steps from any start; their shares are those of a random vector,
    within four standard errors of 64 probes x 64 dimensions, 4 sqrt(0.5 * 2 / 4096) = 0.06.
    """
    size = torch.tensor([1.05] * 32 + [3.0] * 16 + [0.2] * 16, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(64, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)).Q
    linear = LinearMap(lambda v: (v @ turn) * size, 64, size)
    exact, estimated = spectrum(linear), spectrum(linear, exact_to=8, probes=64, steps=8)
    assert exact.within(0.9, 1.1) == pytest.approx(0.5)
    assert estimated.within(0.9, 1.1) == pytest.approx(0.5, abs=0.06)
    assert estimated.within(2.9, 3.1) == pytest.approx(0.25, abs=0.06)
    for found in (exact, estimated):
        assert float(found.values[-1]) == pytest.approx(3)
        assert float(found.shares.sum()) == pytest.approx(1)
        assert found.within(0, 4) == pytest.approx(1)
    assert exact.median == pytest.approx(1.05)


def test_layers_are_found_behind_an_adapter():
    model = tiny_model("llama")
    layers = decoder_layers(model)
    wrapped = get_peft_model(model, LoraConfig(target_modules="all-linear", r=2, task_type="CAUSAL_LM"))
    assert decoder_layers(wrapped) is layers
    wrapped.config.num_hidden_layers = 7
    with pytest.raises(ValueError, match="no list"):
        decoder_layers(wrapped)
