"""A folder of runs, read with everything that can be wrong in it."""

import json

import pytest

from pipeline.reporting.history import best_model, change, evaluated_before, lineage, read_runs, series
from pipeline.runtime.errors import UserError


def put(folder, name, stage, *, parents=(), started="2026-01-01T00:00:00", history=None, **fields):
    """One run's folder with its record and, if given, its trainer state."""
    run = folder / name
    run.mkdir(parents=True)
    record = {
        "schema": 1,
        "stage": stage,
        "status": "completed",
        "parents": [{"path": str(folder / parent), "sha256": None} for parent in parents],
        "metrics": {},
        "started": started,
        "seconds": 1.0,
        **fields,
    }
    (run / "run.json").write_text(json.dumps(record))
    if history is not None:
        (run / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    return run


def test_parents_come_before_what_was_made_from_them(tmp_path):
    put(tmp_path, "b_sft", "sft", parents=["c_pretrain"], started="2026-01-01T01:00:00")
    put(tmp_path, "a_judged", "assess", parents=["b_sft", "c_pretrain"], started="2026-01-01T02:00:00")
    put(tmp_path, "c_pretrain", "pretrain", started="2026-01-01T09:00:00")  # run anew later, still first
    put(tmp_path, "b_sft.old-20260101-000000", "sft")
    runs = read_runs(tmp_path)
    assert [run.name for run in runs] == ["c_pretrain", "b_sft", "a_judged"]
    assert runs[2].parents == ["b_sft"]  # what an assessment judges, not what it compares with


def test_broken_folders_are_kept_and_named(tmp_path):
    put(tmp_path, "good", "sft")
    put(tmp_path, "dead", "dpo", status="running", process={"host": "x", "pid": 1, "start": "0"})
    dead = json.loads((tmp_path / "dead" / "run.json").read_text())
    dead["process"]["host"] = __import__("socket").gethostname()
    (tmp_path / "dead" / "run.json").write_text(json.dumps(dead))
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "run.json").write_text('{"stage": "sf')
    status = {run.name: run.status for run in read_runs(tmp_path)}
    assert status == {"good": "completed", "dead": "interrupted", "torn": "unreadable"}


def test_nothing_to_report_is_an_error(tmp_path):
    with pytest.raises(UserError, match="no folder in"):
        read_runs(tmp_path)
    with pytest.raises(UserError, match="there is no folder"):
        read_runs(tmp_path / "nowhere")


def test_an_interrupted_run_shows_the_curve_of_its_newest_readable_checkpoint(tmp_path):
    run = put(tmp_path, "sft", "sft", status="interrupted")
    for step, text in ((5, '{"log_history": [{"step": 5, "loss": 2.0}]}'), (10, '{"log_hist')):
        (run / f"checkpoint-{step}").mkdir()
        (run / f"checkpoint-{step}" / "trainer_state.json").write_text(text)
    [view] = read_runs(tmp_path)
    assert series(view.history, "loss") == [(5.0, 2.0)]


def test_a_series_leaves_out_what_is_no_number():
    history = [{"step": 2, "loss": float("nan")}, {"step": 3, "loss": 1.5}, {"step": 1, "loss": 2}, {"loss": 9.0}]
    history += [{"step": 3, "loss": 1.0}, {"step": 4, "loss": "low"}, {"step": 5, "loss": True}]
    assert series(history, "loss") == [(1.0, 2.0), (3.0, 1.0)]  # a step logged again (after a resume) counts once


def test_what_a_stage_improved(tmp_path):
    """DPO by its held-out pairs in the right order, from the record; GRPO by the reward, first and last tenth of 20:
    (0 + 1) / 2 and (18 + 19) / 2; pretraining by its held-out loss; a stage that logged nothing by nothing."""
    put(tmp_path, "dpo", "dpo", metrics={"first_eval_rewards/accuracies": 0.5, "eval_rewards/accuracies": 0.8,
                                         "first_eval_loss": 0.69, "eval_loss": 0.5})  # fmt: skip
    put(tmp_path, "grpo", "grpo", history=[{"step": i, "reward": i, "loss": 0.0} for i in range(20)])
    put(tmp_path, "pretrain", "pretrain", metrics={"eval_loss": 1.0},
        history=[{"step": 1, "loss": 6.0}, {"step": 1, "eval_loss": 5.0}, {"step": 9, "eval_loss": 1.0}])  # fmt: skip
    put(tmp_path, "other", "merge")
    found = {run.name: change(run) for run in read_runs(tmp_path)}
    assert (found["dpo"].what, found["dpo"].before, found["dpo"].after) == (
        "held-out pairs in the right order",
        0.5,
        0.8,
    )
    assert (found["grpo"].before, found["grpo"].after, found["grpo"].higher_is_better) == (0.5, 18.5, True)
    assert (found["pretrain"].before, found["pretrain"].after) == (5.0, 1.0)
    assert not found["pretrain"].higher_is_better
    assert found["other"] is None


def test_samples_survive_a_torn_line(tmp_path):
    run = put(tmp_path, "judged", "assess")
    (run / "samples.jsonl").write_text('{"evaluation": "s", "prompt": "p", "completions": ["c"]}\n{"evalua')
    [view] = read_runs(tmp_path)
    assert [row["prompt"] for row in view.samples] == ["p"]


def test_rejection_sampling_improved_the_held_out_reward_and_not_its_training_loss(tmp_path):
    """The loss of each round is on a selection of its own, so it says nothing; the reward before and after does."""
    metrics = {"held_out_reward_before": 0.5, "held_out_reward_after": 1.25}
    put(tmp_path, "rsft", "rsft", metrics=metrics, history=[{"step": i, "loss": 1.0 / i} for i in (1, 2, 3)])
    found = change(read_runs(tmp_path)[0])
    assert (found.what, found.before, found.after) == ("held-out reward", 0.5, 1.25)


def test_a_reward_model_is_shown_by_its_held_out_pairs(tmp_path):
    """From chance (a tie is half right), not by the loss that it was trained on; labels of single answers from the
    commoner one.
    """
    metrics = {"held_out_accuracy": 0.8, "held_out_accuracy_low": 0.75, "held_out_accuracy_high": 0.85}
    put(tmp_path, "rm", "reward_model", metrics=metrics, history=[{"step": i, "loss": 1.0 / i} for i in (1, 2, 3)])
    put(tmp_path, "labels", "reward_model", metrics=metrics | {"held_out_majority": 0.6})
    labels, pairs = (change(run) for run in read_runs(tmp_path))
    assert (pairs.what, pairs.before, pairs.after, pairs.note) == ("held-out accuracy", 0.5, 0.8, "chance")
    assert pairs.interval == (0.75, 0.85)
    assert pairs.higher_is_better
    assert (labels.before, labels.note) == (0.6, "always the commoner label")


def a_tree(folder, **objectives):
    """pretrain -> sft -> dpo -> grpo; sft -> reward_model; sft (and the reward model) -> ppo, which ran last."""
    made = [("pretrain", ()), ("sft", ("pretrain",)), ("dpo", ("sft",)), ("grpo", ("dpo",))]
    made += [("reward_model", ("sft",)), ("ppo", ("sft", "reward_model"))]
    for i, (name, parents) in enumerate(made):
        put(folder, name, name, parents=parents, started=f"2026-01-01T0{i}:00:00")
    for name, value in objectives.items():
        put(folder, f"assess_{name}", "assess", parents=[name], metrics={"J/objective": value, "J/kl": 9.0})
    return read_runs(folder)


def test_the_model_to_talk_to_is_a_leaf_that_writes_with_the_best_objective(tmp_path):
    """Not the last by the clock, nor the reward model: by the objective that both leaves have, else by the stages
    behind them. dpo has the highest objective of all, but grpo was trained from it.
    """
    runs = a_tree(tmp_path / "a", grpo=1.0, ppo=2.0, dpo=3.0)
    best, rule = best_model(runs)
    assert (best.name, rule) == ("ppo", "the highest J of grpo, ppo")
    assert best_model(a_tree(tmp_path / "b", grpo=2.0, ppo=1.0))[0].name == "grpo"
    best, rule = best_model(a_tree(tmp_path / "c", ppo=2.0))
    assert (best.name, rule[:26]) == ("grpo", "the most stages behind it;")
    put(tmp_path / "d", "rm", "reward_model")
    assert best_model(read_runs(tmp_path / "d")) is None


def test_a_figure_is_compared_with_that_of_the_nearest_ancestor(tmp_path):
    """grpo with dpo, which was not evaluated by `b`: that with sft. A reward model is no ancestor of the policy."""
    runs = a_tree(tmp_path)
    assert [run.name for run in lineage(runs[-1], runs)] == ["sft", "pretrain"]
    for name, metrics in (("sft", {"a/x": 1, "b/x": 2}), ("dpo", {"a/x": 3}), ("grpo", {"a/x": 4, "b/x": 5})):
        put(tmp_path, f"judged_{name}", "assess", parents=[name], metrics=metrics)
    runs = {run.name: run for run in read_runs(tmp_path)}
    assert evaluated_before(runs["judged_grpo"], list(runs.values())) == {"a/x": 3, "b/x": 2}
    assert evaluated_before(runs["judged_sft"], list(runs.values())) == {}


def test_a_run_that_has_recorded_no_parent_yet_comes_from_what_it_was_given(tmp_path):
    put(tmp_path, "sft", "sft")
    put(tmp_path, "dpo", "dpo", status="failed", given={"model_name_or_path": str(tmp_path / "sft")})
    dpo = next(run for run in read_runs(tmp_path) if run.name == "dpo")
    assert (dpo.start, dpo.parents) == ("sft", ["sft"])


def test_the_start_is_the_model_that_was_given_whatever_parent_is_recorded_first(tmp_path):
    put(tmp_path, "sft", "sft")
    put(tmp_path, "rm", "reward_model", parents=["sft"])
    given = {"model_name_or_path": str(tmp_path / "sft")}
    put(tmp_path, "rsft", "rsft", parents=["rm", "sft"], given=given)
    rsft = next(run for run in read_runs(tmp_path) if run.name == "rsft")
    assert rsft.start == "sft"
