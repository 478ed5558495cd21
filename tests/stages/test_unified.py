"""The unified recipe end to end in one process, every stage by its own config and cut to a few steps."""

import importlib
import json

import pytest

from pipeline.recipes.recipe import read_recipe
from pipeline.runtime.lineage import assessments_of
from tests.conftest import ROOT
from tests.stages.conftest import read_metrics

FEW = {
    "pretrain": {"max_steps": 3},
    "ppo": {"max_steps": 2, "warmup_steps": 0, "per_device_train_batch_size": 64, "num_generations": 16},
    "grpo": {"max_steps": 2, "per_device_train_batch_size": 64, "num_generations": 16},
    "dpo": {"max_steps": 2, "dataset_train_split": "train[:600]"},
    "rsft": {
        "num_candidates": 8,
        "draws": 16,
        "rounds": 2,
        "dataset_train_split": "train[:16]",
        "num_train_epochs": 1,
        "warmup_steps": 0,
    },
    "sft": {"max_steps": 2},
}


@pytest.mark.slow
def test_every_stage_runs_by_its_config_and_is_judged(tmp_path):
    """All eight methods leave a record whose pi_ref is the start, a regret that is not negative, the identity kept and
    masses of 1 in the assessment, which the run's card and report find beside it; their samples agree with the
    enumeration.
    """
    recipe = (ROOT / "configs" / "unified" / "recipe.yaml").read_text().replace("runs/unified", str(tmp_path / "runs"))
    folder = tmp_path / "configs"
    folder.mkdir()
    for path in (ROOT / "configs" / "unified").glob("*.yaml"):
        text = path.read_text().replace("optimum_samples: 8192", "optimum_samples: 200").replace("n: 1024", "n: 300")
        (folder / path.name).write_text(text)
    (folder / "recipe.yaml").write_text(recipe)
    trained = []
    for entry in read_recipe(folder / "recipe.yaml"):
        changes = FEW.get(entry.stage, {}) | ({"rounds": 1} if entry.name == "rsft_best" else {})
        extra = [word for key, value in changes.items() for word in (f"--{key}", str(value))]
        importlib.import_module(f"pipeline.{entry.stage}").main([*entry.argv, *extra])
        if entry.stage == "assess":
            found = read_metrics(entry.output)
            assert found["objective/exact/regret"] >= 0
            assert found["objective/exact/identity_gap"] < 1e-5
            assert found["objective/exact/mass"] < 1e-9
            for name in ("reward", "kl"):
                gap = abs(found[f"objective/{name}"] - found[f"objective/exact/{name}"])
                assert gap <= 5 * found[f"objective/{name}_se"] + 1e-9, (entry.name, name)
        elif entry.stage not in ("pretrain", "report"):
            trained.append(entry)
    assert len(trained) == 8
    for entry in trained:
        record = json.loads((entry.output / "run.json").read_text())
        assert record["pi_ref"] == str(tmp_path / "runs" / "pi_ref")
        (assessment,) = [found for _, found in assessments_of(entry.output)]
        assert assessment["metrics"]["objective/exact/kl"] > 0, entry.name
    assert "objective" in (tmp_path / "runs" / "report.html").read_text()
