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
import math
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
    trust_remote_code: bool = field(default=False, metadata={"help": "Run the model repository's own code."})
    force: bool = field(default=False, metadata={"help": "Move an existing output folder aside and start anew."})


def main(argv: list[str] | None = None) -> None:
    """Run the stage; see the module's docstring."""
    with Run("assess", argv) as run:
        if run.done or not run.is_main:
            return  # one process judges; the others have nothing to do
        (args,) = run.parse(AssessArguments)
        from pipeline.evaluation.expectations import judge_claims, parse_claims
        from pipeline.evaluation.lineage import refuse_training_rows
        from pipeline.evaluation.registry import check_entries, label, run_entry

        recorded = recorded_objective(args.model_name_or_path)
        prompts = {name: recorded.pop(name) for name in ("dataset", "split") if name in recorded}
        if args.objective and not any(item.get("type") == "objective" for item in args.evaluations or []):
            args.evaluations = [*(args.evaluations or []), objective_entry(args.model_name_or_path, prompts)]
        check_entries(args.evaluations or [])
        claims = parse_claims(args.expect or [], has_baseline=args.baseline is not None)
        before = baseline_metrics(run, args.baseline)
        refuse_training_rows(args.model_name_or_path, args.evaluations)

        import torch

        from pipeline.model.loading import load_model, load_tokenizer

        device = "cuda" if torch.cuda.is_available() else "cpu"
        options = {"dtype": args.dtype, "trust_remote_code": args.trust_remote_code}
        tokenizer = load_tokenizer(args.model_name_or_path, args.trust_remote_code)
        model = load_model(args.model_name_or_path, **options).to(device)
        run.add_parent(args.model_name_or_path)
        defaults: dict[str, Any] = {"seed": args.seed, **recorded}
        if args.batch_size is not None:
            defaults["batch_size"] = args.batch_size
        reference = args.reference_model_name_or_path or recorded_reference(args.model_name_or_path)
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
                note_on_model(args.model_name_or_path, {f"{label(item)}/{k}": v for k, v in result.metrics.items()})
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


def recorded_reference(model: str) -> str | None:
    """The pi_ref that the model's own run record names, if it has one."""
    record = read_record(Path(model))
    return record.get("pi_ref") if record else None


def recorded_objective(model: str) -> dict[str, Any]:
    """What the model's own run says about its objective: reward, beta, max_new_tokens, and the prompts' dataset."""
    record = read_record(Path(model)) or {}
    given = record.get("arguments", {})
    rewards, weights = given.get("reward"), given.get("reward_weights")
    if isinstance(rewards, list):
        weights = weights or [1.0] * len(rewards)
        rewards = [f"{float(w):g}*{_spec(name)}" for name, w in zip(rewards, weights, strict=True) if float(w) != 0]
        rewards = [text.removeprefix("1*") for text in rewards]
    elif rewards is not None:
        rewards = _spec(str(rewards))
    found = {
        "reward": rewards or None,
        "beta": given.get("tau") if record.get("stage") == "rsft" else given.get("beta"),
        "max_new_tokens": given.get("max_completion_length"),
    }
    sources = record.get("data", [])
    held_out = next((s for s in sources if s.get("role") == "evaluation"), None)
    if held_out is not None:
        found |= {"dataset": held_out["name"], "split": held_out.get("split", "test")}
    elif sources and str(sources[0]["name"]).startswith("world/"):
        found |= {"dataset": sources[0]["name"], "split": "test"}
    return {name: value for name, value in found.items() if value is not None}


def _spec(reward: str) -> str:
    """A reward as the registry names it: a folder is a reward model."""
    return f"reward_model(model={reward!r})" if Path(reward).is_dir() else reward


def objective_entry(model: str, prompts: dict[str, str]) -> dict[str, Any]:
    """The evaluation that --objective stands for.

    Raises:
        UserError: the model's run has no held-out data to take prompts from.
    """
    if not prompts:
        raise UserError(
            f"objective: the run record of {model} names no held-out data to take prompts from; write it out in YAML: "
            "evaluations: [{type: objective, dataset: …, split: …, reward: …, beta: …, max_new_tokens: …}]"
        )
    return {"name": "objective", "type": "objective", **prompts}


def note_on_model(model: str, metrics: dict[str, float]) -> None:
    """Put the objective's figures into the judged run's own record and card, where its readers look for them."""
    from pipeline.runtime.cards import write_card
    from pipeline.runtime.record import write_json

    folder = Path(model)
    record = read_record(folder)
    if record is None or record["status"] != "completed":
        return
    record["metrics"] |= {name: value for name, value in metrics.items() if math.isfinite(value)}
    write_json(folder / "run.json", record)
    write_card(folder, record)


def headline(metrics: dict[str, float]) -> str:
    """The figures of one evaluation worth a line in the terminal: those with an interval, else all."""
    main_figures = [name for name in metrics if f"{name}_low" in metrics] or list(metrics)
    # A lenient score that is the strict one says nothing.
    main_figures = [
        n for n in main_figures if metrics[n] != metrics.get(n.removesuffix("_lenient")) or "_len" not in n
    ]
    shown = []
    for name in main_figures:
        interval = (
            f" [{metrics[f'{name}_low']:.3f}, {metrics[f'{name}_high']:.3f}]" if f"{name}_low" in metrics else ""
        )
        shown.append(f"{name} {metrics[name]:.3f}{interval}")
    return ", ".join(shown)


def describe(claim: dict[str, Any]) -> str:
    """One line for the terminal about an expectation."""
    from pipeline.evaluation.page import number

    if claim["met"] is None:
        return f"  not judged: {claim['claim']} ({claim['reason']})"
    verdict = "as expected" if claim["met"] else "NOT AS EXPECTED"
    return f"  {verdict}: {claim['claim']} ({number(claim['value'])} against {number(claim['bound'])})"


def write_samples(path: Path, samples: list[dict[str, Any]]) -> None:
    """One JSON object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples), encoding="utf-8")


if __name__ == "__main__":
    entry(main, AssessArguments, __doc__, trains=False)
