"""The report as one HTML page: what the run records say, arranged for the template ``report.html.j2``."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pipeline.reporting import rlhf_charts
from pipeline.reporting.charts import family_tree, interval_bar
from pipeline.reporting.history import RunView, change, model_of
from pipeline.reporting.stage_charts import curves, sequences
from pipeline.runtime.files import Json
from pipeline.runtime.formatting import clip, count, duration, memory, number, short
from pipeline.runtime.messages import Turn, user_text

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
        other_curves=rlhf_charts.other_curves(assessments),
        other_tables=rlhf_charts.other_tables(assessments),
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
    environment.filters |= {
        "count": count,
        "duration": duration,
        "memory": memory,
        "model_of": model_of,
        "figure": figure,
    }
    return environment


def figure(value: object) -> str:
    """A cell of a table: a number as a person reads it, anything else as text."""
    plain = value is None or (isinstance(value, int | float) and not isinstance(value, bool))
    return number(value) if plain else str(value)


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


def stage_row(run: RunView, assessments: Sequence[RunView] = ()) -> Json:
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
    main: list[Json]
    others: list[Json]


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


def figure_groups(runs: Sequence[RunView], names: Sequence[str], *, bars: bool) -> list[Json]:
    """The named metrics, grouped by evaluation."""
    groups: list[Json] = []
    for name in names:
        evaluation, _, metric = name.partition("/")
        if not groups or groups[-1]["name"] != evaluation:
            groups.append({"name": evaluation, "how": describe_evaluation(runs, evaluation), "rows": []})
        scale = scale_of(runs, name) if bars else None
        cells = [cell(run, name, scale) for run in runs]
        if any(cells):
            groups[-1]["rows"].append({"metric": metric.replace("_", " ").replace("/", ": "), "cells": cells})
    return groups


def cell(run: RunView, name: str, scale: tuple[float, float] | None) -> Json | None:
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


def samples(assessments: Sequence[RunView]) -> Json:
    """Completions side by side: prompts that were only sampled are shown, scored ones folded, four per evaluation."""
    table: dict[str, dict[str, dict[str, Json]]] = {}
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


def sample_block(prompt: Turn, by_run: Mapping[str, Json], columns: Sequence[RunView]) -> Json:
    """One prompt and what every evaluated model wrote."""
    first = next(iter(by_run.values()))
    answers = []
    for run in columns:
        row = by_run.get(run.name)
        if row is not None:
            answers.append((model_of(run), [_text(row, i) for i in range(len(row["completions"][:2]))]))
    return {"prompt": clip(user_text(prompt), 400), "answer": first.get("answer"), "answers": answers}


def _text(row: Json, i: int) -> Json:
    """The i-th completion of a row, with its score and whether it was cut off."""
    scores, ends = row.get("scores") or [], row.get("finished") or []
    badge = None
    if i < len(scores):
        score = scores[i]
        kind, sign = ("", "?") if score is None else VERDICTS[score >= 1]
        badge = (kind, f"{sign} {'unscored' if score is None else short(score)}")
    text = clip(str(row["completions"][i]).strip(), 600)
    return {"text": text, "cut": i < len(ends) and not ends[i], "badge": badge}


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


def details(run: RunView) -> Json:
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


def newest(runs: Sequence[RunView]) -> Json:
    """The record of the run that was started last."""
    return max((run.record for run in runs), key=lambda record: str(record.get("started", "")), default={})
