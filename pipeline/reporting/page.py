"""The report as one HTML page: what the run records say, arranged for the template ``report.html.j2``."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pipeline.reporting import rlhf_charts
from pipeline.reporting.charts import Chart, Curve, family_tree, heat_map, interval_bar, line_chart
from pipeline.reporting.history import RunView, change, model_of, series
from pipeline.runtime.formatting import clip, count, duration, memory, number, short
from pipeline.runtime.messages import user_text

# Charts that a training stage may have, the most informative first: title, unit of y, (logged name, label, marked).
CHARTS: tuple[tuple[str, str, tuple[tuple[str, str, bool], ...]], ...] = (
    ("reward", "reward per sample", (("reward", "training", False), ("eval_reward", "held out", True))),
    (
        "preference accuracy",
        "share of pairs",
        (("rewards/accuracies", "training", False), ("eval_rewards/accuracies", "held out", True)),
    ),
    ("loss", "", (("loss", "training", False), ("eval_loss", "held out", True))),
    (
        "log-likelihood of the answers",
        "nats per answer",
        (("logps/chosen", "chosen", False), ("logps/rejected", "rejected", False)),
    ),
    ("KL to the reference", "nats", (("kl", "training", False), ("objective/kl", "training", False))),
    (
        "the objective",
        "reward per completion",
        (("objective/rlhf_reward", "E[R] - beta KL", False), ("objective/scores", "E[R]", False)),
    ),
    ("entropy of the policy", "nats per token", (("entropy", "training", False), ("eval_entropy", "held out", True))),
    (
        "length of completions",
        "tokens",
        (("completions/mean_length", "mean", False), ("completions/max_length", "longest", False)),
    ),
    ("cut-off completions", "share", (("completions/clipped_ratio", "training", False),)),
    (
        "tokens predicted right",
        "share of tokens",
        (("mean_token_accuracy", "training", False), ("eval_mean_token_accuracy", "held out", True)),
    ),
)
LOSS_UNITS = {
    "pretrain": "nats per token",
    "sft": "nats per token",
    "rsft": "nats per token",
    "continual": "nats per token",
    "dpo": "nats per pair",
    "reward_model": "nats per pair",
}
SHOWN_CHARTS = 3  # one row of the page
NOT_CURVES = ("epoch", "step", "learning_rate", "grad_norm", "num_tokens", "total_flos", "num_input_tokens_seen")
STATUS_WORDS = {"completed": "done"}
STATUS_NOTES = {"interrupted": "the same command resumes it", "unreadable": "its run.json cannot be read"}
VERDICTS = {True: ("good", "✓"), False: ("bad", "✗")}
ALSO_SHOWN = ("perplexity", "bayes_accuracy", "share_of_bayes")


def build_page(title: str, runs: Sequence[RunView], machine: Mapping[str, str], made: str) -> str:
    """The complete page.

    Args:
        title: what was run.
        runs: every run, parents first.
        machine: facts about this machine, name -> text.
        made: when the report was made.
    """
    trained = [run for run in runs if run.stage != "assess"]
    assessments = [run for run in runs if run.stage == "assess"]
    template = _environment().get_template("report.html.j2")
    return template.render(
        title=title,
        made=made,
        tiles=tiles(runs, assessments),
        facts={**machine, **(newest(runs).get("versions") or {})},
        stages=[stage_row(run, assessments) for run in trained or runs],
        tree=tree(runs),
        claims=claims(assessments),
        assessed=assessed([run for run in assessments if run.metrics]),
        frontier=rlhf_charts.frontier(assessments),
        against_best_of_n=rlhf_charts.against_best_of_n(assessments),
        samples=samples(assessments),
        sequences=sequences(trained),
        curves=curves(trained),
        next_steps=next_steps(trained),
        details=[details(run) for run in runs],
    )


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    environment.filters |= {"count": count, "duration": duration, "memory": memory, "model_of": model_of}
    return environment


def tiles(runs: Sequence[RunView], assessments: Sequence[RunView]) -> list[dict[str, str]]:
    """The three or four figures that matter most."""
    found = [claim for run in assessments for claim in run.record.get("expected") or []]
    met = sum(claim["met"] is True for claim in found)
    done = sum(run.status == "completed" for run in runs)
    shown = []
    if found:
        shown.append(_tile(f"{met} of {len(found)}", "expectations met", "good" if met == len(found) else "bad"))
    shown.append(_tile(f"{done} of {len(runs)}", "runs finished", "good" if done == len(runs) else "bad"))
    shown.append(_tile(duration(sum(run.record.get("seconds") or 0 for run in runs)), "of run time"))
    peak = max((run.record.get("peak_memory_bytes") or 0 for run in runs), default=0)
    if peak:
        shown.append(_tile(memory(peak), "peak memory"))
    return shown


def _tile(figure: str, text: str, kind: str = "") -> dict[str, str]:
    return {"figure": figure, "text": text, "kind": kind}


def stage_row(run: RunView, assessments: Sequence[RunView] = ()) -> dict[str, Any]:
    """A training stage: where from, what improved, which assessments evaluated it, how long, how much memory."""
    note = STATUS_NOTES.get(run.status, "")
    if run.status == "failed":
        note = clip(str(run.record.get("error", "no reason recorded")), 200)
    # Parents that are runs of this report, else folders or Hub ids.
    others = [str(p.get("repo") or p.get("path")) for p in run.record.get("parents") or []]
    row = {
        "run": run,
        "status": STATUS_WORDS.get(run.status, run.status),
        "note": note,
        "origin": ", ".join(run.parents or others) or ("scratch" if run.record else "–"),
        "change": None,
        "assessments": [assessment_note(other) for other in assessments if other.parents == [run.name]],
    }
    found = change(run)
    if found is not None and found.before is not None and found.after is not None:
        better = found.after > found.before if found.higher_is_better else found.after < found.before
        kind = "up" if better else "down" if found.after != found.before else ""
        row |= {"change": found, "before": short(found.before), "after": short(found.after), "kind": kind}
    return row


def assessment_note(run: RunView) -> str:
    """An assessment in a few words: its name, and how many of its expectations were met."""
    found = run.record.get("expected") or []
    met = sum(claim["met"] is True for claim in found)
    return f"{run.name}: {met} of {len(found)} expectations met" if found else run.name


def tree(runs: Sequence[RunView]) -> Markup:
    """The lineage as a graph; assessments hang on the model they evaluate."""
    if len(runs) < 2:
        return Markup()
    nodes = []
    for run in runs:
        kind = "assess" if run.stage == "assess" else "train"
        words = (run.stage, "" if run.status == "completed" else run.status)
        below = ", ".join(word for word in words if word not in ("", "?"))
        nodes.append((run.name, below, f"{kind} {run.status}", run.parents))
    return family_tree(nodes)


def claims(assessments: Sequence[RunView]) -> list[dict[str, str]]:
    """Every expectation and whether it held."""
    rows = []
    for run in assessments:
        for claim in run.record.get("expected") or []:
            kind, sign = VERDICTS.get(claim["met"], ("", "?"))
            word = {True: "met", False: "not met"}.get(claim["met"], "not checked")
            bound = number(claim["bound"]) if claim.get("bound") is not None else claim.get("reason", "")
            rows.append(
                {
                    "kind": kind,
                    "word": f"{sign} {word}",
                    "model": model_of(run),
                    "text": claim["claim"],
                    "found": number(claim.get("value")),
                    "bound": bound,
                }
            )
    return rows


@dataclass
class Assessed:
    """The figures of all assessments: those with an interval or a claim first, the rest folded."""

    runs: Sequence[RunView]
    main: list[dict[str, Any]]
    others: list[dict[str, Any]]


def assessed(runs: Sequence[RunView]) -> Assessed | None:
    """Figures by evaluation: a row per metric, a column per evaluated model; None where there is nothing."""
    if not runs:
        return None
    names = list(dict.fromkeys(name for run in runs for name in run.metrics))
    claimed = {claim["metric"] for run in runs for claim in run.record.get("expected") or []}
    plain = [n for n in names if not (n.endswith(("_low", "_high")) and n.rpartition("_")[0] in names)]
    main = [n for n in plain if f"{n}_low" in names or n in claimed or n.rpartition("/")[2] in ALSO_SHOWN]
    # A lenient score that equals the strict one everywhere adds nothing.
    main = [
        n
        for n in main
        if not n.endswith("_lenient")
        or any(run.metrics.get(n) != run.metrics.get(n.removesuffix("_lenient")) for run in runs)
    ]
    rest = [n for n in plain if n not in main]
    return Assessed(runs, figure_groups(runs, main, bars=True), figure_groups(runs, rest, bars=False))


def figure_groups(runs: Sequence[RunView], names: Sequence[str], *, bars: bool) -> list[dict[str, Any]]:
    """The named metrics, grouped by evaluation."""
    groups: list[dict[str, Any]] = []
    for name in names:
        evaluation, _, metric = name.partition("/")
        if not groups or groups[-1]["name"] != evaluation:
            groups.append({"name": evaluation, "how": describe_evaluation(runs, evaluation), "rows": []})
        scale = scale_of(runs, name) if bars else None
        cells = [cell(run, name, scale) for run in runs]
        if any(cells):
            groups[-1]["rows"].append({"metric": metric.replace("_", " ").replace("/", ": "), "cells": cells})
    return groups


def cell(run: RunView, name: str, scale: tuple[float, float] | None) -> dict[str, Any] | None:
    """One figure with its interval, its bar and the expectations about it."""
    value = run.metrics.get(name)
    if value is None:
        return None
    low, high = run.metrics.get(f"{name}_low"), run.metrics.get(f"{name}_high")
    verdicts = []
    for claim in run.record.get("expected") or []:
        if claim["metric"] == name:
            kind, sign = VERDICTS.get(claim["met"], ("", "?"))
            verdicts.append((kind, f"{sign} {claim['claim'].replace(name, '', 1).strip()}"))
    bounded = low is not None and high is not None
    return {
        "value": number(value),
        "low": number(low) if bounded else None,
        "high": number(high) if bounded else None,
        "bar": interval_bar(value, low, high, scale) if scale is not None and not isinstance(value, int) else "",
        "verdicts": verdicts,
    }


def scale_of(runs: Sequence[RunView], name: str) -> tuple[float, float]:
    """The track of a row's bars: 0..1 for shares, else from 0 to the largest value in the row."""
    last = name.rpartition("/")[2]
    values = [run.metrics.get(f"{name}{end}") for run in runs for end in ("", "_low", "_high")]
    finite = [value for value in values if value is not None]
    if all(0 <= value <= 1 for value in finite) and last not in ("loss", "reward", "margin"):
        return 0.0, 1.0
    return min(0.0, *finite), max(0.0, *finite) or 1.0


def describe_evaluation(runs: Sequence[RunView], name: str) -> str:
    """What an evaluation measures on what, from the arguments of the last assessment that has it."""
    for run in reversed(runs):
        for entry in (run.record.get("arguments") or {}).get("evaluations") or []:
            if isinstance(entry, dict) and entry.get("name", entry.get("type")) == name:
                parts = [str(entry.get("type", ""))]
                if entry.get("dataset"):
                    parts.append(f"{entry['dataset']}, split {entry.get('split', 'test')}")
                if entry.get("reward"):
                    parts.append(f"scored by {entry['reward']}")
                if entry.get("temperature"):
                    parts.append(f"{entry.get('n', 1)} samples per prompt at τ = {entry['temperature']:g}")
                elif entry.get("type") == "accuracy":
                    parts.append("greedy")
                return " · ".join(parts)
    return ""


def samples(assessments: Sequence[RunView]) -> dict[str, Any]:
    """Completions side by side: prompts that were only sampled are shown, scored ones folded, four per evaluation."""
    table: dict[str, dict[str, dict[str, dict[str, Any]]]] = {}
    for run in assessments:
        for row in run.samples:
            prompt = json.dumps(row.get("prompt"), sort_keys=True)
            table.setdefault(str(row.get("evaluation")), {}).setdefault(prompt, {})[run.name] = row
    columns = [run for run in assessments if run.samples]
    shown, folded = [], []
    for evaluation, prompts in table.items():
        scored = any("scores" in row for by_run in prompts.values() for row in by_run.values())
        # Prompts that most stages answered come first.
        order = sorted(prompts.items(), key=lambda item: -len(item[1]))
        blocks = [sample_block(json.loads(prompt), by_run, columns) for prompt, by_run in order]
        if scored:
            folded.append((evaluation, blocks[:4], len(blocks)))
        else:
            shown += blocks
    return {"shown": shown, "folded": folded}


def sample_block(prompt: Any, by_run: Mapping[str, dict[str, Any]], columns: Sequence[RunView]) -> dict[str, Any]:
    """One prompt and what every evaluated model wrote."""
    first = next(iter(by_run.values()))
    answers = []
    for run in columns:
        row = by_run.get(run.name)
        if row is not None:
            answers.append((model_of(run), [_text(row, i) for i in range(len(row["completions"][:2]))]))
    return {"prompt": clip(user_text(prompt), 400), "answer": first.get("answer"), "answers": answers}


def _text(row: Mapping[str, Any], i: int) -> dict[str, Any]:
    """The i-th completion of a row, with its score and whether it was cut off."""
    scores, ends = row.get("scores") or [], row.get("finished") or []
    badge = None
    if i < len(scores):
        score = scores[i]
        kind, sign = ("", "?") if score is None else VERDICTS[score >= 1]
        badge = (kind, f"{sign} {'unscored' if score is None else short(score)}")
    text = clip(str(row["completions"][i]).strip(), 600)
    return {"text": text, "cut": i < len(ends) and not ends[i], "badge": badge}


def sequences(trained: Sequence[RunView]) -> list[tuple[str, str, list[Chart]]]:
    """Of every continual run the accuracy after each corpus on each corpus, as a heat map and as curves."""
    blocks = []
    for run in trained:
        cells = run.tables.get("forgetting", {}).get("scores") or []
        if not cells:
            continue
        names = [str(cell["corpus"]) for cell in cells if cell["after"] == 0]
        table = [
            [cell["accuracy"] for cell in cells if cell["after"] == number] for number in range(cells[-1]["after"] + 1)
        ]
        after = ["at the start", *(f"after corpus {i}" for i in range(1, len(table)))]
        lines = [Curve(name, list(enumerate(line)), True) for name, line in zip(names, zip(*table), strict=True)]
        drawn = [
            Chart("held-out accuracy on (column) after (row)", heat_map(table, after, names, title="R")),
            Chart(
                "the same along the sequence",
                line_chart(lines, x_label="corpora learned", y_label="accuracy", title="R"),
            ),
        ]
        text = ", ".join(
            f"{name.replace('_', ' ')} {short(run.metrics[name])}"
            for name in ("plasticity", "forgetting", "average", "backward_transfer", "forward_transfer")
            if isinstance(run.metrics.get(name), float)
        )
        blocks.append((run.name, text, drawn))
    return blocks


def curves(trained: Sequence[RunView]) -> list[tuple[RunView, list[Chart], list[Chart]]]:
    """Per stage the first charts, and the others to be folded."""
    blocks = []
    for run in trained:
        known, others = stage_charts(run)
        known = rlhf_charts.own_charts(run) + known
        if known + others:
            shown = (known or others)[:SHOWN_CHARTS]
            blocks.append((run, shown, [chart for chart in known + others if chart not in shown]))
    return blocks


def stage_charts(run: RunView) -> tuple[list[Chart], list[Chart]]:
    """Charts of everything the stage logged more than once: the known ones, and the rest by name."""
    charts, others, used = [], [], set()
    for title, unit, lines in CHARTS:
        drawn = [Curve(label, series(run.history, name), marked) for name, label, marked in lines]
        used |= {name for name, _, _ in lines}
        if title == "loss":
            unit = LOSS_UNITS.get(run.stage, "as optimised")
        charts.append(_stage_chart(run, title, unit, drawn))
    names = sorted({name for entry in run.history for name in entry} - used - set(NOT_CURVES))
    for name in names:
        if name.startswith(("train_", "eval_")) and name.endswith(("runtime", "per_second", "num_tokens")):
            continue
        others.append(_stage_chart(run, name, "as logged", [Curve(name, series(run.history, name))], least=3))
    return [chart for chart in charts if chart], [chart for chart in others if chart]


def _stage_chart(run: RunView, title: str, unit: str, lines: Sequence[Curve], least: int = 2) -> Chart | None:
    """One captioned chart, or None where no line has ``least`` points."""
    drawn = [line for line in lines if len(line.points) >= (1 if line.marked else least)]
    if not any(len(line.points) >= least for line in drawn):
        return None
    y_label = f"{title} ({unit})" if len(title) + len(unit) < 26 else unit
    svg = line_chart(drawn, x_label="optimiser step", y_label=y_label, title=f"{run.name}: {title}")
    return Chart(title, svg) if svg else None


def next_steps(trained: Sequence[RunView]) -> list[tuple[str, str]]:
    """What to do next and the command for it; the recipe is the one that made the runs, where one did."""
    done = [run for run in trained if run.status == "completed"]
    broken = [run for run in trained if run.status in ("failed", "interrupted")]
    lines = [
        (f"Finish {run.name}: the same command resumes from its last checkpoint.", command_of(run)) for run in broken
    ]
    recipe = next((run.record["recipe"] for run in reversed(trained) if run.record.get("recipe")), None)
    if done:
        last = done[-1]
        lines.append(
            ("Talk to the last model.", f"python pipeline/generate.py --model_name_or_path {last.folder} --chat")
        )
        if recipe:
            lines.append(
                (
                    "Change one number that decides the result (learning rate, beta, samples per prompt) in a YAML "
                    "and run the recipe again: only what depends on it runs anew.",
                    f"python -m pipeline.run {recipe}",
                )
            )
        lines.append(
            (
                "Take a stage to your own data: any Hub id, jsonl, csv or parquet; dataset_map renames columns.",
                f"accelerate launch pipeline/{last.stage}.py --config … --dataset_name my.jsonl "
                "--dataset_map question=prompt",
            )
        )
    return lines


def command_of(run: RunView) -> str:
    """The command that made a run, as far as its record says."""
    given = run.record.get("given") or {}
    flags = " ".join(
        f"--{k} {v}" for k, v in given.items() if k in ("model_name_or_path", "dataset_name", "output_dir")
    )
    return f"accelerate launch pipeline/{run.stage}.py {flags} …"


def details(run: RunView) -> dict[str, Any]:
    """Everything that was given, and the data of a run."""
    given = run.record.get("given") or {}
    return {
        "name": run.name,
        "data": [d for d in run.record.get("data") or [] if d.get("role") != "baseline"],
        "given": [
            (key, clip(json.dumps(value), 300))
            for key, value in sorted(given.items())
            if key not in ("evaluations", "expect")
        ],
    }


def newest(runs: Sequence[RunView]) -> dict[str, Any]:
    """The record of the run that was started last."""
    return max((run.record for run in runs), key=lambda record: str(record.get("started", "")), default={})
