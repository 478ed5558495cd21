"""The report as one HTML page: what the run records say, arranged for the template ``report.html.j2``."""

import json
import platform
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from pipeline.reporting import rlhf_charts
from pipeline.reporting.directions import ARROWS, NEITHER, difference, direction
from pipeline.reporting.figures import VERDICTS, assessed
from pipeline.reporting.history import RunView, best_model, change, evaluated_before, given_parents, model_of
from pipeline.reporting.lineage_graph import Node, family_graph
from pipeline.reporting.stage_charts import curves, sequences
from pipeline.runtime.command_table import as_typed
from pipeline.runtime.files import Json
from pipeline.runtime.formatting import clip, count, duration, memory, number, short
from pipeline.runtime.messages import Turn, user_text

STATUS_WORDS = {"completed": "done"}
STATUS_NOTES = {"interrupted": "the same command resumes it", "unreadable": "its run.json cannot be read"}


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
        where=where(runs, machine),
        facts=newest(runs).get("versions") or {},
        stages=[stage_row(run, assessments, runs) for run in trained or runs],
        tree=tree(runs),
        claims=claims(assessments),
        assessed=assessed([run for run in assessments if run.metrics], runs),
        frontier=rlhf_charts.frontier(assessments),
        against_best_of_n=rlhf_charts.against_best_of_n(assessments),
        other_curves=rlhf_charts.other_curves(assessments),
        other_tables=rlhf_charts.other_tables(assessments),
        samples=samples(assessments),
        sequences=sequences(trained),
        curves=curves(trained),
        next_steps=next_steps(runs),
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
        "breakable": breakable,
    }
    return environment


def figure(value: object) -> str:
    """A cell of a table: a number as a person reads it, anything else as text."""
    plain = value is None or (isinstance(value, int | float) and not isinstance(value, bool))
    return number(value) if plain else str(value)


def breakable(text: str) -> Markup:
    """A text of names that may be broken after `/`, `_` and spaces, and nowhere else: not within a word."""
    return Markup(re.sub(r"(?<=[/_])", "<wbr>", str(escape(text))))


def tiles(runs: Sequence[RunView], assessments: Sequence[RunView]) -> list[dict[str, str]]:
    """The three or four figures that matter most."""
    found = [claim for run in assessments for claim in run.record.get("expected") or []]
    met = sum(claim["met"] is True for claim in found)
    done = sum(run.status == "completed" for run in runs)
    shown = []
    if found:
        shown.append(_tile(f"{met} of {len(found)}", "expectations met", "good" if met == len(found) else "bad"))
    shown.append(_tile(f"{done} of {len(runs)}", "runs finished", "good" if done == len(runs) else "bad"))
    summed, elapsed = sum(run.record.get("seconds") or 0 for run in runs), running_seconds(runs)
    beside = (
        f"of running; {duration(summed)} summed over runs side by side" if summed > 1.02 * elapsed else "of running"
    )
    shown.append(_tile(duration(elapsed), beside))
    peak = max((run.record.get("peak_memory_bytes") or 0 for run in runs), default=0)
    if peak:
        shown.append(_tile(memory(peak), "peak memory"))
    return shown


def running_seconds(runs: Sequence[RunView]) -> float:
    """Seconds in which at least one of the runs was running: side by side they count once, a pause between not at all.

    A run without the time of its start counts by itself.
    """
    spans, alone = [], 0.0
    for run in runs:
        seconds = run.record.get("seconds") or 0.0
        try:
            start = datetime.fromisoformat(str(run.record.get("started"))).timestamp()
            spans.append((start, start + seconds))
        except ValueError:
            alone += seconds
    total, until = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total + alone


def where(runs: Sequence[RunView], machine: Mapping[str, str]) -> str:
    """On what machine the times were measured: this one, where every run names it as its host."""
    hosts = {str((run.record.get("process") or {}).get("host")) for run in runs if run.record}
    facts = ", ".join(machine.values())
    if hosts == {platform.node()}:
        return f"Times and memory were measured on this machine: {facts}."
    others = ", ".join(sorted(hosts - {"None"})) or "a machine that the records do not name"
    return f"Times and memory were measured on {others}; this page was made on another machine: {facts}."


def _tile(figure: str, text: str, kind: str = "") -> dict[str, str]:
    return {"figure": figure, "text": text, "kind": kind}


def stage_row(run: RunView, assessments: Sequence[RunView] = (), runs: Sequence[RunView] = ()) -> Json:
    """A training stage: where from, what changed, which assessments evaluated it, how long, how much memory."""
    note = STATUS_NOTES.get(run.status, "")
    if run.status == "failed":
        note = clip(str(run.record.get("error", "no reason recorded")), 200)
    # Parents that are runs of this report, else folders or Hub ids.
    others = [str(p.get("repo") or p.get("path")) for p in given_parents(run.record)]
    named = sorted(run.parents, key=lambda name: name != run.start)  # the start first
    own = [other for other in assessments if other.parents == [run.name]]
    row = {
        "run": run,
        "status": STATUS_WORDS.get(run.status, run.status),
        "note": note,
        "origin": ", ".join(named or others) or ("scratch" if run.record else "–"),
        "change": None,
        "lost": [line for other in own for line in abilities(other, runs, "loss")],
        "gained": [line for other in own for line in abilities(other, runs, "gain")],
        "assessments": [assessment_note(other) for other in own],
    }
    found = change(run)
    if found is not None:
        better = found.after > found.before if found.higher_is_better else found.after < found.before
        kind = "up" if better else "down" if found.after != found.before else ""
        arrow = ARROWS[direction(found.name) or NEITHER]
        ends = found.interval
        row |= {"change": found, "before": short(found.before), "after": short(found.after), "kind": kind}
        row |= {"arrow": arrow, "interval": f"{ends[0]:.3f} – {ends[1]:.3f}" if ends else ""}
    return row


def abilities(run: RunView, runs: Sequence[RunView], kind: str) -> list[str]:
    """What an assessment found better ("gain") or worse ("loss") than before the stage, by more than chance, the
    largest share of its interval first.
    """
    before, found = evaluated_before(run, runs), []
    claims = [claim for other in runs for claim in other.record.get("expected") or []]
    for name in run.metrics:
        moved_by = difference(name, run.metrics, before, claims)
        if moved_by is not None and moved_by.kind == kind and not name.endswith("_lenient"):
            evaluation, _, figure_of_it = name.rpartition("/")
            repeated = evaluation.endswith(figure_of_it)  # true_reward/reward
            label = (evaluation if repeated else name).replace("_", " ").replace("/", " ")
            size = abs(moved_by.value) / (moved_by.high - moved_by.low)
            found.append((-size, f"{label} {number(before[name])} → {number(run.metrics[name])}"))
    return [text for _, text in sorted(found)]


def assessment_note(run: RunView) -> str:
    """An assessment in a few words: its name, and how many of its expectations were met."""
    found = run.record.get("expected") or []
    met = sum(claim["met"] is True for claim in found)
    return f"{run.name}: {met} of {len(found)} expectations met" if found else run.name


def tree(runs: Sequence[RunView]) -> Markup:
    """The lineage of the models as a graph; what was expected of a model is in its box."""
    models = [run for run in runs if run.stage not in ("assess", "report")]
    if len(models) < 2:
        return Markup()
    nodes = []
    for run in models:
        claims = [
            claim for other in runs if other.parents == [run.name] for claim in other.record.get("expected") or []
        ]
        met = sum(claim["met"] is True for claim in claims)
        words = [
            run.stage if run.stage not in (run.name, "?") else "",
            run.status if run.status != "completed" else "",
            f"{met} of {len(claims)} met" if claims else "",
        ]
        starts = [run.start] if run.start else run.parents[:1] if run.stage == "merge" else []
        used = [parent for parent in run.parents if parent not in starts]
        nodes.append(Node(run.name, " · ".join(w for w in words if w), f"train {run.status}", starts, used))
    return family_graph(nodes)


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


def samples(assessments: Sequence[RunView]) -> Json:
    """Completions side by side: prompts that were only sampled are shown, scored ones folded, four per evaluation."""
    table: dict[str, dict[str, dict[str, Json]]] = {}
    for run in assessments:
        for row in run.samples:
            prompt = json.dumps([row.get("prompt"), row.get("images")], sort_keys=True)
            table.setdefault(str(row.get("evaluation")), {}).setdefault(prompt, {})[run.name] = row
    columns = [run for run in assessments if run.samples]
    shown, folded = [], []
    for evaluation, prompts in table.items():
        scored = any("scores" in row for by_run in prompts.values() for row in by_run.values())
        # Prompts that most stages answered come first.
        order = sorted(prompts.items(), key=lambda item: -len(item[1]))
        blocks = [sample_block(json.loads(prompt)[0], by_run, columns) for prompt, by_run in order]
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
    return {
        "prompt": clip(user_text(prompt), 400),
        "images": [image for image in first.get("images") or [] if str(image).startswith("data:image/")],
        "answer": first.get("answer"),
        "answers": answers,
    }


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


def next_steps(runs: Sequence[RunView]) -> list[tuple[str, str]]:
    """What to do next and the command for it; the recipe is the one that made the runs, where one did."""
    trained = [run for run in runs if run.stage != "assess"]
    broken = [run for run in trained if run.status in ("failed", "interrupted")]
    lines = [
        (f"Finish {run.name}: the same command resumes from its last checkpoint.", command_of(run)) for run in broken
    ]
    recipe = next((run.record["recipe"] for run in reversed(trained) if run.record.get("recipe")), None)
    found = best_model(runs)
    if found is not None:
        best, rule = found
        lines.append((f"Talk to {best.name} ({rule}).", talk_command(best)))
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
                f"accelerate launch pipeline/{best.stage}.py --config … --dataset_name my.jsonl "
                "--dataset_map question=prompt",
            )
        )
    return lines


def talk_command(run: RunView) -> str:
    """The command to use a model: a chat, or the continuation of a text by one that was only pretrained."""
    use = '--prompt "…"' if run.stage == "pretrain" else "--chat"
    return f"{as_typed('generate')} --model_name_or_path {run.folder} {use}"


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
