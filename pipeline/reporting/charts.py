"""Small charts as SVG text: curves, intervals, a family tree. Colours are CSS classes, for light and dark.

Text from a run is escaped here, once.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from markupsafe import Markup

from pipeline.runtime.formatting import clip, short

WIDTH, HEIGHT = 360, 216
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 14, 40


@dataclass(frozen=True)
class Chart:
    """A chart with its caption, as the page shows it."""

    caption: str
    svg: Markup


@dataclass(frozen=True)
class Curve:
    """One line of a chart: its label and (x, y) points, joined from left to right; ``marked`` draws a dot at each."""

    label: str
    points: Sequence[tuple[float, float]]
    marked: bool = False


def line_chart(
    curves: Sequence[Curve], *, x_label: str, y_label: str, title: str, clouds: Sequence[Curve] = ()
) -> Markup:
    """Curves over a common axis, distinguished by colour and dash, single points by name; '' for nothing.

    Args:
        clouds: the points behind the curves, one for each and in its colour.
    """
    clouds = [cloud for cloud, curve in zip(clouds, curves) if curve.points]
    curves = [curve for curve in curves if curve.points]
    if not curves:
        return Markup()
    xs = [x for curve in (*curves, *clouds) for x, _ in curve.points]
    ys = [y for curve in (*curves, *clouds) for _, y in curve.points]
    x_low = min(0.0, min(xs))
    x_high = max(xs) if max(xs) > x_low else x_low + 1
    pad = 0.05 * (max(ys) - min(ys)) or 0.05 * abs(max(ys)) or 0.5
    y_low, y_high = min(ys) - pad, max(ys) + pad

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT),
            HEIGHT - BOTTOM - (y - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM),
        )

    x_ticks = [x for x in nice_ticks(x_low, x_high) if x_low <= x <= x_high]
    y_ticks = [y for y in nice_ticks(min(ys), max(ys)) if y_low <= y <= y_high]
    parts = [
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title, quote=True)}">',
        f"<title>{escape(title)}</title>",
        *_ticks(x_ticks, y_ticks, place),
        f'<text class="axis" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}" text-anchor="middle">'
        f"{escape(x_label)}</text>"
        f'<text class="axis" x="12" y="{(HEIGHT - BOTTOM + TOP) / 2}" text-anchor="middle" '
        f'transform="rotate(-90 12 {(HEIGHT - BOTTOM + TOP) / 2})">{escape(y_label)}</text>',
    ]
    for number, cloud in enumerate(clouds):
        parts += [
            f'<circle class="cloud c{number % 4}" cx="{x:.1f}" cy="{y:.1f}" r="1.8"/>'
            for x, y in (place(*point) for point in cloud.points)
        ]
    alone: list[tuple[float, float, str]] = []
    for number, curve in enumerate(curves):
        # A step of one pixel is all that can be seen; long runs would make a page of megabytes.
        shown = thin(sorted(curve.points, key=lambda point: point[0]), 2 * (WIDTH - LEFT - RIGHT))
        places = [place(x, y) for x, y in shown]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline class="line c{number % 4}" points="{path}"/>')
        if curve.marked or len(places) == 1:
            parts += [f'<circle class="dot c{number % 4}" cx="{x:.1f}" cy="{y:.1f}" r="2.6"/>' for x, y in places]
        if len(places) == 1:
            alone.append((*places[0], curve.label))
    if len(curves) > 1:
        parts += _labels(alone)
    parts.append("</svg>")
    return Markup("".join(parts) + _keys(curves))


def _keys(curves: Sequence[Curve]) -> str:
    """Which line is which, below a chart of several."""
    keys = "".join(
        f'<span><svg class="key" viewBox="0 0 22 8"><line class="line c{i % 4}" x1="0" x2="22" y1="4" y2="4"/>'
        f"</svg>{escape(curve.label)}</span>"
        for i, curve in enumerate(curves)
        if len(curve.points) > 1
    )
    return f'<div class="keys">{keys}</div>' if len(curves) > 1 and keys else ""


def _ticks(
    xs: Sequence[float], ys: Sequence[float], place: Callable[[float, float], tuple[float, float]]
) -> list[str]:
    """Figures along both axes, and a line across the chart at each figure of y."""
    parts = []
    for tick in ys:
        y = place(xs[0], tick)[1]
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{short(tick)}</text>')
    for tick in xs:
        x = place(tick, 0.0)[0]
        parts.append(
            f'<text class="tick" x="{x:.1f}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">{short(tick)}</text>'
        )
    return parts


def _labels(points: Sequence[tuple[float, float, str]]) -> list[str]:
    """Names beside points, on the side with room; one below another where they would overlap, joined by a line."""
    parts, taken = [], []
    for x, y, name in sorted(points, key=lambda point: point[1]):
        side = -1 if x > (WIDTH + LEFT) / 2 else 1
        ends = sorted((x + 9 * side, x + (9 + 6 * len(name)) * side))  # six pixels a letter, about
        below = y
        while any(abs(below - other) < 10 and ends[0] < end and start < ends[1] for start, end, other in taken):
            below += 1
        taken.append((*ends, below))
        if below > y + 4:
            parts.append(f'<line class="grid" x1="{x:.1f}" y1="{y:.1f}" x2="{x + 8 * side:.1f}" y2="{below:.1f}"/>')
        anchor = "end" if side < 0 else "start"
        parts.append(
            f'<text class="tick" x="{x + 9 * side:.1f}" y="{below + 3.5:.1f}" text-anchor="{anchor}">'
            f"{escape(name)}</text>"
        )
    return parts


def heat_map(values: Sequence[Sequence[float]], rows: Sequence[str], columns: Sequence[str], *, title: str) -> Markup:
    """A table of shares as coloured cells with their figures, 0 pale and 1 full; '' for no values."""
    if not values or not values[0]:
        return Markup()
    wide, high, left, top = 66, 26, 112, 44
    width, height = left + wide * len(columns) + 28, top + high * len(rows) + 4  # 28: half of the last long name
    parts = [
        f'<svg class="chart heat" viewBox="0 0 {width} {height}" style="max-width:{width}px" role="img" '
        f'aria-label="{escape(title, quote=True)}"><title>{escape(title)}</title>'
    ]
    for i, name in enumerate(columns):
        parts.append(
            f'<text class="tick" text-anchor="middle" x="{left + wide * (i + 0.5):.0f}" y="{top - 8 - 14 * (i % 2)}">'
            f"{escape(clip(name, 18))}</text>"
        )
    for j, (name, line) in enumerate(zip(rows, values, strict=True)):
        y = top + high * j
        parts.append(
            f'<text class="tick" text-anchor="end" x="{left - 8}" y="{y + 17}">{escape(clip(name, 18))}</text>'
        )
        for i, value in enumerate(line):
            x, share = left + wide * i, min(1.0, max(0.0, value))
            parts.append(
                f'<rect class="heat" x="{x + 1}" y="{y + 1}" width="{wide - 2}" height="{high - 2}" rx="3" '
                f'fill-opacity="{0.06 + 0.6 * share:.3f}"/><text class="axis" text-anchor="middle" '
                f'x="{x + wide / 2:.0f}" y="{y + 17}">{value:.2f}</text>'
            )
    return Markup("".join(parts) + "</svg>")


def interval_bar(value: float, low: float | None, high: float | None, scale: tuple[float, float]) -> Markup:
    """A dot with its interval on a track from ``scale[0]`` to ``scale[1]``."""
    bottom, top = scale
    span = top - bottom or 1.0

    def x(v: float) -> float:
        return 2 + 96 * min(1.0, max(0.0, (v - bottom) / span))

    band = ""
    if low is not None and high is not None:
        band = (
            f'<rect class="band" x="{x(low):.1f}" y="2.5" width="{max(x(high) - x(low), 0.8):.1f}" height="5" rx="2"/>'
        )
    return Markup(
        '<svg class="bar" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">'
        f'<line class="track" x1="2" x2="98" y1="5" y2="5"/>{band}'
        f'<rect class="point" x="{x(value) - 0.9:.1f}" y="0.8" width="1.8" height="8.4" rx="0.9"/></svg>'
    )


def nice_ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers (1, 2, 2.5 or 5 times a power of ten) that cover low..high, about ``wanted`` of them."""
    if high <= low:
        pad = abs(low) * 0.1 or 0.5
        low, high = low - pad, high + pad
    raw = (high - low) / max(wanted - 1, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def thin(points: Sequence[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """At most about ``most`` points: of every stretch its lowest and its highest, so that no spike is lost."""
    if len(points) <= most:
        return list(points)
    size = math.ceil(2 * len(points) / most)
    kept = []
    for start in range(0, len(points), size):
        stretch = points[start : start + size]
        kept += sorted({min(stretch, key=lambda p: p[1]), max(stretch, key=lambda p: p[1])})
    return kept
