"""Pairs and paired gains by hand, the Fisher form against the finite KL, and mistakes of rows in one line."""

import pytest
import torch

from pipeline.evaluation.tasks.jacobian import TOKEN, Gain, gain_figures, jacobian, swapped_pairs
from pipeline.inference.jacobian import layer_calls, spectrum
from pipeline.objectives.divergences import fisher_form, full_kl
from pipeline.runtime.errors import UserError
from tests.tiny_models import tiny_model, tiny_tokenizer

ROWS = [
    {"prompt": f"{i} a {i} 2", "swaps": {"value": [f"{i} a b {i} 2", f"{i} b {i} 2"], "digit": f"{i + 1} a {i} 2"}}
    for i in range(3, 8)
]


def assess(file, model=None, **options):
    return jacobian(model or tiny_model("llama"), tiny_tokenizer(), **{"dataset": file, "split": "train"} | options)


def test_pairs_by_hand():
    """`3 a 3 2` is 12 19 12 11: the first value swap is a token longer and left out, the second differs at place 1."""
    pairs = swapped_pairs(tiny_tokenizer(), ROWS[:1], 0)
    assert pairs["value"] == [([12, 19, 12, 11], [12, 20, 12, 11], [1])]
    assert pairs["digit"] == [([12, 19, 12, 11], [13, 19, 12, 11], [0])]
    ((ids, other, places),) = pairs[TOKEN]
    assert (ids, places) == ([12, 19, 12, 11], [1])
    assert other[1] not in (19, *tiny_tokenizer().all_special_ids)


def test_differences_by_hand():
    """Layers 1 and 2: the swap has log gains 0.5 and 0.1, two random directions 0.1, 0.3 and -0.1, 0.1 (means 0, 0.2):
    0.5 - 0 and 0.1 - 0.2, together 0.4. To the last token -1 at layer 2 against -3 and -2: 1.5; q: 2 against 1.
    """
    swapped = Gain([0.5, 0.1], [-2.0, -1.0], 2.0)
    random = [Gain([0.1, 0.3], [-2.0, -3.0], 1.5), Gain([-0.1, 0.1], [-2.0, -2.0], 0.5)]
    figures, by_layer = gain_figures([(swapped, random)] * 3, 0)
    assert (figures["same"], figures["last"], figures["fisher"]) == tuple(map(pytest.approx, (0.4, 1.5, 1.0)))
    assert (figures["same_low"], figures["pairs"]) == (pytest.approx(0.4), 3)
    assert [row["same"] for row in by_layer] == [pytest.approx(0.5), pytest.approx(-0.1)]
    assert [row["last"] for row in by_layer] == [pytest.approx(0), pytest.approx(1.5)]


def test_the_fisher_form_by_hand():
    """pi = (1/2, 1/2), dz = (1, -1): variance 1, q = 1/2; (3, 1) moves by (1, -1) and a constant, which does nothing.
    With pi = (1/4, 3/4) and dz = (4, 0) the variance is 16 * 3/16 = 3. And KL(z, z + 0.001 dz) / 0.001^2 is q.
    """
    even, moved = torch.zeros(2, dtype=torch.float64), torch.tensor([1.0, -1.0], dtype=torch.float64)
    assert float(fisher_form(even, moved)) == pytest.approx(0.5)
    assert float(fisher_form(even, moved + 2)) == pytest.approx(0.5)
    z, dz = torch.tensor([0.25, 0.75]).double().log(), torch.tensor([4.0, 0.0]).double()
    assert float(fisher_form(z, dz)) == pytest.approx(1.5)
    assert float(full_kl(z, z + 1e-3 * dz)) / 1e-6 == pytest.approx(1.5, rel=2e-3)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_form_is_the_finite_kl(write, kind):
    """At eps = 1e-2 within 2% on a random model in float32; every kind has its pairs, every layer its row."""
    model = tiny_model(kind)
    before = model.config._attn_implementation
    result = assess(write(ROWS), model, maps=2)
    assert result.metrics["fisher_error"] < 0.02
    assert [result.metrics[f"{kind}/pairs"] for kind in ("value", "digit", TOKEN)] == [5, 5, 5]
    assert len(result.tables["relative gain by layer"]) == 3 * 2
    maps = result.tables["singular values"]
    assert [row["layer"] for row in maps] == ["1", "1", "2", "2", "all"]
    assert all(0 <= row["share near 1"] <= 1 and row["median"] <= row["largest"] for row in maps)
    assert model.config._attn_implementation == before


def test_a_stream_that_is_only_passed_on_has_singular_values_of_one():
    """With W_O = W_2 = 0 every layer is the identity: the map to itself is I, that from another token 0."""
    model = tiny_model("llama")
    for layer in model.model.layers:
        torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
        torch.nn.init.zeros_(layer.mlp.down_proj.weight)
    for call in layer_calls(model, torch.tensor([[12, 19, 12]])):
        assert spectrum(call.map(2, 2)).values.tolist() == pytest.approx([1.0] * 16)
        assert spectrum(call.map(0, 2)).values.tolist() == pytest.approx([0.0] * 16)


@pytest.mark.parametrize(
    ("row", "options", "words"),
    [
        ({"prompt": "1 a"}, {}, "row 1 has no swaps"),
        ({"prompt": "1 a", "swaps": ["1 b"]}, {}, "row 1 has no swaps"),
        (ROWS[0], {"directions": 0}, "directions is 0"),
        (ROWS[0], {"maps": -1}, "maps -1"),
    ],
)
def test_a_mistake_is_named_before_the_model_is_used(write, row, options, words):
    with pytest.raises(UserError, match=words):
        jacobian(None, None, **{"dataset": write([row]), "split": "train"} | options)


def test_swaps_that_do_not_fit(write):
    with pytest.raises(UserError, match="no value has as many tokens as its prompt"):
        assess(write([{"prompt": "1 a 2", "swaps": {"value": ["1 a b 2", "1 a 3", "1 a 2"]}}]))
