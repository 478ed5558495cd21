"""PPO end to end on a tiny model: the reward rises, a reward model shares the backbone, an interrupted run goes on."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from pipeline.ppo import first_and_last, main
from pipeline.reward_model import main as reward_model
from pipeline.runtime.errors import UserError
from tests.stages.conftest import flags, read_metrics, write_rows

SAMPLING = {
    "max_completion_length": 4, "per_device_train_batch_size": 32, "beta": 0.02, "num_iterations": 2,
    "num_generations": 4, "use_peft": True, "lora_target_modules": "all-linear", "eval_rows": 0, "save_steps": 10,
}  # fmt: skip
LETTERS = "tests.stages.test_ppo:share_of_letters"


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    """Eight prompts with an answer column."""
    rows = [{"prompt": f"What is {a} plus 1?", "answer": str(a + 1)} for a in range(8)]
    return write_rows(tmp_path_factory.mktemp("prompts") / "prompts.jsonl", rows)


def share_of_letters(prompts, completions, **columns):
    """A reward of our own, by dotted path: the share of letters among a completion's characters."""
    return [sum(c.isascii() and c.isalpha() for c in text) / max(len(text), 1) for text in completions]


def test_the_reward_rises_against_a_kl_from_zero(tiny_model, prompts, tmp_path):
    """All weights trained and a critic of its own. pi = pi_ref before the first update, so the first KL is 0."""
    options = SAMPLING | {"use_peft": False, "critic": "separate", "max_steps": 30, "reward": LETTERS}
    options["guard_patience"] = 0  # its answers never end, which the guards would mind
    main(flags(model_name_or_path=tiny_model, dataset_name=prompts, output_dir=tmp_path / "run", **options))
    metrics = read_metrics(tmp_path / "run")
    assert metrics["first_objective/kl"] == pytest.approx(0, abs=1e-5)
    assert metrics["last_objective/kl"] > 0.3
    history = json.loads((tmp_path / "run" / "trainer_state.json").read_text())["log_history"]
    guarded = {"reward", "reward_std", "completions/clipped_ratio", "objective/kl", "objective/entropy"}
    assert "frac_reward_zero_std" not in history[0]  # GRPO's, of groups
    assert guarded <= set(history[0])  # what pipeline/training/guards.py reads of PPO's log
    assert metrics["first_objective/scores"] < 0.5
    assert metrics["last_objective/scores"] > 0.8
    weights = load_file(tmp_path / "run" / "model.safetensors")
    assert weights.keys() == load_file(tiny_model / "model.safetensors").keys()  # and none of the critic's
    assert (tmp_path / "run" / "critic" / "critic.safetensors").is_file()
    assert "last_objective/kl" in (tmp_path / "run" / "README.md").read_text()


def test_a_reward_model_of_the_same_base_shares_the_backbone(tiny_model, preference_file, prompts, tmp_path):
    """Its folder is named as the reward; it becomes a parent of the run, and the watched reward of weight 0 is
    logged.
    """
    reward_model(
        flags(
            model_name_or_path=tiny_model, dataset_name=preference_file, output_dir=tmp_path / "rm", eval_rows=4,
            max_steps=2, use_peft=True, lora_target_modules="all-linear", save_steps=2,
        )
    )  # fmt: skip
    base = load_file(tiny_model / "model.safetensors")
    main(
        flags(
            model_name_or_path=tiny_model, dataset_name=prompts, output_dir=tmp_path / "run", max_steps=2,
            reward=[tmp_path / "rm", LETTERS], reward_weights=["1.0", "0.0"], **SAMPLING,
        )
    )  # fmt: skip
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert [parent["path"] for parent in record["parents"]] == [str(tiny_model), str(tmp_path / "rm")]
    assert "last_rewards/share_of_letters/mean" in record["metrics"]
    assert record["metrics"]["last_objective/scores"] == pytest.approx(record["metrics"]["last_rewards/rm/mean"])
    assert sorted(p.name for p in (tmp_path / "run").iterdir() if p.is_dir()) == ["checkpoint-2", "critic"]
    after = load_file(tiny_model / "model.safetensors")
    assert all(torch.equal(base[name], after[name]) for name in base)


def test_an_interrupted_run_ends_where_the_whole_one_does(tiny_model, prompts, tmp_path):
    """Killed after its checkpoint at step 4 of 8, two epochs in: the resumed adapter is equal bit by bit, and
    the logs go on with the same figures.
    """
    options = {"max_steps": 8, "reward": LETTERS} | SAMPLING | {"save_steps": 4}
    main(flags(model_name_or_path=tiny_model, dataset_name=prompts, output_dir=tmp_path / "run", **options))
    whole = load_file(tmp_path / "run" / "adapter_model.safetensors")
    history = json.loads((tmp_path / "run" / "trainer_state.json").read_text())["log_history"]
    shutil.rmtree(tmp_path / "run" / "checkpoint-8")
    for name in ("adapter_model.safetensors", "trainer_state.json", "README.md"):
        (tmp_path / "run" / name).unlink()
    record = json.loads((tmp_path / "run" / "run.json").read_text()) | {"status": "interrupted"}
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    main(flags(model_name_or_path=tiny_model, dataset_name=prompts, output_dir=tmp_path / "run", **options))
    resumed = load_file(tmp_path / "run" / "adapter_model.safetensors")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    again = json.loads((tmp_path / "run" / "trainer_state.json").read_text())["log_history"]
    for old, new in zip(history[:8], again[:8]):
        assert {k: v for k, v in old.items() if "time" not in k} == {k: v for k, v in new.items() if "time" not in k}


@pytest.mark.parametrize("watched", [False, True])
def test_a_reward_that_is_hacked_is_seen(tiny_model, tmp_path, capsys, watched):
    """Right is a token without letters, and letters are paid for twice as well: the sum rises as ``exact`` falls. The
    guard sees it in the part of a sum, and in a second reward that is only watched (weight 0).
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    words = {tokenizer.decode([i], skip_special_tokens=True).strip() for i in range(len(tokenizer))}
    right = sorted(word for word in words if not any(c.isascii() and c.isalpha() for c in word))
    rows = [{"prompt": f"What is {a} plus 1?", "answer": right} for a in range(8)]
    options = SAMPLING | {"use_peft": False, "critic": "separate", "max_steps": 24, "guard_patience": 100}
    options |= {"max_completion_length": 1, "dataset_name": write_rows(tmp_path / "rows.jsonl", rows)}
    if watched:
        options |= {"reward": [LETTERS, "exact"], "reward_weights": ["2.0", "0.0"]}
    else:
        options |= {"reward": f"exact + 2*{LETTERS}"}
    main(flags(model_name_or_path=tiny_model, output_dir=tmp_path / "run", **options))
    metric = "rewards/exact/mean" if watched else "reward_parts/exact"
    assert f"while {metric} fell by" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reward": "nonsense"}, "unknown name 'nonsense'"),
        ({"critic": "both"}, "critic"),
        ({"use_peft": False}, "add use_peft: true, or choose critic: separate"),
        ({"lam": 1.5}, "lam is 1.5"),
        ({"num_generations": 1}, "a rollout takes 32 prompts .* the data has 8"),
    ],
)
def test_mistakes_are_one_line(tiny_model, prompts, tmp_path, change, message):
    given = {
        "model_name_or_path": tiny_model,
        "dataset_name": prompts,
        "output_dir": tmp_path / "run",
        "reward": LETTERS,
    }
    with pytest.raises(UserError, match=message) as caught:
        main(flags(**given | SAMPLING | {"max_steps": 1} | change))
    assert "\n" not in str(caught.value)


def test_first_and_last_of_a_history():
    """Only entries with an objective count, and only what is about it or the rewards."""
    history = [
        {"objective/kl": 0.0, "rewards/a/mean": 1.0, "loss": 5.0},
        {"objective/kl": 1.0},
        {"objective/kl": 2.0, "rewards/a/mean": None},
        {"train_loss": 1.0},
    ]
    assert first_and_last(history) == {
        "first_objective/kl": 0.0,
        "first_rewards/a/mean": 1.0,
        "last_objective/kl": 2.0,
    }
    assert first_and_last([{"train_loss": 1.0}]) == {}
