"""A saved prefix is a Markov state: with the weights it was read by, any process continues it as if it had read it."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch

from pipeline.evaluation.tasks.cache import branch_saved
from pipeline.inference.state import branch, load_prefix, read_prefix, save_prefix
from pipeline.model import NarLMConfig, NarLMForCausalLM
from pipeline.runtime.errors import UserError

TOKENS = [3, 1, 4, 1, 5, 9, 2, 6]


def narlm(**fields) -> NarLMForCausalLM:
    torch.manual_seed(0)
    small = {"vocab_size": 11, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    return NarLMForCausalLM(NarLMConfig(**small, initializer_range=0.3, **fields)).eval()


def anew(model, tokens):
    with torch.no_grad():
        return model(torch.tensor([tokens]), use_cache=False).logits[0, -1].log_softmax(-1)


@pytest.mark.parametrize("fields", [{}, {"sliding_window": 3}], ids=["full", "window"])
def test_two_branches_in_a_fresh_process_are_the_uncached_distributions(tmp_path, fields):
    """The state after eight tokens, continued by nothing, by 7 and by 8, 8; a window of 3 has forgotten the first."""
    model = narlm(**fields)
    model.save_pretrained(tmp_path / "model")
    save_prefix(tmp_path / "prefix.safetensors", model, read_prefix(model, TOKENS))
    branches = [[], [7], [8, 8]]
    loading = {"name": str(tmp_path / "model"), "dtype": "float32"}
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as fresh:
        found = torch.tensor(
            fresh.submit(branch_saved, loading, "cpu", tmp_path / "prefix.safetensors", branches).result()
        )
    expected = torch.stack([anew(model, TOKENS + more) for more in branches])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert (found[1] - found[2]).abs().max() > 0.1  # the branches differ


def test_a_branch_leaves_the_prefix_as_it_was():
    model = narlm(sliding_window=3)
    prefix = read_prefix(model, TOKENS)
    first = branch(model, prefix, [[7], [8]])
    assert torch.equal(branch(model, prefix, [[7], [8]]), first)
    assert prefix.cache.get_seq_length() == len(TOKENS) - 1


def test_a_prefix_of_one_token_has_no_cache(tmp_path):
    model = narlm()
    save_prefix(tmp_path / "one", model, read_prefix(model, [3]))
    found = branch(model, load_prefix(tmp_path / "one", model), [[1]])[0]
    torch.testing.assert_close(found, anew(model, [3, 1]), atol=1e-5, rtol=0)


def test_a_prefix_is_refused_by_other_weights_and_any_other_file_by_all(tmp_path):
    model = narlm()
    path = tmp_path / "prefix"
    save_prefix(path, model, read_prefix(model, TOKENS))
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] += 1
    with pytest.raises(UserError, match="other weights"):
        load_prefix(path, model)
    path.write_text("no tensors")
    with pytest.raises(UserError, match="no saved prefix"):
        load_prefix(path, model)
