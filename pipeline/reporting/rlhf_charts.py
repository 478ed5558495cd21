"""The report's charts of reward and KL: calibration, rewards apart, best-of-N, and policies on one frontier.

They read the curves and tables of the run records; figures are looked up by their names, never read out of them.
"""

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise

from pipeline.reporting.charts import Chart, Curve, line_chart
from pipeline.reporting.history import RunView, model_of, series
from pipeline.runtime.files import Json

KL = "KL to pi_ref (nats per completion)"
DRAWN_CURVES, DRAWN_TABLES = ("best of n", "optima"), ("policy",)
BINS = 8  # means on a curve through a cloud of points


def own_charts(run: RunView) -> list[Chart]:
    """Captioned charts that only a reward model, PPO or rejection sampling has; [] for any other run."""
    return [chart for chart in (calibration(run), rewards_apart(run), *selections(run)) if chart]


def calibration(run: RunView) -> Chart | None:
    """The reliability diagram of a reward model: predicted probability against observed share, held-out pairs."""
    bins = run.curves.get("reliability", {}).get("held-out pairs")
    if not bins:
        return None
    error = run.metrics.get("held_out_ece")
    caption = "calibration on held-out pairs" + (f" (ECE {error:.3f})" if isinstance(error, float) else "")
    lines = [_curve("reward model", bins, "predicted", "observed"), Curve("calibrated", [(0.0, 0.0), (1.0, 1.0)])]
    return _figure(caption, lines, "predicted P(first preferred)", "observed share")


def rewards_apart(run: RunView) -> Chart | None:
    """Every reward that PPO logged, by name, over the KL, where there are several.

    A watched reward that falls while the optimised one rises is over-optimisation. Each starts at 0, since rewards are
    defined up to a constant only. The KL of a rollout is noisy, so the points are a cloud, with the means of equally
    many of them from left to right; joined in time they would be a scribble.
    """
    logged = dict.fromkeys(name for entry in run.history for name in entry)
    found = [match for match in (re.fullmatch(r"rewards/(.+)/mean", name) for name in logged) if match]  # TRL's names
    kl = dict(series(run.history, "objective/kl"))
    lines = []
    for match in found:
        points = [(kl[step], value) for step, value in series(run.history, match[0]) if step in kl]
        if points:
            lines.append(Curve(match[1], [(x, value - points[0][1]) for x, value in points]))
    if len(lines) < 2:
        return None
    means = [Curve(line.label, binned(line.points, BINS)) for line in lines]
    return _figure("the rewards, optimised and watched", means, KL, "gain since the first step", clouds=lines)


def binned(points: Sequence[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """Means of x and y over at most ``most`` groups of equally many points, by rising x."""
    ordered = sorted(points)
    count = max(1, min(most, len(ordered) // 3))
    ends = [round(i * len(ordered) / count) for i in range(count + 1)]
    groups = [ordered[a:b] for a, b in pairwise(ends) if b > a]
    return [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]


def selections(run: RunView) -> list[Chart | None]:
    """Of rejection sampling: reward of best-of-n against its exact KL, and that KL below its bound, by round."""
    rounds = run.curves.get("selection")
    if not rounds:
        return []
    won = [_curve(name, points, "kl", "reward") for name, points in rounds.items()]
    far = [_curve(name, points, "n", "kl") for name, points in rounds.items()]
    bound = _curve("log n - (n-1)/n", next(iter(rounds.values())), "n", "bound", marked=False)
    return [
        _figure("best of n: reward against KL", won, "exact KL to the round's start (nats)", "reward"),
        _figure("best of n: KL and its bound", [*far, bound], "n", "nats"),
    ]


def against_best_of_n(assessments: Sequence[RunView]) -> list[Chart]:
    """Each evaluated policy as a point of reward and KL over the curve of best-of-N from pi_ref."""
    figures = []
    for run in assessments:
        for evaluation, curves in run.curves.items():
            points = curves.get("best of n")
            names = ("kl", "reward", "advantage", "advantage_low", "advantage_high")
            found = {name: run.metrics.get(f"{evaluation}/{name}") for name in names}
            if not points or None in found.values():
                continue
            model = model_of(run)
            lines = [
                _curve(f"best of 1 to {points[-1]['n']}", points, "kl", "reward"),
                Curve(model, [(found["kl"], found["reward"])], True),
            ]
            interval = f"{found['advantage_low']:+.3f} to {found['advantage_high']:+.3f}"
            caption = f"{model}: {found['advantage']:+.3f} ({interval}) over best-of-N at the same KL"
            figures.append(_figure(caption, lines, KL, "reward"))
    return [chart for chart in figures if chart]


def frontier(assessments: Sequence[RunView]) -> list[Chart]:
    """Every evaluated policy by its reward and KL, one chart per evaluation; the curve of optima where it is known."""
    policies: dict[str, list[RunView]] = {}
    for run in assessments:
        for evaluation, tables in run.tables.items():
            if tables.get("policy"):
                policies.setdefault(evaluation, []).append(run)
    figures = []
    for evaluation, runs in policies.items():
        optima = next((found for run in runs if (found := run.curves.get(evaluation, {}).get("optima"))), [])
        lines = [
            _curve("pi* at any beta", sorted(optima, key=lambda point: point["kl"]), "kl", "reward", marked=False)
        ]
        # The last row of the table is the most exact.
        lines += [_curve(model_of(run), run.tables[evaluation]["policy"][-1:], "kl", "reward") for run in runs]
        figures.append(_figure(evaluation, lines, KL, "E[reward]"))
    return [chart for chart in figures if chart]


def other_curves(assessments: Sequence[RunView]) -> list[Chart]:
    """Curves of evaluations that no chart above draws: every other column of numbers over the first one."""
    figures = []
    for run in assessments:
        for evaluation, name, points in _others(run.curves, DRAWN_CURVES):
            x, *columns = points[0]
            numbers = [column for column in columns if isinstance(points[0][column], int | float)]
            lines = [_curve(column, points, x, column) for column in numbers]
            y_label = numbers[0] if len(numbers) == 1 else ""  # one line has no key
            figures.append(_figure(f"{model_of(run)}: {evaluation}, {name}", lines, x, y_label))
    return [chart for chart in figures if chart]


def other_tables(assessments: Sequence[RunView]) -> list[tuple[str, list[Json]]]:
    """Tables of evaluations that no chart reads, with a caption each."""
    return [
        (f"{model_of(run)}: {evaluation}, {name}", rows)
        for run in assessments
        for evaluation, name, rows in _others(run.tables, DRAWN_TABLES)
    ]


def _others(found: dict[str, dict[str, list[Json]]], drawn: Sequence[str]) -> Iterator[tuple[str, str, list[Json]]]:
    for evaluation, by_name in found.items():
        for name, rows in by_name.items():
            if rows and name not in drawn:
                yield evaluation, name, rows


def _curve(label: str, points: Sequence[Json], x: str, y: str, marked: bool = True) -> Curve:
    """A line of the points of which both coordinates are numbers."""
    pairs = [(point.get(x), point.get(y)) for point in points]
    return Curve(label, [pair for pair in pairs if all(isinstance(value, int | float) for value in pair)], marked)


def _figure(
    caption: str, lines: Sequence[Curve], x_label: str, y_label: str, clouds: Sequence[Curve] = ()
) -> Chart | None:
    svg = line_chart(lines, x_label=x_label, y_label=y_label, title=caption, clouds=clouds)
    return Chart(caption, svg) if svg else None
