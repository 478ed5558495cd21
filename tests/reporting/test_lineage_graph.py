"""The lineage graph: where boxes and lanes are, and that no arrow passes behind a box."""

import random
import re
from xml.etree import ElementTree

import pytest

from pipeline.reporting.lineage_graph import GAP, Node, family_graph, layout

RECIPE = [
    Node("pretrain"),
    Node("sft", parents=["pretrain"]),
    Node("dpo", parents=["sft"]),
    Node("grpo", parents=["dpo"]),
    Node("reward_model", parents=["sft"]),
    Node("ppo", parents=["sft"], used=["reward_model"]),
    Node("rsft", parents=["sft"], used=["reward_model"]),
]


def parse(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(f"<div>{svg}</div>")


def boxes_of(svg: str) -> dict[str, tuple[float, float, float, float]]:
    """(left, top, right, bottom) of each box by the name in its title."""
    found = {}
    for group in parse(svg).iter("g"):
        x, y, wide, high = (float(group.find("rect").get(key)) for key in ("x", "y", "width", "height"))
        found[group.find("title").text.partition(":")[0]] = (x, y, x + wide, y + high)
    return found


def edges_of(svg: str) -> dict[tuple[str, str], list[tuple[float, float]]]:
    """Points along each arrow, from its start to its end, 40 on each curve and line."""
    found = {}
    for path in parse(svg).iter("path"):
        if not path.get("class").startswith("edge"):
            continue
        points, at = [], None
        for letter, text in re.findall(r"([MCL])([^MCL]+)", path.get("d")):
            numbers = [float(x) for x in re.findall(r"-?[\d.]+", text)]
            ends = list(zip(numbers[::2], numbers[1::2]))
            if letter == "M":
                at = ends[0]
                continue
            for i in range(41):
                t = i / 40
                if letter == "L":
                    points.append(tuple(a + (b - a) * t for a, b in zip(at, ends[0])))
                else:
                    points.append(
                        tuple(
                            (1 - t) ** 3 * a + 3 * (1 - t) ** 2 * t * b + 3 * (1 - t) * t * t * c + t**3 * d
                            for a, b, c, d in zip(at, *ends)
                        )
                    )
            at = ends[-1]
        found[tuple(path.find("title").text.split(" to "))] = points
    return found


def check(nodes: list[Node]) -> None:
    svg = family_graph(nodes)
    boxes, edges = boxes_of(svg), edges_of(svg)
    assert set(edges) == {(p, node.name) for node in nodes for p in (*node.parents, *node.used)}
    width, height = map(float, parse(svg).find("svg").get("viewBox").split()[2:])
    for (parent, child), points in edges.items():
        assert points[0][0] == boxes[parent][2]  # leaves its parent at its right side
        assert boxes[parent][1] < points[0][1] < boxes[parent][3]
        assert 0 <= boxes[child][0] - points[-1][0] <= 6  # and arrives at its child's left side
        assert boxes[child][1] < points[-1][1] < boxes[child][3]
        for x, y in points:
            assert 0 <= x <= width
            assert 0 <= y <= height
            for name, (left, top, right, bottom) in boxes.items():
                inside = left < x < right and top - 3 < y < bottom + 3
                assert not inside, f"the arrow from {parent} to {child} passes {name}"


def test_the_recipes_arrows_keep_clear_of_its_boxes():
    """sft to ppo passes the column of dpo and of the reward model, and must not read as an arrow from either."""
    check(RECIPE)
    found = layout(RECIPE)
    assert found.row["sft"] == found.row["dpo"] == found.row["grpo"]
    boxes_between = {found.row["dpo"], found.row["reward_model"]}
    assert found.lane["sft", "ppo"] not in boxes_between
    assert found.lane["sft", "ppo"] != found.lane["sft", "rsft"]
    assert parse(family_graph(RECIPE)).find(".//*[@class='edge used']") is not None


@pytest.mark.parametrize("seed", range(40))
def test_no_arrow_passes_behind_a_box(seed):
    """Graphs of up to 14 runs with up to three parents each, drawn at random."""
    draw, nodes = random.Random(seed), []
    for i in range(draw.randint(2, 14)):
        known = [node.name for node in nodes]
        chosen = draw.sample(known, min(len(known), draw.randint(0, 3)))
        nodes.append(Node(f"n{i}", parents=chosen[:1], used=chosen[1:]))
    check(nodes)


def test_a_branch_takes_a_row_of_its_own():
    found = layout([Node("a"), Node("b", parents=["a"]), Node("c", parents=["a"]), Node("d", parents=["b"])])
    assert found.column == {"a": 0, "b": 1, "c": 1, "d": 2}
    assert found.row == {"a": 0, "b": 0, "c": 1, "d": 0}
    assert found.lane == {}
    assert GAP > 0


def test_names_cannot_break_out():
    evil = '<script>alert("x")</script>'
    svg = family_graph([Node(evil, evil), Node("b", parents=[evil])])
    parse(svg)
    assert "<script" not in svg
    assert family_graph([]) == ""
