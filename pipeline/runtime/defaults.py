"""Defaults that depend on the machine and on the method: what a field is where it was not given.

Imports torch only where it is asked about the machine.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.runtime.coercion import is_true

# TRL's defaults of the learning rate are for all weights. The best one for LoRA is about ten times as large whatever
# the model (Schulman et al. 2025, "LoRA Without Regret"): with 1e-6 an adapter's B matrices stay where they start.
# RewardConfig's 1e-4 is one for LoRA already.
LORA_LEARNING_RATE = {"sft": 2e-4, "rsft": 2e-4, "continual": 2e-4, "dpo": 1e-5, "grpo": 1e-5, "ppo": 1e-5}
REASONS = {"learning_rate": "the default with LoRA", "bf16": "this device has none, or is slower with it"}


def dependent_defaults(stage: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Fields whose default the stage's method or this machine decides, with the value it is.

    Args:
        stage: name of the stage.
        values: what was given, as ``read_given`` or ``typed`` returns it.
    """
    found: dict[str, Any] = {}
    if stage in LORA_LEARNING_RATE and trains_lora(stage, values):
        found["learning_rate"] = LORA_LEARNING_RATE[stage]
    if not computes_bf16(is_true(values.get("use_cpu"))):
        found["bf16"] = False
    return found


def trains_lora(stage: str, values: Mapping[str, Any]) -> bool:
    """Whether what is trained is an adapter: a new one, or the start itself."""
    if stage == "continual":
        return values.get("method", "lora") == "lora"
    start = values.get("model_name_or_path")
    continued = start is not None and (Path(str(start)).expanduser() / "adapter_config.json").is_file()
    return is_true(values.get("use_peft")) or (continued and values.get("adapter_mode", "continue") == "continue")


def computes_bf16(use_cpu: bool) -> bool:
    """Whether mixed precision in bfloat16 is faster here; on a CPU and on GPUs before Ampere it is not."""
    import torch

    if use_cpu or not torch.accelerator.is_available():
        return False
    return not torch.cuda.is_available() or torch.cuda.is_bf16_supported(including_emulation=False)
