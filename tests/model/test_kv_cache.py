"""KV caching (Part 3, section 1), padding and packing: the same logits by every road."""

import subprocess
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache, QuantizedCache, StaticCache

from pipeline.model import NarLMConfig, NarLMForCausalLM, NarLMForSequenceClassification
from pipeline.model.narlm.versions_narlm import CACHE_NAME, CACHE_NAMES
from tests.conftest import ROOT
from tests.model.conftest import KINDS

# Two roads to one float32 number: logits here are of order 10.
CLOSE = {"atol": 5e-5, "rtol": 0}


def caches(model):
    yield DynamicCache()
    yield DynamicCache(config=model.config)
    yield StaticCache(config=model.config, max_cache_len=20)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", KINDS)
def test_cached_logits_equal_uncached(narlm, tokens, kind, attention):
    """S_t is a sufficient statistic of the past: a prompt of 5, then one token at a time, then 3 at once."""
    model = narlm(kind, attention)
    with torch.no_grad():
        expected = model(tokens, use_cache=False).logits
        for cache in caches(model):
            pieces = [(0, 5), (5, 6), (6, 7), (7, 8), (8, 9), (9, 12)]
            got = [model(tokens[:, a:b], past_key_values=cache, use_cache=True).logits for a, b in pieces]
            torch.testing.assert_close(torch.cat(got, dim=1), expected, **CLOSE, msg=type(cache).__name__)


@pytest.mark.parametrize("kind", ["paper", "llama", "learned", "sinusoidal"])
def test_quantised_cache(narlm, tokens, kind):
    """Keys and values in 8-bit floats (3 bits of mantissa, so within 1/16) once they are of the past: a prompt is read
    exactly, what follows differs by rounding only, and generation takes the cache by name."""
    model = narlm(kind, sliding_window=None)
    cache = QuantizedCache("fp8", model.config)
    with torch.no_grad():
        expected = model(tokens, use_cache=False).logits
        pieces = [(0, 5), (5, 6), (6, 7), (7, 8), (8, 12)]
        got = [model(tokens[:, a:b], past_key_values=cache, use_cache=True).logits for a, b in pieces]
    got = torch.cat(got, dim=1)
    torch.testing.assert_close(got[:, :5], expected[:, :5], **CLOSE)
    difference = (got - expected)[:, 5:]
    assert 1e-3 < difference.std() < 0.1 * expected.std()
    options = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    quantised = model.generate(tokens, **options, cache_implementation="quantized", cache_config={"backend": "fp8"})
    assert quantised.shape == (2, 17)
    assert torch.equal(quantised[:, :13], model.generate(tokens, **options)[:, :13])


@pytest.mark.parametrize("name", CACHE_NAMES)
@pytest.mark.parametrize("part", ["base", "head", "classifier"])
def test_either_name_of_the_cache(narlm, tokens, part, name):
    """``cache`` (transformers >= 5.24) and ``past_key_values`` (before) are one argument, in the base model and in
    every head: five tokens, then seven, under either name give the states of twelve at once, the cache comes back
    under the name of the installed version, and it holds all twelve tokens."""
    model = narlm("mixed", "sdpa")
    if part == "base":
        model = model.model
    elif part == "classifier":
        model = NarLMForSequenceClassification(model.config).eval()
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        expected = model(tokens, use_cache=False)[0][:, -1]
        model(tokens[:, :5], **{name: cache}, use_cache=True)
        output = model(tokens[:, 5:], **{name: cache}, use_cache=True)
    torch.testing.assert_close(output[0][:, -1] if part != "classifier" else output.logits[:, -1], expected, **CLOSE)
    assert output[CACHE_NAME] is cache
    assert cache.get_seq_length() == 12


def test_a_cache_under_an_unknown_name_is_refused(narlm, tokens):
    """It would be swallowed with the other keywords, and the model would see the last tokens only."""
    model = narlm("paper", "sdpa")
    for part in (model, model.model, model.model.layers[0]):
        given = model.model.embed_tokens(tokens) if part is model.model.layers[0] else tokens
        with pytest.raises(TypeError, match=r"unknown name 'cache_params'.*'cache' or 'past_key_values'"):
            part(given, cache_params=DynamicCache())
    with pytest.raises(TypeError, match="two key-value caches"):
        model(tokens, cache=DynamicCache(), past_key_values=DynamicCache())
    same = DynamicCache()
    assert model(tokens, cache=same, past_key_values=same, use_cache=True).logits.shape == (2, 12, 61)
    assert same.get_seq_length() == 12


def test_gradient_checkpointing_takes_the_cache_away(narlm, tokens):
    """The backward pass runs each layer again, and would append its keys a second time: no layer gets a cache, under
    whichever name the installed version looks for it, so the gradients are those without checkpointing."""
    gradients = []
    for checkpointing in (False, True):
        model = narlm("paper", "sdpa").train()
        cache = None
        if checkpointing:
            model.gradient_checkpointing_enable()
            cache = DynamicCache()
        model(tokens, labels=tokens, cache=cache, use_cache=checkpointing).loss.backward()
        gradients.append(model.model.layers[0].self_attn.k_proj.weight.grad)
    assert cache.get_seq_length() == 0
    torch.testing.assert_close(*gradients)


def padded(tokens: torch.Tensor, side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of 12 and 7 tokens in one batch of 12: (indices, mask)."""
    x, mask = tokens.clone(), torch.ones_like(tokens)
    gap = slice(0, 5) if side == "left" else slice(7, 12)
    x[1, gap], mask[1, gap] = 0, 0
    return x, mask


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", KINDS)
def test_padding_changes_nothing(narlm, tokens, kind, side, attention):
    """Positions count real tokens, so padding on either side leaves every real token's logits."""
    model = narlm(kind, attention)
    x, mask = padded(tokens, side)
    with torch.no_grad():
        alone = [model(row[keep.bool()][None]).logits[0] for row, keep in zip(x, mask)]
        together = model(x, attention_mask=mask).logits
        for row, keep, expected in zip(together, mask, alone):
            torch.testing.assert_close(row[keep.bool()], expected, **CLOSE)


@pytest.mark.parametrize("kind", KINDS)
def test_cached_generation_from_left_padding(narlm, tokens, kind):
    """Greedy generation of a left-padded batch, dynamic and static cache, equals an argmax loop without any cache."""
    model = narlm(kind)
    x, mask = padded(tokens, "left")
    model.generation_config.eos_token_id = None
    expected = []
    with torch.no_grad():
        for row, keep in zip(x, mask):
            y = row[keep.bool()][None]
            for _ in range(6):
                y = torch.cat((y, model(y, use_cache=False).logits[:, -1:].argmax(-1)), dim=1)
            expected.append(y[0, -6:])
    for options in ({}, {"cache_implementation": "static"}, {"use_cache": False}):
        out = model.generate(x, attention_mask=mask, max_new_tokens=6, do_sample=False, **options)
        assert torch.equal(out[:, -6:], torch.stack(expected)), options


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", KINDS)
def test_packed_equals_separate(narlm, tokens, kind, attention):
    """Documents of 4, 1 and 7 tokens in one row, told apart by positions that start anew, with and without a cache."""
    model = narlm(kind, attention)
    lengths = [4, 1, 7]
    position_ids = torch.cat([torch.arange(n) for n in lengths])[None].expand(2, -1)
    with torch.no_grad():
        separate = torch.cat([model(part).logits for part in tokens.split(lengths, dim=1)], dim=1)
        for use_cache in (True, False):
            packed = model(tokens, position_ids=position_ids, use_cache=use_cache).logits
            torch.testing.assert_close(packed, separate, **CLOSE)
        assert (model(tokens).logits - separate)[:, 4:].abs().max() > 1e-2


def test_logits_to_keep(narlm, tokens):
    model = narlm("paper")
    logits = model(tokens).logits
    # Not bitwise: a product with fewer rows may be summed in another order (which depends on the thread count).
    close = {"atol": 1e-6, "rtol": 0}
    torch.testing.assert_close(model(tokens, logits_to_keep=3).logits, logits[:, -3:], **close)
    torch.testing.assert_close(model(tokens, logits_to_keep=torch.tensor([0, 7])).logits, logits[:, [0, 7]], **close)


def flops(model, run) -> tuple[int, int]:
    """(products with weights, products of attention) while ``run`` runs."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run()
    counts = {str(op): n for op, n in counter.get_flop_counts()["Global"].items()}
    attention = sum(n for op, n in counts.items() if "bmm" in op)
    return sum(counts.values()) - attention, attention


def test_cost_with_and_without_a_cache():
    """T tokens one by one. With a cache: projections and FFN cost T, attention sum_t t = T(T+1)/2, quadratic in all.
    Without: projections sum_t t, attention sum_t t^2 = T(T+1)(2T+1)/6, cubic in all.

    The paper: "from quadratic to linear" in all (attention is not), and O(t^2) in all without a cache (attention is
    cubic).
    """
    T = 12
    config = NarLMConfig(vocab_size=7, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8)
    config._attn_implementation = "eager"
    model = NarLMForCausalLM(config).model.eval()
    x = torch.randint(0, 7, (1, T))

    def cached():
        cache = DynamicCache()
        for t in range(T):
            model(x[:, t : t + 1], past_key_values=cache, use_cache=True)

    def uncached():
        for t in range(1, T + 1):
            model(x[:, :t], use_cache=False)

    weights = 2 * 2 * (4 * 8 * 8 + 2 * 8 * 8)  # 2 FLOPs x L x (W_Q, W_K, W_V, W_O and the two FFN matrices)
    pair = 2 * 2 * 2 * 8  # L x (score and weighted sum) x 2 FLOPs x d for one pair (t, s)
    assert flops(model, cached) == (weights * T, pair * T * (T + 1) // 2)
    assert flops(model, uncached) == (weights * T * (T + 1) // 2, pair * T * (T + 1) * (2 * T + 1) // 6)


def test_size_of_the_state(narlm, tokens):
    """O(L d t): 2 L G K t numbers, not a fixed length; a window layer keeps the last Delta - 1 only, whatever t is.

    Here L = 2, G K = 32, Delta = 4: after 8 and 12 tokens 2*2*32*t = 1024 and 1536; with one window layer
    2*32*(t + 3) = 704 and 960; with both windows 2*2*32*3 = 384 twice, a state of fixed length.
    """

    def numbers(model, t):
        cache = DynamicCache(config=model.config)
        with torch.no_grad():
            model(tokens[:1, :t], past_key_values=cache, use_cache=True)
        return sum(layer.keys.numel() + layer.values.numel() for layer in cache.layers)

    sizes = {kind: [numbers(narlm(kind), t) for t in (8, 12)] for kind in ("paper", "mixed", "sinusoidal")}
    assert sizes == {"paper": [1024, 1536], "mixed": [704, 960], "sinusoidal": [384, 384]}


BRANCH = """
import copy, sys, torch
from pipeline.model import NarLMForCausalLM

found = {}
for kind, saved in torch.load(sys.argv[1], weights_only=False).items():
    model = NarLMForCausalLM.from_pretrained(saved["model"], attn_implementation="eager").eval()
    for name, token in saved["branches"].items():
        state = copy.deepcopy(saved["state"])
        with torch.no_grad():
            logits = model(token, past_key_values=state, use_cache=True).logits
        found[kind, name] = logits, [(layer.keys, layer.values) for layer in state.layers]
torch.save(found, sys.argv[2])
"""


def test_a_saved_state_and_a_token_decide_what_follows(narlm, tokens, tmp_path):
    """Part 3, summary: S_{t+1} = T(S_t, x_{t+1}) is a function of state and token, and needs nothing else of the past.

    S_8 is saved, loaded in a fresh process and continued by two tokens: logits and S_9 are, to the bit, those of this
    process, which read x_{1:8} and then the token; they are also the logits of x_{1:9} without any state.
    """
    models = {kind: narlm(kind) for kind in ("paper", "mixed")}
    branches = {"a": tokens[:, 8:9], "b": tokens[:, 9:10]}

    def state_of(model):
        cache = DynamicCache(config=model.config)
        with torch.no_grad():
            model(tokens[:, :8], past_key_values=cache, use_cache=True)
        return cache

    saved = {}
    for kind, model in models.items():
        model.save_pretrained(tmp_path / kind)
        saved[kind] = {"model": str(tmp_path / kind), "state": state_of(model), "branches": branches}
    torch.save(saved, tmp_path / "saved.pt")
    words = [sys.executable, "-c", BRANCH, str(tmp_path / "saved.pt"), str(tmp_path / "found.pt")]
    subprocess.run(words, check=True, cwd=ROOT)
    found = torch.load(tmp_path / "found.pt", weights_only=False)
    for kind, model in models.items():
        for name, token in branches.items():
            cache = state_of(model)
            with torch.no_grad():
                here = model(token, past_key_values=cache, use_cache=True).logits
                whole = model(torch.cat([tokens[:, :8], token], 1), use_cache=False).logits[:, -1:]
            logits, state = found[kind, name]
            assert torch.equal(logits, here)
            torch.testing.assert_close(logits, whole, **CLOSE)
            for (keys, values), layer in zip(state, cache.layers, strict=True):
                assert torch.equal(keys, layer.keys)
                assert torch.equal(values, layer.values)
        assert (found[kind, "a"][0] - found[kind, "b"][0]).abs().max() > 0.1  # the token matters


def test_too_many_learned_positions(narlm, tokens):
    """12 tokens do not fit into 8 positions, unless they are documents of 4, 1 and 7 that start anew."""
    model = narlm("learned", max_position_embeddings=8)
    for position_ids in (None, torch.arange(12)[None]):
        with pytest.raises(ValueError, match="12 tokens were given but only 8 positions are learned"):
            model(tokens, position_ids=position_ids)
    lengths = [4, 1, 7]
    packed = torch.cat([torch.arange(n) for n in lengths])[None].expand(2, -1)
    with torch.no_grad():
        separate = torch.cat([model(part).logits for part in tokens.split(lengths, dim=1)], dim=1)
        torch.testing.assert_close(model(tokens, position_ids=packed).logits, separate, **CLOSE)


def test_sampling_follows_the_tempered_law(narlm):
    """(10): generate() with temperature tau draws from softmax(z / tau): 4000 draws against the law, 5 sigma."""
    torch.manual_seed(0)
    model = narlm("paper", vocab_size=5, eos_token_id=None, pad_token_id=0)
    prompt = torch.tensor([[3, 4]]).expand(4000, 2)
    drawn = model.generate(prompt, max_new_tokens=1, do_sample=True, temperature=2.0, top_k=0)[:, -1]
    law = torch.softmax(model(prompt[:1]).logits[0, -1] / 2.0, dim=0)
    sigma = (law * (1 - law) / 4000).sqrt()
    assert ((drawn.bincount(minlength=5) / 4000 - law).abs() < 5 * sigma + 1e-9).all()
