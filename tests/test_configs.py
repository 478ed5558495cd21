"""Every shipped YAML is parsed by its stage's own parser: a renamed field cannot go unnoticed."""

import importlib
import re
from collections import Counter

import pytest
import yaml

from pipeline.recipes.recipe import read_recipe
from pipeline.recipes.shapes import SHAPES
from pipeline.runtime.arguments import parse
from pipeline.runtime.registry import import_function
from tests.conftest import ROOT

RECIPES = sorted((ROOT / "configs").rglob("recipe.yaml"))
CONFIGS = sorted(path for path in (ROOT / "configs").rglob("*.yaml") if path.name != "recipe.yaml")


def stage_of(path) -> str:
    """The stage a config is for: its recipe says; a folder of presets is named like its stage."""
    recipe = path.parent / "recipe.yaml"
    for item in yaml.safe_load(recipe.read_text()) if recipe.is_file() else []:
        if item.get("config") == path.name:
            return item["stage"]
    assert not recipe.is_file(), f"{path}: no entry of its recipe uses it"
    return path.parent.name


def parsers(stage: str) -> tuple[type, ...]:
    """The argument classes of a stage, as its ``main`` passes them to ``run.parse``."""
    from transformers import TrainingArguments
    from trl import DPOConfig, GRPOConfig, RewardConfig, SFTConfig

    from pipeline.data.arguments import ChatDataArguments, DataArguments
    from pipeline.inference.retrieval.arguments import RetrievalArguments
    from pipeline.model.policy import ModelArguments
    from pipeline.model.sight import SightArguments
    from pipeline.runtime.arguments import StageArguments

    module = importlib.import_module(f"pipeline.{stage}")
    found = [v for k, v in vars(module).items() if k.endswith("Arguments")]
    # A stage without fields of its own has those that it imports.
    own = next((v for v in found if v.__module__ == module.__name__), next(iter(found), StageArguments))
    configs = {
        "pretrain": TrainingArguments, "sft": SFTConfig, "dpo": DPOConfig, "grpo": GRPOConfig,
        "reward_model": RewardConfig, "rsft": SFTConfig, "continual": SFTConfig,
    }  # fmt: skip
    if stage == "ppo":
        from pipeline.training.ppo_config import PPOConfig

        configs["ppo"] = PPOConfig
    data = DataArguments if stage == "pretrain" else ChatDataArguments
    retrieval = (RetrievalArguments,) if stage in ("sft", "grpo", "ppo", "rsft") else ()
    retrieval += (SightArguments,) if stage == "pretrain" else ()
    return (own, data, *retrieval, ModelArguments, configs[stage]) if stage in configs else (own,)


COUNTS = {
    "quickstart": 10,
    "unified": 8,
    "retrieval": 3,
    "hallucination": 3,
    "dynamics": 3,
    "jacobian": 1,
    "stopping": 1,
    "prompting": 3,
    "told": 2,
    "sycophancy": 6,
    "safety": 4,
    "grpo": 5,  # presets
    "continual": 2,  # presets
    "reward_model": 1,  # a preset
    "smollm2-135m": 7,
    "qwen3-1.7b": 7,
    "qwen3-1.7b-qlora": 3,
}
PRESETS = {"grpo", "continual", "reward_model"}
# What decides a stage's result stands in its YAML, whatever the default is.
DECISIVE = {
    "pretrain": {"learning_rate", "max_length"},
    "sft": {"learning_rate", "max_length"},
    "reward_model": {"learning_rate", "max_length", "objective"},
    "dpo": {"learning_rate", "max_length", "beta", "loss_type"},
    "grpo": {"learning_rate", "beta", "loss_type", "scale_rewards", "num_generations", "temperature"},
    "ppo": {"learning_rate", "beta", "num_generations", "temperature"},
    "rsft": {"learning_rate", "max_length", "num_candidates", "select", "temperature"},
    "continual": {"learning_rate", "max_length", "method", "omega", "omega_weight"},
    "assess": {"evaluations"},
}


def test_there_are_configs():
    """Every folder of configs is in the table, and those of a recipe have one."""
    assert Counter(path.parent.name for path in CONFIGS) == COUNTS
    assert {path.parent.name for path in RECIPES} == set(COUNTS) - PRESETS


def as_read(key, value):
    """What a stage gets for a value of YAML: PEFT takes a pattern as text, Trainer turns no loggers into no list."""
    if key == "lora_target_modules" and len(value) == 1:
        return value[0]
    if key == "as_chat":  # auto, true or false: a word
        return str(value).lower()
    return [] if (key, value) == ("report_to", "none") else value


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_config_parses_and_writes_what_decides_the_result(path, tmp_path):
    """Every value of the YAML is the field's value after parsing, and what decides the result is written."""
    stage = stage_of(path)
    given = yaml.safe_load(path.read_text())
    extra = ["--output_dir", str(tmp_path)] if "output_dir" not in given else []
    if stage in ("assess",):
        extra += ["--model_name_or_path", "x"] if "model_name_or_path" not in given else []
    extra += ["--use_cpu", "--bf16", "false"] if "bf16" in given else []  # whatever machine this is
    parsed = parse(["--config", str(path), *extra], *parsers(stage))
    fields = {name: value for part in parsed for name, value in vars(part).items()}
    written = {key: as_read(key, value) for key, value in given.items() if key not in ("use_cpu", "bf16")}
    assert {key: fields[key] for key in written} == written
    assert DECISIVE[stage] <= given.keys()
    if stage != "assess":
        # TRL turns both on by default, on CPU too; what a config leaves out nobody sees.
        assert {"bf16", "gradient_checkpointing", "seed"} <= given.keys()
    if given.get("select") == "softmax":
        assert "tau" in given


def test_sft_of_a_base_with_chatml_sets_the_eos():
    """Its own EOS ends documents; a program that reads the saved tokenizer alone must stop where a turn ends."""
    given = [yaml.safe_load(path.read_text()) for path in CONFIGS if stage_of(path) == "sft"]
    bases = [config for config in given if config.get("model_name_or_path") in SHAPES]
    assert len(bases) == 5
    assert {config.get("eos_token") for config in bases} == {"<|im_end|>"}
    named = [config for config in bases if config["model_name_or_path"].startswith("HuggingFaceTB/SmolLM2")]
    assert {config.get("chat_template_path") for config in named} == {"chatml"}  # this base ships no template


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_recipe_resolves_and_builds_on_earlier_entries_only(path):
    entries = read_recipe(path)
    outputs = [entry.output for entry in entries]
    assert len(set(outputs)) == len(outputs)
    earlier = [str(output) for output in outputs]
    if path.parent.name != "quickstart":  # other recipes go on from the quickstart's models
        earlier += [str(entry.output) for entry in read_recipe(path.parents[1] / "quickstart" / "recipe.yaml")]
    for number, entry in enumerate(entries):
        start = entry.given.get("model_name_or_path")
        assert start is None or start in SHAPES or start in earlier[:number] + earlier[len(entries) :]


def test_every_dotted_path_is_there():
    """``package.module:function`` in a recipe, a stage's config or an evaluation: what it names can be imported."""
    paths = {
        word
        for path in [*CONFIGS, *RECIPES]
        for word in re.findall(r"pipeline[.\w]*:\w+", path.read_text(encoding="utf-8"))
    }
    assert len(paths) >= 2
    for path in paths:
        assert import_function(path, "config")
