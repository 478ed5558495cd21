"""Defaults that depend on the machine and on the method: what a field is where it was not given.

Imports torch only where it is asked about the machine.
"""

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path

from pipeline.runtime.coercion import is_true
from pipeline.runtime.files import Json

# TRL's defaults of the learning rate are for all weights. The best one for LoRA is about ten times as large whatever
# the model (Schulman et al. 2025, "LoRA Without Regret"): with 1e-6 an adapter's B matrices stay where they start.
# RewardConfig's 1e-4 is one for LoRA already.
LORA_LEARNING_RATE = {"sft": 2e-4, "rsft": 2e-4, "continual": 2e-4, "dpo": 1e-5, "grpo": 1e-5, "ppo": 1e-5}
REASONS = {
    "learning_rate": "the default with LoRA",
    "lora_target_modules": "PEFT names no modules for this type of model",
    "use_cpu": "there is no accelerator",
    "bf16": "this device has none, or is slower with it",
}


def dependent_defaults(stage: str, values: Mapping[str, object]) -> Json:
    """Fields whose default the stage's method or this machine decides, with the value it is.

    Args:
        stage: name of the stage.
        values: what was given, as ``read_given`` or ``typed`` returns it.
    """
    found: Json = {}
    if stage in LORA_LEARNING_RATE and trains_lora(stage, values):
        found["learning_rate"] = LORA_LEARNING_RATE[stage]
    new_lora = is_true(values.get("use_peft")) or (stage == "continual" and trains_lora(stage, values))
    if new_lora and needs_targets(values):
        found["lora_target_modules"] = "all-linear"
    if not has_accelerator():  # accelerate must know it too: without it each of several processes would train alone
        found["use_cpu"] = True
    if not computes_bf16(is_true(values.get("use_cpu"))):
        found["bf16"] = False
    return found


def trains_lora(stage: str, values: Mapping[str, object]) -> bool:
    """Whether what is trained is an adapter: a new one, or the start itself."""
    if stage == "continual":
        return values.get("method", "lora") == "lora"
    return is_true(values.get("use_peft")) or continues_adapter(values)


def continues_adapter(values: Mapping[str, object]) -> bool:
    """Whether the start is a local adapter that is trained on."""
    start = values.get("model_name_or_path")
    is_adapter = start is not None and (Path(str(start)).expanduser() / "adapter_config.json").is_file()
    return is_adapter and values.get("adapter_mode", "continue") == "continue"


def needs_targets(values: Mapping[str, object]) -> bool:
    """Whether a new adapter on the start must name its modules: PEFT has no list for the type of the model.

    False where the type is not known (no such model, the Hub out of reach): loading the model says what is wrong.
    """
    start, revision = values.get("model_name_or_path"), values.get("model_revision")
    if start is None or values.get("lora_target_parameters") or continues_adapter(values):
        return False
    from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

    base = _json_of(str(start), "adapter_config.json", revision).get("base_model_name_or_path")
    kind = _json_of(base, "config.json").get("model_type") if base else None
    kind = kind or _json_of(str(start), "config.json", revision).get("model_type")
    return kind is not None and kind not in TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING


def _json_of(name: str, file: str, revision: str | None = None) -> Json:
    """A JSON file of a model folder or of a repository on the Hub; empty where it cannot be had."""
    from transformers.utils import cached_file

    path = Path(name).expanduser()
    with contextlib.suppress(OSError, ValueError):
        found = path / file if path.is_dir() else cached_file(name, file, revision=revision)
        return json.loads(Path(found).read_text(encoding="utf-8"))
    return {}


def has_accelerator() -> bool:
    """Whether PyTorch finds a GPU or another accelerator here."""
    import torch

    return torch.accelerator.is_available()


def computes_bf16(use_cpu: bool) -> bool:
    """Whether mixed precision in bfloat16 is faster here; on a CPU and on GPUs before Ampere it is not."""
    import torch

    if use_cpu or not has_accelerator():
        return False
    return not torch.cuda.is_available() or torch.cuda.is_bf16_supported(including_emulation=False)
