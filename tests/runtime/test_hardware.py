"""What a run takes of its machine where nothing was given: threads, and whether activations are recomputed."""

import json
import os
import subprocess
import sys

import pytest

from pipeline.runtime import hardware
from pipeline.runtime.defaults import dependent_defaults
from tests.conftest import ROOT

SHAPE = {
    "hidden_size": 2, "intermediate_size": 4, "num_hidden_layers": 3, "num_attention_heads": 1,
    "max_position_embeddings": 100,
}  # fmt: skip


@pytest.mark.parametrize(
    ("given", "local", "by_launcher", "expected"),
    [
        (None, 1, False, 8),
        (None, 2, False, 4),
        (None, 16, False, 1),  # more processes than cores
        ("3", 2, False, None),  # the user's choice
        ("1", 2, False, None),
        ("1", 2, True, 4),  # the launcher's, where the user chose none
    ],
)
def test_processes_share_the_cores(given, local, by_launcher, expected, monkeypatch):
    monkeypatch.setattr(hardware, "cores", lambda: 8)
    monkeypatch.setattr(hardware, "_set_by_launcher", lambda: by_launcher)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(local))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    assert hardware.threads() == expected


@pytest.mark.parametrize("given", [{}, {"OMP_NUM_THREADS": "1"}])
def test_a_launcher_s_single_thread_is_told_from_the_user_s(given):
    """A launcher that sets OMP_NUM_THREADS to 1 for its child, as accelerate and torchrun do."""
    child = "from pipeline.runtime.hardware import threads; print(threads())"
    launcher = (
        "import os, subprocess, sys; "
        f"subprocess.run([sys.executable, '-c', {child!r}], env=os.environ | "
        "{'OMP_NUM_THREADS': '1', 'LOCAL_WORLD_SIZE': '1'})"
    )
    env = {name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", "LOCAL_WORLD_SIZE")}
    done = subprocess.run([sys.executable, "-c", launcher], env=env | given, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == ("None" if given else str(hardware.cores())), done.stderr


def test_activations_are_counted_by_hand():
    """4 bytes x 5 rows x 10 tokens x 3 layers x (10 * 2 + 4 * 4 + 2 * 1 * 10 = 56) = 33,600; a sampling stage's rows
    are 512 tokens of prompt and its completion, but never more than the positions: 100 tokens, (20 + 16 + 200)."""
    values = {"per_device_train_batch_size": "5", "max_length": "10"}
    assert hardware.activation_bytes(SHAPE, values, 4) == 33_600
    assert hardware.activation_bytes(SHAPE, values, 2) == 16_800
    sampling = {"per_device_train_batch_size": 5, "max_completion_length": "8"}
    assert hardware.activation_bytes(SHAPE, sampling, 4) == 4 * 5 * 100 * 3 * 236
    assert hardware.activation_bytes({}, values, 4) is None


@pytest.mark.parametrize(
    ("free", "given", "expected"),
    [
        (4 * 33_600, {}, False),  # they fit into a quarter of the memory
        (4 * 33_600 - 1, {}, True),
        (10**12, {"gradient_checkpointing": "true"}, None),  # the user's choice stays
        (10**12, {"activation_checkpointing": "true"}, None),
    ],
)
def test_activations_are_recomputed_where_they_do_not_fit(free, given, expected, tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text(json.dumps(SHAPE))
    monkeypatch.setattr(hardware, "free_memory", lambda use_cpu: free)
    values = {"model_name_or_path": str(tmp_path), "per_device_train_batch_size": "5", "max_length": "10"}
    found = dependent_defaults("sft", values | {"use_cpu": "true"} | given)
    assert found.get("gradient_checkpointing") is expected


def test_a_model_of_unknown_shape_is_trained_with_checkpointing(tmp_path):
    assert dependent_defaults("sft", {"model_name_or_path": str(tmp_path)})["gradient_checkpointing"] is True


@pytest.mark.parametrize(
    ("found", "line"),
    [
        (
            {"device": "cpu", "processes": 1, "threads": 1, "precision": "no mixed precision"},
            "CPU with 1 thread, no mixed precision",
        ),
        (
            {"device": "cpu", "processes": 2, "threads": 4, "precision": "no mixed precision"},
            "2 processes, CPU with 4 threads each, no mixed precision",
        ),
        (
            {"device": "cuda", "name": "H200", "processes": 1, "memory_bytes": 140_000_000_000, "precision": "bf16"},
            "H200 (140.0 GB), mixed precision bf16",
        ),
    ],
)
def test_the_machine_in_words(found, line):
    assert hardware.in_words(found) == line
