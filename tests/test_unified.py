"""The unified recipe compares like with like: one start, one reward, one beta, completions cut alike."""

import pytest
import yaml

from pipeline.model.tokens import encode_answer
from pipeline.recipes.recipe import read_recipe
from pipeline.worlds import enumerable
from tests.conftest import ROOT

FOLDER = ROOT / "configs" / "unified"
METHODS = {"ppo", "rloo", "grpo", "grpo_uncorrected", "dpo", "rsft_softmax", "rsft_best", "sft"}


def config(name: str) -> dict:
    """A config of the recipe as it stands."""
    return yaml.safe_load((FOLDER / f"{name}.yaml").read_text())


def test_all_methods_start_from_pi_ref_and_are_judged_against_it():
    """Eight trainings from one folder, an assessment after each of them and one of the start."""
    entries = {entry.name: entry for entry in read_recipe(FOLDER / "recipe.yaml")}
    start = str(entries["pi_ref"].output)
    assert {name for name, e in entries.items() if e.given.get("model_name_or_path") == start} == {
        *METHODS,
        "assess_pi_ref",
    }
    for name in METHODS:
        judged = entries[f"assess_{name}"].given
        assert judged["model_name_or_path"] == str(entries[name].output)
        assert judged["reference_model_name_or_path"] == start
    variants = [entries[name].given["use_bias_correction_kl"] for name in ("grpo", "grpo_uncorrected")]
    assert variants == ["true", "false"]


def test_reward_beta_and_seed_are_the_same_everywhere():
    """beta in the losses, tau in softmax selection, and what the assessment computes J with."""
    [judged] = config("assess")["evaluations"]
    betas = [config(name)["beta"] for name in ("ppo", "rloo", "grpo", "dpo")]
    assert {*betas, config("rsft")["tau"], judged["beta"]} == {0.5}
    rewards = [config(name)["reward"] for name in ("ppo", "rloo", "grpo", "rsft")]
    assert all(reward == [judged["reward"]] for reward in rewards)
    assert {config(name)["seed"] for name in ("ppo", "rloo", "grpo", "dpo", "rsft", "sft", "pretrain", "assess")} == {
        0
    }


@pytest.mark.parametrize("name", ["ppo", "rloo", "grpo", "rsft"])
def test_sampling_cuts_completions_where_the_task_does(name):
    assert config(name)["max_completion_length"] == enumerable.LENGTH


@pytest.mark.parametrize("name", ["dpo", "rsft", "sft"])
def test_text_is_cut_where_sampling_cuts(name):
    """bos, prompt and two tokens are max_length 4: of a completion that was cut, the eos that trainers append goes."""
    limit, words = config(name)["max_length"], enumerable.tokenizer()
    for prompt in enumerable.PROMPTS:
        for ids in enumerable.COMPLETIONS:
            start, answer = encode_answer(words, prompt, enumerable.text_of(ids))
            assert tuple((start + answer)[len(start) : limit]) == ids
