"""The stages as commands: help, exit codes, and two processes under accelerate."""

import dataclasses
import json
import os
import re
import subprocess
import sys
import time
import typing

import pytest

from pipeline.runtime.defaults import rate_in_words
from pipeline.runtime.entry import COMMON_FLAGS
from tests.conftest import ROOT
from tests.stages.conftest import flags, read_metrics

TRAINING = ("pretrain", "sft", "reward_model", "dpo", "ppo", "rsft", "grpo", "continual")
STAGES = sorted(path.stem for path in (ROOT / "pipeline").glob("*.py") if path.stem != "__init__")


def run(*words: object, **environment: str) -> subprocess.CompletedProcess:
    """Run a command from the repository's root."""
    env = os.environ | {"PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"} | environment
    return subprocess.run(
        [str(word) for word in words], cwd=ROOT, env=env, capture_output=True, text=True, timeout=500
    )


@pytest.mark.parametrize("stage", STAGES)
def test_help_is_short_quick_and_imports_nothing_heavy(stage):
    """Under 2 s on an idle machine; the CPU time it takes does not depend on who else is running."""
    code = (
        "import sys, runpy, resource; sys.argv = ['x', '--help']\n"
        "try: runpy.run_path(sys.argv.pop(), run_name='__main__')\n"
        "except SystemExit as e: assert not e.code\n"
        "usage = resource.getrusage(resource.RUSAGE_SELF)\n"
        "print('HEAVY', [m for m in ('torch', 'transformers', 'trl', 'datasets') if m in sys.modules])\n"
        "print('CPU', usage.ru_utime + usage.ru_stime)\n"
    )
    code = code.replace("sys.argv.pop()", repr(str(ROOT / "pipeline" / f"{stage}.py")))
    result = run(sys.executable, "-c", code)
    assert result.returncode == 0, result.stderr
    text, _, tail = result.stdout.partition("HEAVY ")
    assert tail.startswith("[]")
    assert float(tail.split("CPU ")[1]) < 1.5
    assert f"pipeline/{stage}.py" in text or f"pipeline.{stage}" in text  # a launch line
    assert len(text.splitlines()) < (105 if stage == "generate" else 90)  # which has fifty fields of its own
    if stage in TRAINING:
        assert [flag for flag in COMMON_FLAGS if f"--{flag} " not in text] == []


def arguments_of(stage: str) -> tuple[object, tuple[type, ...]]:
    """A training stage's module, and its argument classes, the stage's own first and the trainer's last."""
    import importlib

    import transformers
    import trl

    from pipeline.data.arguments import ChatDataArguments
    from pipeline.model.policy import ChatModelArguments
    from pipeline.runtime.arguments import StageArguments
    from pipeline.training.ppo_config import PPOConfig

    module = importlib.import_module(f"pipeline.{stage}")
    classes = [v for k, v in vars(module).items() if k.endswith("Arguments")]
    own = next((v for v in classes if v.__module__ == module.__name__), next(iter(classes), StageArguments))
    configs = {
        "pretrain": transformers.TrainingArguments, "sft": trl.SFTConfig, "rsft": trl.SFTConfig,
        "continual": trl.SFTConfig, "dpo": trl.DPOConfig, "grpo": trl.GRPOConfig, "ppo": PPOConfig,
        "reward_model": trl.RewardConfig,
    }  # fmt: skip
    return module, (own, ChatDataArguments, ChatModelArguments, configs[stage])


@pytest.mark.parametrize("stage", TRAINING)
def test_every_flag_of_the_short_help_exists(stage):
    """What --help promises is a field of the stage's parser, and each is listed once."""
    from pipeline.runtime.entry import short_help

    module, classes = arguments_of(stage)
    known = {f.name for cls in classes for f in dataclasses.fields(cls)} | {"config", "help_all"}
    text = short_help(module.__doc__, classes[0], getattr(module, "FLAGS", {}), stage)
    listed = re.findall(r"^  --(\w+)", text, flags=re.MULTILINE)
    promised = set(listed)
    assert len(promised) >= 25
    assert len(listed) == len(promised)
    assert promised - known == set()


@pytest.mark.parametrize("stage", TRAINING)
def test_a_default_written_in_the_short_help_is_the_field_s(stage):
    """``--help`` may not import TRL, so its defaults are typed by hand: each is compared with the field. Where the
    default is None, the brackets say in words what that means."""
    from pipeline.runtime.arguments import default_of
    from pipeline.runtime.coercion import coerce
    from pipeline.runtime.defaults import LEARNING_RATE, LORA_LEARNING_RATE, MACHINE

    module, classes = arguments_of(stage)
    fields = {}
    for cls in classes:
        hints = typing.get_type_hints(cls)
        fields |= {f.name: (default_of(f), hints[f.name]) for f in dataclasses.fields(cls)}
    set_by_the_stage = {("sft", "assistant_only_loss")}
    assert LEARNING_RATE[stage] == fields["learning_rate"][0]
    common = {name: text for name, text in COMMON_FLAGS.items() if text.endswith("]") and name not in MACHINE}
    assert len(common) >= 14
    for name, text in (common | getattr(module, "FLAGS", {})).items():
        default, hint = fields[name]
        written = re.search(r"\[([^]]+)\]$", text)[1]
        lora = re.fullmatch(r"(\S+) with LoRA, else (\S+)", written)
        if lora:
            assert float(lora[1]) == LORA_LEARNING_RATE[stage]
            written = lora[2]
        word = re.split(r"[: ]", written)[0]
        if default is None:
            assert re.match(r"[a-z]", word), f"{name}: {written}"
        elif (stage, name) not in set_by_the_stage:
            assert coerce(word, hint, name) in (default, [default]), f"{name}: {written}, and the field is {default}"


@pytest.mark.parametrize("stage", [*TRAINING, "assess", "generate", "merge", "run"])
def test_help_all_lists_every_field(stage, capsys):
    """Texts of the libraries hold percent signs (``train[:10%]``), which argparse takes for formats."""
    import importlib

    with pytest.raises(SystemExit) as caught:
        importlib.import_module(f"pipeline.{stage}").main(["--help_all"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    if stage in TRAINING:
        assert [flag for flag in COMMON_FLAGS if f"--{flag} " not in text and flag != "config"] == []
        assert "train[:10%]" in text
        assert f"learning_rate {rate_in_words(stage)};" in text
        assert "%%" not in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config", "nowhere.yaml"], "error: --config: there is no file nowhere.yaml"),
        ([], "error: dpo needs --model_name_or_path"),
    ],
)
@pytest.mark.parametrize("launch", [["pipeline/dpo.py"], ["-m", "pipeline.dpo"]])
def test_early_mistakes_exit_2_with_one_line_and_without_torch(launch, words, message):
    start = time.process_time()
    result = run(sys.executable, *launch, *words)
    assert time.process_time() - start < 2
    assert result.returncode == 2
    assert result.stderr.startswith(message)
    assert len(result.stderr.splitlines()) == 1


def test_a_misspelt_yaml_key_exits_2_with_one_error_line(tiny_model, preference_file, tmp_path):
    config = tmp_path / "dpo.yaml"
    config.write_text("betta: 0.1\n")
    result = run(
        sys.executable, "pipeline/dpo.py", "--config", config,
        *flags(model_name_or_path=tiny_model, dataset_name=preference_file, output_dir=tmp_path / "run"),
    )  # fmt: skip
    errors = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert result.returncode == 2, result.stderr
    assert errors == [f"error: {config}: betta: unknown key; did you mean beta?"]
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("config", ["cpu", "ddp"])
def test_an_error_stands_out_under_accelerate_launch(tmp_path, config):
    """accelerate turns every failure into 1 with a traceback of its own; the stage's line is there, once, in a frame.
    With several processes the launcher's summary, which is printed last, gives it as the cause."""
    result = run(
        "accelerate", "launch", "--config_file", f"accelerate_configs/{config}.yaml",
        *(["--num_processes", 2] if config == "ddp" else []), "pipeline/sft.py",
        "--output_dir", tmp_path / "run", "--config", "nowhere.yaml",
    )  # fmt: skip
    assert result.returncode == 1
    text = result.stderr.splitlines()
    lines = [number for number, line in enumerate(text) if line.startswith("error:")]
    assert [text[number] for number in lines] == ["error: --config: there is no file nowhere.yaml"]
    assert text[lines[0] - 1] == text[lines[0] + 2] == "=" * 100
    assert text[lines[0] + 1].startswith("(What follows is accelerate's")
    if config == "ddp":
        assert "traceback : error: --config: there is no file nowhere.yaml" in text[-2]


def test_a_normal_run_prints_its_own_lines_and_nothing_else(tiny_model, preference_file, tmp_path):
    """No load report of the new score head, no bar of weights, no library's notes; and no flag of precision is needed
    where there is no GPU."""
    given = flags(
        model_name_or_path=tiny_model, dataset_name=preference_file, output_dir=tmp_path / "run", eval_rows=0,
        max_steps=2, use_peft=True,
    )  # fmt: skip
    words = [word for key, value in zip(given[::2], given[1::2]) if key != "--bf16" for word in (key, value)]
    result = run(sys.executable, "-m", "pipeline.reward_model", *words)
    assert result.returncode == 0, result.stderr
    printed = (result.stdout + result.stderr).splitlines()
    assert [line for line in printed if not line.startswith(("reward_model: ", "step "))] == []
    assert printed


def test_a_small_command_prints_its_own_lines_and_nothing_else(tiny_model, sft_file):
    """Reading a tokenizer, transformers has notes on the model's type."""
    result = run(sys.executable, "-m", "pipeline.data.check", sft_file, "--tokenizer", tiny_model)
    assert result.returncode == 0
    assert result.stderr == ""
    assert {line.split()[0] for line in result.stdout.splitlines()} == {
        "dataset", "columns", "kind", "form", "read", "chat", "rows", "duplicates", "note", "tokens", "max_length",
        "supervised", "sample",
    }  # fmt: skip


def test_the_head_of_a_tied_model_is_adapted_and_merged_without_a_warning(tiny_model):
    """PEFT warns of what `merged` takes care of: the head is untied before the adapter's goes into it."""
    import warnings

    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from pipeline.model.loading import merged
    from pipeline.runtime.terminal import quiet

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        quiet()
        config = LoraConfig(target_modules="all-linear", modules_to_save=["lm_head"], task_type="CAUSAL_LM")
        merged(get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), config))
    assert [str(warning.message) for warning in caught] == []


@pytest.mark.slow
@pytest.mark.parametrize("config", ["zero2"])
def test_two_processes_give_the_single_process_loss(tiny_model, preference_file, tmp_path, config):
    """The same global batch of 8, in one process and as 2 x 4: the first losses agree to 1e-4, rank by rank averaged,
    and the adapter that rank 0 saved is trained and whole."""
    common = {
        "model_name_or_path": tiny_model, "dataset_name": preference_file, "eval_rows": 8, "max_steps": 4,
        "use_peft": True, "lora_target_modules": "all-linear", "lora_dropout": 0, "learning_rate": "1e-3",
        "gradient_checkpointing": False, "save_steps": 4, "eval_strategy": "steps", "eval_steps": 4,
    }  # fmt: skip
    import torch

    from pipeline.dpo import main

    if torch.accelerator.is_available():
        common["use_cpu"] = True  # the default where there is none
    main(flags(**common, output_dir=tmp_path / "one", per_device_train_batch_size=8))
    result = run(
        "accelerate", "launch", "--config_file", f"accelerate_configs/{config}.yaml", "--num_processes", 2,
        "pipeline/dpo.py", *flags(**common, output_dir=tmp_path / "two", per_device_train_batch_size=4),
        OMP_NUM_THREADS="1",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    losses = [
        [entry["loss"] for entry in json.loads((tmp_path / run_ / "trainer_state.json").read_text())["log_history"]
         if "loss" in entry]
        for run_ in ("one", "two")
    ]  # fmt: skip
    assert len(losses[0]) == len(losses[1]) == 4
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)
    assert read_metrics(tmp_path / "two")["eval_loss"] == pytest.approx(
        read_metrics(tmp_path / "one")["eval_loss"], abs=1e-4
    )
    from safetensors.torch import load_file

    one, two = (load_file(tmp_path / run_ / "adapter_model.safetensors") for run_ in ("one", "two"))
    assert one.keys() == two.keys()
    assert max((one[name] - two[name]).abs().max().item() for name in one) < 1e-3
