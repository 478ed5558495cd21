"""PPO and RSFT killed by SIGKILL in the middle: what is lost, and that the rest goes on as if nothing had happened."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from pipeline.runtime.checkpoints import is_whole
from tests.stages.conftest import flags, write_rows

ROOT = Path(__file__).resolve().parents[2]
LETTERS = "tests.stages.test_ppo:share_of_letters"


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    """Ninety-six prompts."""
    rows = [{"prompt": f"What is {a} plus {b}?"} for a in range(12) for b in range(8)]
    return write_rows(tmp_path_factory.mktemp("prompts") / "prompts.jsonl", rows)


def run(stage, words, until=None):
    """The stage as a process of its own, its output; killed as soon as the file ``until`` is there."""
    command = [sys.executable, str(ROOT / "pipeline" / f"{stage}.py"), *words]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},  # the reward stands in the tests
    )  # fmt: skip
    while until is not None and process.poll() is None and not written(until):
        time.sleep(0.01)
    if until is not None:
        assert process.poll() is None, "it ended before it could be killed"
        process.send_signal(signal.SIGKILL)
    output = process.communicate()[0]
    assert process.returncode == (-signal.SIGKILL if until is not None else 0), output
    return output


def written(file):
    """Whether a file is there, and complete where it ends a checkpoint."""
    return file.is_file() and (file.name != "trainer_state.json" or is_whole(file.parent))


def same_weights(one, other):
    mine, theirs = (load_file(folder / "adapter_model.safetensors") for folder in (one, other))
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def logged(folder):
    """The log of training by step, without what is about time."""
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    rows = [row for row in history if "loss" in row]
    return {row["step"]: {name: value for name, value in row.items() if "time" not in name} for row in rows}


@pytest.mark.slow
def test_ppo_loses_the_current_rollout_and_nothing_else(tiny_model, prompts, tmp_path):
    """A rollout is two minibatches for two epochs, four steps, then a checkpoint. Killed after the second, it goes on
    from the newest checkpoint there is, and every figure logged afterwards and every weight is that of one go.
    """
    words = flags(
        model_name_or_path=tiny_model, dataset_name=prompts, eval_rows=0, reward=LETTERS, use_peft=True,
        lora_target_modules="all-linear", max_completion_length=4, per_device_train_batch_size=16,
        steps_per_generation=2, num_iterations=2, beta=0.02, guard_patience=0, max_steps=60, save_steps=4,
        save_total_limit=20, use_cpu=True,
    )  # fmt: skip
    run("ppo", [*words, "--output_dir", str(tmp_path / "whole")])
    killed = tmp_path / "killed"
    run("ppo", [*words, "--output_dir", str(killed)], killed / "checkpoint-8" / "trainer_state.json")
    steps = [int(p.parent.name.rpartition("-")[2]) for p in killed.glob("checkpoint-*/trainer_state.json")]
    output = run("ppo", [*words, "--output_dir", str(killed)])
    assert f"resuming from {killed}/checkpoint-{max(steps)}\n" in output
    assert 8 <= max(steps) < 60
    whole, again = logged(tmp_path / "whole"), logged(killed)
    assert len(whole) == 60
    assert again == whole
    assert same_weights(tmp_path / "whole", killed)


@pytest.mark.slow
def test_rsft_samples_no_candidate_twice(tiny_model, prompts, tmp_path):
    """Two files of 64 and 32 prompts. Killed once the first is written, the next life keeps it as it is and ends with
    the candidates and the weights of one go.
    """
    words = flags(
        model_name_or_path=tiny_model, dataset_name=prompts, eval_rows=0, reward=LETTERS, use_peft=True,
        lora_target_modules="all-linear", num_candidates=16, max_completion_length=24, sample_batch_size=32,
        max_steps=6, save_steps=2, use_cpu=True,
    )  # fmt: skip
    run("rsft", [*words, "--output_dir", str(tmp_path / "whole")])
    killed = tmp_path / "killed"
    first, second = (killed / "candidates" / "round-1" / f"candidates-0000{i}.parquet" for i in (0, 1))
    run("rsft", [*words, "--output_dir", str(killed)], first)
    assert not second.is_file()
    written = first.stat().st_mtime_ns
    run("rsft", [*words, "--output_dir", str(killed)])
    assert first.stat().st_mtime_ns == written
    for file in (first, second):
        assert pq.read_table(file).equals(pq.read_table(tmp_path / "whole" / file.relative_to(killed)))
    assert same_weights(tmp_path / "whole", killed)
