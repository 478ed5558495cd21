"""The report's charts of training: what each stage logged, and what a sequence of corpora left."""

from collections.abc import Sequence

from pipeline.reporting import rlhf_charts
from pipeline.reporting.charts import Chart, Curve, heat_map, line_chart
from pipeline.reporting.history import RunView, series
from pipeline.runtime.formatting import short

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
        shown = charts
        if title == "loss":
            # What GRPO and PPO minimise is a gradient's estimate: it is near 0 at every step and does not fall.
            shown = charts if run.stage in LOSS_UNITS else others
            unit = LOSS_UNITS.get(run.stage, "as optimised")
        shown.append(_stage_chart(run, title, unit, drawn))
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
