"""What a field is where it was not given, by the method and by the machine."""

import json

import pytest
import torch

from pipeline.runtime import defaults
from pipeline.runtime.defaults import computes_bf16, dependent_defaults


@pytest.fixture
def with_bf16(monkeypatch):
    monkeypatch.setattr(defaults, "has_accelerator", lambda: True)
    monkeypatch.setattr(defaults, "computes_bf16", lambda use_cpu: True)
    monkeypatch.setattr(defaults, "keeps_activations", lambda *given, **machine: False)


@pytest.mark.parametrize(
    ("stage", "given", "rate"),
    [
        ("dpo", {"use_peft": "true"}, 1e-5),
        ("dpo", {"use_peft": True}, 1e-5),
        ("dpo", {}, None),
        ("dpo", {"use_peft": "false"}, None),
        ("sft", {"use_peft": True}, 2e-4),
        ("reward_model", {"use_peft": True}, None),  # TRL's own is one for LoRA
        ("continual", {}, 2e-4),  # its method is lora where none is given
        ("continual", {"method": "full"}, None),
        ("dpo", {"model_name_or_path": "ADAPTER"}, 1e-5),  # an adapter as the start is trained on
        ("dpo", {"model_name_or_path": "ADAPTER", "adapter_mode": "merge"}, None),
        ("dpo", {"model_name_or_path": "ADAPTER", "adapter_mode": "merge", "use_peft": True}, 1e-5),
    ],
)
def test_an_adapter_learns_ten_times_as_fast(stage, given, rate, tmp_path, with_bf16):
    (tmp_path / "adapter_config.json").write_text(json.dumps({}))
    given = {key: str(tmp_path) if value == "ADAPTER" else value for key, value in given.items()}
    assert dependent_defaults(stage, given).get("learning_rate") == rate


def test_bfloat16_is_left_out_where_there_is_none(monkeypatch):
    """On a CPU, asked for or not; on a GPU that only emulates it; on any other it stays TRL's default. Without any
    accelerator accelerate must hear of it too, or several processes would train one model each."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert dependent_defaults("dpo", {}) == {"use_cpu": True, "bf16": False}
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for supported in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, found=supported: found)
        assert computes_bf16(use_cpu=False) is supported
    assert dependent_defaults("dpo", {"use_cpu": "true"}) == {"bf16": False}


@pytest.mark.parametrize(
    ("model", "given", "needed"),
    [
        ("narlm", {}, True),
        ("llama", {}, False),  # PEFT's own list is taken
        ("narlm", {"use_peft": False}, False),
        ("narlm", {"lora_target_parameters": ["w"]}, False),
        ("over narlm", {"adapter_mode": "merge"}, True),
        ("over narlm", {}, False),  # the same adapter goes on
        (None, {}, False),  # loading the model says that there is none
    ],
)
def test_lora_without_targets_adapts_all_where_peft_has_no_list(model, given, needed, tmp_path, with_bf16):
    """An adapter over another model is of its base's type."""
    folder = tmp_path / "start"
    folder.mkdir()
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "narlm"}))
    if model == "over narlm":
        (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tmp_path)}))
    elif model:
        (folder / "config.json").write_text(json.dumps({"model_type": model}))
    found = dependent_defaults("sft", {"model_name_or_path": str(folder), "use_peft": True} | given)
    assert found.get("lora_target_modules") == ("all-linear" if needed else None)


@pytest.mark.parametrize(("method", "targets"), [("lora", "all-linear"), ("bias", None)])
def test_continual_learning_says_what_its_lora_adapts(method, targets, tmp_path, with_bf16):
    """It needs no use_peft."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "narlm"}))
    found = dependent_defaults("continual", {"model_name_or_path": str(tmp_path), "method": method})
    assert found.get("lora_target_modules") == targets
