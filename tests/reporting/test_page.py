"""What the page shows of a run, before the template arranges it."""

from pathlib import Path

from pipeline.reporting.history import RunView
from pipeline.reporting.page import next_steps
from pipeline.reporting.stage_charts import sequences


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
