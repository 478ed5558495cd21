"""Adapters across stages: plain PEFT loads what is saved onto the plain base, NarLM or a Llama without a pad token."""

import functools
import importlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    Trainer,
)

from pipeline.model.loading import load_tokenizer
from tests.stages.conftest import flags

IDS = torch.tensor([[1, 5, 7, 9, 20, 33, 40]])
LORA = {"use_peft": True, "lora_target_modules": "all-linear", "lora_r": 4, "use_cpu": True}
HEADS = {"reward_model": (AutoModelForSequenceClassification, {"num_labels": 1})}


@pytest.fixture(scope="session")
def unpadded_model(tiny_model, tmp_path_factory) -> Path:
    """The tiny NarLM with a tokenizer that has no pad token: what was one is called ``<|zero|>``."""
    folder = tmp_path_factory.mktemp("unpadded") / "model"
    shutil.copytree(tiny_model, folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (folder / name).read_text().replace("<|pad|>", "<|zero|>")
        (folder / name).write_text(text)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["pad_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"pad_token_id": None}))
    return folder


@pytest.fixture(scope="module")
def run_of(unpadded_model, foreign_model, sft_file, preference_file, tmp_path_factory):
    """``run_of(stage, base)``: a LoRA run of two steps, made once, and its model's logits when it was saved."""
    bases = {"narlm": unpadded_model, "llama": foreign_model}

    @functools.cache
    def run(stage: str, base: str) -> tuple[Path, Path, torch.Tensor]:
        folder = tmp_path_factory.mktemp(f"{stage}-{base}") / "run"
        data = sft_file if stage == "sft" else preference_file
        given = flags(
            model_name_or_path=bases[base], dataset_name=data, output_dir=folder, max_steps=2, save_steps=2, **LORA
        )
        return bases[base], folder, logits_when_saved(stage, given)

    return run


def logits_when_saved(stage: str, words: list[str]) -> torch.Tensor:
    """Run a stage; its own model's logits when it was saved."""
    seen = []
    save = Trainer.save_model

    def save_model(self, *args, **kwargs):
        with torch.no_grad():
            seen.append(self.model.eval()(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits.clone())
        return save(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "save_model", save_model)
        importlib.import_module(f"pipeline.{stage}").main(words)
    return seen[-1]


@torch.no_grad()
def plain_logits(stage: str, base: Path, adapter: Path) -> torch.Tensor:
    """Logits by transformers and PEFT alone, on the base as it is published."""
    auto_class, options = HEADS.get(stage, (AutoModelForCausalLM, {}))
    model = auto_class.from_pretrained(base, trust_remote_code=False, **options)
    return PeftModel.from_pretrained(model, adapter).eval()(input_ids=IDS).logits


@pytest.mark.parametrize("base", ["narlm", "llama"])
@pytest.mark.parametrize("stage", ["sft", "dpo", "reward_model"])
def test_an_adapter_of_a_base_without_a_pad_token_loads_onto_the_plain_base(run_of, stage, base):
    """The embedding keeps its rows; PEFT alone gives the logits that the stage had; padding is neither EOS, nor BOS,
    nor what a chat's turn begins or ends with; and a text has the ids that it has for the base's tokenizer."""
    start, run, logits = run_of(stage, base)
    assert (plain_logits(stage, start, run) - logits).abs().max() < 1e-5
    tokenizer, theirs = AutoTokenizer.from_pretrained(run), AutoTokenizer.from_pretrained(start)
    assert theirs.pad_token is None
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id, tokenizer.bos_token_id)
    assert tokenizer.pad_token not in theirs.all_special_tokens
    assert len(tokenizer) == len(theirs)
    assert tokenizer("Louÿs is 1 plus 2.")["input_ids"] == theirs("Louÿs is 1 plus 2.")["input_ids"]
    assert load_tokenizer(str(run)).pad_token_id == tokenizer.pad_token_id
