"""Defaults that depend on the machine and on the method: what a field is where it was not given.

Imports torch only where it is asked about the machine.
"""

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path

from pipeline.runtime.coercion import is_true
from pipeline.runtime.files import Json
from pipeline.runtime.hardware import computes_bf16, has_accelerator, keeps_activations

# TRL's defaults of the learning rate are for all weights. The best one for LoRA is about ten times as large whatever
# the model (Schulman et al. 2025, "LoRA Without Regret"): with 1e-6 an adapter's B matrices stay where they start.
# RewardConfig's 1e-4 is one for LoRA already.
LORA_LEARNING_RATE = {"sft": 2e-4, "rsft": 2e-4, "continual": 2e-4, "dpo": 1e-5, "grpo": 1e-5, "ppo": 1e-5}
# Trainer's and TRL's own, for all weights: --help prints them and may not import TRL. A test compares them.
LEARNING_RATE = {
    "pretrain": 5e-5, "sft": 2e-5, "rsft": 2e-5, "continual": 2e-5,
    "reward_model": 1e-4, "dpo": 1e-6, "grpo": 1e-6, "ppo": 1e-6,
}  # fmt: skip
REASONS = {
    "learning_rate": "the default with LoRA",
    "reward": "the answer's number against the column answer",
    "lora_target_modules": "PEFT names no modules for this type of model",
    "use_cpu": "no accelerator",
    "bf16": "not faster here",
    "gradient_checkpointing": "activations fit in memory",
}
MACHINE = ("use_cpu", "bf16", "gradient_checkpointing")  # decided by the machine; the others by the method


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
    if reward := default_reward(stage, values):
        found["reward"] = reward
    if stage == "pretrain":
        found["logging_steps"] = 10  # TRL's, as in all other stages; Trainer's 500 leaves a short run without a line
    if not has_accelerator():  # accelerate must know it too: without it each of several processes would train alone
        found["use_cpu"] = True
    use_cpu = is_true(values.get("use_cpu", found.get("use_cpu")))
    bf16 = computes_bf16(use_cpu)
    if not bf16:
        found["bf16"] = False
    if values.get("model_name_or_path") and not given_checkpointing(values):
        config = base_config(values)
        bf16 = is_true(values.get("bf16", bf16))
        found["gradient_checkpointing"] = not keeps_activations(config, values, use_cpu=use_cpu, bf16=bf16)
    return found


def default_reward(stage: str, values: Mapping[str, object]) -> list[str]:
    """The rewards of a stage that is given none; an environment may have one of its own."""
    return ["numeric"] if stage == "grpo" and not values.get("environment_factory") else []


def rate_in_words(stage: str) -> str:
    """The default of a training stage's learning rate, e.g. ``1e-05 with LoRA, else 1e-06``."""
    lora = LORA_LEARNING_RATE.get(stage)
    return f"{lora:g} with LoRA, else {LEARNING_RATE[stage]:g}" if lora else f"{LEARNING_RATE[stage]:g}"


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


def given_checkpointing(values: Mapping[str, object]) -> bool:
    """Whether the user decided if activations are recomputed, by either of transformers' names for it."""
    return any(name in values for name in ("gradient_checkpointing", "activation_checkpointing"))


def needs_targets(values: Mapping[str, object]) -> bool:
    """Whether a new adapter on the start must name its modules: PEFT has no list for the type of the model.

    False where the type is not known (no such model, the Hub out of reach): loading the model says what is wrong.
    """
    if values.get("model_name_or_path") is None or values.get("lora_target_parameters") or continues_adapter(values):
        return False
    from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

    kind = base_config(values).get("model_type")
    return kind is not None and kind not in TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING


def base_config(values: Mapping[str, object]) -> Json:
    """``config.json`` of the start, or of the base of an adapter; empty where it cannot be had."""
    start, revision = str(values["model_name_or_path"]), values.get("model_revision")
    base = _json_of(start, "adapter_config.json", revision).get("base_model_name_or_path")
    found = _json_of(base, "config.json") if base else {}
    return found or _json_of(start, "config.json", revision)


def _json_of(name: str, file: str, revision: str | None = None) -> Json:
    """A JSON file of a model folder or of a repository on the Hub; empty where it cannot be had."""
    from transformers.utils import cached_file

    path = Path(name).expanduser()
    with contextlib.suppress(OSError, ValueError):
        found = path / file if path.is_dir() else cached_file(name, file, revision=revision)
        return json.loads(Path(found).read_text(encoding="utf-8"))
    return {}


def reasons(chosen: Json, of_machine: bool) -> str:
    """In words what the method or the machine decided: ``use_cpu true (no accelerator was found), …``.

    Args:
        chosen: arguments that were not given, with the values that they got.
        of_machine: those that the machine decided, else those of the method.
    """
    return ", ".join(
        f"{name} {_as_flag(value)} ({REASONS[name]})"
        for name, value in chosen.items()
        if name in REASONS and (name in MACHINE) is of_machine
    )


def _as_flag(value: object) -> str:
    """A value as its flag takes it."""
    return " ".join(map(str, value)) if isinstance(value, list) else str(value).lower()
