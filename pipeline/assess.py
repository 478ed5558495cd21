"""Assessment: a list of evaluations of one model on held-out data, each figure with its interval.

    python pipeline/assess.py --config configs/quickstart/assess.yaml \\
        --model_name_or_path runs/quickstart/sft --output_dir runs/quickstart/assess_sft

The YAML lists the evaluations, {name, type, dataset, split, …}; types are loss, trigram, accuracy, reward, samples,
preference, objective and best_of_n (pipeline/evaluation/registry.py), or the dotted path package.module:function of
your own. Metrics go into run.json as name/metric, completions into samples.jsonl. What the model or its parents were
trained on is refused. Every entry is checked, and its rows read, before a model is loaded; each result is kept as it
comes, and a run that failed or was stopped continues with what is missing.

--objective adds E[R] - beta KL(pi || pi_ref), by what the model's run recorded: pi_ref, reward, beta and held-out
prompts. The model's folder is only read: its report and card find the assessments that name it in sibling folders.

Paper: the loss (9), DPO's implicit reward, the verifier V and the reward R of Part 2, all on held-out prompts.
"""

import time
from dataclasses import dataclass, field
from typing import Any

from pipeline.runtime.entry import entry
from pipeline.runtime.record import Run


@dataclass
class AssessArguments:
    """Which model is judged, by what, against what."""

    model_name_or_path: str = field(metadata={"help": "Hub id, model folder or adapter folder to judge."})
    output_dir: str = field(metadata={"help": "Where run.json and samples.jsonl go."})
    evaluations: list[dict[str, Any]] | None = field(
        default=None, metadata={"help": "In YAML only: a list of {name, type, options of that type}."}
    )
    objective: bool = field(
        default=False,
        metadata={"help": "Also measure E[R] - beta KL, by the recorded pi_ref, reward, beta and held-out prompts."},
    )
    expect: list[str] | None = field(
        default=None,
        metadata={"help": "What should hold, e.g. 'sums/pass@1 >= before + 0.25'; reported, never an error."},
    )
    baseline: str | None = field(default=None, metadata={"help": "Output folder of an earlier assessment: `before`."})
    reference_model_name_or_path: str | None = field(
        default=None, metadata={"help": "pi_ref of implicit rewards; default: what the model's own run record names."}
    )
    batch_size: int | None = field(
        default=None, metadata={"help": "Sequences at a time, for evaluations that do not say it themselves."}
    )
    dtype: str = field(
        default="float32", metadata={"help": "Weights' precision.", "choices": ["float32", "bfloat16", "float16"]}
    )
    seed: int = field(default=42, metadata={"help": "Of every sample and interval."})
    allow_unsafe_code_execution: bool = field(
        default=False, metadata={"help": "Run the programs of completions without a sandbox where none can be had."}
    )
    trust_remote_code: bool = field(default=False, metadata={"help": "Run the model repository's own code."})
    force: bool = field(default=False, metadata={"help": "Move an existing output folder aside and start anew."})


def main(argv: list[str] | None = None) -> None:
    """Run the stage; see the module's docstring."""
    with Run("assess", argv) as run:
        if run.done or not run.is_main:
            return  # one process judges; the others have nothing to do
        (args,) = run.parse(AssessArguments)
        from pipeline.runtime.checkpoints import require_model_folder
        from pipeline.runtime.files import write_rows

        require_model_folder(args.model_name_or_path)
        from pipeline.evaluation import recorded
        from pipeline.evaluation.expectations import baseline_metrics, check_claims, describe, parse_claims
        from pipeline.evaluation.registry import check_entries, headline, label, rehearse, run_entry, takes
        from pipeline.evaluation.results import Results

        objective = recorded.recorded_objective(args.model_name_or_path)
        prompts = {name: objective.pop(name) for name in ("dataset", "split") if name in objective}
        if args.objective and not any(item.get("type") == "objective" for item in args.evaluations or []):
            args.evaluations = [*(args.evaluations or []), recorded.objective_entry(args.model_name_or_path, prompts)]
        check_entries(args.evaluations or [])
        claims = parse_claims(args.expect or [], has_baseline=args.baseline is not None)
        before = baseline_metrics(run, args.baseline)
        recorded.refuse_training_rows(args.model_name_or_path, args.evaluations)

        import torch

        from pipeline.model.loading import load_model, load_tokenizer, require_language_model

        device = "cuda" if torch.cuda.is_available() else "cpu"
        options = {"dtype": args.dtype, "trust_remote_code": args.trust_remote_code}
        unsafe = args.allow_unsafe_code_execution
        defaults: dict[str, Any] = {"seed": args.seed, "allow_unsafe_code_execution": unsafe, **objective}
        if args.batch_size is not None:
            defaults["batch_size"] = args.batch_size
        reference = args.reference_model_name_or_path or recorded.recorded_reference(args.model_name_or_path)
        if reference:
            defaults["reference"] = lambda: load_model(reference, **options).to(device)
            if args.reference_model_name_or_path or any(takes(item, "reference") for item in args.evaluations):
                require_model_folder(reference, "reference_model_name_or_path")
        # These two are about what the model was trained on; the others say themselves what they judge by.
        defaults_of = [
            {k: v for k, v in defaults.items() if item["type"] in ("objective", "best_of_n") or k not in objective}
            for item in args.evaluations
        ]
        for item, taken in zip(args.evaluations, defaults_of, strict=True):
            rehearse(item, **taken)
        require_language_model(args.model_name_or_path, args.trust_remote_code)

        tokenizer = load_tokenizer(args.model_name_or_path, args.trust_remote_code)
        model = load_model(args.model_name_or_path, **options).to(device)
        run.add_parent(args.model_name_or_path)
        if reference == args.model_name_or_path:
            for taken in defaults_of:
                taken["reference"] = lambda: model
        elif reference:
            run.add_parent(reference)

        samples, results = [], Results(run.folder / "results", run.record["parents"])
        for number, (item, taken) in enumerate(zip(args.evaluations, defaults_of, strict=True), 1):
            started = time.monotonic()
            result = results.read(item, taken)
            kept = result is not None
            if not kept:
                result = run_entry(model, tokenizer, item, **taken)
                results.write(item, taken, result)
            figures = {f"{label(item)}/{name}": value for name, value in result.metrics.items()}
            run.add_data(result.data)
            run.add_metrics(figures)
            run.add_curves(label(item), result.curves)
            run.add_tables(label(item), result.tables)
            samples += [{"evaluation": label(item), **sample} for sample in result.samples]
            for name, rows in {"samples.jsonl": samples, **result.files}.items():
                write_rows(run.folder / name, rows)
            spent = "measured before" if kept else f"{time.monotonic() - started:.1f} s"
            print(
                f"[{number}/{len(args.evaluations)}] {label(item)}: {headline(result.metrics)} ({spent})", flush=True
            )
            run.write()
        checked = check_claims(claims, run.record["metrics"], before)
        run.note("expected", checked)
        for claim in checked:
            print(describe(claim), flush=True)
        results.clear()


if __name__ == "__main__":
    entry(main, AssessArguments, __doc__, trains=False)
