"""The same completion gets the same number in every stage, in evaluation and on the command line."""

import json
import sys
from pathlib import Path

import pytest

from pipeline.assess import main as assess
from pipeline.grpo import main as grpo
from pipeline.ppo import main as ppo
from pipeline.rewards.__main__ import main as command
from pipeline.rsft import main as rsft
from pipeline.runtime.errors import UserError
from tests.stages.conftest import flags, write_rows

HERE = "tests.stages.test_one_reward"
PASSED_BY_TRL = {"trainer_state", "log_extra", "log_metric"}
calls: list[dict] = []


def recorded(prompts, completions, completion_ids, answer, **columns):
    """A number that depends on all that a reward is given; what it was given is kept."""
    scores = []
    for row in zip(prompts, completions, completion_ids, answer, columns["level"], strict=True):
        prompt, completion, ids, gold, level = row
        scores.append(len(json.dumps(prompt)) + len(json.dumps(completion)) / 10 + len(ids) / 100 + gold + level)
        calls.append(dict(zip(("prompt", "completion", "completion_ids", "answer", "level"), row)))
        calls[-1] |= {"score": scores[-1], "columns": set(columns) - PASSED_BY_TRL}
    return [score % 1 for score in scores]


def drained() -> list[dict]:
    """What was recorded since the last call."""
    found = list(calls)
    calls.clear()
    return found


@pytest.mark.parametrize(("base", "chat"), [("tiny_model", True), ("foreign_model", False)])
def test_every_caller_gives_a_completion_the_same_number(request, base, chat, tmp_path):
    """GRPO (and its prefilter), PPO, RSFT, two evaluations, then the command line on all that those have scored.

    Each of them hands over messages where the prompt is a dialogue and text where it is text, the tokens of the
    completion, and the columns of the data: no caller has a form of its own.
    """
    model = request.getfixturevalue(base)
    questions = [f"What is {a} plus 1?" for a in range(4)]
    prompts = [[{"role": "user", "content": text}] if chat else text for text in questions]
    rows = [{"prompt": prompt, "answer": a, "level": 3 - a} for a, prompt in enumerate(prompts)]
    data = write_rows(tmp_path / "prompts.jsonl", rows)
    common = {"model_name_or_path": model, "eval_rows": 0, "max_steps": 1, "reward": f"{HERE}:recorded"}
    common |= {"dataset_name": data, "max_completion_length": 4, "guard_patience": 0}
    seen = {}
    drained()
    grpo(
        flags(
            output_dir=tmp_path / "grpo", num_generations=2, prefilter_samples=3, beta=0.1,
            **common | {"per_device_train_batch_size": 8},
        )
    )  # fmt: skip
    seen["grpo"] = drained()
    assert len(seen["grpo"]) >= 4 * 3 + 4
    ppo(
        flags(
            output_dir=tmp_path / "ppo", num_generations=2, critic="none", num_iterations=1,
            **common | {"per_device_train_batch_size": 8},
        )
    )  # fmt: skip
    seen["ppo"] = drained()
    del common["guard_patience"]
    rsft(flags(output_dir=tmp_path / "rsft", num_candidates=2, **common))
    seen["rsft"] = drained()
    judged = {"dataset": str(data), "split": "train", "reward": f"{HERE}:recorded", "max_new_tokens": 4}
    config = tmp_path / "assess.yaml"
    entries = [
        {"type": "reward", "n": 2} | judged,
        {"type": "objective", "n": 2, "beta": 0.1} | judged,
        {"type": "accuracy"} | judged,
    ]
    config.write_text(json.dumps({"evaluations": entries}))
    for entry in ("reward", "objective", "accuracy"):
        config.write_text(json.dumps({"evaluations": [e for e in entries if e["type"] == entry]}))
        assess(
            ["--config", str(config), "--model_name_or_path", str(model), "--output_dir", str(tmp_path / entry),
             "--reference_model_name_or_path", str(model)]
        )  # fmt: skip
        seen[entry] = drained()
    every = [call | {"by": name} for name, found in seen.items() for call in found]
    for call in every:
        assert call["columns"] == {"level"}, call["by"]
        assert isinstance(call["completion"], list) == chat == (not isinstance(call["prompt"], str)), call["by"]
        assert 0 < len(call["completion_ids"]) <= 4, call["by"]
    assert {call["by"] for call in every} == {"grpo", "ppo", "rsft", "reward", "objective", "accuracy"}

    names = ("prompt", "completion", "completion_ids", "answer", "level")
    file = write_rows(tmp_path / "all.jsonl", [{name: call[name] for name in names} for call in every])
    out = tmp_path / "scores.jsonl"
    command(["--reward", f"{HERE}:recorded", "--file", str(file), "--out", str(out)])
    again = [call["score"] for call in drained()]
    assert again == [call["score"] for call in every]
    # And by the text of a completion alone, as people write such files: the form is that of the prompt.
    plain = [
        {name: call[name] for name in names} | {"completion": c if isinstance(c, str) else c[0]["content"]}
        for call in every
        for c in [call["completion"]]
    ]
    file = write_rows(tmp_path / "plain.jsonl", plain)
    command(["--reward", f"{HERE}:recorded", "--file", str(file), "--out", str(out)])
    assert [call["score"] for call in drained()] == again


def test_length_counts_the_same_tokens_everywhere(tiny_model, tmp_path):
    """``length(limit=6, buffer=4)`` of a text of 4 tokens and one end of turn is -(5 - 2) / 4: on the command line
    with a tokenizer, and of candidates that rsft reads from a file.
    """
    from pipeline.model.loading import load_tokenizer

    tokenizer = load_tokenizer(str(tiny_model))
    text = tokenizer.decode(tokenizer("What is 7 plus 1? The answer is", add_special_tokens=False)["input_ids"][:4])
    assert len(tokenizer(text, add_special_tokens=False)["input_ids"]) == 4
    file = write_rows(tmp_path / "rows.jsonl", [{"prompt": "What is 1 plus 1?", "completion": text}])
    reward = "length(limit=6, buffer=4)"
    out = tmp_path / "scores.jsonl"
    command(["--reward", reward, "--file", str(file), "--out", str(out), "--tokenizer_name", str(tiny_model)])
    assert json.loads(out.read_text())["score"] == -0.75
    rsft(
        flags(
            model_name_or_path=tiny_model, dataset_name=file, from_candidates=file, output_dir=tmp_path / "run",
            max_steps=1, reward=reward, eval_rows=0,
        )
    )  # fmt: skip
    assert json.loads((tmp_path / "run" / "run.json").read_text())["metrics"]["round_1_reward_after"] == -0.75


@pytest.mark.parametrize("stage", [grpo, ppo, rsft])
@pytest.mark.parametrize(
    "reward", ["rm", "-0.5*format + numeric", f"{HERE}:recorded", "my_rewards:f", "my_rewards.py:f"]
)
def test_every_stage_reads_every_kind_of_reward_before_any_model(stage, reward, tmp_path, monkeypatch):
    """The folder of a reward model, a sum, a function, and one in a file of the current folder; the policy is not
    there, which is the only complaint. A misspelt name is complained about first.
    """
    (tmp_path / "rm").mkdir()
    (tmp_path / "rm" / "config.json").write_text("{}")
    (tmp_path / "my_rewards.py").write_text("def f(prompts, completions, **columns): return [1.0] * len(completions)")
    monkeypatch.chdir(tmp_path)
    # Another test may have left a file of this name on the path.
    monkeypatch.delitem(sys.modules, "my_rewards", raising=False)
    others = [entry for entry in sys.path if entry and not Path(entry, "my_rewards.py").exists()]
    monkeypatch.setattr(sys, "path", others)
    given = {"dataset_name": "none.jsonl", "output_dir": tmp_path / "run", "per_device_train_batch_size": 8}
    given |= {"model_name_or_path": "./nowhere", "allow_unsafe_code_execution": True}
    with pytest.raises(UserError, match=r"nowhere|none.jsonl"):
        stage(flags(**given, reward=reward))
    with pytest.raises(UserError, match="unknown name 'rm2'"):
        stage(flags(**given, reward="rm2"))


@pytest.mark.parametrize("name", ["accuracy", "reward", "objective", "best_of_n"])
def test_every_evaluation_with_a_reward_may_run_code_without_a_sandbox(name):
    """assess hands its flag to the evaluations that take it."""
    from inspect import signature

    from pipeline.evaluation.registry import get_evaluation

    assert signature(get_evaluation(name)).parameters["allow_unsafe_code_execution"].default is False


OF_TRL = "trl:repetition_penalty(ngram_size=1)"


@pytest.mark.parametrize("base", ["tiny_model", "foreign_model"])
def test_several_rewards_mean_the_same_in_every_stage(request, base, tmp_path):
    """2 repetition - 0.5 of a function, and a format that is watched, in GRPO, PPO, RSFT and an evaluation: each
    part's mean in the record is TRL's own number of the completions, and what is optimised is the weighted sum.
    """
    import trl.rewards

    model = request.getfixturevalue(base)
    prompts = [{"prompt": f"What is {a} plus 1?", "answer": a, "level": 3 - a} for a in range(4)]
    data = write_rows(tmp_path / "prompts.jsonl", prompts)
    rewards, weights = [OF_TRL, f"{HERE}:recorded", "trl:think_format"], ["2", "-0.5", "0"]
    common = {"model_name_or_path": model, "dataset_name": data, "eval_rows": 0, "max_steps": 1}
    common |= {"reward": rewards, "reward_weights": weights, "max_completion_length": 24}
    sampled = common | {"num_generations": 2, "per_device_train_batch_size": 8, "guard_patience": 0}
    direct = trl.rewards.get_repetition_penalty_reward(ngram_size=1)
    for stage, own in (
        (grpo, sampled),
        (ppo, sampled | {"critic": "none", "num_iterations": 1}),
        (rsft, common | {"num_candidates": 2}),
    ):
        drained()
        folder = tmp_path / stage.__module__.rpartition(".")[2]
        stage(flags(output_dir=folder, **own))
        found = drained()
        assert len(found) == 8
        metrics = json.loads((folder / "run.json").read_text())["metrics"]
        parts = {name.partition("/")[2]: value for name, value in metrics.items() if name.startswith("reward_parts/")}
        assert set(parts) == {"repetition_penalty", "recorded", "think_format"}
        expected = direct(completion_ids=[call["completion_ids"] for call in found])
        assert parts["repetition_penalty"] == pytest.approx(sum(expected) / 8, abs=1e-6)
        assert parts["repetition_penalty"] < 0
        total = 2 * parts["repetition_penalty"] - 0.5 * parts["recorded"]
        if stage is rsft:
            assert metrics["round_1_reward_before"] == pytest.approx(total, abs=1e-6)
        else:
            history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
            assert history[0]["reward"] == pytest.approx(total, abs=1e-5)
        with pytest.raises(UserError, match="reward_weights: 1 given for 3 rewards"):
            stage(flags(output_dir=tmp_path / "bad", **(own | {"reward_weights": ["1"]})))
    config = tmp_path / "assess.yaml"
    entry = {"type": "reward", "dataset": str(data), "split": "train", "max_new_tokens": 8, "reward": rewards}
    config.write_text(json.dumps({"evaluations": [entry | {"reward_weights": [2, -0.5, 0]}]}))
    assess(["--config", str(config), "--model_name_or_path", str(model), "--output_dir", str(tmp_path / "assessed")])
    metrics = json.loads((tmp_path / "assessed" / "run.json").read_text())["metrics"]
    expected = direct(completion_ids=[call["completion_ids"] for call in drained()])
    assert metrics["reward/reward_parts/repetition_penalty"] == pytest.approx(sum(expected) / 4, abs=1e-6)
    total = 2 * sum(expected) / 4 - 0.5 * metrics["reward/reward_parts/recorded"]
    assert metrics["reward/reward"] == pytest.approx(total, abs=1e-6)


def blind_to_odd_answers(prompts, completions, answer, **columns):
    """No score for every second row."""
    return [None if a % 2 else 1.0 for a in answer]


def test_a_completion_without_one_of_its_rewards_teaches_nothing_in_grpo(tiny_model, tmp_path):
    """TRL would count the missing part as 0 and the sum of half the completions as that of the other reward alone."""
    data = write_rows(
        tmp_path / "rows.jsonl", [{"prompt": f"What is {a}?", "answer": a, "level": a} for a in range(4)]
    )
    drained()
    grpo(
        flags(
            model_name_or_path=tiny_model, dataset_name=data, output_dir=tmp_path / "run", eval_rows=0, max_steps=1,
            reward=[f"{HERE}:recorded", f"{HERE}:blind_to_odd_answers"], num_generations=2, max_completion_length=4,
            guard_patience=0, per_device_train_batch_size=8,
        )
    )  # fmt: skip
    scores = [call["score"] % 1 for call in drained() if call["answer"] % 2 == 0]
    history = json.loads((tmp_path / "run" / "trainer_state.json").read_text())["log_history"]
    assert history[0]["rewards/recorded/mean"] == pytest.approx(sum(scores) / 4, abs=1e-5)
    assert history[0]["reward"] == pytest.approx(sum(scores) / 4 + 1, abs=1e-5)
