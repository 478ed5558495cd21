"""What users install: the wheel holds the package, its configs and its card templates, and nothing of the tests."""

import os
import subprocess
import sys
import zipfile

import pytest
import yaml

from tests.conftest import ROOT

CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
ACCELERATE = sorted((ROOT / "accelerate_configs").glob("*.yaml"))


def test_the_wheel_holds_configs_and_cards_and_a_command_that_runs_in_an_empty_folder(tmp_path):
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    (wheel,) = tmp_path.glob("narlm-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {f"pipeline/configs/{path.relative_to(ROOT / 'configs')}" for path in CONFIGS}
    expected |= {f"pipeline/model_cards/{path.name}" for path in (ROOT / "model_cards").glob("*.md")}
    expected |= {
        str(path.relative_to(ROOT)) for path in (ROOT / "pipeline").rglob("*") if path.suffix in (".py", ".j2")
    }
    assert expected - names == set()
    assert not any(name.startswith(("tests/", "benchmarks/")) for name in names)
    (tmp_path / "site").mkdir()
    (tmp_path / "empty").mkdir()
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    narlm = (
        "from importlib.metadata import distribution\n"
        "[script] = distribution('narlm').entry_points.select(group='console_scripts', name='narlm')\n"
        "script.load()()"
    )
    for words, line in (
        (
            ["run", "quickstart", "--dry_run"],
            f"{tmp_path}/site/pipeline/dpo.py --config {tmp_path}/site/pipeline/configs/",
        ),
        (["dpo", "--config", "quickstart/dpo"], "error: dpo needs --model_name_or_path"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", narlm, *words], cwd=tmp_path / "empty", capture_output=True, text=True,
            env=os.environ | {"PYTHONPATH": str(tmp_path / "site")},
        )  # fmt: skip
        assert line in done.stdout + done.stderr
        assert done.returncode == (2 if "error" in line else 0)
    assert list((tmp_path / "empty").iterdir()) == []


def test_every_stage_that_saves_a_model_has_a_card_template():
    cards = {path.stem for path in (ROOT / "model_cards").glob("[!_]*.md")}
    stages = {path.stem for path in (ROOT / "pipeline").glob("*.py")}
    assert cards <= stages
    assert {"pretrain", "sft", "dpo", "grpo"} <= cards


def test_every_accelerate_config_says_when_to_use_it():
    names = ["cpu", "ddp", "fsdp2", "multi_node", "single_gpu", "zero2", "zero3", "zero3_offload"]
    assert [path.stem for path in ACCELERATE] == names
    for path in ACCELERATE:
        text = path.read_text()
        assert text.startswith("# "), path
        content = yaml.safe_load(text)
        # The number of GPUs belongs to the machine, not to a file that is shared.
        assert content.get("num_processes") == (1 if path.stem in ("cpu", "single_gpu") else None)


@pytest.mark.parametrize("path", ACCELERATE, ids=lambda path: path.stem)
def test_accelerate_reads_each_of_its_configs(path):
    """Its own loader refuses keys that it does not know."""
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(path))
    kinds = {"ddp": "MULTI_GPU", "fsdp2": "FSDP", "multi_node": "FSDP", "cpu": "NO", "single_gpu": "NO"}
    assert str(config.distributed_type).split(".")[-1] == kinds.get(path.stem, "DEEPSPEED")
    assert str(config.mixed_precision) == "no"  # the precision is the stage's own
    stages = {"zero2": 2, "zero3": 3, "zero3_offload": 3}
    assert (config.deepspeed_config or {}).get("zero_stage") == stages.get(path.stem)


def test_the_slurm_template_is_a_script_that_launches_the_multi_node_config():
    script = ROOT / "accelerate_configs" / "multi_node.slurm"
    assert subprocess.run(["bash", "-n", script], capture_output=True).returncode == 0
    text = script.read_text()
    assert "--config_file accelerate_configs/multi_node.yaml" in text
    for flag in ("--num_machines", "--num_processes", "--machine_rank", "--main_process_ip"):
        assert flag in text
