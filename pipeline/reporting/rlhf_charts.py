"""The report's charts of reward and KL: calibration, rewards apart, best-of-N, and policies on one frontier."""

import re
from collections.abc import Sequence

from pipeline.reporting.charts import Chart, Curve, line_chart
from pipeline.reporting.history import RunView, model_of, series
from pipeline.runtime.formatting import short


def own_charts(run: RunView) -> list[Chart]:
    """Captioned charts that only a reward model, PPO or rejection sampling has; [] for any other run."""
    return [chart for chart in (calibration(run), rewards_apart(run), *selections(run)) if chart]


def calibration(run: RunView) -> Chart | None:
    """The reliability diagram of a reward model: predicted probability against observed share, held-out pairs."""
    table = run.record.get("reliability") or []
    if not table:
        return None
    points = [(predicted, observed) for predicted, observed, _ in table]
    error = run.metrics.get("held_out_ece")
    caption = "calibration on held-out pairs" + (f" (ECE {error:.3f})" if isinstance(error, float) else "")
    lines = [Curve("reward model", points, True), Curve("calibrated", [(0.0, 0.0), (1.0, 1.0)])]
    return _figure(caption, lines, "predicted P(first preferred)", "observed share")


def rewards_apart(run: RunView) -> Chart | None:
    """Every reward that PPO logged, by name, where there are several, along the KL: a watched one that falls while the
    optimised one rises is over-optimisation. Each from its start, since rewards are known up to a constant only."""
    found = dict.fromkeys(name for entry in run.history for name in entry if re.fullmatch(r"rewards/.+/mean", name))
    kl = dict(series(run.history, "objective/kl"))
    lines = []
    for name in found:
        points = [(kl[step], value) for step, value in series(run.history, name) if step in kl]
        lines.append(Curve(name.split("/")[1], [(x, value - points[0][1]) for x, value in points], True))
    if len(lines) < 2:
        return None
    return _figure(
        "the rewards, optimised and watched", lines, "KL to pi_ref (nats a completion)", "gain since the first step"
    )


def selections(run: RunView) -> list[Chart | None]:
    """Of rejection sampling: reward of best-of-n against its exact KL, and that KL below its bound, by round."""
    rounds = run.record.get("selection") or {}
    if not rounds:
        return []
    won = [Curve(f"round {k}", [(row["kl"], row["reward"]) for row in curve], True) for k, curve in rounds.items()]
    far = [Curve(f"round {k}", [(row["n"], row["kl"]) for row in curve], True) for k, curve in rounds.items()]
    bound = [(row["n"], row["bound"]) for row in next(iter(rounds.values()))]
    return [
        _figure("best of n: reward against KL", won, "exact KL to the round's start (nats)", "reward"),
        _figure("best of n: KL and its bound", [*far, Curve("log n - (n-1)/n", bound)], "n", "nats"),
    ]


def against_best_of_n(judged: Sequence[RunView]) -> list[Chart]:
    """Each judged policy as a point of reward and KL over the curve of best-of-N from pi_ref."""
    figures, first = [], "/best of 1/kl"
    for run in judged:
        for name in [metric.removesuffix(first) for metric in run.metrics if metric.endswith(first)]:
            counts = [n for n in (2**k for k in range(20)) if f"{name}/best of {n}/kl" in run.metrics]
            curve = [tuple(run.metrics[f"{name}/best of {n}/{what}"] for what in ("kl", "reward")) for n in counts]
            policy, gain = run.metrics.get(f"{name}/kl"), run.metrics.get(f"{name}/advantage")
            if policy is None or gain is None:
                continue
            model = model_of(run)
            lines = [
                Curve(f"best of 1 to {counts[-1]}", curve, True),
                Curve(model, [(policy, run.metrics[f"{name}/reward"])], True),
            ]
            low, high = (run.metrics.get(f"{name}/advantage_{end}", gain) for end in ("low", "high"))
            caption = f"{model}: {gain:+.2f} ({short(low)} to {short(high)}) over best-of-N at the same KL"
            figures.append(_figure(caption, lines, "KL to pi_ref (nats a completion)", "reward"))
    return [chart for chart in figures if chart]


def frontier(judged: Sequence[RunView]) -> list[Chart]:
    """Every judged policy by its reward and KL, a chart an evaluation; the curve of optima where it is known."""
    end = "/objective"
    every = dict.fromkeys(metric.removesuffix(end) for run in judged for metric in run.metrics if metric.endswith(end))
    names = [name for name in every if f"{name}/exact" not in every]  # what is known exactly is not drawn by estimate
    figures = []
    for name in names:
        found = [run for run in judged if f"{name}{end}" in run.metrics]
        lines = [_optima(found[0], name)]
        for run in found:
            lines.append(Curve(model_of(run), [(run.metrics[f"{name}/kl"], run.metrics[f"{name}/reward"])], True))
        caption = name.removesuffix("/exact")
        figures.append(_figure(caption, lines, "KL to pi_ref (nats a completion)", "E[reward]"))
    return [chart for chart in figures if chart]


def _optima(run: RunView, name: str) -> Curve:
    """Reward over KL of ``pi*`` for many beta, from the smallest KL on; no points where it is not known."""
    at = re.compile(re.escape(f"{name}/optimum at beta ") + r"[\d.]+/kl")
    points = [
        (value, run.metrics[metric.removesuffix("kl") + "reward"])
        for metric, value in run.metrics.items()
        if at.fullmatch(metric)
    ]
    return Curve("pi* at any beta", sorted(points))


def _figure(caption: str, lines: Sequence[Curve], x_label: str, y_label: str) -> Chart | None:
    svg = line_chart(lines, x_label=x_label, y_label=y_label, title=caption)
    return Chart(caption, svg) if svg else None
