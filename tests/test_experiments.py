"""docs/experiments.md says what the committed results say, and the benchmarks behind it follow their rules."""

import importlib.util
import json
import math

import pytest
import torch

from pipeline.evaluation.tasks.in_context import eager_attention
from pipeline.inference.jacobian import layer_calls
from pipeline.objectives.divergences import full_kl
from tests.conftest import ROOT
from tests.tiny_models import tiny_model

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


def test_the_table_of_open_question_1_is_what_the_runs_say():
    script, runs = benchmark("propagation"), results("propagation")
    assert script.table(runs) in PAGE
    assert {row["arm"] for row in runs} <= set(script.ARMS)
    assert all(row["steps"] == script.STEPS for row in runs)


def test_the_penalty_is_the_fisher_form_per_squared_step():
    """Two contexts with a swapped second token: the mean of KL / (eps |delta|)^2 at eps = 1e-2, by forward passes; and
    a step against its gradient makes it smaller.
    """
    script, model = benchmark("propagation"), tiny_model("llama")
    ids, swapped = torch.tensor([[7, 8, 9], [10, 11, 0]]), torch.tensor([[7, 12, 9], [10, 13, 0]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    contexts = script.Swaps(ids, mask, swapped, torch.tensor([2, 1]))
    embed, eps = model.get_input_embeddings(), 1e-2
    with eager_attention(model):
        got = script.penalty(model, contexts, torch.tensor([0, 1]))
        with torch.no_grad():
            delta = embed(swapped) - embed(ids)
            here, up, down = (
                model(inputs_embeds=embed(ids) + step * delta, attention_mask=mask).logits[[0, 1], [2, 1]].double()
                for step in (0.0, eps, -eps)
            )
            q = (full_kl(here, up) + full_kl(here, down)) / (2 * eps**2)
            assert float(got.detach()) == pytest.approx(float((q / delta.square().sum((1, 2))).mean()), rel=0.02)
        got.backward()
        with torch.no_grad():
            for weight in model.parameters():
                weight -= 1e-3 * weight.grad / weight.grad.norm().clamp(min=1e-9) if weight.grad is not None else 0
            assert script.penalty(model, contexts, torch.tensor([0, 1])) < got


def test_a_leaking_layer_loses_a_share_of_its_stream():
    """(1 - a) h + block(h) = output - a h, only inside."""
    script, model = benchmark("propagation"), tiny_model("llama")
    ids = torch.tensor([[7, 8, 9]])
    first, second = layer_calls(model, ids)
    with script.leaking(model, 0.25):
        leaky = layer_calls(model, ids)[1].hidden
    torch.testing.assert_close(leaky, second.hidden - 0.25 * first.hidden)
    assert layer_calls(model, ids)[1].hidden.equal(second.hidden)
