"""assess.py --objective after a stage: by the stage's own record, exact and sampled; and the card that reads it."""

import hashlib
import json

import pytest

from pipeline import assess, ppo
from pipeline.evaluation.tasks.objective import FRONTIER
from pipeline.publish.cards import write_card
from pipeline.runtime.errors import UserError
from pipeline.runtime.lineage import assessments_of
from pipeline.runtime.run_json import read_record
from pipeline.worlds.enumerable import INDEX, PROMPTS, ids_of
from tests import enumerable_task as task
from tests.stages.conftest import flags, read_metrics

REWARD = "pipeline.worlds.enumerable:reward"


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[str, str]:
    """A pi_ref and what three steps of RLOO made of it."""
    folder = tmp_path_factory.mktemp("runs")
    start = task.saved_model(folder / "pi_ref")
    ppo.main(
        flags(
            model_name_or_path=start, output_dir=folder / "rloo", dataset_name="world/enumerable", deduplicate=False,
            eval_rows=0, reward=[REWARD], beta=0.5, critic="none", whiten_advantages=False, num_generations=8,
            per_device_train_batch_size=32, gradient_accumulation_steps=1, max_completion_length=2, max_steps=3,
            num_iterations=1, use_cpu=True, gradient_checkpointing=False, guard_patience=0,
        )
    )  # fmt: skip
    return start, str(folder / "rloo")


@pytest.fixture(scope="module")
def judged(trained):
    """The assessment of that run by its own record; 400 samples of each of four prompts."""
    folder = task.Path(trained[1]).parent
    config = folder / "assess.yaml"
    config.write_text(
        "evaluations: [{name: objective, type: objective, dataset: world/enumerable, n: 400, optimum_samples: 500, "
        "batch_size: 800}]\n"
    )
    argv = ["--config", str(config), "--model_name_or_path", trained[1], "--output_dir", str(folder / "out")]
    assess.main(argv)
    return folder / "out", read_metrics(folder / "out")


def test_the_run_s_reward_beta_and_reference_are_taken_from_its_record(trained, judged):
    """beta 0.5 and two tokens; pi_ref is the recorded start: the exact figures are those of the two saved models."""
    _, found = judged
    laws = [task.exact_law(task.load(folder)) for folder in reversed(trained)]
    expected = task.exact.exact_figures(*laws, task.rewards(), 0.5)
    assert found["objective/beta"] == 0.5
    for name, value in expected.items():
        assert found[f"objective/exact/{name}"] == pytest.approx(value, abs=1e-6), name
    assert expected["kl"] > 1e-4
    assert expected["identity_gap"] < 1e-5
    assert expected["mass"] < 1e-9


def test_samples_agree_with_enumeration(judged):
    """Each sampled figure lies within four of its standard errors of the exact one."""
    _, found = judged
    for name, exact in (("reward", "reward"), ("kl", "kl"), ("kl_sampled", "kl"), ("objective", "objective")):
        error = found[f"objective/{name}_se"]
        assert 0 < error < 0.1
        assert abs(found[f"objective/{name}"] - found[f"objective/exact/{exact}"]) < 4 * error, name
    assert found["objective/kl_se"] < found["objective/kl_sampled_se"]
    assert found["objective/reward_low"] < found["objective/reward"] < found["objective/reward_high"]


def test_the_optima_and_the_policy_s_place_are_tables_of_the_record(judged):
    """Nine optima, reward rising with KL; the policy's sampled and its exact place; no curve among the metrics."""
    record = json.loads((judged[0] / "run.json").read_text())
    optima = sorted(record["curves"]["objective"]["optima"], key=lambda point: point["kl"])
    assert [point["beta"] for point in optima] == sorted(FRONTIER, reverse=True)
    assert [point["reward"] for point in optima] == sorted(point["reward"] for point in optima)
    sampled, exact = record["tables"]["objective"]["policy"]
    assert sampled["kl"] == judged[1]["objective/kl"]
    assert exact["kl"] == judged[1]["objective/exact/kl"]
    assert not [name for name in record["metrics"] if "at beta" in name]


def contents(folder) -> dict[str, str]:
    """The hash of every file of a folder by its path."""
    files = sorted(path for path in task.Path(folder).rglob("*") if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_assessments_leave_the_model_s_folder_as_it_was(trained, tmp_path):
    """Two assessments, one of them of the objective, each in its own folder: no file of the model's changes."""
    before = contents(trained[1])
    config = tmp_path / "assess.yaml"
    config.write_text("evaluations: [{type: samples, prompts: ['01'], as_chat: false, max_new_tokens: 2}]\n")
    argv = ["--model_name_or_path", trained[1]]
    assess.main([*argv, "--objective", "--output_dir", str(tmp_path / "first")])
    assess.main([*argv, "--config", str(config), "--output_dir", str(tmp_path / "second")])
    assert {path.name for path in task.Path(trained[1]).iterdir()} >= {"run.json", "README.md"}
    assert contents(trained[1]) == before


def test_the_card_reads_the_assessments_and_the_model_s_folder_stays_as_it_was(trained, judged):
    """An assessment writes into its own folder only; a card that is written later shows its figures."""
    folder = task.Path(trained[1])
    record = read_record(folder)
    assert (record["stage"], record["metrics"]["steps"]) == ("ppo", 3)
    assert [name for name in record["metrics"] if name.startswith("objective/exact")] == []
    (assessed, _), *_ = assessments_of(folder)
    line = f"| objective/exact/regret | {judged[1]['objective/exact/regret']:.4g} |"
    assert line not in (folder / "README.md").read_text()
    card = write_card(folder, record).read_text()
    assert line in card
    low, high = (judged[1][f"objective/reward_{end}"] for end in ("low", "high"))
    assert f"| objective/reward | {judged[1]['objective/reward']:.4g} | [{low:.4g}, {high:.4g}] |" in card
    assert f"the assessment `{assessed.name}`" in card


def test_samples_of_the_optimum_are_rows_for_sft(trained, judged):
    """500 a prompt, prompts in turn, each completion a leaf; their mean reward is that of pi* within four errors."""
    rows = [json.loads(line) for line in (judged[0] / "optimum.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in rows[:4]] == PROMPTS
    assert len(rows) == 2000
    table, reference = task.rewards(), task.exact_law(task.load(trained[0]))
    star = task.exact.tilted_law(reference, table, 0.5).exp()
    values = [table[PROMPTS.index(r["prompt"]), INDEX[ids_of(r["completion"])]].item() for r in rows]
    mean = (star * table).sum(1)
    spread = ((star * table**2).sum(1) - mean**2).mean().item() ** 0.5
    assert abs(sum(values) / 2000 - mean.mean().item()) < 4 * spread / 2000**0.5


def test_the_flag_alone_takes_the_prompts_from_the_record_too(trained, tmp_path):
    """--objective without any YAML: the test split of what the run was trained on."""
    argv = ["--objective", "--model_name_or_path", trained[1], "--output_dir", str(tmp_path / "out")]
    assess.main(argv)
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["data"][0]["name"] == "world/enumerable"
    assert record["data"][0]["split"] == "test"
    assert "objective/exact/regret" in record["metrics"]


def test_what_is_not_recorded_must_be_said(trained, tmp_path):
    """A model without a run record has no prompts, no reward and no beta to take."""
    argv = ["--model_name_or_path", trained[0], "--output_dir", str(tmp_path / "out")]
    with pytest.raises(UserError, match="names no held-out data to take prompts from"):
        assess.main([*argv, "--objective"])
    config = tmp_path / "assess.yaml"
    config.write_text("evaluations: [{type: objective, dataset: world/enumerable}]\n")
    with pytest.raises(
        UserError, match="evaluation objective: reference_model_name_or_path is not in the model's run"
    ):
        assess.main([*argv, "--config", str(config)])
    argv += ["--reference_model_name_or_path", trained[0]]
    with pytest.raises(UserError, match="evaluation objective: reward is not in the model's run"):
        assess.main([*argv, "--config", str(config)])
