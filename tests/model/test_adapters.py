"""Adapters of our own: identity at the start, the backbone untouched, saved and loaded, clear errors."""

import json

import pytest
import torch

from pipeline.model.adapters import adapter_tensors, attach, backbone_sha256, load_adapter, save_adapter
from pipeline.model.loading import adapter_base, load_model
from pipeline.runtime.errors import UserError
from tests.tiny_models import tiny_model, tiny_tokenizer

IDS = torch.tensor([[7, 8, 9, 10, 11]])


def step(model, rate: float = 0.1) -> None:
    """One step of plain gradient descent on the trainable parameters."""
    trained = [p for p in model.parameters() if p.requires_grad]
    loss = model(input_ids=IDS, labels=IDS).loss
    for parameter, gradient in zip(trained, torch.autograd.grad(loss, trained), strict=True):
        parameter.data -= rate * gradient


@pytest.mark.parametrize(
    ("method", "kind", "count"),
    [("bias", "qwen2", 2 * (16 + 16 + 16)), ("bottleneck", "llama", 2 * (2 * 16 * 4 + 4 + 16))],
)
def test_it_starts_as_the_identity_learns_and_leaves_the_backbone(method, kind, count):
    """Qwen2 has biases on q, k and v, of width 16 each, in two layers; a bottleneck of 4 has 2*16*4 weights, 4 + 16
    biases a layer.
    """
    model = tiny_model(kind)
    before, logits = backbone_sha256(model), model(IDS).logits
    attach(model, method, base="x", size=4)
    assert torch.equal(model(IDS).logits, logits)
    assert sum(t.numel() for t in adapter_tensors(model).values()) == count
    for _ in range(2):  # the first step of a bottleneck moves W_up only
        step(model)
    assert all(tensor.any() for tensor in adapter_tensors(model).values())
    assert not torch.allclose(model(IDS).logits, logits)
    assert backbone_sha256(model) == before
    model.model.layers[0].input_layernorm.weight.data[0] += 1e-3
    assert backbone_sha256(model) != before


def test_a_bias_delta_is_a_changed_bias():
    """W x + b + delta with delta in the hook equals a model whose bias is b + delta."""
    model, other = tiny_model("qwen2"), tiny_model("qwen2")
    attach(model, "bias", base="x")
    step(model)
    tensors = adapter_tensors(model)
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            if f"{name}_delta" in tensors:
                parameter += tensors[f"{name}_delta"]
    assert torch.allclose(model(IDS).logits, other(IDS).logits, atol=1e-6)


@pytest.mark.parametrize("method", ["bias", "bottleneck"])
def test_it_is_saved_and_loads_back_by_the_folder_alone(method, tmp_path):
    base = tmp_path / "base"
    tiny_model("qwen2").save_pretrained(base)
    tiny_tokenizer().save_pretrained(base)
    model = attach(tiny_model("qwen2"), method, base=str(base))
    step(model)
    step(model)
    save_adapter(model, tmp_path / "adapter")
    assert adapter_base(str(tmp_path / "adapter")) == str(base)
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["method"] == method
    loaded = load_model(str(tmp_path / "adapter"))
    assert torch.equal(loaded(IDS).logits, model(IDS).logits)
    with pytest.raises(UserError, match="does not fit its base"):
        load_adapter(tiny_model("qwen2", num_labels=2).__class__(wider(model.config)), tmp_path / "adapter")


def wider(config):
    """The same configuration with another width."""
    return type(config)(**config.to_dict() | {"hidden_size": 32, "intermediate_size": 64})


def test_a_model_without_biases_or_known_blocks_is_refused():
    with pytest.raises(UserError, match="no bias"):
        attach(tiny_model("llama"), "bias", base="x")
    model = tiny_model("llama")
    for layer in model.model.layers:
        layer.block = layer.mlp
        del layer.mlp
    with pytest.raises(UserError, match="no module of this model is called mlp"):
        attach(model, "bottleneck", base="x")


def test_the_backbone_s_identity_does_not_depend_on_peft_s_wrapping():
    from peft import LoraConfig, get_peft_model

    model = tiny_model("qwen2")
    before = backbone_sha256(model)
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear"))
    assert backbone_sha256(wrapped) == before
