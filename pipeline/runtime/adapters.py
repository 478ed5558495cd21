"""Arithmetic on saved LoRA adapters: the sum of two as one, which plain PEFT loads."""

import json
from pathlib import Path

from pipeline.runtime.errors import UserError


def stack_adapters(lower: str | Path, upper: str | Path) -> None:
    """Rewrite the LoRA adapter in ``upper`` as the sum of itself and ``lower``, on lower's base.

    ``scale_1 B_1 A_1 + scale_2 B_2 A_2 = [scale_1 B_1, scale_2 B_2] [A_1; A_2]``: one adapter of the summed rank with
    scale 1. A module that only one of them adapts is padded with zeros to the common rank. Whole modules saved with
    an adapter (a score head) are the upper one's, else the lower one's.

    Raises:
        UserError: one of them is not plain LoRA of one rank on linear layers (DoRA's magnitudes do not add).
    """
    import torch
    from safetensors.torch import load_file, save_file

    folders = [Path(lower), Path(upper)]
    configs = [json.loads((folder / "adapter_config.json").read_text()) for folder in folders]
    tensors = [load_file(folder / "adapter_model.safetensors") for folder in folders]
    for folder, config, part in zip(folders, configs, tensors):
        if not _is_plain(config) or any("lora_embedding" in key for key in part):
            raise UserError(
                f"the adapter in {folder} is not plain LoRA of one rank on linear layers, so it cannot be added to "
                "another one: use adapter_mode continue, or merge it first (python -m pipeline.merge)"
            )
    ranks = [config["r"] for config in configs]
    scales = [c["lora_alpha"] / (c["r"] ** 0.5 if c.get("use_rslora") else c["r"]) for c in configs]
    modules = sorted({key.rsplit(".lora_A.", 1)[0] for part in tensors for key in part if ".lora_A." in key})
    stacked = {key: value for part in tensors for key, value in part.items() if ".lora_" not in key}
    for module in modules:
        a_key, b_key = f"{module}.lora_A.weight", f"{module}.lora_B.weight"
        example = next(part for part in tensors if a_key in part)
        inputs, outputs = example[a_key].shape[1], example[b_key].shape[0]
        rows = [part.get(a_key, torch.zeros(r, inputs)) for part, r in zip(tensors, ranks)]
        columns = [s * part.get(b_key, torch.zeros(outputs, r)) for part, r, s in zip(tensors, ranks, scales)]
        stacked[a_key], stacked[b_key] = torch.cat(rows, 0).contiguous(), torch.cat(columns, 1).contiguous()
    config = configs[1] | {
        "base_model_name_or_path": configs[0]["base_model_name_or_path"],
        "r": sum(ranks),
        "lora_alpha": sum(ranks),
        "use_rslora": False,
        "target_modules": sorted({module.rsplit(".", 1)[-1] for module in modules}),
        "layers_to_transform": None,
    }
    save_file(stacked, folders[1] / "adapter_model.safetensors", metadata={"format": "pt"})
    (folders[1] / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")


def _is_plain(config: dict) -> bool:
    """Whether an adapter is the product B A with one scale, and nothing beside it."""
    return config["peft_type"] == "LORA" and not any(
        config.get(name) for name in ("use_dora", "rank_pattern", "alpha_pattern", "lora_bias")
    )
