"""Merge an adapter into its base, or copy a model into another architecture, for whoever serves models without PEFT.

    W' = W + (alpha / r) B A        (rsLoRA: alpha / sqrt(r); DoRA: also renormalised by column, as PEFT defines it)

    python -m pipeline.merge --model_name_or_path runs/my-dpo --output_dir runs/my-dpo-merged
    python -m pipeline.merge --model_name_or_path runs/my-model --as llama --output_dir runs/my-model-llama

The sum is taken at full precision (float32) and only then rounded to the dtype that is saved. Logits are compared
before and after, and once more on the files as they were written; a merge that answers differently is refused.

An adapter trained on a 4-bit base (QLoRA) fits the rounded weights, not the ones they were rounded from, and merging
into either loses something: refused unless --allow_4bit says that the rounded weights are to be merged, dequantised.

--as copies the weights of a complete model, or of the merged one, into the library's Llama, Mistral or GPT-2, or any
of these into NarLM, with the same logits. What the other architecture has no place for is an error that names it
(`pipeline.model.conversion`).
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from pipeline.runtime.checkpoints import require_model_folder
from pipeline.runtime.entry import entry
from pipeline.runtime.errors import UserError
from pipeline.runtime.needs import require_needs
from pipeline.runtime.record import Run
from pipeline.runtime.run_json import read_record

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

QUANTISED_TOLERANCE = 0.02  # kernels on quantised weights compute in bfloat16, which keeps two digits


@dataclass
class MergeArguments:
    """What is merged or converted, and how it is written."""

    model_name_or_path: str = field(metadata={"help": "Adapter (or, with --as, model): a folder or a Hub id."})
    output_dir: str = field(metadata={"help": "Folder of the merged model."})
    as_: Literal["narlm", "llama", "mistral", "gpt2"] | None = field(
        default=None,
        metadata={"help": "Architecture to save, with the same logits; default: the base's.", "aliases": ["--as"]},
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = field(
        default="auto", metadata={"help": "dtype of the saved weights; auto is the base's."}
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
    force: bool = field(default=False, metadata={"help": "Move an existing output folder aside and start again."})


def main(argv: list[str] | None = None) -> None:
    """Run the tool; see the module's docstring."""
    with Run("merge", argv) as run:
        if run.done:
            return
        if not run.helping:
            require_needs(run.stage, run.given)
            require_model_folder(str(run.given["model_name_or_path"]))
        (args,) = run.parse(MergeArguments)
        import torch

        from pipeline.model.conversion import convert
        from pipeline.model.loading import adapter_base, load_tokenizer, model_config
        from pipeline.model.vision import trained_with
        from pipeline.publish.cards import write_card
        from pipeline.publish.hub import push_run
        from pipeline.training.ending import say_saved

        name = args.model_name_or_path
        model_config(name, args.trust_remote_code)  # a name that nothing has is no complete model
        base = adapter_base(name)
        if base is None and args.as_ is None:
            raise UserError(
                f"model_name_or_path: {name} is a complete model: there is nothing to merge; --as converts it to "
                "another architecture"
            )
        run.add_parent(name)
        tokenizer = load_tokenizer(name, args.trust_remote_code)
        ids = torch.randint(len(tokenizer), (2, 64), generator=torch.Generator().manual_seed(0))
        if base is None:
            model, stored = load_complete(args)
            before = logits(model, ids)
        else:
            model, stored, before = merge(base, args, ids, tokenizer.pad_token_id)
        if args.as_ is not None:
            model = convert(model, args.as_)
        check_and_save(run, args, model.eval(), stored, ids, before)
        trained_with(tokenizer).save_pretrained(run.folder)
        run.complete(write_card)
        say_saved(run)
        if run.push:
            push_run(run.folder, args.hub_model_id, private=args.hub_private_repo)


def load_complete(args: MergeArguments) -> "tuple[PreTrainedModel, torch.dtype]":
    """A complete causal language model in float32, and the dtype to save.

    Raises:
        UserError: a reward model, or a quantised one.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from pipeline.model.loading import from_pretrained, model_config, require_language_model

    name, trust = args.model_name_or_path, args.trust_remote_code
    require_language_model(name, trust)
    config = model_config(name, trust)
    if getattr(config, "quantization_config", None) is not None:
        raise UserError(f"model_name_or_path: {name} is quantised: convert the weights it was rounded from")
    stored = config.dtype if args.dtype == "auto" else getattr(torch, args.dtype)
    model = from_pretrained(AutoModelForCausalLM, name, dtype=torch.float32, trust_remote_code=trust)
    return model.eval(), stored or torch.float32


def merge(
    base: str, args: MergeArguments, ids: "torch.Tensor", pad_token_id: int
) -> "tuple[PreTrainedModel, torch.dtype, torch.Tensor]":
    """The merged model, the dtype to save, and the logits of base and adapter on ``ids`` (B, T) before the merge.

    Raises:
        UserError: see ``load_base``; or a score head, with ``--as``.
    """
    import torch

    from pipeline.model.loading import attach_adapter, merged

    model, stored = load_base(base, args)
    model.config.pad_token_id = pad_token_id  # a score is read off the last token that is none
    tuned = attach_adapter(model, args.model_name_or_path).eval()
    before = logits(tuned, ids)
    if getattr(model, "is_quantized", False):
        # Loaded anew: on a CPU bitsandbytes packs NF4 weights at the first forward pass, beyond undoing.
        model = load_base(base, args)[0].dequantize(dtype=torch.float32)
        model.config.pad_token_id = pad_token_id
        tuned = attach_adapter(model, args.model_name_or_path).eval()
    return merged(tuned), stored, before


def check_and_save(
    run: Run,
    args: MergeArguments,
    model: "PreTrainedModel",
    stored: "torch.dtype",
    ids: "torch.Tensor",
    before: "torch.Tensor",
) -> None:
    """Save a model in ``stored`` if it gives the logits ``before`` on ``ids``, and compare those of the files as well.

    Raises:
        RuntimeError: logits moved by more than the tolerance.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    from pipeline.model.loading import load_model
    from pipeline.runtime.checkpoints import check_saved

    moved = difference(before, logits(model, ids))
    run.add_metrics({"logit_difference": moved})
    tolerance = max(args.tolerance, QUANTISED_TOLERANCE) if args.allow_4bit else args.tolerance
    if not moved <= tolerance:
        raise RuntimeError(
            f"the merged model answers differently: its logits moved by {moved:.2g} of the largest, more than "
            f"{tolerance:g}; nothing was saved"
        )
    scores = type(model).__name__.endswith("ForSequenceClassification")
    model.to(stored).save_pretrained(run.folder, max_shard_size=args.save_merged_shards)
    check_saved(run.folder, trained=False)
    again = load_model(
        str(run.folder), dtype=str(stored).removeprefix("torch."), trust_remote_code=args.trust_remote_code,
        auto_class=AutoModelForSequenceClassification if scores else AutoModelForCausalLM,
    )  # fmt: skip
    saved = difference(before, logits(again, ids))
    run.add_metrics({"saved_logit_difference": saved, "parameters": again.num_parameters()})
    if stored == torch.float32 and not saved <= tolerance:
        raise RuntimeError(f"the files in {run.folder} answer differently: logits moved by {saved:.2g} of the largest")
    print(f"merge: logits moved by {moved:.2g} of the largest in float32, {saved:.2g} as saved", flush=True)


def load_base(base: str, args: MergeArguments) -> "tuple[PreTrainedModel, torch.dtype]":
    """The adapter's base at full precision (or in 4 bits, where that was asked for), and the dtype to save.

    Raises:
        UserError: the adapter belongs to a 4-bit base and ``allow_4bit`` is not given, or it is of a kind that
            has no merged form, or one of a reward model with ``--as``.
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
    options = {"dtype": torch.float32, "trust_remote_code": args.trust_remote_code}
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
        if args.as_ is not None:
            raise UserError(f"--as {args.as_}: {name} is a reward model's adapter; only language models are converted")
        auto_class, options["num_labels"] = AutoModelForSequenceClassification, 1
    return from_pretrained(auto_class, base, **options).eval(), stored or torch.float32


def logits(model: "PreTrainedModel", ids: "torch.Tensor") -> "torch.Tensor":
    """Logits of token ids (B, T), in float32 on the CPU."""
    import torch

    with torch.no_grad():
        return model(ids.to(next(model.parameters()).device)).logits.float().cpu()


def difference(before: "torch.Tensor", after: "torch.Tensor") -> float:
    """The largest change of a logit, as a share of the largest logit."""
    return ((after - before).abs().max() / before.abs().max().clamp(min=1e-6)).item()


if __name__ == "__main__":
    entry(main, MergeArguments, __doc__, trains=False)
