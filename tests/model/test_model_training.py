"""What trainers and servers rely on: names, hooks, checkpointing, dropout, compilation."""

import re

import pytest
import torch
import torch.nn.functional as F
from transformers import AttentionInterface

from pipeline.model import NarLMConfig, NarLMForCausalLM
from tests.model.conftest import KINDS


@pytest.mark.parametrize("kind", ["paper", "llama", "learned"])
def test_initialisation_honours_initializer_range(kind):
    """Matrices N(0, initializer_range^2), biases 0, norm weights 1, the padding row 0."""
    torch.manual_seed(0)
    options = {
        "llama": {"norm_type": "rmsnorm", "ffn_type": "swiglu"},
        "learned": {"position_embedding_type": "learned"},
    }
    config = NarLMConfig(
        vocab_size=512,
        hidden_size=128,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=256,
        initializer_range=0.08,
        pad_token_id=0,
        **options.get(kind, {}),
    )
    for name, parameter in NarLMForCausalLM(config).named_parameters():
        if parameter.dim() == 2:
            assert parameter.std().item() == pytest.approx(0.08, rel=0.03), name
            assert abs(parameter.mean().item()) < 1e-3, name
        else:
            assert (parameter == (0.0 if name.endswith("bias") else 1.0)).all(), name
        if name.endswith("embed_tokens.weight"):
            assert (parameter[0] == 0).all()


@pytest.mark.parametrize("kind", ["paper", "learned"])
def test_logits_from_base_model_and_output_embeddings(narlm, tokens, kind):
    """TRL computes them itself: base_model, then get_output_embeddings().weight and .bias, and nothing after."""
    model = narlm(kind)
    head = model.get_output_embeddings()
    hidden = model.base_model(tokens, use_cache=False).last_hidden_state
    torch.testing.assert_close(F.linear(hidden, head.weight, head.bias), model(tokens).logits)
    assert model.base_model is model.model
    assert model.get_input_embeddings() is model.model.embed_tokens


@pytest.mark.parametrize("kind", ["llama", "mixed", "sinusoidal"])
def test_gradient_checkpointing_gives_the_same_gradients(narlm, tokens, kind):
    gradients = []
    for checkpointing in (False, True):
        model = narlm(kind).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model(tokens, labels=tokens, use_cache=False).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    assert all(g is not None for g in gradients[0].values())
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


def test_attention_dropout_acts_in_training_only(narlm, tokens):
    """p = 0.5 on the weights (15): each is 0 or doubled in training, untouched in evaluation."""
    model = narlm("paper", num_hidden_layers=1, attention_dropout=0.5)
    whole = model(tokens, output_attentions=True).attentions[0]
    torch.testing.assert_close(whole.sum(-1), torch.ones(2, 4, 12))
    torch.manual_seed(0)
    dropped = model.train()(tokens, output_attentions=True).attentions[0]
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], 2 * whole[kept])
    lower = torch.ones(12, 12, dtype=torch.bool).tril().expand_as(kept)
    assert kept[lower].float().mean().item() == pytest.approx(0.5, abs=0.1)


def test_recorded_outputs(narlm, tokens):
    """L + 1 hidden states (the last one after the final norm, as everywhere in transformers) and L attention maps."""
    model = narlm("llama")
    out = model(tokens, output_hidden_states=True, output_attentions=True)
    assert [h.shape for h in out.hidden_states] == [(2, 12, 32)] * 3
    assert [a.shape for a in out.attentions] == [(2, 4, 12, 12)] * 2
    torch.testing.assert_close(out.hidden_states[-1], model.model(tokens).last_hidden_state)
    assert (out.attentions[0].triu(1) == 0).all()


def test_a_foreign_attention_backend_gets_everything_it_needs(narlm, tokens):
    """vLLM and SGLang register their own attention: it is called once a layer, with the layer and its window."""
    calls = []

    def backend(module, query, key, value, attention_mask, scaling=None, dropout=0.0, sliding_window=None, **kwargs):
        calls.append((module.layer_idx, tuple(query.shape), tuple(key.shape), sliding_window, kwargs["extra"]))
        assert attention_mask is None  # such a backend masks by itself
        return torch.zeros(*query.shape[:1], query.shape[2], query.shape[1], query.shape[3]), None

    AttentionInterface.register("narlm_test_backend", backend)
    model = narlm("mixed", num_key_value_heads=2)
    model.set_attn_implementation("narlm_test_backend")
    model(tokens, use_cache=False, extra="passed through")
    shapes = ((2, 4, 12, 8), (2, 2, 12, 8))
    assert calls == [(0, *shapes, 4, "passed through"), (1, *shapes, None, "passed through")]


@pytest.mark.parametrize("kind", KINDS)
def test_flex_attention_equals_eager(narlm, tokens, kind):
    """Plain, left-padded, packed; uncompiled, and forward only: flex attention has no backward pass on CPU."""
    eager, flex = narlm(kind), narlm(kind, "flex_attention")
    mask = torch.ones_like(tokens)
    mask[1, :5] = 0
    packed = torch.cat([torch.arange(n) for n in (4, 1, 7)])[None].expand(2, -1)
    with torch.compiler.set_stance("force_eager"):
        for options in ({}, {"attention_mask": mask}, {"position_ids": packed}):
            with torch.no_grad():
                want, got = (model(tokens, use_cache=False, **options).logits for model in (eager, flex))
            real = options.get("attention_mask", torch.ones_like(mask)).bool()
            torch.testing.assert_close(got[real], want[real], atol=5e-5, rtol=0)


@pytest.mark.parametrize("kind", ["paper", "llama"])
def test_parallel_plans_name_every_module_once(narlm, kind):
    """Tensor parallel: columns of what reads the residual stream, rows of what writes to it, rows of W_emb, columns
    of W_out. Pipeline parallel: every part with weights."""
    model = narlm(kind)
    linear = {
        name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear | torch.nn.Embedding)
    }
    styles = {}
    for name in linear:
        pattern = re.sub(r"\.\d+\.", ".*.", name)
        styles.setdefault(model.tp_plan[pattern], set()).add(name.rpartition(".")[2])
    gate = {"gate_proj"} if kind == "llama" else set()
    assert styles == {
        "colwise": {"q_proj", "k_proj", "v_proj", "up_proj"} | gate,
        "rowwise": {"o_proj", "down_proj"},
        "embedding_rowwise": {"embed_tokens"},
        "colwise_gather_output": {"lm_head"},
    }
    assert {re.sub(r"\.\d+\.", ".*.", name) for name in linear} == set(model.tp_plan)
    assert set(model.pp_plan) == {"model.embed_tokens", "model.layers", "model.norm", "lm_head"}
    assert narlm("learned").config.base_model_pp_plan is None  # its later stages would add positions again


def test_lora_on_all_linear_leaves_the_head_alone(narlm, tokens):
    """PEFT's "all-linear" finds the seven projections of a layer; merged, the model says the same."""
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(
        narlm("llama"),
        peft.LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False),
    )
    adapted = {name.split(".lora_A")[0].rsplit(".", 1)[1] for name, _ in model.named_parameters() if "lora_A" in name}
    assert adapted == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    model.eval()
    expected = model(tokens).logits
    torch.testing.assert_close(model.merge_and_unload()(tokens).logits, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", ["paper", "mixed", "sinusoidal"])
def test_traces_as_one_graph(narlm, tokens, kind, attention):
    """torch.compile(fullgraph=True) finds no break; the graph runs uncompiled here, which checks the tracing alone."""
    model = narlm(kind, attention)
    traced = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(traced(tokens, use_cache=False).logits, model(tokens, use_cache=False).logits)
