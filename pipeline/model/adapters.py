"""The small adapters that PEFT lacks: bias deltas and bottlenecks. Also the identity of any backbone.

- ``bias`` (BitFit, arXiv:2106.10199): a trainable delta beside every frozen bias, ``W x + b + delta``.
- ``bottleneck`` (arXiv:1902.00751): after every feed-forward block, ``y + W_up gelu(W_down y)``, W_up = 0 at first.

Both start as the identity, leave the backbone's tensors as they are, and are saved as PEFT saves its own:
``adapter_config.json`` (with ``"peft_type": "NARLM"``, which PEFT itself does not read) and
``adapter_model.safetensors``. They are attached in place, by forward hooks, so the model keeps its class and names.
"""

import hashlib
import json
import math
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from pipeline.model.lora_sum import adapter_folder
from pipeline.runtime.adapter_kinds import NARLM_PEFT_TYPE
from pipeline.runtime.errors import UserError
from pipeline.runtime.files import write_json

FEED_FORWARD = ("mlp", "feed_forward", "ffn")
# Parts of the names of parameters that adapters, ours and PEFT's, add to a model.
ADDED = ("bias_delta", "adapter_down", "adapter_up", "lora_", "ln_tuning_layers")


def attach(model: nn.Module, method: str, *, base: str, size: int = 16) -> nn.Module:
    """Freeze a model and attach a fresh adapter in place; returns the same model.

    Args:
        model: a causal LM.
        method: ``bias`` or ``bottleneck``.
        base: name of the backbone, written into the saved adapter.
        size: width of a bottleneck.

    Raises:
        UserError: the model has no bias, or no feed-forward block by a known name.
    """
    model.requires_grad_(False)
    places = _biases(model) if method == "bias" else _feed_forwards(model)
    device = next(model.parameters()).device
    for module in places:
        if method == "bias":
            # float32 beside a bf16 backbone: small steps would be rounded away
            module.bias_delta = nn.Parameter(torch.zeros_like(module.bias, dtype=torch.float32))
            module.register_forward_hook(_add_delta)
        else:
            width = _width(model)
            module.adapter_down = nn.Linear(width, size, device=device, dtype=torch.float32)
            module.adapter_up = nn.Linear(size, width, device=device, dtype=torch.float32)
            nn.init.normal_(module.adapter_down.weight, std=1 / math.sqrt(width))
            for tensor in (module.adapter_down.bias, module.adapter_up.weight, module.adapter_up.bias):
                nn.init.zeros_(tensor)
            module.register_forward_hook(_add_bottleneck)
    model.narlm_adapter = {
        "peft_type": NARLM_PEFT_TYPE,
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "method": method,
        "size": size,
    }
    return model


def has_narlm_adapter(model: nn.Module) -> bool:
    """Whether one of this module's adapters is attached to a model."""
    return hasattr(model, "narlm_adapter")


def is_narlm_config(config: dict | None) -> bool:
    """Whether an ``adapter_config.json`` is of one of this module's adapters."""
    return bool(config) and config.get("peft_type") == NARLM_PEFT_TYPE


def adapter_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """The attached adapter's parameters by name, on the CPU."""
    return {name: p.detach().cpu().contiguous() for name, p in model.named_parameters() if _is_added(name)}


def save_adapter(model: nn.Module, folder: str | Path) -> None:
    """Write the attached adapter; `load_adapter` reads it back."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(adapter_tensors(model), folder / "adapter_model.safetensors", metadata={"format": "pt"})
    write_json(folder / "adapter_config.json", model.narlm_adapter)


def load_adapter(model: nn.Module, folder: str | Path, *, trainable: bool = False) -> nn.Module:
    """Attach a saved adapter to its backbone, in place (or read it into the one that is attached already).

    Args:
        model: the backbone.
        folder: the adapter's folder, or its repository on the Hub.
        trainable: it is trained on.

    Raises:
        UserError: it was made for another model, or the folder holds several adapters and a router.
    """
    folder = adapter_folder(folder)
    if not has_narlm_adapter(model):
        config = json.loads((Path(folder) / "adapter_config.json").read_text(encoding="utf-8"))
        if config["method"] == "routed":
            raise UserError(f"{folder} holds several adapters: name one of them, e.g. {Path(folder) / 'routes' / '1'}")
        attach(model, config["method"], base=config["base_model_name_or_path"], size=config["size"])
    saved = load_file(Path(folder) / "adapter_model.safetensors")
    own = {name: p for name, p in model.named_parameters() if _is_added(name)}
    shapes = [{name: tuple(t.shape) for name, t in tensors.items()} for tensors in (saved, own)]
    if shapes[0] != shapes[1]:
        raise UserError(f"the adapter in {folder} does not fit its base: was it trained on another model?")
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(saved[name])
            parameter.requires_grad_(trainable)
    return model


def backbone_sha256(model: nn.Module) -> str:
    """Identity of theta_frozen: names and bytes of every parameter that no adapter added, whatever wraps the model."""
    digest = hashlib.sha256()
    tensors = {
        name.removeprefix("base_model.model.").replace(".base_layer", ""): parameter
        for name, parameter in model.named_parameters()
        if not _is_added(name)
    }
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _is_added(name: str) -> bool:
    return any(part in name for part in ADDED)


def _biases(model: nn.Module) -> list[nn.Module]:
    # Not the output layer: trainers read its weight and bias directly, past any hook.
    head = model.get_output_embeddings()
    found = [m for m in model.modules() if m is not head and isinstance(getattr(m, "bias", None), nn.Parameter)]
    if not found:
        raise UserError(
            "method bias: this model has no bias beside the output layer's to tune; choose layernorm or lora"
        )
    return found


def _feed_forwards(model: nn.Module) -> list[nn.Module]:
    found = [module for name, module in model.named_modules() if name.rpartition(".")[2] in FEED_FORWARD]
    if not found:
        raise UserError(
            f"method bottleneck: no module of this model is called {', '.join(FEED_FORWARD)}; choose lora instead"
        )
    return found


def _width(model: nn.Module) -> int:
    return model.config.get_text_config().hidden_size


def _add_delta(module: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor:
    return output + module.bias_delta.to(output.dtype)


def _add_bottleneck(module: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor:
    inner = nn.functional.gelu(module.adapter_down(output.to(module.adapter_down.weight.dtype)))
    return output + module.adapter_up(inner).to(output.dtype)
