"""The lineage as a left-to-right graph, drawn so that no arrow passes behind a box.

Every run has a column (one behind its last parent) and a row. An arrow that passes columns has a lane through each of
them: a row in which no box is, so that it cannot be taken for an arrow to or from one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from markupsafe import Markup

from pipeline.runtime.formatting import clip

WIDE, HIGH, GAP = 160, 46, 52  # of a box, and between columns
ROW, LANE = HIGH + 16, 18  # height of a row with boxes, and of one with lanes alone


@dataclass(frozen=True)
class Node:
    """One run of the graph.

    Attributes:
        below: the line below its name.
        kind: CSS classes.
        parents: what it was trained from.
        used: what it used beside that, such as a reward model.
    """

    name: str
    below: str = ""
    kind: str = ""
    parents: Sequence[str] = ()
    used: Sequence[str] = ()


@dataclass(frozen=True)
class Layout:
    """Where everything is: the column and row of each box, and the lane (a row) of each arrow that passes columns."""

    column: dict[str, int]
    row: dict[str, int]
    lane: dict[tuple[str, str], int]


def layout(nodes: Sequence[Node]) -> Layout:
    """Columns, rows and lanes of a graph; parents come before what was made from them, others are left out."""
    column: dict[str, int] = {}
    row: dict[str, int] = {}
    lane: dict[tuple[str, str], int] = {}
    taken: set[tuple[int, int]] = set()
    for node in nodes:
        known = [p for p in (*node.parents, *node.used) if p in column]
        own = column[node.name] = 1 + max((column[p] for p in known), default=-1)
        wanted = min((row[p] for p in known), default=0)
        row[node.name] = _free(taken, range(own, own + 1), wanted)
        taken.add((own, row[node.name]))
        for parent in known:
            between = range(column[parent] + 1, own)
            if between:
                lane[parent, node.name] = _free(taken, between, row[node.name])
                taken |= {(each, lane[parent, node.name]) for each in between}
    return Layout(column, row, lane)


def _free(taken: set[tuple[int, int]], columns: range, wanted: int) -> int:
    """The first row from ``wanted`` on that is free in all the columns."""
    return next(r for r in range(wanted, wanted + len(taken) + 1) if all((c, r) not in taken for c in columns))


def family_graph(nodes: Sequence[Node]) -> Markup:
    """The graph as SVG; a dashed arrow is what a run used beside its start."""
    if not nodes:
        return Markup()
    found = layout(nodes)
    boxed = set(found.row.values())
    rows = range(max((*boxed, *found.lane.values())) + 1)
    tops = [2 + sum(ROW if r in boxed else LANE for r in rows[:each]) for each in rows]
    height = tops[-1] + (HIGH if rows[-1] in boxed else LANE) + 2
    width = (max(found.column.values()) + 1) * (WIDE + GAP) - GAP + 4

    def left(name: str) -> int:
        return 2 + found.column[name] * (WIDE + GAP)

    def middle(r: int) -> float:
        return tops[r] + (HIGH if r in boxed else LANE) / 2

    parts = [
        f'<svg class="tree" viewBox="0 0 {width} {height}" style="width:{width}px" role="img" '
        'aria-label="which run was made from which">'
    ]
    for node in nodes:
        known = [p for p in (*node.parents, *node.used) if p in found.column]
        order = sorted(
            known, key=lambda p: found.lane.get((p, node.name), found.row[p])
        )  # so that arrows do not cross
        for parent in known:
            x1, x2, y1 = left(parent) + WIDE, left(node.name), middle(found.row[parent])
            y2 = middle(found.row[node.name]) + HIGH * ((order.index(parent) + 1) / (len(known) + 1) - 0.5)
            way = f"M{x1},{y1:.1f} "
            if (parent, node.name) in found.lane:
                y = middle(found.lane[parent, node.name])
                way += f"{_bend(x1, y1, x1 + GAP, y)} L{x2 - GAP},{y:.1f} {_bend(x2 - GAP, y, x2 - 5, y2)}"
            else:
                way += _bend(x1, y1, x2 - 5, y2)
            kind = "edge used" if parent in node.used else "edge"
            parts.append(
                f'<path class="{kind}" d="{way}"><title>{escape(parent)} to {escape(node.name)}</title></path>'
                f'<path class="arrow" d="M{x2 - 6},{y2 - 4:.1f} L{x2},{y2:.1f} L{x2 - 6},{y2 + 4:.1f} Z"/>'
            )
    for node in nodes:
        x, y = left(node.name), tops[found.row[node.name]]
        parts.append(
            f'<g class="node {node.kind}"><rect x="{x}" y="{y}" width="{WIDE}" height="{HIGH}" rx="7"/>'
            f'<text class="name" x="{x + 12}" y="{y + 20}">{escape(clip(node.name, 19))}</text>'
            f'<text class="below" x="{x + 12}" y="{y + 36}">{escape(clip(node.below, 25))}</text>'
            f"<title>{escape(node.name)}: {escape(node.below)}</title></g>"
        )
    return Markup("".join(parts) + "</svg>")


def _bend(x1: float, y1: float, x2: float, y2: float) -> str:
    """The path command of a curve to (x2, y2) that leaves and arrives horizontally."""
    middle = (x1 + x2) / 2
    return f"C{middle},{y1:.1f} {middle},{y2:.1f} {x2},{y2:.1f}"
