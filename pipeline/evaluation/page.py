"""The report as one HTML page: no network, no script, everything escaped, light and dark, wide and narrow."""

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from pipeline.evaluation.charts import Curve, clip, family_tree, heat_map, interval_bar, line_chart, short
from pipeline.evaluation.history import RunView, change, model_of, series
from pipeline.evaluation.prompts import user_text
from pipeline.evaluation.rlhf_charts import against_best_of_n, frontier, own_charts
from pipeline.evaluation.style import CSS

# Charts a training stage may have, the telling ones first: title, unit of y, (logged name, label, marked).
CHARTS: tuple[tuple[str, str, tuple[tuple[str, str, bool], ...]], ...] = (
    ("reward", "reward a sample", (("reward", "training", False), ("eval_reward", "held out", True))),
    (
        "preference accuracy",
        "share of pairs",
        (("rewards/accuracies", "training", False), ("eval_rewards/accuracies", "held out", True)),
    ),
    ("loss", "", (("loss", "training", False), ("eval_loss", "held out", True))),
    (
        "log-likelihood of the answers",
        "nats an answer",
        (("logps/chosen", "chosen", False), ("logps/rejected", "rejected", False)),
    ),
    ("KL to the reference", "nats", (("kl", "training", False), ("objective/kl", "training", False))),
    (
        "the objective",
        "reward a completion",
        (("objective/rlhf_reward", "E[R] - beta KL", False), ("objective/scores", "E[R]", False)),
    ),
    ("entropy of the policy", "nats a token", (("entropy", "training", False), ("eval_entropy", "held out", True))),
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
    "pretrain": "nats a token",
    "sft": "nats a token",
    "rsft": "nats a token",
    "continual": "nats a token",
    "dpo": "nats a pair",
    "reward_model": "nats a pair",
}
SHOWN_CHARTS = 4
NOT_CURVES = ("epoch", "step", "learning_rate", "grad_norm", "num_tokens", "total_flos", "num_input_tokens_seen")
SIGNS = {"completed": "done", "running": "running", "failed": "failed", "interrupted": "interrupted"}
ALSO_SHOWN = ("perplexity", "bayes_accuracy", "share_of_bayes")


def build_page(title: str, runs: Sequence[RunView], machine: Mapping[str, str], made: str) -> str:
    """The whole page.

    Args:
        title: what was run.
        runs: every run, parents first.
        machine: facts about this machine, name -> text.
        made: when the report was made.
    """
    trained = [run for run in runs if run.stage != "assess"]
    judged = [run for run in runs if run.stage == "assess"]
    sections = [
        ("Stages", stage_table(trained or runs, runs)),
        ("Where each run comes from", tree(runs)),
        ("What was expected", expectations(judged)),
        ("Assessment on held-out data", assessment(judged)),
        ("Reward against the distance from pi_ref", frontier(judged) + against_best_of_n(judged)),
        ("The same prompts after every stage", samples(judged)),
        ("What a sequence of corpora left", sequences(trained)),
        ("Training curves", curves(trained)),
        ("What to try next", next_steps(trained)),
        ("What was run, in full", details(runs)),
    ]
    body = "".join(f"<section><h2>{escape(name)}</h2>{html}</section>" for name, html in sections if html)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(title)}</title><style>{CSS}</style></head><body><main>"
        f"{header(title, runs, judged, machine, made)}{body}"
        f"<footer>Made by NarLM on {escape(made)}. Every figure is from the run records beside this page.</footer>"
        "</main></body></html>\n"
    )


def header(
    title: str, runs: Sequence[RunView], judged: Sequence[RunView], machine: Mapping[str, str], made: str
) -> str:
    """Title, the three or four figures that matter most, and on what it ran."""
    claims = [claim for run in judged for claim in run.record.get("expected") or []]
    met = sum(claim["met"] is True for claim in claims)
    done = sum(run.status == "completed" for run in runs)
    tiles = [
        tile(f"{done} of {len(runs)}", "runs finished", "good" if done == len(runs) else "bad"),
        tile(duration(sum(run.record.get("seconds") or 0 for run in runs)), "of work in all"),
    ]
    if claims:
        tiles.insert(0, tile(f"{met} of {len(claims)}", "expectations met", "good" if met == len(claims) else "bad"))
    peak = max((run.record.get("peak_memory_bytes") or 0 for run in runs), default=0)
    if peak:
        tiles.append(tile(memory(peak), "memory at most"))
    versions = newest(runs).get("versions") or {}
    facts = {**machine, **{name: str(value) for name, value in versions.items()}}
    chips = "".join(f"<li><b>{escape(name)}</b> {escape(value)}</li>" for name, value in facts.items())
    return (
        f'<header><p class="kicker">NarLM run report</p><h1>{escape(title)}</h1>'
        f'<div class="tiles">{"".join(tiles)}</div><ul class="chips">{chips}</ul></header>'
    )


def tile(figure: str, text: str, kind: str = "") -> str:
    """One large figure with a line below."""
    return f'<div class="tile {kind}"><strong>{escape(figure)}</strong><span>{escape(text)}</span></div>'


def stage_table(stages: Sequence[RunView], runs: Sequence[RunView]) -> str:
    """A row a training stage: where from, what improved, how long, how much memory."""
    rows = []
    for run in stages:
        rows.append(
            f'<tr class="{escape(run.status)}"><th scope="row">{escape(run.name)}'
            f"{stage_note(run)}</th>"
            f'<td data-label="status">{status(run)}</td>'
            f'<td data-label="from">{origin(run)}</td>'
            f'<td data-label="what improved">{improvement(run)}</td>'
            f'<td data-label="steps" class="n">{whole(run.metrics.get("steps"))}</td>'
            f'<td data-label="time" class="n">{duration(run.record.get("seconds"))}</td>'
            f'<td data-label="memory" class="n">{memory(run.record.get("peak_memory_bytes"))}</td></tr>'
        )
    head = "".join(
        f'<th scope="col"{" class=n" if name in ("steps", "time", "memory") else ""}>{name}</th>'
        for name in ("stage", "status", "from", "what improved", "steps", "time", "memory")
    )
    return f'<table class="stages"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'


def stage_note(run: RunView) -> str:
    """The stage beside a run's name, where the name does not say it."""
    return f" <small>{escape(run.stage)}</small>" if run.stage != run.name else ""


def status(run: RunView) -> str:
    """The run's state as a badge, with what to do about it where it is not finished."""
    text = SIGNS.get(run.status, run.status)
    note = ""
    if run.status == "failed":
        note = f"<small>{escape(clip(str(run.record.get('error', 'no reason recorded')), 200))}</small>"
    elif run.status == "interrupted":
        note = "<small>the same command resumes it</small>"
    elif run.status == "unreadable":
        note = "<small>its run.json cannot be read</small>"
    return f'<span class="badge {escape(run.status)}">{escape(text)}</span>{note}'


def origin(run: RunView) -> str:
    """The names of what a run was made from: runs of this report, else folders or Hub ids."""
    if run.parents:
        return escape(", ".join(run.parents))
    others = [str(p.get("repo") or p.get("path")) for p in run.record.get("parents") or []]
    return escape(", ".join(others)) if others else "nothing"


def improvement(run: RunView) -> str:
    """``what: before -> after``, coloured by whether it is the right direction."""
    found = change(run)
    if found is None or found.before is None or found.after is None:
        return "–"
    better = found.after > found.before if found.higher_is_better else found.after < found.before
    kind = "up" if better else "down" if found.after != found.before else ""
    return (
        f"<span>{escape(found.what)} <span class='nowrap'>{short(found.before)} → "
        f'<b class="{kind}">{short(found.after)}</b></span></span>'
    )


def tree(runs: Sequence[RunView]) -> str:
    """The lineage as a graph; assessments hang on the model they judge."""
    if len(runs) < 2:
        return ""
    nodes = []
    for run in runs:
        kind = "assess" if run.stage == "assess" else "train"
        below = run.stage if run.status == "completed" else f"{run.stage}, {run.status}"
        nodes.append((run.name, below, f"{kind} {run.status}", run.parents))
    return f'<div class="scroll">{family_tree(nodes)}</div>'


def expectations(judged: Sequence[RunView]) -> str:
    """Every expectation and whether it held."""
    rows = []
    for run in judged:
        for claim in run.record.get("expected") or []:
            kind, word = {True: ("good", "✓ met"), False: ("bad", "✗ not met")}.get(claim["met"], ("", "? not judged"))
            found = number(claim.get("value"))
            bound = number(claim.get("bound")) if claim.get("bound") is not None else escape(claim.get("reason", ""))
            rows.append(
                f'<tr><td><span class="badge {kind}">{word}</span></td><td>{escape(model_of(run))}</td>'
                f"<td><code>{escape(claim['claim'])}</code></td>"
                f'<td class="n">{found}</td><td class="n">{bound}</td></tr>'
            )
    if not rows:
        return ""
    head = '<th></th><th>after</th><th>expected</th><th class="n">found</th><th class="n">bound</th>'
    return (
        f'<div class="scroll"><table class="claims"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def assessment(judged: Sequence[RunView]) -> str:
    """Figures stage by stage: a row a metric, a column a judged model; the main ones first, all of them folded."""
    judged = [run for run in judged if run.metrics]
    if not judged:
        return ""
    names = list(dict.fromkeys(name for run in judged for name in run.metrics))
    claimed = {claim["metric"] for run in judged for claim in run.record.get("expected") or []}
    plain = [n for n in names if not (n.endswith(("_low", "_high")) and n.rpartition("_")[0] in names)]
    main = [n for n in plain if f"{n}_low" in names or n in claimed or n.rpartition("/")[2] in ALSO_SHOWN]
    # A lenient score that is the strict one everywhere says nothing.
    main = [
        n
        for n in main
        if not n.endswith("_lenient")
        or any(run.metrics.get(n) != run.metrics.get(n.removesuffix("_lenient")) for run in judged)
    ]
    rest = [n for n in plain if n not in main]
    html = metric_table(judged, main, bars=True)
    if rest:
        html += (
            f"<details><summary>Counts and other figures</summary>{metric_table(judged, rest, bars=False)}</details>"
        )
    return (
        "<p>Value, 95% interval, and where it was expected to lie. Nothing here was trained on; how each figure is "
        f"made stands under its name.</p>{html}"
    )


def metric_table(judged: Sequence[RunView], names: Sequence[str], *, bars: bool) -> str:
    """One table of the named metrics, grouped by evaluation."""
    head = "".join(f'<th scope="col">{escape(model_of(run))}</th>' for run in judged)
    rows, group = [], None
    for name in names:
        evaluation, _, metric = name.partition("/")
        if evaluation != group:
            group = evaluation
            how = describe_evaluation(judged, evaluation)
            rows.append(
                f'<tr class="group"><th scope="rowgroup" colspan="{len(judged) + 1}"><span>{escape(evaluation)}'
                f"<small>{how}</small></span></th></tr>"
            )
        values = [run.metrics.get(name) for run in judged]
        scale = scale_of(judged, name)
        cells = "".join(cell(run, name, scale if bars else None) for run in judged)
        if any(value is not None for value in values):
            rows.append(f'<tr><th scope="row">{escape(metric.replace("_", " ").replace("/", ": "))}</th>{cells}</tr>')
    return (
        f'<div class="scroll"><table class="figures"><thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def cell(run: RunView, name: str, scale: tuple[float, float] | None) -> str:
    """One figure with its interval, its bar and the expectations about it."""
    value = run.metrics.get(name)
    if value is None:
        return '<td class="none">–</td>'
    low, high = run.metrics.get(f"{name}_low"), run.metrics.get(f"{name}_high")
    html = f"<b>{number(value)}</b>"
    if low is not None and high is not None:
        html = f"<small>{number(low)} – {number(high)}</small> {html}"
    if scale is not None and not isinstance(value, int):
        html += interval_bar(value, low, high, scale)
    verdicts = [claim for claim in run.record.get("expected") or [] if claim["metric"] == name]
    for claim in verdicts:
        kind, sign = {True: ("good", "✓"), False: ("bad", "✗")}.get(claim["met"], ("", "?"))
        wanted = claim["claim"].replace(name, "", 1).strip()
        html += f'<span class="badge {kind}">{sign} {escape(wanted)}</span>'
    return f'<td class="n">{html}</td>'


def scale_of(judged: Sequence[RunView], name: str) -> tuple[float, float]:
    """The track of a row's bars: 0..1 for shares, else from 0 to the largest value that the row's evaluation has."""
    last = name.rpartition("/")[2]
    values = [run.metrics.get(f"{name}{end}") for run in judged for end in ("", "_low", "_high")]
    finite = [value for value in values if value is not None]
    if all(0 <= value <= 1 for value in finite) and last not in ("loss", "reward", "margin"):
        return 0.0, 1.0
    return min(0.0, *finite), max(0.0, *finite) or 1.0


def describe_evaluation(judged: Sequence[RunView], name: str) -> str:
    """How an evaluation was made, from the arguments of the last assessment that has it."""
    for run in reversed(judged):
        for entry in (run.record.get("arguments") or {}).get("evaluations") or []:
            if isinstance(entry, dict) and entry.get("name", entry.get("type")) == name:
                parts = [str(entry.get("type", ""))]
                if entry.get("dataset"):
                    parts.append(f"{entry['dataset']}, split {entry.get('split', 'test')}")
                if entry.get("reward"):
                    parts.append(f"judged by {entry['reward']}")
                if entry.get("temperature"):
                    parts.append(f"{entry.get('n', 1)} samples a prompt at τ = {entry['temperature']:g}")
                elif entry.get("type") == "accuracy":
                    parts.append("greedy")
                return escape(" · ".join(parts))
    return ""


def samples(judged: Sequence[RunView]) -> str:
    """Completions side by side: prompts that were only sampled in the open, judged ones folded, four an evaluation."""
    table: dict[str, dict[str, dict[str, dict[str, Any]]]] = {}
    for run in judged:
        for row in run.samples:
            prompt = json.dumps(row.get("prompt"), sort_keys=True)
            table.setdefault(str(row.get("evaluation")), {}).setdefault(prompt, {})[run.name] = row
    columns = [run for run in judged if run.samples]
    if not columns:
        return ""
    shown, folded = [], []
    for evaluation, prompts in table.items():
        scored = any("scores" in row for by_run in prompts.values() for row in by_run.values())
        # Prompts that every stage answered tell most.
        order = sorted(prompts.items(), key=lambda item: -len(item[1]))
        blocks = [sample_block(json.loads(prompt), by_run, columns) for prompt, by_run in order]
        if scored:
            few = "".join(blocks[:4])
            folded.append(
                f"<details><summary>{escape(evaluation)}: {min(4, len(blocks))} of {len(blocks)} judged prompts"
                f"</summary>{few}</details>"
            )
        else:
            shown += blocks
    return "".join(shown) + "".join(folded)


def sample_block(prompt: Any, by_run: Mapping[str, dict[str, Any]], columns: Sequence[RunView]) -> str:
    """One prompt and what every judged model wrote."""
    first = next(iter(by_run.values()))
    gold = f'<span class="gold">answer: {escape(str(first["answer"]))}</span>' if first.get("answer") else ""
    cells = []
    for run in columns:
        row = by_run.get(run.name)
        if row is None:
            continue
        scores, ends = row.get("scores") or [], row.get("finished") or []
        texts = []
        for i, text in enumerate(row["completions"][:2]):
            mark = ""
            if i < len(scores):
                score = scores[i]
                mark = (
                    '<span class="badge">? unscored</span>'
                    if score is None
                    else f'<span class="badge {"good" if score >= 1 else "bad"}">{"✓" if score >= 1 else "✗"} '
                    f"{short(score)}</span>"
                )
            cut = '<span class="cut" title="cut off at the limit">…</span>' if i < len(ends) and not ends[i] else ""
            shown = escape(clip(str(text).strip(), 600)) or "<i>nothing</i>"
            texts.append(f"<p>{shown}{cut} {mark}</p>")
        cells.append(f"<div><h4>{escape(model_of(run))}</h4>{''.join(texts)}</div>")
    return (
        f'<article class="sample"><h3>{escape(clip(user_text(prompt), 400))} {gold}</h3>'
        f'<div class="answers">{"".join(cells)}</div></article>'
    )


def sequences(trained: Sequence[RunView]) -> str:
    """Of every continual run the accuracy after each corpus on each corpus, as a heat map and as curves."""
    blocks = []
    for run in trained:
        kept = run.record.get("forgetting") or {}
        table = [[cell.get("accuracy", 0.0) for cell in row["scores"]] for row in kept.get("rows", ())]
        if not table:
            continue
        names = [str(name) for name in kept["names"]]
        after = ["at the start", *(f"after corpus {i}" for i in range(1, len(table)))]
        lines = [Curve(name, list(enumerate(line)), True) for name, line in zip(names, zip(*table), strict=True)]
        figures = (
            ("held-out accuracy on (column) after (row)", heat_map(table, after, names, title="R")),
            (
                "the same along the sequence",
                line_chart(lines, x_label="corpora learned", y_label="accuracy", title="R"),
            ),
        )
        text = ", ".join(
            f"{name.replace('_', ' ')} {short(run.metrics[name])}"
            for name in ("plasticity", "forgetting", "average", "backward_transfer", "forward_transfer")
            if isinstance(run.metrics.get(name), float)
        )
        drawn = "".join(f"<figure><figcaption>{escape(k)}</figcaption>{v}</figure>" for k, v in figures)
        blocks.append(
            f'<h3 class="stage">{escape(run.name)}</h3><p>{escape(text)}</p><div class="charts">{drawn}</div>'
        )
    return "".join(blocks)


def curves(trained: Sequence[RunView]) -> str:
    """Per stage the telling charts in the open, all others folded."""
    blocks = []
    for run in trained:
        known, others = stage_charts(run)
        known = own_charts(run) + known
        if not known + others:
            continue
        shown = (known or others)[:SHOWN_CHARTS]
        folded = [chart for chart in known + others if chart not in shown]
        more = (
            f'<details><summary>{len(folded)} more</summary><div class="charts">{"".join(folded)}</div></details>'
            if folded
            else ""
        )
        blocks.append(
            f'<h3 class="stage">{escape(run.name)}{stage_note(run)}</h3>'
            f'<div class="charts">{"".join(shown)}</div>{more}'
        )
    return "".join(blocks)


def stage_charts(run: RunView) -> tuple[list[str], list[str]]:
    """Figures for everything the stage logged more than once: the known ones, and the rest by name."""
    charts, others, used = [], [], set()
    for title, unit, lines in CHARTS:
        drawn = [Curve(label, series(run.history, name), marked) for name, label, marked in lines]
        used |= {name for name, _, _ in lines}
        if title == "loss":
            unit = LOSS_UNITS.get(run.stage, "as optimised")
        charts.append(figure(run, title, unit, drawn))
    names = sorted({name for entry in run.history for name in entry} - used - set(NOT_CURVES))
    for name in names:
        if name.startswith(("train_", "eval_")) and name.endswith(("runtime", "per_second", "num_tokens")):
            continue
        others.append(figure(run, name, "as logged", [Curve(name, series(run.history, name))], least=3))
    return [chart for chart in charts if chart], [chart for chart in others if chart]


def figure(run: RunView, title: str, unit: str, lines: Sequence[Curve], least: int = 2) -> str:
    """One captioned chart, or '' where no line has ``least`` points."""
    drawn = [line for line in lines if len(line.points) >= (1 if line.marked else least)]
    if not any(len(line.points) >= least for line in drawn):
        return ""
    y_label = f"{title} ({unit})" if len(title) + len(unit) < 26 else unit
    chart = line_chart(drawn, x_label="optimiser step", y_label=y_label, title=f"{run.name}: {title}")
    return f"<figure><figcaption>{escape(title)}</figcaption>{chart}</figure>" if chart else ""


def next_steps(trained: Sequence[RunView]) -> str:
    """Commands worth typing next, about these runs."""
    done = [run for run in trained if run.status == "completed"]
    broken = [run for run in trained if run.status in ("failed", "interrupted")]
    lines = [
        (f"Finish {run.name}: the same command goes on from its last checkpoint.", command_of(run)) for run in broken
    ]
    if done:
        last = done[-1]
        lines += [
            (
                "Talk to the last model.",
                f"python pipeline/generate.py --model_name_or_path {last.folder} --chat",
            ),
            (
                "Change one number that decides the result (learning rate, beta, samples a prompt) in a YAML "
                "and run the recipe again: only what depends on it runs anew.",
                "python -m pipeline.run configs/quickstart/recipe.yaml",
            ),
            (
                "Take a stage to your own data: any Hub id, jsonl, csv or parquet; dataset_map renames columns.",
                f"accelerate launch pipeline/{last.stage}.py --config … --dataset_name my.jsonl "
                "--dataset_map question=prompt",
            ),
        ]
    items = "".join(f"<li>{escape(text)}<pre>{escape(command)}</pre></li>" for text, command in lines if command)
    return f"<ol>{items}</ol>" if items else ""


def command_of(run: RunView) -> str:
    """The command that made a run, as far as its record says."""
    given = run.record.get("given") or {}
    flags = " ".join(
        f"--{k} {v}" for k, v in given.items() if k in ("model_name_or_path", "dataset_name", "output_dir")
    )
    return f"accelerate launch pipeline/{run.stage}.py {flags} …"


def details(runs: Iterable[RunView]) -> str:
    """Everything that was given, and the data of every run, folded."""
    blocks = []
    for run in runs:
        given = run.record.get("given") or {}
        rows = "".join(
            f"<tr><th scope='row'>{escape(str(key))}</th>"
            f"<td><code>{escape(clip(json.dumps(value), 300))}</code></td></tr>"
            for key, value in sorted(given.items())
            if key not in ("evaluations", "expect")
        )
        data = "".join(
            f"<li><code>{escape(str(d.get('name')))}</code> {escape(str(d.get('split') or ''))}: "
            f"{whole(d.get('rows'))} rows, {escape(str(d.get('role', 'train')))}</li>"
            for d in run.record.get("data") or []
            if d.get("role") != "baseline"
        )
        facts = f"<ul>{data}</ul>" if data else ""
        blocks.append(
            f"<details><summary>{escape(run.name)}</summary>{facts}"
            f'<div class="scroll"><table class="given"><tbody>{rows}</tbody></table></div></details>'
        )
    return "".join(blocks)


def newest(runs: Sequence[RunView]) -> dict[str, Any]:
    """The record of the run that was started last."""
    return max((run.record for run in runs), key=lambda record: str(record.get("started", "")), default={})


def number(value: Any) -> str:
    """A metric for a table cell: three decimals, whole numbers without."""
    if value is None:
        return "–"
    if isinstance(value, int) or (float(value).is_integer() and abs(value) > 1):
        return f"{int(value):,}"
    return f"{value:.3f}" if abs(value) < 1000 else short(value)


def whole(value: Any) -> str:
    """A count."""
    return f"{int(value):,}" if isinstance(value, int | float) else "–"


def duration(seconds: Any) -> str:
    """Seconds as a person says them."""
    if not isinstance(seconds, int | float):
        return "–"
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def memory(size: Any) -> str:
    """Bytes in MB or GB."""
    if not isinstance(size, int | float) or not size:
        return "–"
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
