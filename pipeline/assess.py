"""Assessment: a list of evaluations of one model on held-out data, each figure with its interval.

    python pipeline/assess.py --config configs/quickstart/assess.yaml \\
        --model_name_or_path runs/quickstart/sft --output_dir runs/quickstart/assess_sft

The YAML lists the evaluations, {name, type, dataset, split, …}; types are loss, trigram, accuracy, reward, samples,
preference, objective and best_of_n (pipeline/evaluation/registry.py), or the dotted path package.module:function of
your own. Metrics go into run.json as name/metric, completions into samples.jsonl. What the model or its parents were
trained on is refused. --objective adds E[R] - beta KL(pi || pi_ref), by what the model's own run recorded: pi_ref,
reward, beta and held-out prompts; its figures also go into that run's record and card.

Paper: the loss (9), DPO's implicit reward, the verifier V and the reward R of Part 2, all on held-out prompts.
"""

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.runtime.entry import entry
from pipeline.runtime.errors import UserError
from pipeline.runtime.fingerprints import path_sha256
from pipeline.runtime.record import Run, read_record


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
        from pipeline.evaluation import lineage
        from pipeline.evaluation.expectations import describe, judge_claims, parse_claims
        from pipeline.evaluation.registry import check_entries, headline, label, run_entry

        recorded = lineage.recorded_objective(args.model_name_or_path)
        prompts = {name: recorded.pop(name) for name in ("dataset", "split") if name in recorded}
        if args.objective and not any(item.get("type") == "objective" for item in args.evaluations or []):
            args.evaluations = [*(args.evaluations or []), lineage.objective_entry(args.model_name_or_path, prompts)]
        check_entries(args.evaluations or [])
        claims = parse_claims(args.expect or [], has_baseline=args.baseline is not None)
        before = baseline_metrics(run, args.baseline)
        lineage.refuse_training_rows(args.model_name_or_path, args.evaluations)

        import torch

        from pipeline.model.loading import load_model, load_tokenizer

        device = "cuda" if torch.cuda.is_available() else "cpu"
        options = {"dtype": args.dtype, "trust_remote_code": args.trust_remote_code}
        tokenizer = load_tokenizer(args.model_name_or_path, args.trust_remote_code)
        model = load_model(args.model_name_or_path, **options).to(device)
        run.add_parent(args.model_name_or_path)
        unsafe = args.allow_unsafe_code_execution
        defaults: dict[str, Any] = {"seed": args.seed, "allow_unsafe_code_execution": unsafe, **recorded}
        if args.batch_size is not None:
            defaults["batch_size"] = args.batch_size
        reference = args.reference_model_name_or_path or lineage.recorded_reference(args.model_name_or_path)
        if reference == args.model_name_or_path:
            defaults["reference"] = lambda: model
        elif reference:
            defaults["reference"] = lambda: load_model(reference, **options).to(device)
            run.add_parent(reference)

        samples = []
        for number, item in enumerate(args.evaluations, 1):
            started = time.monotonic()
            # These two are about what the model was trained on; the others say themselves what they judge by.
            own = item["type"] in ("objective", "best_of_n")
            taken = {k: v for k, v in defaults.items() if own or k not in recorded}
            result = run_entry(model, tokenizer, item, **taken)
            run.add_data(result.data)
            run.add_metrics({f"{label(item)}/{name}": value for name, value in result.metrics.items()})
            samples += [{"evaluation": label(item), **sample} for sample in result.samples]
            for name, rows in result.files.items():
                write_samples(run.folder / name, rows)
            if item["type"] == "objective":
                figures = {f"{label(item)}/{name}": value for name, value in result.metrics.items()}
                lineage.note_on_model(args.model_name_or_path, figures)
            seconds = time.monotonic() - started
            print(
                f"[{number}/{len(args.evaluations)}] {label(item)}: {headline(result.metrics)} ({seconds:.1f} s)",
                flush=True,
            )
            run.write()
        write_samples(run.folder / "samples.jsonl", samples)
        run.record["expected"] = judge_claims(claims, run.record["metrics"], before)
        for claim in run.record["expected"]:
            print(describe(claim), flush=True)


def baseline_metrics(run: Run, folder: str | None) -> dict[str, float | None]:
    """Metrics of the run that ``before`` means; it becomes part of this run's inputs.

    Raises:
        UserError: no finished assessment there.
    """
    if folder is None:
        return {}
    recorded, record = Path(folder, "run.json"), read_record(Path(folder))
    if record is None or record["stage"] != "assess" or record["status"] != "completed":
        raise UserError(f"baseline: {folder} holds no finished assessment; run that one first")
    run.add_data([{"name": str(recorded), "role": "baseline", "fingerprint": path_sha256(recorded)}])
    return record["metrics"]


def write_samples(path: Path, samples: list[dict[str, Any]]) -> None:
    """One JSON object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples), encoding="utf-8")


if __name__ == "__main__":
    entry(main, AssessArguments, __doc__, trains=False)
