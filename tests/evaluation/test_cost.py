"""FLOPs, bytes and fits of a step of generation, by hand and against torch's counter."""

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from pipeline.evaluation.cost import Cost, cost_of, fit_powers, ridge_of
from pipeline.evaluation.tasks.cache import bandwidth_table, tensor_bytes
from pipeline.inference.state import advance
from pipeline.model import NarLMConfig, NarLMForCausalLM
from pipeline.runtime.errors import UserError

WINDOW = 5


def models() -> dict:
    """A tied NarLM with one window layer of two, a NarLM as the paper has it, and a Llama with grouped queries."""
    small = {"vocab_size": 13, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
    mixed = NarLMConfig(
        **small, sliding_window=WINDOW, layer_types=["sliding_attention", "full_attention"], tie_word_embeddings=True
    )
    llama = LlamaConfig(**small, intermediate_size=24, num_key_value_heads=2)
    torch.manual_seed(0)
    made = {
        "mixed": NarLMForCausalLM(mixed),
        "paper": NarLMForCausalLM(NarLMConfig(**small)),
        "llama": LlamaForCausalLM(llama),
    }
    for model in made.values():
        model.set_attn_implementation("eager")
        model.eval()
    return made


def counted(run, *given, **options) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run(*given, **options)
    return counter.get_total_flops()


@pytest.mark.parametrize("name", ["mixed", "paper", "llama"])
def test_flops_and_bytes_are_those_that_torch_counts(name):
    """Every multiplication that the counter sees, at 1, 4, 5, 6 and 9 tokens: below, at and above the window of 5; and
    the cache's own tensors."""
    model = models()[name]
    cost = cost_of(model)
    for n in (1, 4, 5, 6, 9):
        tokens = torch.randint(13, (n,)).tolist()
        cache = DynamicCache(config=model.config)
        if n > 1:
            advance(model, cache, tokens[:-1])
        assert counted(advance, model, cache, tokens[-1:]) == cost.cached_flops(n)
        assert tensor_bytes(cache) == 4 * cost.cache_numbers(n)
        ids = torch.tensor([tokens])
        uncached = counted(model, ids, use_cache=False, logits_to_keep=1)
        assert uncached == cost.uncached_flops(n)


def test_a_cost_by_hand():
    """L 2, d 16, H K = 16, V 13, GELU of 64: a layer has 4 * 16 * 16 + 2 * 16 * 64 = 3072 numbers, the head 208."""
    cost = cost_of(models()["paper"])
    assert (cost.body, cost.head) == (6144, 208)
    assert cost.cached_flops(10) == 2 * (6144 + 208) + 4 * 16 * 2 * 10
    assert cost.uncached_flops(10) == 2 * (6144 * 10 + 208) + 4 * 16 * 2 * 100
    assert cost.cache_numbers(10) == 2 * 16 * 2 * 10


def test_weights_give_the_batch_and_the_cache_gives_the_group():
    """bf16: the weights alone 2 B P / 2 P = B FLOPs per byte; the cache alone 4 H K n / (2 * 2 G K n) = H / G."""
    weights = Cost(body=10**6, head=0, read=10**6, heads=8, kv_heads=2, head_dim=4, windows=())
    assert [weights.intensity(100, batch) for batch in (1, 64)] == [1, 64]
    assert weights.batch_at(100, 206.0) == pytest.approx(206)
    cache = Cost(body=0, head=0, read=0, heads=8, kv_heads=2, head_dim=4, windows=(None, None))
    assert [cache.intensity(100, batch) for batch in (1, 64)] == [4, 4]
    assert cache.batch_at(100, 206.0) is None  # no batch makes reading the cache worth it


def test_the_table_says_where_the_batch_starts_to_be_bound_by_arithmetic():
    """P 10^6, no cache to speak of (window 2): 206 at the H200's ridge of 989/4.8."""
    cost = Cost(body=10**6, head=0, read=10**6, heads=1, kv_heads=1, head_dim=1, windows=(2,))
    table = bandwidth_table(cost, [100], ridge_of("H200"))
    bound = {row["batch"]: row["bound_by"] for row in table if row["n"] == 100}
    assert bound == {1: "bandwidth", 8: "bandwidth", 64: "bandwidth", 256: "compute", 1024: "compute"}
    assert table[-1]["compute_from_batch"] == pytest.approx(206.04, abs=0.2)
    with pytest.raises(UserError, match="choose one of A100"):
        ridge_of("H2O")


def test_a_fit_recovers_its_coefficients():
    n = np.array([256, 512, 1024, 2048, 4096])
    fit = fit_powers(n, 2e-3 + 3e-6 * n + 5e-9 * n**2, 2)
    assert fit.coefficients == pytest.approx((2e-3, 3e-6, 5e-9), rel=1e-6)
    assert fit.r2 == pytest.approx(1)
    assert fit_powers(n, 2e-3 + 3e-6 * n, 2).coefficients == pytest.approx((2e-3, 3e-6, 0), rel=1e-6, abs=1e-15)


def test_a_coefficient_that_would_be_negative_is_zero_and_the_rest_are_fitted_without_it():
    """y = 4 n - 2 at n = 1, 2, 4 by a + b n: a is 0, and b minimises the relative errors (b n / y - 1)^2: with
    r = n/y = 1/2, 1/3, 2/7, b = sum r / sum r^2."""
    r = np.array([1 / 2, 1 / 3, 2 / 7])
    fit = fit_powers([1, 2, 4], [2, 6, 14], 1)
    assert fit.coefficients == pytest.approx((0, r.sum() / (r**2).sum()))
    assert fit.r2 < 1


def test_a_mixture_of_experts_is_refused():
    model = models()["paper"]
    model.model.layers[0].mlp.up_proj.weight = torch.nn.Parameter(torch.zeros(2, 64, 16))
    with pytest.raises(UserError, match="dense attention models"):
        cost_of(model)
