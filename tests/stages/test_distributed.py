"""Two processes under DDP, FSDP2, ZeRO-2 and ZeRO-3: the same losses as one process, the same files, and they load.

All of it runs on the CPU (gloo). The slow suite keeps one configuration a stage, and each configuration at least once;
``NARLM_WHOLE_MATRIX=1`` runs every stage under every configuration.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline.runtime.checkpoints import newest_checkpoint
from tests.conftest import ROOT
from tests.stages.conftest import flags, write_rows

CONFIGS = ["ddp", "fsdp2", "zero2", "zero3"]
LAUNCH = [str(Path(sys.executable).with_name("accelerate")), "launch"]
HERE = {"cwd": ROOT, "env": os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, "text": True}
ON_CPU = {"gradient_checkpointing": False}
if torch.accelerator.is_available():
    ON_CPU["use_cpu"] = True  # the default where there is none
LORA = {"use_peft": True, "lora_target_modules": "all-linear"}
# Eight rows a step in all, whatever the number of processes; forty rows, so an epoch ends after five steps.
SUPERVISED = {"max_steps": 20, "save_steps": 10, "learning_rate": "2e-3", "eval_rows": 0, "lora_dropout": 0.0} | LORA
LETTERS = "tests.stages.test_ppo:share_of_letters"
SAMPLED = {"max_steps": 4, "save_steps": 2, "max_completion_length": 4, "eval_rows": 0, "reward": LETTERS} | LORA
STAGES = {
    "sft": SUPERVISED,
    "dpo": SUPERVISED,
    "reward_model": SUPERVISED,
    "grpo": SAMPLED | {"num_generations": 4, "beta": 0.1, "guard_patience": 0, "per_device_train_batch_size": 8},
    "ppo": SAMPLED | {"num_iterations": 2, "guard_patience": 0, "per_device_train_batch_size": 8},
    "rsft": SAMPLED | {"num_candidates": 2, "rounds": 2},
    # All that is remembered is drawn at every step, so each process adds the same penalty as one process alone.
    "continual": SUPERVISED | {"eval_rows": 8, "omega": "replay", "omega_weight": 0.1, "memory_batch_size": 256},
}
WHOLE = [(stage, config) for stage in STAGES for config in CONFIGS]
KEPT = [("sft", "ddp"), ("dpo", "zero3"), ("reward_model", "fsdp2")]
KEPT += [("grpo", "zero2"), ("ppo", "fsdp2"), ("rsft", "zero3"), ("continual", "zero3")]
WHOLE += [("sft", "zero3_offload")]  # DeepSpeed compiles its CPU optimizer first
CELLS, RESUMED = (WHOLE, ["ddp", "fsdp2"]) if os.environ.get("NARLM_WHOLE_MATRIX") else (KEPT, ["ddp"])


@pytest.fixture(scope="module")
def data(sft_file, preference_file, tmp_path_factory) -> dict[str, dict]:
    """The flags that say what each stage learns from."""
    folder = tmp_path_factory.mktemp("prompts")
    prompts = write_rows(folder / "prompts.jsonl", [{"prompt": f"What is {a} plus 1?"} for a in range(32)])
    pairs_of = [(a, b) for a in range(8) for b in range(5)]
    other = [{"prompt": f"What is {a} minus {b}?", "completion": f"It is {a - b}."} for a, b in pairs_of]
    pairs = {"dataset_name": preference_file}
    return {
        "sft": {"dataset_name": sft_file},
        "dpo": pairs,
        "reward_model": pairs,
        "continual": {"corpora": [sft_file, write_rows(folder / "minus.jsonl", other)]},
        **{stage: {"dataset_name": prompts} for stage in ("grpo", "ppo", "rsft")},
    }


def launch(stage: str, config: str | None, **given) -> subprocess.CompletedProcess:
    """A stage through ``accelerate launch``: two processes under a configuration, one process without any."""
    command = [*LAUNCH, *(["--num_processes", "2"] if config else [])]
    command += ["--config_file", f"accelerate_configs/{config or 'cpu'}.yaml", f"pipeline/{stage}.py"]
    return subprocess.run([*command, *flags(**ON_CPU | given)], capture_output=True, **HERE)


def losses(folder: Path) -> list[float]:
    """The loss of every step, as logged."""
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


def same_losses(folder: Path, other: Path) -> bool:
    """Whether two runs of 20 steps logged the same losses, to 1e-4."""
    ours, theirs = losses(folder), losses(other)
    return len(ours) == 20 and max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) < 1e-4


@pytest.fixture(scope="module")
def alone(tiny_model, data, tmp_path_factory):
    """Folder of the same stage run by one process with eight rows a step; made once a stage."""
    made: dict[str, Path] = {}

    def folder_of(stage: str) -> Path:
        if stage not in made:
            made[stage] = tmp_path_factory.mktemp("alone") / stage
            given = STAGES[stage] | {"per_device_train_batch_size": 8}
            done = launch(stage, None, model_name_or_path=tiny_model, output_dir=made[stage], **data[stage], **given)
            assert done.returncode == 0, done.stderr[-3000:]
        return made[stage]

    return folder_of


def judged(folder: Path) -> list[float]:
    """The losses in R, row by row."""
    rows = json.loads((folder / "forgetting.json").read_text())["rows"]
    return [cell["loss"] for row in rows for cell in row["scores"]]


def logits(folder: Path, stage: str) -> torch.Tensor:
    """What the saved model says to one fixed text."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    from pipeline.model.loading import load_model

    auto = AutoModelForSequenceClassification if stage == "reward_model" else AutoModelForCausalLM
    extra = {"num_labels": 1} if stage == "reward_model" else {}
    with torch.no_grad():
        return load_model(str(folder), auto_class=auto, **extra)(torch.tensor([[1, 5, 7, 9]])).logits


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "config"), CELLS)
def test_two_processes(tiny_model, data, alone, tmp_path, stage, config):
    """Where nothing is sampled, the 20 losses are one process's at the same eight rows a step, and the saved adapter
    answers as its does. Every LoRA B matrix is trained and saved whole; PPO's critic is saved too."""
    folder = tmp_path / "run"
    done = launch(stage, config, model_name_or_path=tiny_model, output_dir=folder, **data[stage], **STAGES[stage])
    assert done.returncode == 0, done.stderr[-3000:]
    record = json.loads((folder / "run.json").read_text())
    assert record["status"] == "completed"
    adapter = load_file(folder / "adapter_model.safetensors")
    assert all(tensor.any() for name, tensor in adapter.items() if "lora_B" in name)
    after = logits(folder, stage)
    assert (after - logits(tiny_model, stage)).abs().max() > 1e-3 or stage == "reward_model"
    if STAGES[stage]["max_steps"] == 20:
        assert same_losses(folder, alone(stage))
        assert losses(folder)[-1] < losses(folder)[0] - 0.05
        assert (after - logits(alone(stage), stage)).abs().max() < 1e-3
    if stage == "continual":  # both corpora are judged, each time by what was saved: R is one process's
        assert max(abs(a - b) for a, b in zip(judged(folder), judged(alone(stage)), strict=True)) < 1e-3
        assert same_losses(folder / "corpus-1", alone(stage) / "corpus-1")
    if stage == "ppo":
        critic = load_file(folder / "critic" / "critic.safetensors")
        assert sum("lora_B" in name for name in critic) == sum("lora_B" in name for name in adapter)
        assert all(tensor.numel() and tensor.any() for name, tensor in critic.items())


@pytest.mark.slow
def test_two_machines(tiny_model, data, alone, tmp_path):
    """Two launchers of one process each, which find each other at an address, as two machines would."""
    folder = tmp_path / "run"
    words = flags(model_name_or_path=tiny_model, output_dir=folder, **data["sft"], **ON_CPU, **SUPERVISED)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [*LAUNCH, "--num_machines", "2", "--num_processes", "2", "--main_process_ip", "127.0.0.1"]
    command += ["--main_process_port", str(port), "--config_file", "accelerate_configs/multi_node.yaml"]
    commands = [[*command, "--machine_rank", str(rank), "pipeline/sft.py", *words] for rank in range(2)]
    machines = [subprocess.Popen(c, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **HERE) for c in commands]
    outputs = [machine.communicate(timeout=300)[0] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], outputs[0][-3000:]
    assert same_losses(folder, alone("sft"))


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_at_one_step(tiny_model, data, tmp_path):
    """Only the second of two processes is told to stop: both finish the step, write the checkpoint and end."""
    import psutil

    folder = tmp_path / "run"
    given = SUPERVISED | {"max_steps": 100_000, "save_steps": 5} | ON_CPU
    words = flags(model_name_or_path=tiny_model, output_dir=folder, **data["sft"], **given)
    command = [*LAUNCH, "--num_processes", "2", "--config_file", "accelerate_configs/ddp.yaml", "pipeline/sft.py"]
    launcher = subprocess.Popen([*command, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **HERE)
    try:
        deadline = time.monotonic() + 200
        while newest_checkpoint(folder) is None and time.monotonic() < deadline:
            time.sleep(0.2)
        (second,) = [
            child
            for child in psutil.Process(launcher.pid).children(recursive=True)
            if child.environ().get("RANK") == "1"
        ]
        second.send_signal(signal.SIGTERM)
        assert launcher.wait(timeout=100) != 0
    finally:
        launcher.kill()
    record = json.loads((folder / "run.json").read_text())
    assert record["status"] == "interrupted"
    state = json.loads((newest_checkpoint(folder) / "trainer_state.json").read_text())
    assert 5 <= state["global_step"] < 100_000


def interrupted(folder: Path, at: int) -> None:
    """Make a finished run's folder what it was when it stopped at a step."""
    for path in folder.glob("checkpoint-*"):
        if int(path.name.split("-")[1]) > at:
            shutil.rmtree(path)
    for path in [*folder.glob("*.safetensors"), folder / "trainer_state.json"]:
        path.unlink()
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(record | {"status": "interrupted"}))


@pytest.mark.slow
@pytest.mark.parametrize("config", RESUMED)
def test_a_run_of_two_processes_goes_on_with_one(tiny_model, data, alone, tmp_path, config):
    """Steps 11 to 20 by one process with eight rows each, after steps 1 to 10 by two with four: the same losses."""
    folder = tmp_path / "run"
    given = {"model_name_or_path": tiny_model, "output_dir": folder} | data["sft"] | SUPERVISED
    done = launch("sft", config, **given)
    assert done.returncode == 0, done.stderr[-3000:]
    interrupted(folder, at=10)
    done = launch("sft", None, **given | {"per_device_train_batch_size": 8})
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"resuming from {folder}/checkpoint-10" in done.stdout
    assert same_losses(folder, alone("sft"))


@pytest.mark.slow
def test_deepspeed_says_that_it_cannot(tiny_model, data, tmp_path):
    """Its checkpoints hold one shard of the optimizer a process."""
    folder = tmp_path / "run"
    given = {"model_name_or_path": tiny_model, "output_dir": folder} | data["sft"] | SUPERVISED
    done = launch("sft", "zero2", **given)
    assert done.returncode == 0, done.stderr[-3000:]
    interrupted(folder, at=10)
    done = launch("sft", None, **given | {"per_device_train_batch_size": 8})
    assert "error: checkpoint-10 was written by 2 DeepSpeed processes" in done.stderr
    assert json.loads((folder / "run.json").read_text())["status"] == "failed"
    assert (folder / "checkpoint-10" / "trainer_state.json").is_file()


@pytest.mark.slow
def test_what_needs_complete_weights_is_refused_where_they_are_split(tiny_model, data, tmp_path):
    """One line, before anything is loaded; nothing is left behind."""
    given = (
        {"model_name_or_path": tiny_model, "output_dir": tmp_path / "run"} | data["continual"] | STAGES["continual"]
    )
    done = launch("continual", "fsdp2", **given | {"omega": "l2"})
    assert done.returncode != 0
    ours = [
        line for line in done.stderr.splitlines() if line.startswith("error:")
    ]  # the launcher's summary repeats it
    assert len(ours) == 1
    assert ours[0].startswith("error: omega l2 needs complete weights, which FSDP and ZeRO-3 split")
    assert not (tmp_path / "run").exists()
