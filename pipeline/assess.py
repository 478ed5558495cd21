"""Assessment: a list of evaluations of one model on held-out data, each figure with its interval.

    python pipeline/assess.py --config configs/quickstart/assess.yaml \\
        --model_name_or_path runs/quickstart/sft --output_dir runs/quickstart/assess_sft

The YAML lists the evaluations, {name, type, dataset, split, …}; types are loss, trigram, accuracy, reward, samples,
preference, objective, best_of_n, hallucination, … (pipeline/evaluation/registry.py), or the dotted path
package.module:function of your own. `split: held_out` is what the model's own run held out. Without a YAML: --tasks
perplexity,accuracy. Metrics go into run.json as name/metric, completions into samples.jsonl. Rows that the model or
its parents were trained on are refused. Every entry is checked, and its rows are read, before a model is loaded; each
result is kept as it comes: a run that failed or was stopped continues with what is missing.

--lm_eval TASKS runs tasks of lm_eval 0.4.13, also your own in --lm_eval_include_path DIR, and puts its figures beside.
--objective adds E[R] - beta KL(pi || pi_ref), by what the model's run recorded: pi_ref, reward, beta and held-out
prompts. The model's folder is only read: its report and card find the assessments that name it in sibling folders.

Paper: the loss (9), DPO's implicit reward, the verifier V and the reward R of Part 2, all on held-out prompts.
"""

import os
import shlex
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from pipeline.evaluation.mistakes import refuse_mistakes
from pipeline.runtime.arguments import parse, typed
from pipeline.runtime.checkpoints import require_model_folder
from pipeline.runtime.command_table import as_typed
from pipeline.runtime.entry import entry
from pipeline.runtime.needs import require_needs
from pipeline.runtime.record import RECIPE_VARIABLE, Run

if TYPE_CHECKING:
    from pipeline.evaluation.registry import Entry


@dataclass
class AssessArguments:
    """The model to evaluate, the evaluations to run, and an optional baseline."""

    model_name_or_path: str = field(metadata={"help": "Hub id, model folder or adapter folder to evaluate."})
    output_dir: str = field(metadata={"help": "Folder for run.json and samples.jsonl."})
    evaluations: list[dict[str, Any]] | None = field(
        default=None, metadata={"help": "In YAML only: a list of evaluations, {name, type, options of that type}."}
    )
    tasks: list[str] | None = field(
        default=None,
        metadata={"help": "Evaluations by name, without YAML: perplexity, accuracy, preference, … (docs/assess.md)."},
    )
    dataset_name: str | None = field(
        default=None, metadata={"help": "Rows of --tasks; without it those that the model's own run held out."}
    )
    dataset_split: str | None = field(default=None, metadata={"help": "Split of the rows of --tasks [test]."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a Hub dataset of --tasks."})
    dataset_map: str | None = field(default=None, metadata={"help": "Rename columns of --tasks' rows: old=new,…"})
    limit: int | None = field(default=None, metadata={"help": "Use at most this many rows in --tasks."})
    reward: str | None = field(default=None, metadata={"help": "Verifier or reward of --tasks [the run's own]."})
    max_new_tokens: int | None = field(default=None, metadata={"help": "Longest completion of --tasks [256 tokens]."})
    n: int | None = field(default=None, metadata={"help": "Completions per prompt of --tasks."})
    temperature: float | None = field(default=None, metadata={"help": "Sampling temperature of --tasks."})
    lm_eval: list[str] | None = field(
        default=None, metadata={"help": "Also run these tasks of lm_eval (pip install 'narlm[eval]')."}
    )
    lm_eval_include_path: str | None = field(
        default=None, metadata={"help": "Folder of task YAML files of your own for --lm_eval."}
    )
    objective: bool = field(
        default=False,
        metadata={"help": "Also measure E[R] - beta KL with the recorded pi_ref, reward, beta and held-out prompts."},
    )
    expect: list[str] | None = field(
        default=None,
        metadata={
            "help": "Comparisons that should hold, e.g. 'sums/pass@1 >= before + 0.25'; reported, never an error."
        },
    )
    baseline: str | None = field(
        default=None, metadata={"help": "Output folder of an earlier assessment, whose metrics `before` refers to."}
    )
    reference_model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "pi_ref of KL and implicit rewards; default: the one in the model's run record."},
    )
    as_chat: Literal["auto", "true", "false"] = field(
        default="auto",
        metadata={
            "help": "Whether strings (prompts, answers) are turns of a chat, written by the chat template. auto: as "
            "the model was trained. An evaluation's own as_chat (true or false) comes first."
        },
    )
    batch_size: int | None = field(
        default=None, metadata={"help": "Sequences per batch, for evaluations without a batch_size in the YAML."}
    )
    dtype: str = field(
        default="float32",
        metadata={"help": "dtype of the model weights.", "choices": ["float32", "bfloat16", "float16"]},
    )
    seed: int = field(default=42, metadata={"help": "Random seed for sampling and bootstrap intervals."})
    allow_unsafe_code_execution: bool = field(
        default=False, metadata={"help": "Run the programs in completions without a sandbox where none is available."}
    )
    trust_remote_code: bool = field(default=False, metadata={"help": "Allow code from the model's repository to run."})
    force: bool = field(default=False, metadata={"help": "Move an existing output folder aside and start again."})


def main(argv: list[str] | None = None) -> None:
    """Run the stage; see the module's docstring."""
    with Run("assess", argv) as run:
        if run.done or not run.is_main:
            return  # one process evaluates; the others have nothing to do
        if not run.helping:
            check(run)
        (args,) = run.parse(AssessArguments)
        name = args.model_name_or_path
        from pipeline.evaluation import recorded
        from pipeline.evaluation.expectations import baseline_metrics, check_claims, describe, parse_claims
        from pipeline.evaluation.registry import check_entries, defaults_for, rehearse, takes
        from pipeline.evaluation.results import Results, assess_all

        objective = recorded.recorded_objective(name)
        entries = entries_of(args, objective)
        check_entries(entries)
        claims = parse_claims(args.expect or [], has_baseline=args.baseline is not None)
        before = baseline_metrics(run, args.baseline)
        recorded.refuse_training_rows(name, entries)

        from pipeline.model.chat import decide, sentence
        from pipeline.model.loading import load_for_use, load_tokenizer, require_language_model

        loading = {"name": name, "dtype": args.dtype, "trust_remote_code": args.trust_remote_code}
        unsafe = args.allow_unsafe_code_execution
        defaults = {"seed": args.seed, "allow_unsafe_code_execution": unsafe, "loading": loading}
        if args.batch_size is not None:
            defaults["batch_size"] = args.batch_size
        reference = args.reference_model_name_or_path or recorded.recorded_reference(name)
        if reference:
            other = loading | {"name": reference}
            defaults["reference"] = lambda: model if reference == name else load_for_use(**other)
            if args.reference_model_name_or_path or any(takes(item, "reference") for item in entries):
                require_model_folder(reference, "reference_model_name_or_path")
        for item in entries:
            rehearse(item, **defaults_for(item, defaults, objective))
        require_language_model(name, args.trust_remote_code)

        tokenizer = load_tokenizer(name, args.trust_remote_code)
        decision = decide(args.as_chat, tokenizer, name)
        run.note("chat", {"as_chat": decision.as_chat, "system": decision.system})
        run.say(sentence(decision))
        defaults |= {"as_chat": decision.as_chat, "system": decision.system}
        planned = [(item, defaults_for(item, defaults, objective)) for item in entries]
        model = load_for_use(**loading)
        run.add_parent(name)
        if reference and reference != name:
            run.add_parent(reference)
        results = Results(run.folder / "results", run.record["parents"])
        assess_all(run, results, model, tokenizer, planned)
        checked = check_claims(claims, run.record["metrics"], before)
        run.note("expected", checked)
        for claim in checked:
            print(describe(claim), flush=True)
        results.clear()
        run.say(f"saved in {run.folder} (figures in run.json, completions in samples.jsonl)")
        if RECIPE_VARIABLE not in os.environ:
            run.say(f"next: {as_typed('report')} {shlex.quote(str(run.folder.parent))}")


def check(run: Run) -> None:
    """Refuse what the arguments and the files show, before torch is imported."""
    typed(run.argv, AssessArguments)  # a misspelt flag comes before what is missing because of it
    require_needs(run.stage, run.given)
    refuse_mistakes(*parse(run.argv, AssessArguments))


def entries_of(args: AssessArguments, objective: "Entry") -> "list[Entry]":
    """The evaluations of the YAML, --tasks, --lm_eval and --objective; for `split: held_out` the rows it stands for.

    Args:
        args: the arguments.
        objective: reward, beta and length in the run record of the model.
    """
    from pipeline.evaluation import recorded
    from pipeline.evaluation.shortcuts import lm_eval_entries, shortcut_entries

    name, entries = args.model_name_or_path, list(args.evaluations or [])
    options = {key: getattr(args, key) for key in ("limit", "reward", "max_new_tokens", "n", "temperature")}
    options |= {key: getattr(args, f"dataset_{key}") for key in ("split", "config")}
    options |= {"dataset": args.dataset_name, "dataset_map": args.dataset_map}
    if args.lm_eval and not args.tasks:
        options["limit"] = None  # it is that of --lm_eval
    entries += shortcut_entries(args.tasks or [], options, objective)
    entries += lm_eval_entries(args.lm_eval or [], args.lm_eval_include_path, args.limit)
    if args.objective and not any(item.get("type") == "objective" for item in entries):
        entries.append(recorded.objective_entry(name))
    return [recorded.resolve_held_out(name, item) if isinstance(item, dict) else item for item in entries]


if __name__ == "__main__":
    entry(main, AssessArguments, __doc__, trains=False)
