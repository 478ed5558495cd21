"""What the page shows of a run, before the template arranges it."""

import platform
from pathlib import Path

from pipeline.reporting.figures import assessed
from pipeline.reporting.history import RunView
from pipeline.reporting.page import breakable, next_steps, running_seconds, stage_row, tree, where
from pipeline.reporting.stage_charts import sequences, stage_charts


def view(**record):
    return RunView("x", Path("runs/x"), "completed", {"stage": "dpo", "metrics": {}, **record})


def test_a_sequence_of_corpora_is_a_heat_map_and_curves():
    """R of a run as a heat map and as curves; a run without one shows nothing, names are escaped in the charts."""
    scores = [(0, "a", 0.25), (0, "<b>", 0.5), (1, "a", 0.75), (1, "<b>", 1.0)]
    rows = [{"after": after, "corpus": corpus, "accuracy": accuracy} for after, corpus, accuracy in scores]
    run = view(metrics={"plasticity": 0.875}, tables={"forgetting": {"scores": rows}})
    ((name, text, (heat, lines)),) = sequences([run, view()])
    assert (name, text) == ("x", "plasticity 0.875")
    assert heat.svg.count('class="heat"') == 4
    assert [f">{value:.2f}<" in heat.svg for value in (0.25, 0.5, 0.75, 1.0)] == [True] * 4
    assert "&lt;b&gt;" in heat.svg
    assert "<b>" not in heat.svg + lines.svg


def test_what_to_do_next_names_the_recipe_that_ran_and_no_other():
    commands = [command for _, command in next_steps([view(recipe="configs/unified/recipe.yaml")])]
    assert "python -m pipeline.run configs/unified/recipe.yaml" in commands
    assert not any("pipeline.run" in command for _, command in next_steps([view()]))


def judged(name, model, metrics, expected=()):
    """An assessment of a model; every figure with an interval of 0.02 to both sides."""
    ends = {f"{m}_{end}": v + d for m, v in metrics.items() for end, d in (("low", -0.02), ("high", 0.02))}
    record = {"stage": "assess", "metrics": metrics | ends, "expected": list(expected)}
    return RunView(name, Path(name), "completed", record, parents=[model])


def two_models():
    """sft and dpo, which knows more facts, does worse sums, and is as good at reading; a control stays low."""
    made = [RunView(n, Path(n), "completed", {"stage": n}, parents=p, start=s) for n, p, s in
            (("sft", [], None), ("dpo", ["sft"], "sft"))]  # fmt: skip
    control = {"claim": "reading/without/accuracy < 0.2", "metric": "reading/without/accuracy", "met": True}
    sft = {"facts/accuracy": 0.5, "sums/accuracy": 0.9, "reading/accuracy": 0.7, "reading/without/accuracy": 0.1}
    dpo = {"facts/accuracy": 0.8, "sums/accuracy": 0.6, "reading/accuracy": 0.71, "reading/without/accuracy": 0.3}
    first = judged("a1", "sft", sft | {"chat/loss": 1.0}, [control])
    return [*made, first, judged("a2", "dpo", dpo | {"chat/loss": 0.8, "mine/oddness": 2.0, "chat/kl": 0.4})]


def test_a_loss_of_ability_does_not_look_like_a_gain():
    """+0.3 better, -0.3 worse, 0.01 within its interval of 0.028; a loss that falls is better, an accuracy that was
    expected to stay low is worse where it rises. Of figures that the table does not know nothing is claimed.
    """
    runs = two_models()
    tables = assessed(runs[2:], runs).main
    rows = {f"{g['name']}/{row['metric']}": row for table in tables for g in table.groups for row in g["rows"]}
    found = {name: (row["cells"][-1]["moved"] or {}).get("kind") for name, row in rows.items()}
    assert found == {
        "facts/accuracy": "gain", "sums/accuracy": "loss", "reading/accuracy": "same",
        "reading/without: accuracy": "loss", "chat/loss": "gain", "chat/kl": None, "mine/oddness": None,
    }  # fmt: skip
    assert {name: row["arrow"] for name, row in rows.items()} == {
        "facts/accuracy": "↑", "sums/accuracy": "↑", "reading/accuracy": "↑",
        "reading/without: accuracy": "↓", "chat/loss": "↓", "chat/kl": "", "mine/oddness": "",
    }  # fmt: skip
    moved = rows["sums/accuracy"]["cells"][-1]["moved"]
    assert (moved["text"], moved["word"], moved["interval"]) == ("−0.300", "worse", "−0.328 to −0.272")
    row = stage_row(runs[1], runs[2:], runs)
    assert row["lost"] == ["sums accuracy 0.900 → 0.600", "reading without accuracy 0.100 → 0.300"]
    assert row["gained"] == ["facts accuracy 0.500 → 0.800", "chat loss 1.000 → 0.800"]


def test_no_table_has_a_column_without_figures():
    """Evaluations that both models have are one table of two columns, that of one model alone is one of one."""
    runs = two_models()
    tables = assessed(runs[2:], runs).main
    assert [([r.name for r in t.runs], [g["name"] for g in t.groups]) for t in tables] == [
        (["a1", "a2"], ["facts", "sums", "reading", "chat"]),
        (["a2"], ["mine"]),
    ]
    for table in tables:
        for column in range(len(table.runs)):
            assert any(row["cells"][column] for group in table.groups for row in group["rows"])


def test_the_time_is_what_passed_and_not_the_sum_of_runs_side_by_side():
    """Two runs of 60 s, the second 30 s after the first: 90 s; one of 10 s an hour later, and one without a start."""
    runs = [view(started=f"2026-01-01T{t}+00:00", seconds=s) for t, s in
            (("00:00:00", 60.0), ("00:00:30", 60.0), ("01:00:00", 10.0))]  # fmt: skip
    assert running_seconds(runs[:2]) == 90.0
    assert running_seconds(runs) == 100.0
    assert running_seconds([*runs, view(seconds=5.0)]) == 105.0


def test_times_are_those_of_the_machine_that_ran():
    here, there = view(process={"host": platform.node()}), view(process={"host": "elsewhere"})
    assert where([here], {"processor": "X"}) == "Times and memory were measured on this machine: X."
    assert "measured on elsewhere; this page was made on another machine: X." in where([there], {"processor": "X"})
    assert "a machine that the records do not name" in where([view()], {"processor": "X"})


def test_a_chip_breaks_between_names_and_not_in_a_word():
    assert breakable("> a/<b>_c") == "&gt; a/<wbr>&lt;b&gt;_<wbr>c"


def test_the_graph_has_models_only_with_what_was_expected_of_them():
    runs = two_models()
    svg = tree(runs)
    assert svg.count("<rect") == 2
    assert "1 of 1 met" in svg
    assert "a1" not in svg


def test_the_loss_of_reinforcement_learning_is_not_among_the_first_charts():
    """It is near 0 at every step whatever is learned; that of DPO falls, and is shown."""
    history = [{"step": i, "loss": 0.01, "reward": i, "kl": i} for i in range(9)]
    known, others = stage_charts(RunView("x", Path("x"), "completed", {"stage": "grpo"}, history))
    assert ([c.caption for c in known], [c.caption for c in others]) == (["reward", "KL to the reference"], ["loss"])
    known, _ = stage_charts(RunView("x", Path("x"), "completed", {"stage": "dpo"}, history))
    assert "loss" in [chart.caption for chart in known]


def test_an_advantage_is_a_gain_or_a_loss_by_its_own_interval():
    for value, kind in ((0.1, "gain"), (-0.1, "loss"), (0.01, "same")):
        runs = [judged("a", "ppo", {"best_of_n/advantage": value})]
        (row,) = assessed(runs).main[0].groups[0]["rows"]
        assert row["cells"][0]["moved"]["kind"] == kind
