"""An interrupted run resumes to what one go would have given: steps, weights and figures, to the last digit."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from pipeline.runtime.errors import UserError
from pipeline.sft import main
from tests.stages.conftest import flags, read_metrics

SAME = ("steps", "train_loss", "eval_loss", "first_eval_loss")


@pytest.fixture(scope="module")
def words(tiny_model, sft_file):
    """Twelve steps, the tenth of which ends an epoch; a checkpoint every four, a log line every five."""
    return flags(
        model_name_or_path=tiny_model, dataset_name=sft_file, eval_rows=4, max_steps=12, save_steps=4, logging_steps=5,
        save_total_limit=9, eval_strategy="steps", eval_steps=6, use_cpu=True, gradient_checkpointing=False,
        gradient_accumulation_steps=2, per_device_train_batch_size=2,
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(words, tmp_path_factory):
    """The run in one go."""
    folder = tmp_path_factory.mktemp("resume") / "whole"
    main([*words, "--output_dir", str(folder)])
    return folder


def killed(whole, folder, keep):
    """The folder as a kill leaves it: the checkpoints up to step ``keep``, and a record that says running."""
    folder.mkdir()
    for path in whole.glob("checkpoint-*"):
        if int(path.name.split("-")[1]) <= keep:
            shutil.copytree(path, folder / path.name)
    record = json.loads((whole / "run.json").read_text()) | {"status": "running", "metrics": {}}
    (folder / "run.json").write_text(json.dumps(record))
    return folder


def same(one, other):
    mine, theirs = read_metrics(one), read_metrics(other)
    weights = [load_file(folder / "model.safetensors") for folder in (one, other)]
    assert {name: mine[name] for name in SAME} == {name: theirs[name] for name in SAME}
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize("keep", [4, 8, 12])
def test_a_killed_run_ends_where_the_whole_one_does(keep, words, whole, tmp_path, capsys):
    """Also from the checkpoint of its last step, after which there is none to make; 12 steps, not 13."""
    folder = killed(whole, tmp_path / "run", keep)
    main([*words, "--output_dir", str(folder)])
    assert f"resuming from {folder}/checkpoint-{keep}\n" in capsys.readouterr().out
    assert read_metrics(folder)["steps"] == 12
    same(folder, whole)


def test_train_loss_is_the_mean_over_all_steps(words, whole, tmp_path):
    """With a log line a step, it is the mean of the twelve lines (which Trainer keeps in single precision)."""
    main([*words, "--output_dir", str(tmp_path / "run"), "--logging_steps", "1"])
    history = json.loads((tmp_path / "run" / "trainer_state.json").read_text())["log_history"]
    losses = [entry["loss"] for entry in history if "loss" in entry]
    assert len(losses) == 12
    assert read_metrics(tmp_path / "run")["train_loss"] == pytest.approx(sum(losses) / 12, rel=1e-6)
    assert [entry["train_loss"] for entry in history if "train_loss" in entry] == [read_metrics(whole)["train_loss"]]


@pytest.mark.parametrize("damage", ["empty", "cut"])
def test_an_optimizer_that_cannot_be_read_is_passed_over(damage, words, whole, tmp_path, capsys):
    folder = killed(whole, tmp_path / "run", 8)
    file = folder / "checkpoint-8" / "optimizer.pt"
    file.write_bytes(b"" if damage == "empty" else file.read_bytes()[:-100])
    main([*words, "--output_dir", str(folder)])
    assert f"resuming from {folder}/checkpoint-4\n" in capsys.readouterr().out
    same(folder, whole)


def test_a_named_checkpoint_is_used(words, whole, tmp_path, capsys):
    """One of the run's folder though there is a newer one, and one of the same run elsewhere."""
    folder = killed(whole, tmp_path / "run", 12)
    named = folder / "checkpoint-4"
    main([*words, "--output_dir", str(folder), "--resume_from_checkpoint", str(named)])
    assert f"resuming from {named}\n" in capsys.readouterr().out
    same(folder, whole)
    elsewhere = whole / "checkpoint-8"
    main([*words, "--output_dir", str(tmp_path / "new"), "--resume_from_checkpoint", str(elsewhere)])
    assert f"resuming from {elsewhere}\n" in capsys.readouterr().out
    same(tmp_path / "new", whole)


def test_a_shorter_run_is_trained_longer(words, whole, tmp_path):
    """Eight steps, then twelve from its checkpoint, are the twelve steps of one go; its own folder is kept."""
    short = tmp_path / "short"
    main([*words, "--max_steps", "8", "--output_dir", str(short)])
    with pytest.raises(
        UserError, match=r"max_steps: '?8'? then, '?12'? now.*another folder and --resume_from_checkpoint .*-8"
    ):
        main([*words, "--output_dir", str(short)])
    main([*words, "--output_dir", str(tmp_path / "long"), "--resume_from_checkpoint", str(short / "checkpoint-8")])
    same(tmp_path / "long", whole)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("nowhere", [], "there is no such folder"),
        ("checkpoint-8", [], "is no complete checkpoint"),
        ("whole", ["--learning_rate", "1e-4"], r"checkpoint of another run \(learning_rate: 0.01 then, 0.0001 now\)"),
    ],
)
def test_a_checkpoint_that_cannot_be_resumed_is_refused(name, options, message, words, whole, tmp_path):
    path = whole / "checkpoint-8" if name == "whole" else tmp_path / name
    if name == "checkpoint-8":
        shutil.copytree(whole / "checkpoint-8", path)
        (path / "trainer_state.json").unlink()
    with pytest.raises(UserError, match=rf"resume_from_checkpoint: .*{message}"):
        main([*words, *options, "--output_dir", str(tmp_path / "run"), "--resume_from_checkpoint", str(path)])
    assert not (tmp_path / "run").exists()


def test_a_misspelt_metric_is_one_line(words, tmp_path):
    options = ["--load_best_model_at_end", "--metric_for_best_model", "eval_los", "--save_steps", "6"]
    with pytest.raises(UserError, match=r"metric_for_best_model: the evaluation gives no 'eval_los'; it gives .*loss"):
        main([*words, *options, "--output_dir", str(tmp_path / "run")])


def test_evaluation_without_rows_is_one_line(words, tmp_path):
    with pytest.raises(UserError, match=r"eval_strategy steps: there are no rows to evaluate on; give eval_rows"):
        main([*words, "--eval_rows", "0", "--output_dir", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()
