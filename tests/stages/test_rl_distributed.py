"""PPO and RSFT with two processes under DDP, ZeRO-2 and FSDP2: the same files come out, and they load."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.stages.conftest import flags, write_rows

ROOT = Path(__file__).resolve().parents[2]
STAGES = {
    "ppo": {
        "reward": "tests.stages.test_ppo:share_of_letters",
        "num_iterations": 2, "per_device_train_batch_size": 8, "max_completion_length": 4,
        "use_peft": True, "lora_target_modules": "all-linear", "max_steps": 4, "save_steps": 2,
    },
    "rsft": {
        "reward": "tests.stages.test_rsft:share_of_letters",
        "num_candidates": 2, "max_completion_length": 4, "max_steps": 4, "save_steps": 2,
        "use_peft": True, "lora_target_modules": "all-linear",
    },
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("config", ["ddp", "zero2", "fsdp2"])
def test_two_processes(tiny_model, tmp_path, stage, config):
    """Every LoRA B matrix is trained and saved whole; PPO's critic is saved too."""
    rows = [{"prompt": f"What is {a} plus 1?"} for a in range(32)]
    given = {
        "model_name_or_path": tiny_model, "dataset_name": write_rows(tmp_path / "rows.jsonl", rows),
        "output_dir": tmp_path / "run", "eval_rows": 0, "gradient_checkpointing": False, "use_cpu": True,
    } | STAGES[stage]  # fmt: skip
    command = [Path(sys.executable).with_name("accelerate"), "launch", "--num_processes", 2]
    command += ["--config_file", f"accelerate_configs/{config}.yaml", f"pipeline/{stage}.py", *flags(**given)]
    done = subprocess.run(
        [str(word) for word in command],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "completed"
    adapter = load_file(tmp_path / "run" / "adapter_model.safetensors")
    assert all(tensor.any() for name, tensor in adapter.items() if "lora_B" in name)
    if stage == "ppo":
        critic = load_file(tmp_path / "run" / "critic" / "critic.safetensors")
        assert sum("lora_B" in name for name in critic) == sum("lora_B" in name for name in adapter)
        assert all(tensor.numel() and tensor.any() for name, tensor in critic.items())
