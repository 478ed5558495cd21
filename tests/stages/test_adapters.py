"""Adapters across stages: plain PEFT loads what is saved onto the plain base, NarLM or a Llama without a pad token."""

import functools
import importlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForSequenceClassification, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    Trainer,
)

from pipeline.model.loading import load_model, load_tokenizer
from pipeline.model.tokens import encode_exchange
from pipeline.rewards.learned import load_reward_model
from pipeline.rewards.registry import BuiltInReward, get_reward
from pipeline.rewards.resolve import reward_spec
from pipeline.runtime.checkpoints import check_saved
from pipeline.runtime.errors import UserError
from pipeline.runtime.messages import user_turn
from pipeline.training.ppo import AdapterReward
from tests.stages.conftest import flags, read_metrics, write_rows

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


@pytest.fixture(scope="module")
def reward_over(run_of, preference_file, tmp_path_factory):
    """``reward_over(base, mode)``: a reward model of two steps over an SFT adapter, and its logits when saved."""

    @functools.cache
    def run(base: str, mode: str) -> tuple[Path, torch.Tensor]:
        folder = tmp_path_factory.mktemp(f"rm-{base}-{mode}") / "run"
        given = flags(
            model_name_or_path=run_of("sft", base)[1], adapter_mode=mode, dataset_name=preference_file, eval_rows=8,
            output_dir=folder, max_steps=2, save_steps=2, **LORA,
        )  # fmt: skip
        return folder, logits_when_saved("reward_model", given)

    return run


@pytest.mark.parametrize("mode", ["continue", "merge", "stack"])
@pytest.mark.parametrize("base", ["narlm", "llama"])
def test_a_reward_model_over_an_adapter(run_of, reward_over, base, mode):
    """Its score is that of base + SFT adapter + what it learned itself, by plain PEFT, by our loader and as a reward;
    its new score head was trained; and it stands on the base, or on the merged start."""
    start, sft, _ = run_of("sft", base)
    folder, scores = reward_over(base, mode)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["task_type"] == "SEQ_CLS"
    assert Path(config["base_model_name_or_path"]) == (folder / "start" if mode == "merge" else start)
    assert config["r"] == (8 if mode == "stack" else 4)
    plain = AutoPeftModelForSequenceClassification.from_pretrained(folder, num_labels=1).eval()
    ours, tokenizer = load_reward_model(str(folder))
    prompt, answer = "What is 2 plus 3?", "It is 5."
    ids = torch.tensor([encode_exchange(tokenizer, user_turn(prompt), answer)])  # the pairs became chat turns
    with torch.no_grad():
        assert (plain(IDS).logits - scores).abs().max() < 1e-5
        assert (ours(IDS).logits - scores).abs().max() < 1e-5
        expected = plain(ids).logits.item()
        heads = [model.score.weight.flatten() for model in (plain.base_model.model, ours)]
    assert get_reward(reward_spec(str(folder)))(prompts=[prompt], completions=[answer]) == [
        pytest.approx(expected, abs=1e-5)
    ]
    assert read_metrics(folder)["held_out_pairs"] == 8
    assert heads[1].abs().max() > 0
    if mode == "continue":  # the SFT adapter went on: its matrices moved
        before, after = (load_file(place / "adapter_model.safetensors") for place in (sft, folder))
        assert all(not torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("stage", ["ppo", "grpo", "rsft"])
@pytest.mark.parametrize("mode", ["continue", "stack"])
def test_a_reward_model_over_an_adapter_serves_every_stage(run_of, reward_over, tmp_path, monkeypatch, stage, mode):
    """The stage's figures are the scores that the reward model gives alone, also where PPO lays it on the policy's
    backbone, which under ``stack`` it must not: there the backbone contains the policy's first adapter."""
    folder, _ = reward_over("llama", "continue")
    seen = []

    def watch(cls, method, score_of):
        original = getattr(cls, method)

        def call(self, prompts, completions, **columns):
            found = original(self, prompts, completions, **columns)
            seen.append((prompts, completions, [score_of(one) for one in found]))
            return found

        monkeypatch.setattr(cls, method, call)

    watch(BuiltInReward, "judge", lambda judgement: judgement.score)
    watch(AdapterReward, "__call__", lambda score: score)
    prompts = write_rows(tmp_path / "prompts.jsonl", [{"prompt": f"What is {a} plus 1?"} for a in range(4)])
    sampling = {
        "ppo": {"num_generations": 2, "num_iterations": 1, "guard_patience": 0, "max_steps": 1},
        "grpo": {"num_generations": 2, "guard_patience": 0, "max_steps": 1},
        "rsft": {"num_candidates": 2, "rounds": 1, "max_steps": 1},
    }[stage]
    importlib.import_module(f"pipeline.{stage}").main(
        flags(
            model_name_or_path=run_of("sft", "llama")[1], adapter_mode=mode, dataset_name=prompts, eval_rows=0,
            output_dir=tmp_path / "run", reward=folder, max_completion_length=4, save_steps=1, **LORA, **sampling,
        )
    )  # fmt: skip
    monkeypatch.undo()
    reward = get_reward(reward_spec(str(folder)))
    assert seen
    for prompts_seen, completions, scores in seen:
        assert scores == pytest.approx(reward(prompts=prompts_seen, completions=completions), abs=1e-4)


def test_a_model_without_a_score_head_is_no_reward(run_of):
    """transformers would give it a random one, and every stage would learn from noise."""
    start, sft, _ = run_of("sft", "llama")
    for folder in (start, sft):
        with pytest.raises(UserError, match=r"was saved without a score head \((LlamaForCausalLM|CAUSAL_LM)\)"):
            load_reward_model(str(folder))


def saved_adapter(folder: Path, base: Path, **options) -> Path:
    """A LoRA adapter as other tools publish them, with random B matrices and changed whole modules."""
    torch.manual_seed(1)
    config = LoraConfig(
        **{"target_modules": "all-linear", "r": 4, "lora_alpha": 8, "task_type": "CAUSAL_LM"} | options
    )
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, trust_remote_code=False), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "lora_embedding_B" in name or "modules_to_save" in name:
                parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


LOWER = {
    "whole head": {"modules_to_save": ["lm_head"]},
    "whole embedding": {"modules_to_save": ["embed_tokens"]},
    "embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "head": {"target_modules": ["lm_head", "q_proj"]},
    "one layer": {"target_modules": ["q_proj", "o_proj"], "layers_to_transform": [1], "use_rslora": True},
}


@pytest.mark.parametrize("what", LOWER)
@pytest.mark.parametrize("base", ["narlm", "llama"])
@pytest.mark.parametrize("mode", ["merge", "stack"])
def test_a_stage_over_an_adapter_that_changes_more_than_its_layers(
    unpadded_model, foreign_model, sft_file, tmp_path, mode, base, what
):
    """Whole modules, embeddings and heads, tied (NarLM) or not (Llama): what is saved answers by plain PEFT as the
    stage's own model did; pi_ref answers as the adapter on its base does; and the embedding and the head stay parted
    where the adapter changed one of them."""
    start = {"narlm": unpadded_model, "llama": foreign_model}[base]
    lower = saved_adapter(tmp_path / "lower", start, **LOWER[what])
    upper = {"lora_modules_to_save": "lm_head"} if (what, base) == ("whole head", "llama") else {}
    given = flags(
        model_name_or_path=lower, adapter_mode=mode, dataset_name=sft_file, output_dir=tmp_path / "run", max_steps=2,
        save_steps=2, eval_rows=0, **LORA, **upper,
    )  # fmt: skip
    logits = logits_when_saved("sft", given)
    config = json.loads((tmp_path / "run" / "adapter_config.json").read_text())
    stands_on = tmp_path / "run" / "start" if mode == "merge" else start
    assert Path(config["base_model_name_or_path"]) == stands_on
    assert (plain_logits("sft", stands_on, tmp_path / "run") - logits).abs().max() < 1e-5
    below = plain_logits("sft", start, lower)
    assert (below - logits).abs().max() > 1e-3
    with torch.no_grad():
        assert (load_model(str(lower))(IDS).logits - below).abs().max() < 1e-5
        if mode == "merge":
            assert (load_model(str(stands_on))(IDS).logits - below).abs().max() < 1e-5


VARIANTS = [
    ({"use_dora": True}, {}, r"lower is not plain LoRA \(use_dora\)"),
    ({"rank_pattern": {"q_proj": 2}}, {}, r"lower is not plain LoRA \(rank_pattern\)"),
    ({"alpha_pattern": {"q_proj": 2}}, {}, r"lower is not plain LoRA \(alpha_pattern\)"),
    ({"bias": "all"}, {}, r"lower is not plain LoRA \(bias all\)"),
    ({"init_lora_weights": "pissa"}, {}, r"lower is not plain LoRA \(init_lora_weights pissa\)"),
    ({}, {"peft_type": "IA3"}, r"lower is not plain LoRA \(peft_type IA3\)"),
    ({}, {"use_dora": True}, r"the new adapter is not plain LoRA \(use_dora\)"),
]


@pytest.mark.parametrize(("lower", "other", "message"), VARIANTS)
def test_what_does_not_add_up_is_refused_before_the_base_is_loaded(
    unpadded_model, sft_file, tmp_path, monkeypatch, lower, other, message
):
    """One line that says what and what to do; the ways it names are taken."""
    folder = saved_adapter(tmp_path / "lower", unpadded_model, **lower)
    if "peft_type" in other:
        config = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps(config | other))
        other = {}
    monkeypatch.setattr("pipeline.model.policy.from_pretrained", None)
    with pytest.raises(UserError, match=message + r".*--adapter_mode merge or continue.*pipeline\.merge") as caught:
        importlib.import_module("pipeline.sft").main(
            flags(
                model_name_or_path=folder, adapter_mode="stack", dataset_name=sft_file, output_dir=tmp_path / "run",
                max_steps=1, **LORA, **other,
            )
        )  # fmt: skip
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_padding_with_eos_is_refused_before_training_and_when_saved(foreign_model, sft_file, tmp_path):
    """``--pad_token`` may name it, and so may a tokenizer that was written by something else."""
    with pytest.raises(UserError, match=r"pad_token and eos_token are both '<\|endoftext\|>'"):
        importlib.import_module("pipeline.sft").main(
            flags(
                model_name_or_path=foreign_model, dataset_name=sft_file, output_dir=tmp_path / "run", max_steps=1,
                pad_token="<|endoftext|>", **LORA,
            )
        )  # fmt: skip
    folder = shutil.copytree(foreign_model, tmp_path / "copy")
    check_saved(folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"pad_token": config["eos_token"]}))
    with pytest.raises(RuntimeError, match="was saved with its EOS token"):
        check_saved(folder)


def test_an_adapter_that_was_saved_with_more_rows_gets_them(foreign_model, tmp_path):
    """Other tools add rows for new tokens, and PEFT saves the embedding then."""
    model = AutoModelForCausalLM.from_pretrained(foreign_model)
    rows = model.get_input_embeddings().num_embeddings
    model.resize_token_embeddings(rows + 3)
    config = LoraConfig(target_modules="all-linear", r=2, init_lora_weights=False, task_type="CAUSAL_LM")
    model = get_peft_model(model, config).eval()
    model.save_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        expected, ours = model(IDS).logits, load_model(str(tmp_path / "adapter"))(IDS).logits
    assert ours.shape[-1] == rows + 3
    assert (ours - expected).abs().max() < 1e-4  # merging rounds
