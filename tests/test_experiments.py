"""docs/experiments.md says what the committed results say, and the benchmarks behind it follow their rules."""

import importlib.util
import json
import math

import pytest

from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "experiments.md").read_text(encoding="utf-8")


def benchmark(name: str):
    """A script of benchmarks/ as a module."""
    spec = importlib.util.spec_from_file_location(f"{name}_benchmark", ROOT / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def results(name: str) -> list[dict]:
    return [json.loads(line) for line in (ROOT / "benchmarks" / f"{name}.jsonl").read_text().splitlines()]


def test_the_table_of_open_question_4_is_what_the_runs_say():
    """Table, intervals and count of runs come from benchmarks/in_context.jsonl; its cells are the script's."""
    figures, runs = benchmark("in_context_figures"), results("in_context")
    assert "".join((figures.MARKERS[0], figures.section(runs), figures.MARKERS[1])) in PAGE
    known = benchmark("in_context").CELLS
    for row in runs:
        cell = known[row["cell"]]
        assert (cell.depth, cell.width, cell.count, cell.once) == tuple(
            row[name] for name in ("depth", "width", "count", "once")
        )


def test_the_table_of_rules_is_what_the_run_says():
    """Accuracy, interval, ideal and share of each number of examples in docs/prompting.md are those of the run."""
    page = (ROOT / "docs" / "prompting.md").read_text(encoding="utf-8")
    [run] = results("rules")
    at = {(row["group"], row["shots"]): row for row in run["table"]}
    for shots in range(8):
        seen, held = at["seen", shots], at["held out", shots]
        cells = [
            f"{row['accuracy']:.3f} [{row['accuracy_low']:.3f}, {row['accuracy_high']:.3f}] | {row['ideal']:.3f} | "
            f"{row['share_of_ideal']:.2f}"
            for row in (seen, held)
        ]
        assert f"| {shots} | {cells[0]} | {cells[1]} | {held['baseline']:.3f} |" in page
    assert f"{run['steps']:,} steps" in page


def test_a_cell_passes_by_the_lower_bound_over_seeds():
    """0.3, 0.4, 0.5 above copying: mean 0.4, deviation 0.1, 4.303 * 0.1 / sqrt 3 = 0.248. The bound, 0.152, is below
    0.2; that of 0.39, 0.40, 0.41 (0.375) is above it; one seed decides nothing."""
    figures = benchmark("in_context_figures")
    runs = [
        [{"new": {"over_copy": value}} for value in values] for values in ((0.3, 0.4, 0.5), (0.39, 0.4, 0.41), (1,))
    ]
    mean, half = figures.over_seeds([0.3, 0.4, 0.5])
    assert (mean, half) == pytest.approx((0.4, 4.303 * 0.1 / math.sqrt(3)))
    assert [figures.passes(rows) for rows in runs] == [False, True, None]


def test_training_stops_at_the_exact_floor_of_the_cell(monkeypatch):
    """No key twice and new maps: nothing can be known, and the floor is log 16. A model that is close to it stops at
    the first check; one that is not goes on to the last step."""
    script = benchmark("in_context")
    monkeypatch.setattr(script, "MAX_STEPS", 4)
    monkeypatch.setattr(script, "EVERY", 2)
    for close, steps in ((100.0, 2), (0.0, 4)):
        monkeypatch.setattr(script, "CLOSE", close)
        cell = script.Cell(depth=1, width=32, once=True)
        found = script.train(cell, script.build(cell), seed=0)
        assert found["floor"] == pytest.approx(math.log(16))
        assert (found["steps"], found["reached"]) == (steps, steps == 2)
        assert [point["step"] for point in found["trajectory"]] == list(range(2, steps + 1, 2))
