"""The model a stage starts from: a Hub id, a full-model folder, or an adapter folder, and what pi_ref is then.

An adapter as the start is handled by ``adapter_mode``:

- ``continue``: the same adapter goes on training; pi_ref is base + a frozen copy of it.
- ``merge``: the adapter is merged into its base at full precision, written to ``<output_dir>/start``, and that is an
  ordinary model from there on; pi_ref is that model.
- ``stack``: a new adapter is trained over base + frozen adapter; pi_ref is base + adapter. What is saved is one plain
  LoRA adapter on the original base, equal to the sum of both (`stack_adapters`).
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import PartialState
from peft import PeftConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from trl import ModelConfig, get_peft_config, get_quantization_config

from pipeline.model.loading import adapter_base, from_pretrained, load_tokenizer
from pipeline.runtime.checkpoints import require_model_folder
from pipeline.runtime.errors import UserError
from pipeline.runtime.record import Run


@dataclass
class ModelArguments(ModelConfig):
    """TRL's ``ModelConfig`` and what happens to an adapter that is the start."""

    adapter_mode: Literal["continue", "merge", "stack"] = field(
        default="continue", metadata={"help": "What happens to an adapter that is the start."}
    )


@dataclass
class Policy:
    """The model to train, with everything a TRL trainer needs to know about it."""

    model: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerBase
    peft_config: PeftConfig | None
    parent_adapter: str | None = None  # set by `stack`: the adapter that the saved one must include

    def finish(self, folder: Path) -> None:
        """Make the saved folder stand alone: under ``stack`` the saved adapter takes its parent in."""
        if self.parent_adapter is not None:
            stack_adapters(self.parent_adapter, str(folder))


def load_policy(
    args: ModelArguments,
    run: Run,
    *,
    trust_remote_code: bool = False,
    auto_class: type = AutoModelForCausalLM,
    **kwargs: Any,
) -> Policy:
    """Load the start of a training stage and say which weights are pi_ref.

    Args:
        args: the model's arguments.
        run: the run, whose record gets the start as a parent and whose folder takes a merged start.
        trust_remote_code: passed on explicitly; None would ask on stdin.
        auto_class: which head, e.g. ``AutoModelForSequenceClassification`` for a reward model.
        kwargs: passed to ``from_pretrained``, e.g. ``num_labels=1``.

    Raises:
        UserError: no such model, an adapter without a base, or a mode that does not fit.
    """
    name = args.model_name_or_path
    if not name:
        raise UserError("model_name_or_path is missing: give a Hub id, a model folder or an adapter folder")
    require_model_folder(name)
    run.add_parent(name, args.model_revision)
    tokenizer = load_tokenizer(name, trust_remote_code, args.model_revision, for_training=True)
    kwargs |= {
        "dtype": args.dtype if args.dtype in ("auto", None) else getattr(torch, args.dtype),
        "attn_implementation": args.attn_implementation,
        "trust_remote_code": trust_remote_code,
        "quantization_config": get_quantization_config(args),
    }
    peft_config, parent_adapter = get_peft_config(args), None
    base = adapter_base(name)
    if base is None:
        model = from_pretrained(auto_class, name, revision=args.model_revision, **kwargs)
        pi_ref = f"{name} (the start{', adapter off' if peft_config else ', frozen copy'})"
    elif args.adapter_mode == "continue":
        model = PeftModel.from_pretrained(from_pretrained(auto_class, base, **kwargs), name, is_trainable=True)
        peft_config, pi_ref = None, f"{base} with a frozen copy of the adapter {name}"
    else:
        if kwargs["quantization_config"] is not None:
            raise UserError(
                f"adapter_mode {args.adapter_mode} merges {name} into its base, which loses precision in a quantised "
                "base: use --adapter_mode continue, or merge first in full precision"
            )
        model = PeftModel.from_pretrained(from_pretrained(auto_class, base, **kwargs), name).merge_and_unload()
        model.requires_grad_(True)  # PEFT froze the base; whether it is trained is now the stage's own choice
        if args.adapter_mode == "merge":
            start = run.folder / "start"
            if run.is_main and not (start / "config.json").is_file():
                model.save_pretrained(start)
                tokenizer.save_pretrained(start)
            PartialState().wait_for_everyone()
            _rename(model, str(start))
            pi_ref = f"{start} (base {base} with {name} merged in)"
        else:
            if peft_config is None:
                raise UserError("adapter_mode stack trains a new adapter over the old one: add --use_peft")
            _rename(model, base)
            parent_adapter = name
            pi_ref = f"{base} with the adapter {name}, the new adapter off"
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    run.record["pi_ref"] = name  # by every mode the reference is the start as it was, and this loads it
    if run.is_main:
        print(f"{run.stage}: pi_ref is {pi_ref}", flush=True)
    return Policy(model, tokenizer, peft_config, parent_adapter)


def with_adapter(policy: Policy) -> PreTrainedModel | PeftModel:
    """The policy's model with its new adapter, for a plain Trainer; TRL's trainers do this themselves."""
    return get_peft_model(policy.model, policy.peft_config) if policy.peft_config else policy.model


def stack_adapters(lower: str, upper: str) -> None:
    """Rewrite the LoRA adapter in ``upper`` as the sum of itself and ``lower``, on lower's base.

    ``scale_1 B_1 A_1 + scale_2 B_2 A_2 = [scale_1 B_1, scale_2 B_2] [A_1; A_2]``: one adapter of the summed rank with
    scale 1, which plain PEFT loads. A module that only one of them adapts is padded with zeros to the common rank.

    Raises:
        UserError: one of them is not plain LoRA (DoRA's magnitudes do not add).
    """
    configs = [json.loads((Path(folder) / "adapter_config.json").read_text()) for folder in (lower, upper)]
    if any(config["peft_type"] != "LORA" or config.get("use_dora") for config in configs):
        raise UserError("adapter_mode stack adds plain LoRA adapters; for DoRA or others use merge or continue")
    tensors = [load_file(Path(folder) / "adapter_model.safetensors") for folder in (lower, upper)]
    ranks = [config["r"] for config in configs]
    scales = [c["lora_alpha"] / (c["r"] ** 0.5 if c.get("use_rslora") else c["r"]) for c in configs]
    modules = sorted({key.rsplit(".lora_A.", 1)[0] for part in tensors for key in part if ".lora_A." in key})
    stacked: dict[str, torch.Tensor] = {}
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
    }
    save_file(stacked, Path(upper) / "adapter_model.safetensors", metadata={"format": "pt"})
    (Path(upper) / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")


def _rename(model: PreTrainedModel, name: str) -> None:
    """Say where a model comes from: TRL reloads the reference from there, PEFT writes it into adapter_config.json."""
    model.config._name_or_path = model.name_or_path = name
