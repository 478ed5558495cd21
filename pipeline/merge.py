"""Merge an adapter into its base: an ordinary model, for whoever serves or converts models without PEFT.

    W' = W + (alpha / r) B A        (rsLoRA: alpha / sqrt(r); DoRA: also renormalised by column, as PEFT defines it)

    python -m pipeline.merge --model_name_or_path runs/my-dpo --output_dir runs/my-dpo-merged

The sum is taken at full precision (float32) and only then rounded to the dtype that is saved. Logits are compared
before and after, and once more on the files as they were written; a merge that answers differently is refused.

An adapter trained on a 4-bit base (QLoRA) fits the rounded weights, not the ones they were rounded from, and merging
into either loses something: refused unless --allow_4bit says that the rounded weights are to be merged, dequantised.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from pipeline.runtime.entry import entry
from pipeline.runtime.errors import UserError
from pipeline.runtime.record import Run, read_record

QUANTISED_TOLERANCE = 0.02  # kernels on quantised weights compute in bfloat16, which keeps two digits


@dataclass
class MergeArguments:
    """What is merged, and how it is written."""

    model_name_or_path: str = field(metadata={"help": "Adapter folder or Hub id."})
    output_dir: str = field(metadata={"help": "Where the merged model goes."})
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = field(
        default="auto", metadata={"help": "Of the saved weights; auto is the base's own."}
    )
    save_merged_shards: str = field(default="5GB", metadata={"help": "Largest size of one file of weights."})
    allow_4bit: bool = field(
        default=False, metadata={"help": "Merge an adapter of a 4-bit base into that base's dequantised weights."}
    )
    tolerance: float = field(
        default=1e-3, metadata={"help": "How far a logit may move in float32, relative to the largest of them."}
    )
    trust_remote_code: bool = field(default=False, metadata={"help": "Run the model's own code, from the Hub."})
    push_to_hub: bool = field(default=False, metadata={"help": "Upload the merged model, with its card."})
    hub_model_id: str | None = field(default=None, metadata={"help": "user/name on the Hub."})
    hub_private_repo: bool | None = field(default=None, metadata={"help": "Make a new repository private."})
    force: bool = field(default=False, metadata={"help": "Move an existing output folder aside and start anew."})


def main(argv: list[str] | None = None) -> None:
    """Run the tool; see the module's docstring."""
    with Run("merge", argv) as run:
        if run.done:
            return
        (args,) = run.parse(MergeArguments)
        import torch

        from pipeline.model.loading import adapter_base, attach_adapter, load_model, load_tokenizer, merged
        from pipeline.publish.cards import write_card
        from pipeline.publish.hub import push_run
        from pipeline.runtime.checkpoints import check_saved, require_model_folder

        require_model_folder(args.model_name_or_path)
        base = adapter_base(args.model_name_or_path)
        if base is None:
            raise UserError(
                f"model_name_or_path: {args.model_name_or_path} is a whole model: there is nothing to merge"
            )
        run.add_parent(args.model_name_or_path)
        model, stored, auto_class = load_base(base, args)
        tokenizer = load_tokenizer(args.model_name_or_path, args.trust_remote_code)
        model.config.pad_token_id = tokenizer.pad_token_id  # a score is read off the last token that is none
        ids = torch.randint(len(tokenizer), (2, 64), generator=torch.Generator().manual_seed(0))
        ids = ids.to(next(model.parameters()).device)
        with torch.no_grad():
            tuned = attach_adapter(model, args.model_name_or_path).eval()
            before = tuned(ids).logits.float()
            if getattr(model, "is_quantized", False):
                # Loaded anew: on a CPU bitsandbytes packs NF4 weights at the first forward pass, beyond undoing.
                model = load_base(base, args)[0].dequantize(dtype=torch.float32)
                model.config.pad_token_id = tokenizer.pad_token_id
                tuned = attach_adapter(model, args.model_name_or_path).eval()
            plain = merged(tuned)
            moved = difference(before, plain(ids).logits)
        run.add_metrics({"logit_difference": moved})
        tolerance = max(args.tolerance, QUANTISED_TOLERANCE) if args.allow_4bit else args.tolerance
        if not moved <= tolerance:
            raise RuntimeError(
                f"the merged model answers differently: its logits moved by {moved:.2g} of the largest, more than "
                f"{tolerance:g}; nothing was saved"
            )
        plain.to(stored).save_pretrained(run.folder, max_shard_size=args.save_merged_shards)
        tokenizer.save_pretrained(run.folder)
        check_saved(run.folder, trained=False)
        again = load_model(
            str(run.folder), dtype=str(stored).removeprefix("torch."), trust_remote_code=args.trust_remote_code,
            auto_class=auto_class,
        )  # fmt: skip
        with torch.no_grad():
            saved = difference(before, again(ids.to(again.device)).logits)
        run.add_metrics({"saved_logit_difference": saved, "parameters": again.num_parameters()})
        if stored == torch.float32 and not saved <= tolerance:
            raise RuntimeError(
                f"the files in {run.folder} answer differently: logits moved by {saved:.2g} of the largest"
            )
        print(
            "merge: logits moved by {logit_difference:.2g} of the largest in float32, {saved_logit_difference:.2g} "
            "as saved".format(**run.record["metrics"]),
            flush=True,
        )
        run.complete()
        write_card(run.folder, run.record)
        if run.push:
            push_run(run.folder, args.hub_model_id, private=args.hub_private_repo)


def load_base(base: str, args: MergeArguments) -> tuple[Any, Any, type]:
    """The adapter's base at full precision (or in 4 bits, where that was asked for), the dtype to save, its class.

    Raises:
        UserError: the adapter belongs to a 4-bit base and nobody said what to do about it, or it is of a kind that
            has no merged form.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, BitsAndBytesConfig

    from pipeline.model.loading import adapter_config, from_pretrained

    name = args.model_name_or_path
    adapter = adapter_config(name)
    if adapter.get("peft_type") != "LORA":
        raise UserError(f"model_name_or_path: {name} is a {adapter.get('peft_type')} adapter: only LoRA can be merged")
    config = AutoConfig.from_pretrained(base, trust_remote_code=args.trust_remote_code)
    trained = (read_record(name) or {}).get("arguments", {})
    quantised = getattr(config, "quantization_config", None) is not None
    four_bit = bool(trained.get("load_in_4bit") or trained.get("load_in_8bit") or quantised)
    if four_bit and not args.allow_4bit:
        raise UserError(
            f"{name} was trained on a quantised base, whose rounded weights it fits: merged into {base} at full "
            "precision it would be another model. --allow_4bit merges it into the rounded weights, dequantised"
        )
    stored = config.dtype if args.dtype == "auto" else getattr(torch, args.dtype)
    options: dict[str, Any] = {"dtype": torch.float32, "trust_remote_code": args.trust_remote_code}
    if four_bit and not quantised:
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=bool(trained.get("load_in_4bit")),
            load_in_8bit=bool(trained.get("load_in_8bit")),
            bnb_4bit_quant_type=trained.get("bnb_4bit_quant_type", "nf4"),
            bnb_4bit_use_double_quant=bool(trained.get("use_bnb_nested_quant")),
            bnb_4bit_compute_dtype=torch.float32,
        )
    auto_class = AutoModelForCausalLM
    if adapter.get("task_type") == "SEQ_CLS":
        auto_class, options["num_labels"] = AutoModelForSequenceClassification, 1
    return from_pretrained(auto_class, base, **options).eval(), stored or torch.float32, auto_class


def difference(before: Any, after: Any) -> float:
    """The largest change of a logit, as a share of the largest logit."""
    before, after = before.float(), after.float().to(before.device)
    return ((after - before).abs().max() / before.abs().max().clamp(min=1e-6)).item()


if __name__ == "__main__":
    entry(main, MergeArguments, __doc__, trains=False)
