"""Arithmetic on saved LoRA adapters: the sum of two as one, which plain PEFT loads onto their common base.

PEFT's ``add_weighted_adapter`` makes the same sum inside a loaded model; this one needs no base in memory.
"""

import json
from pathlib import Path

from pipeline.runtime.errors import UserError
from pipeline.runtime.files import write_json

# What an adapter may be for the sum to be plain LoRA again. Any other field that is set names a variant whose effect
# is not the product B A: DoRA, patterns of ranks, trained biases, replicated layers and whatever PEFT adds next.
FREE = {
    "auto_mapping", "base_model_name_or_path", "ensure_weight_tying", "exclude_modules", "fan_in_fan_out",
    "inference_mode", "layers_pattern", "layers_to_transform", "lora_alpha", "lora_dropout", "megatron_core",
    "modules_to_save", "peft_type", "peft_version", "qalora_group_size", "r", "revision", "runtime_config",
    "target_modules", "task_type", "use_rslora",
}  # fmt: skip
# PiSSA, OLoRA, LoftQ, CorDA and their like also rewrite the weights of the base.
FIXED = {"peft_type": ["LORA"], "bias": ["none"], "init_lora_weights": [True, False, "gaussian", "orthogonal", "eva"]}
PAIRS = ((".lora_A.weight", ".lora_B.weight"), (".lora_embedding_A", ".lora_embedding_B"))


def check_stackable(lower: Path, upper: dict) -> None:
    """Refuse two adapters that have no sum.

    Args:
        lower: folder of the lower adapter.
        upper: the upper adapter's configuration.

    Raises:
        UserError: one of them is a variant of LoRA, or no LoRA at all.
    """
    lower_config = json.loads((lower / "adapter_config.json").read_text(encoding="utf-8"))
    for what, config in ((f"the adapter {lower}", lower_config), ("the new adapter", upper)):
        variant = variant_of(config)
        if variant is not None:
            raise UserError(
                f"{what} is not plain LoRA ({variant}), so {lower} and the new adapter do not add up to one adapter: "
                "use --adapter_mode merge or continue, or merge it first (python -m pipeline.merge)"
            )


def adapter_folder(name: str | Path, revision: str | None = None) -> Path:
    """The folder of an adapter: itself, or what is downloaded of its repository."""
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(str(name), revision=revision, allow_patterns=["adapter_*"]))


def stack_adapters(lower: Path, upper: Path) -> None:
    """Rewrite the LoRA adapter in ``upper`` as the sum of itself and ``lower``, on lower's base.

    ``scale_1 B_1 A_1 + scale_2 B_2 A_2 = [scale_1 B_1, scale_2 B_2] [A_1; A_2]``: one adapter of the summed rank with
    scale 1. A module that only one of them adapts is padded with zeros to the common rank. Modules that were saved
    completely (an output layer, a score head) are carried: the upper one's contains what the lower one did to it, and
    an upper product on such a module of the lower one is added to it.

    Args:
        lower: folder of the lower adapter.
        upper: folder of the upper one, which was trained on base + lower.

    Raises:
        UserError: one of them is no plain LoRA (`check_stackable`).
    """
    import torch
    from safetensors.torch import load_file, save_file

    folders = [lower, upper]
    configs = [json.loads((folder / "adapter_config.json").read_text(encoding="utf-8")) for folder in folders]
    check_stackable(lower, configs[1])
    tensors = [load_file(folder / "adapter_model.safetensors") for folder in folders]
    ranks = [config["r"] for config in configs]
    scales = [c["lora_alpha"] / (c["r"] ** 0.5 if c.get("use_rslora") else c["r"]) for c in configs]
    stacked = {key: value for part in tensors for key, value in part.items() if ".lora_" not in key}
    modules = set()
    for a_end, b_end in PAIRS:
        for module in sorted({key.removesuffix(a_end) for part in tensors for key in part if key.endswith(a_end)}):
            a_key, b_key, complete = module + a_end, module + b_end, f"{module}.weight"
            if complete in tensors[1]:
                continue
            if complete in tensors[0]:
                product = scales[1] * tensors[1][b_key] @ tensors[1][a_key]
                stacked[complete] = tensors[0][complete] + (
                    product if product.shape == tensors[0][complete].shape else product.T
                )
                continue
            example = next(part for part in tensors if a_key in part)
            inputs, outputs = example[a_key].shape[1], example[b_key].shape[0]
            rows = [part.get(a_key, torch.zeros(r, inputs)) for part, r in zip(tensors, ranks)]
            columns = [s * part.get(b_key, torch.zeros(outputs, r)) for part, r, s in zip(tensors, ranks, scales)]
            stacked[a_key], stacked[b_key] = torch.cat(rows, 0).contiguous(), torch.cat(columns, 1).contiguous()
            modules.add(module.removeprefix("base_model.model."))
    whole_modules = {name for config in configs for name in config.get("modules_to_save") or ()}
    config = configs[1] | {
        "base_model_name_or_path": configs[0]["base_model_name_or_path"],
        "r": sum(ranks),
        "lora_alpha": sum(ranks),
        "use_rslora": False,
        "target_modules": sorted(modules),
        "modules_to_save": sorted(whole_modules) or None,
        "exclude_modules": None,
        "layers_to_transform": None,
        "layers_pattern": None,
    }
    save_file(stacked, folders[1] / "adapter_model.safetensors", metadata={"format": "pt"})
    write_json(folders[1] / "adapter_config.json", config)


def variant_of(config: dict) -> str | None:
    """The field of an adapter's configuration that makes it more, or something else, than a product B A."""
    for name, allowed in FIXED.items():
        if config.get(name, allowed[0]) not in allowed:
            return f"{name} {getattr(config[name], 'value', config[name])}"
    return next((name for name, value in config.items() if value and name not in FREE and name not in FIXED), None)
