"""A learning rate of 1e30 in every training stage: exit code 1, status failed, and nothing on disk that is not finite.

The first step leaves weights of about 1e30, whose loss is not finite: step 2 (or its sampling) cannot be made.
"""

import importlib
import json
import subprocess
import sys

import pytest
from safetensors.torch import load_file

from pipeline.runtime.errors import DivergedError
from tests.conftest import ROOT
from tests.stages.conftest import flags, write_rows

REWARD = "tests.stages.test_ppo:share_of_letters"
ROLLOUTS = {"max_completion_length": 4, "num_generations": 4, "reward": REWARD, "guard_patience": 0}
STAGES = {
    "pretrain": ("sft", {"max_length": 32}),
    "sft": ("sft", {}),
    "continual": ("sft", {"method": "full", "eval_rows": 4}),
    "dpo": ("pairs", {}),
    "reward_model": ("pairs", {}),
    "grpo": ("prompts", ROLLOUTS),
    "ppo": ("prompts", ROLLOUTS | {"critic": "separate"}),
    "rsft": ("prompts", {"max_completion_length": 4, "num_candidates": 4, "reward": REWARD}),
}


@pytest.fixture(scope="module")
def data(sft_file, preference_file, tmp_path_factory):
    """A file of each form."""
    prompts = write_rows(
        tmp_path_factory.mktemp("prompts") / "prompts.jsonl", [{"prompt": f"What is {a} plus 1?"} for a in range(16)]
    )
    return {"sft": sft_file, "pairs": preference_file, "prompts": prompts}


def words(stage, model, data, folder):
    """The stage for four steps, a checkpoint after the first."""
    form, options = STAGES[stage]
    given = {"eval_rows": 0, "max_steps": 4, "save_steps": 1, "use_cpu": True, "gradient_checkpointing": False}
    given |= {"model_name_or_path": model, "dataset_name": data[form], "output_dir": folder, "learning_rate": "1e30"}
    return flags(**given | options)


@pytest.mark.parametrize(("stage", "model"), [*((stage, "tiny_model") for stage in STAGES), ("sft", "foreign_model")])
def test_a_stage_that_diverges_fails_and_keeps_what_was_finite(stage, model, data, tmp_path, request):
    main = importlib.import_module(f"pipeline.{stage}").main
    with pytest.raises(DivergedError, match=rf"{stage} diverged: .*step 2 .*lower learning_rate"):
        main(words(stage, request.getfixturevalue(model), data, tmp_path / "run"))
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["status"] == "failed"
    assert "step 2" in record["error"]
    saved = sorted((tmp_path / "run").glob("**/*.safetensors"))
    assert {path.parent.name for path in saved} - {"critic"} == {"checkpoint-1"}
    for path in saved:
        assert all(bool(tensor.isfinite().all()) for tensor in load_file(path).values()), path


def test_the_command_ends_with_1_and_one_error_line(tiny_model, data, tmp_path):
    command = [sys.executable, "-m", "pipeline.sft", *words("sft", tiny_model, data, tmp_path / "run")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("error: sft diverged: step 2 was not made: its loss is nan")
    assert "Traceback" not in result.stderr
