"""GRPO end to end on a tiny model: the reward rises, the reference stays, one seed gives one result."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from pipeline.grpo import main
from pipeline.runtime.errors import UserError
from tests.stages.conftest import flags, read_metrics, write_rows

SAMPLING = {
    "num_generations": 8, "max_completion_length": 4, "per_device_train_batch_size": 32, "beta": 0.01,
    "scale_rewards": "none", "loss_type": "dr_grpo", "temperature": 1.0, "save_steps": 10,
}  # fmt: skip


# What pipeline/training/guards.py reads of GRPO's log, and the mean of a reward by its name.
GUARDED = (
    "reward", "reward_std", "frac_reward_zero_std", "completions/clipped_ratio", "kl", "entropy",
    "rewards/share_of_letters/mean",
)  # fmt: skip


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    """Eight prompts with an answer column."""
    rows = [{"prompt": f"What is {a} plus 1?", "answer": str(a + 1)} for a in range(8)]
    return write_rows(tmp_path_factory.mktemp("prompts") / "prompts.jsonl", rows)


def test_the_reward_rises_and_beta_means_a_kl(tiny_model, prompts, tmp_path):
    """The reward is the share of letters in a completion: easy to raise, and given by dotted path."""
    main(
        flags(
            model_name_or_path=tiny_model, dataset_name=prompts, output_dir=tmp_path / "run", eval_rows=0,
            max_steps=25, reward="tests.stages.test_grpo:share_of_letters", guard_patience=0, **SAMPLING,
        )
    )  # fmt: skip
    history = json.loads((tmp_path / "run" / "trainer_state.json").read_text())["log_history"]
    steps = [entry for entry in history if "reward" in entry]
    assert set(GUARDED) <= set(steps[0])
    assert steps[0]["kl"] == pytest.approx(0, abs=1e-6)  # pi = pi_ref before the first update
    assert steps[-1]["kl"] > 0.5
    assert sum(step["reward"] for step in steps[:2]) / 2 < 0.5
    assert sum(step["reward"] for step in steps[-2:]) / 2 > 0.9
    assert read_metrics(tmp_path / "run")["steps"] == 25


def test_a_guard_stops_a_run_that_cannot_learn_and_leaves_a_checkpoint(tiny_model, prompts, tmp_path):
    """Every completion has 4 tokens of an untrained model, so nearly all are cut off: after 3 such lines it stops."""
    with pytest.raises(UserError, match=r"stopped by a guard: \d+% of the completions are cut off.*3 log lines"):
        main(
            flags(
                model_name_or_path=tiny_model, dataset_name=prompts, output_dir=tmp_path / "run", eval_rows=0,
                max_steps=9, reward="tests.stages.test_grpo:share_of_letters", guard_patience=3,
                **(SAMPLING | {"save_steps": 100}),
            )
        )  # fmt: skip
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["status"] == "failed"
    assert "cut off" in record["error"]
    assert (tmp_path / "run" / "checkpoint-3" / "model.safetensors").is_file()


def test_a_resumed_run_sees_the_prompts_and_samples_it_would_have(tiny_model, prompts, tmp_path):
    """Six steps in one go (an epoch is two), and four plus two after an interruption, end in the same weights and in
    the same state: the step in the rollout, the sum of the losses, and what the guards have seen since the first step.
    """
    common = {
        "model_name_or_path": tiny_model, "dataset_name": prompts, "eval_rows": 0, "max_steps": 6, "use_cpu": True,
        "reward": "tests.stages.test_grpo:share_of_letters", "guard_patience": 100, **SAMPLING, "save_steps": 2,
    }  # fmt: skip
    main(flags(output_dir=tmp_path / "whole", **common))
    shutil.copytree(tmp_path / "whole" / "checkpoint-4", tmp_path / "parts" / "checkpoint-4")
    record = json.loads((tmp_path / "whole" / "run.json").read_text()) | {"status": "interrupted"}
    (tmp_path / "parts" / "run.json").write_text(json.dumps(record))
    main(flags(output_dir=tmp_path / "parts", **common))
    whole, parts = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    one, two = (
        json.loads((tmp_path / name / "checkpoint-6" / "state.json").read_text()) for name in ("whole", "parts")
    )
    assert one == two
    assert one["Guards"]["first"]


def test_fewer_prompts_than_a_rollout_takes_are_refused(tiny_model, tmp_path):
    rows = write_rows(tmp_path / "few.jsonl", [{"prompt": "What is 1 plus 1?", "answer": "2"}])
    with pytest.raises(UserError, match=r"a rollout takes 4 prompts .* the data has 1"):
        main(
            flags(
                model_name_or_path=tiny_model, dataset_name=rows, output_dir=tmp_path / "run", eval_rows=0, **SAMPLING
            )
        )


def test_prompts_that_teach_nothing_are_dropped_and_the_easiest_come_first(tiny_model, prompts, tmp_path):
    """Of eight prompts the reward solves 0-2 always and 3-5 never; of 6 it solves a quarter of the answers, of 7 three
    quarters: with the curriculum the rollout has 7 first, though the file has it last.
    """
    asked.clear()
    main(
        flags(
            model_name_or_path=tiny_model, dataset_name=prompts, output_dir=tmp_path / "run", eval_rows=0, max_steps=1,
            reward="tests.stages.test_grpo:known_pass_rates", prefilter_samples=4, curriculum=True, seed=1,
            **(SAMPLING | {"per_device_train_batch_size": 16}),
        )
    )  # fmt: skip
    metrics = read_metrics(tmp_path / "run")
    assert metrics["prefilter/always_solved"] == metrics["prefilter/never_solved"] == 3
    assert metrics["prefilter/kept"] == 2
    assert asked[-1] == ["What is 7 plus 1?"] * 8 + ["What is 6 plus 1?"] * 8


asked: list[list[str]] = []


def known_pass_rates(prompts, completions, answer, **columns):
    """1 for answers 1-3, 0 for 4-6; of every four answers one is right for 7, three are for 8. Keeps what it was
    asked.
    """
    asked.append(list(prompts))
    rates = {7: 1, 8: 3}
    return [1.0 if int(a) <= 3 else 0.0 if int(a) <= 6 else float(i % 4 < rates[int(a)]) for i, a in enumerate(answer)]


def test_the_nanochat_preset_is_the_paper_s_listing_3(tiny_model, prompts, tmp_path):
    """One SGD step of lr 1 moves each weight by minus the gradient of ``-(log_probs * advantages).mean()``.

    Listing 3 literally: rewards minus their group's mean, one advantage for all tokens of an answer, the mean over all
    generated tokens; on-policy, no KL, no clipping, no division by the spread.
    """
    import yaml
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tests.conftest import ROOT

    given = yaml.safe_load((ROOT / "configs" / "grpo" / "nanochat.yaml").read_text())
    seen.clear()
    main(
        flags(
            **given
            | {
                "model_name_or_path": tiny_model, "dataset_name": prompts, "output_dir": tmp_path / "run",
                "eval_rows": 0, "max_steps": 1, "reward": "tests.stages.test_grpo:remembered", "num_generations": 4,
                "as_chat": False,
                "per_device_train_batch_size": 8, "gradient_accumulation_steps": 2, "steps_per_generation": 2,
                "max_completion_length": 5, "optim": "sgd", "learning_rate": 1.0, "lr_scheduler_type": "constant",
                "warmup_steps": 0, "max_grad_norm": 1e9, "bf16": False, "gradient_checkpointing": False,
                "save_steps": 1, "logging_steps": 1,
            }
        )
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    prompt_ids = tokenizer(seen["prompts"])["input_ids"]
    total, count = 0.0, 0
    for start in range(0, len(seen["rewards"]), 4):
        group = torch.tensor(seen["rewards"][start : start + 4])
        for advantage, prompt, completion in zip(
            group - group.mean(), prompt_ids[start : start + 4], seen["completion_ids"][start : start + 4]
        ):
            ids = torch.tensor([prompt + completion])
            log_probs = model(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            total = total + advantage * log_probs.gather(1, ids[0, len(prompt) :, None]).sum()
            count += len(completion)
    (-total / count).backward()
    after = load_file(tmp_path / "run" / "model.safetensors")
    before = load_file(tiny_model / "model.safetensors")
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    moved = {name: before[name] - after[name] for name in after}
    assert max(gradient.abs().max() for gradient in gradients.values()) > 1e-3
    for name, difference in moved.items():
        assert (difference - gradients[name]).abs().max() < 1e-6, name


seen: dict[str, list] = {}


def remembered(prompts, completions, completion_ids, **columns):
    """A reward of 0 to 3 by the first token, which also keeps what was sampled for a literal recomputation."""
    seen.setdefault("completion_ids", []).extend(completion_ids)
    seen.setdefault("prompts", []).extend(prompts)
    rewards = [float(ids[0] % 4) for ids in completion_ids]
    seen.setdefault("rewards", []).extend(rewards)
    return rewards


def test_only_the_adapter_moves(tiny_model, prompts, tmp_path):
    before = load_file(tiny_model / "model.safetensors")
    main(
        flags(
            model_name_or_path=tiny_model, dataset_name=prompts, output_dir=tmp_path / "run", eval_rows=0,
            max_steps=2, reward="tests.stages.test_grpo:share_of_letters", use_peft=True,
            lora_target_modules="all-linear", **SAMPLING,
        )
    )  # fmt: skip
    after = load_file(tiny_model / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)
    adapter = load_file(tmp_path / "run" / "adapter_model.safetensors")
    assert all(tensor.any() for name, tensor in adapter.items() if "lora_B" in name)


def share_of_letters(prompts, completions, **columns):
    """A reward of our own, by dotted path: the share of letters among a completion's characters."""
    return [sum(c.isascii() and c.isalpha() for c in text) / max(len(text), 1) for text in completions]


def test_a_misspelt_reward_is_told_before_any_model_is_loaded(tiny_model, prompts, tmp_path):
    with pytest.raises(UserError, match="numerical"):
        main(
            flags(
                model_name_or_path="./nowhere",
                dataset_name=prompts,
                output_dir=tmp_path / "run",
                reward="numerical",
                **SAMPLING,
            )
        )
