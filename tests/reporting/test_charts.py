"""Charts: coordinates by hand, round ticks, nothing unescaped, well-formed SVG."""

import re
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
    family_tree,
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
    for html in (
        line_chart([Curve(evil, [(0, 1), (1, 2)]), Curve("b", [(0, 1)])], x_label=evil, y_label=evil, title=evil),
        family_tree([(evil, evil, "train", ())]),
    ):
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


def test_a_branch_takes_a_row_of_its_own():
    svg = family_tree(
        [("a", "", "train", ()), ("b", "", "train", ["a"]), ("c", "", "train", ["a"]), ("d", "", "train", ["b"])]
    )
    corners = [(r.get("x"), r.get("y")) for r in parse(svg).iter("rect")]
    assert len(set(corners)) == 4
    assert corners[1][0] == corners[2][0]  # b and c: the same generation
    assert corners[3][1] == corners[1][1]  # d straight on from b
    assert len(re.findall('class="edge"', svg)) == 3


def test_an_edge_past_a_column_keeps_clear_of_its_boxes():
    """a -> b -> c and a -> c, all in the first row: the long edge runs 8 below the row's boxes, in the gap."""
    graph = parse(family_tree([("a", "", "", ()), ("b", "", "", ("a",)), ("c", "", "", ("a", "b"))]))
    boxes = [(float(box.get("y")), float(box.get("height"))) for box in graph.iter("rect")]
    assert len(set(boxes)) == 1
    edges = [path.get("d") for path in graph.iter("path") if path.get("class") == "edge"]
    (long,) = [way for way in edges if "L" in way]
    bottom = sum(boxes[0])
    assert float(re.search(r" L[\d.]+,([\d.]+) ", long)[1]) == bottom + 8
    assert float(graph.find("svg").get("viewBox").split()[3]) > bottom + 8
