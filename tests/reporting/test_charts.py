"""Charts: coordinates by hand, round ticks, nothing unescaped, well-formed SVG."""

from xml.etree import ElementTree

import pytest

from pipeline.reporting.charts import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Curve,
    interval_bar,
    line_chart,
    nice_ticks,
    thin,
)


def parse(svg: str) -> ElementTree.Element:
    """The text as XML: what a browser is given must at least be that."""
    return ElementTree.fromstring(f"<div>{svg}</div>")


def test_a_line_spans_the_plot():
    """x 0..10 fills the width; y 0..1 the height less 5% of the data's range on both ends: 1/22 of the plot."""
    chart = line_chart([Curve("a", [(0, 0.0), (10, 1.0)])], x_label="step", y_label="share", title="t")
    points = parse(chart).find(".//polyline").get("points")
    pad = (HEIGHT - TOP - BOTTOM) / 22
    assert points == f"{LEFT:.1f},{HEIGHT - BOTTOM - pad:.1f} {WIDTH - RIGHT:.1f},{TOP + pad:.1f}"
    labels = [text.text for text in parse(chart).iter("text")]
    assert labels[-2:] == ["step", "share"]
    assert "0" in labels
    assert "1" in labels


def test_names_from_a_run_cannot_break_out():
    evil = '<script>alert("x")</script>'
    curves = [Curve(evil, [(0, 1), (1, 2)]), Curve("b", [(0, 1)])]
    html = line_chart(curves, x_label=evil, y_label=evil, title=evil)
    parse(html)
    assert "<script" not in html
    assert "&lt;script" in html


def test_flat_single_and_empty_curves_do_not_divide_by_zero():
    parse(line_chart([Curve("a", [(0, 2.0), (5, 2.0)])], x_label="x", y_label="y", title="flat"))
    single = line_chart([Curve("a", [(3, 2.0)])], x_label="x", y_label="y", title="one")
    assert parse(single).find(".//circle") is not None
    assert line_chart([Curve("a", [])], x_label="x", y_label="y", title="none") == ""


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, [0, 0.25, 0.5, 0.75, 1.0]), (0.98, 5.2, [0, 2, 4, 6]), (-3, 3, [-4, -2, 0, 2, 4])],
)
def test_ticks_are_round_and_cover(low, high, expected):
    assert nice_ticks(low, high) == expected


def test_thinning_keeps_every_spike():
    points = [(float(i), 0.0) for i in range(5000)]
    points[2345] = (2345.0, 9.0)
    kept = thin(points, 200)
    assert len(kept) <= 202
    assert (2345.0, 9.0) in kept
    assert kept == sorted(kept)


def test_an_interval_is_drawn_to_scale():
    """Track 0..1 is x = 2..98: low 0.25 is at 26, high 0.75 at 74, so the band is 48 wide, and 0.5 is at 50."""
    svg = interval_bar(0.5, 0.25, 0.75, (0.0, 1.0))
    band, point = parse(svg).iter("rect")
    assert (band.get("x"), band.get("width")) == ("26.0", "48.0")
    assert float(point.get("x")) + 0.9 == pytest.approx(50.0)


def test_a_curve_is_drawn_from_left_to_right_and_a_cloud_is_dots():
    """Points that came in another order are joined by their x; the cloud behind them has a dot each and no line."""
    cloud = [Curve("a", [(2.0, 5.0), (0.0, 1.0), (1.0, 3.0)])]
    chart = parse(line_chart([Curve("a", [(2, 1.0), (0, 3.0)])], x_label="x", y_label="y", title="t", clouds=cloud))
    (line,) = chart.iter("polyline")
    xs = [float(point.split(",")[0]) for point in line.get("points").split()]
    assert xs == sorted(xs)
    assert [circle.get("class") for circle in chart.iter("circle")] == ["cloud c0"] * 3
