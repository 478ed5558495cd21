"""Every shipped config for models and data of the Hub, run on stand-ins: tiny models of the same architecture, and
files with the columns, splits and forms of the datasets they name. One step each; what they say is taken as it is,
except sizes (lengths, batches, steps) and the machine (CPU, float32)."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from pipeline.recipes.recipe import read_recipe
from tests.conftest import ROOT
from tests.stages.conftest import write_rows

FOLDERS = ["smollm2-135m", "qwen3-1.7b", "qwen3-1.7b-qlora"]
# SmolLM2 is a Llama. Sizes are the least that NF4's blocks of 64 allow.
KINDS = {"HuggingFaceTB/SmolLM2-135M": "llama", "Qwen/Qwen3-1.7B-Base": "qwen3"}
SMALL = {
    "per_device_train_batch_size": 4, "per_device_eval_batch_size": 4, "gradient_accumulation_steps": 1,
    "max_steps": 1, "save_steps": 1, "eval_steps": 1, "warmup_steps": 0, "bf16": False, "use_cpu": True,
    "dtype": "float32", "disable_tqdm": True, "logging_steps": 1,
}  # fmt: skip
SHORT = {"max_length": 64, "max_completion_length": 6, "num_candidates": 2, "num_generations": 4, "eval_rows": 4}


def said(question: str, answer: str) -> list[dict[str, str]]:
    """A dialogue of one question and its answer."""
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def rows_of(name: str) -> list[dict]:
    """Rows with the columns of a dataset of the Hub, as its page shows them."""
    sums = [(a, b) for a in range(6) for b in range(4)]
    asked = [f"What is {a} plus {b}?" for a, b in sums]
    good, bad = [f"The answer is {a + b}." for a, b in sums], ["Bad."] * len(sums)
    if name == "HuggingFaceTB/smol-smoltalk":
        return [{"messages": said(q, y), "source": "x"} for q, y in zip(asked, good)]
    if name == "allenai/tulu-3-sft-mixture":
        return [{"id": str(i), "messages": said(q, y), "source": "x"} for i, (q, y) in enumerate(zip(asked, good))]
    if name == "trl-lib/ultrafeedback_binarized":
        return [
            {"chosen": said(q, y), "rejected": said(q, z), "score_chosen": 9.0, "score_rejected": 1.0}
            for q, y, z in zip(asked, good, bad)
        ]
    if name == "Anthropic/hh-rlhf":
        turn = "\n\nHuman: {} Please.\n\nAssistant: {}"
        return [{"chosen": turn.format(q, y), "rejected": turn.format(q, z)} for q, y, z in zip(asked, good, bad)]
    if name == "openai/gsm8k":
        return [{"question": q, "answer": f"{a} + {b}\n#### {a + b}"} for q, (a, b) in zip(asked, sums)]
    if name == "DigitalLearningGmbH/MATH-lighteval":
        return [
            {"problem": f"Add {a} to {b}.", "level": "Level 1", "type": "Algebra", "solution": f"$\\boxed{{{a + b}}}$"}
            for a, b in sums
        ]
    raise KeyError(name)


@pytest.fixture(scope="session")
def stand_ins(foreign_model, tmp_path_factory):
    """A function from the Hub's name of a model or dataset to a folder that stands for it."""
    made: dict[str, str] = {}

    def folder_for(name: str) -> str:
        if name not in made:
            folder = tmp_path_factory.mktemp("hub") / name.replace("/", "--")
            folder.mkdir()
            if name in KINDS:
                save_model(KINDS[name], foreign_model, folder)
            else:
                rows = rows_of(name)
                write_rows(folder / "train.jsonl", rows[:-4])
                write_rows(folder / "test.jsonl", rows[-4:])
            made[name] = str(folder)
        return made[name]

    return folder_for


def save_model(kind: str, tokenizer_of: Path, folder: Path) -> None:
    """A random model of a transformers type, with the tokenizer of such a base: ChatML's tokens and another EOS.

    Qwen's ships its chat template, SmolLM2's has none.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_of)
    if "qwen" not in kind:
        tokenizer.chat_template = None
    config = AutoConfig.for_model(
        kind, vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=64, max_position_embeddings=256,
        pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def shrunk(config: Path, stand_in, folder: Path) -> Path:
    """The config with the Hub's names replaced by folders and its sizes by small ones."""
    given = yaml.safe_load(config.read_text())
    small = SMALL | {name: value for name, value in SHORT.items() if name in given}
    if given.get("num_generations") == 1:  # PPO's
        small.pop("num_generations")
    given |= small
    if given.get("model_name_or_path"):
        given["model_name_or_path"] = stand_in(given["model_name_or_path"])
    if given.get("reward"):  # a random model answers nothing right, and a reward that is always 0 teaches nothing
        given["reward"] = [*given["reward"], "tests.stages.test_grpo:share_of_letters"]
    if given.get("dataset_name"):
        given["dataset_name"] = stand_in(given["dataset_name"])
        given.pop("dataset_config", None)
    for part in given.get("datasets") or []:
        part["path"] = stand_in(part["path"])
        part.pop("name", None)
    path = folder / config.name
    path.write_text(yaml.safe_dump(given, sort_keys=False))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("folder", FOLDERS)
def test_every_stage_of_a_recipe_takes_a_step_on_stand_ins(folder, stand_ins, tmp_path, monkeypatch):
    """In the recipe's order, each from the one it names; every stage is completed and its adapter or model saved."""
    import importlib

    (tmp_path / "configs").mkdir()
    for config in (ROOT / "configs" / folder).glob("*.yaml"):
        if config.name != "recipe.yaml":
            shrunk(config, stand_ins, tmp_path / "configs")
    recipe = (ROOT / "configs" / folder / "recipe.yaml").read_text().replace("runs/", f"{tmp_path}/runs/")
    (tmp_path / "configs" / "recipe.yaml").write_text(recipe)
    entries = read_recipe(tmp_path / "configs" / "recipe.yaml")
    assert {entry.stage for entry in entries} >= {"sft", "dpo", "grpo"}
    for entry in entries:
        extra = ["--guard_patience", "0"] if entry.stage in ("grpo", "ppo") else []
        importlib.import_module(f"pipeline.{entry.stage}").main([*entry.argv, *extra])
        if entry.stage != "report":
            record = json.loads((entry.output / "run.json").read_text())
            assert record["status"] == "completed", entry.name
            assert list(entry.output.glob("*model.safetensors"))
    assert (tmp_path / "runs" / folder / "report.html").stat().st_size > 1000
