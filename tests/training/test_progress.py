"""The line a log entry becomes, and that it stands in the place of transformers' own printing."""

from types import SimpleNamespace

import pytest
import torch
from transformers import Trainer, TrainingArguments

from pipeline.training.progress import log_line, show_progress


def test_a_log_entry_is_one_short_line_with_the_time_left():
    """20 of 100 steps, 10 of them in this process in 5 s: 80 steps are left, at half a second each: 40 s."""
    logs = {"loss": "0.25", "grad_norm": 1.5, "learning_rate": 1e-3, "num_tokens": 3e4, "clip_ratio/low_min": 0}
    line = log_line(logs, step=20, steps=100, seconds=5.0, done=10)
    assert line == "step 20/100  loss 0.25  gradient 1.5  lr 0.001  0:40 left"


def test_an_evaluation_is_told_apart_and_the_summary_is_not_shown():
    logs = {"eval_loss": 0.5, "eval_runtime": 2.0, "eval_rewards/accuracies": 0.75, "epoch": 1}
    assert log_line(logs, 10, 100, 5.0, 10) == "step 10/100  held out:  loss 0.5  accuracy 0.75"
    assert log_line({"train_runtime": 12.0, "train_loss": 0.3}, 100, 100, 5.0, 10) is None


class Line(torch.nn.Module):
    """A slope to be learned, from 0 to 1."""

    def __init__(self):
        super().__init__()
        self.slope = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x, labels):
        return {"loss": ((self.slope * x - labels) ** 2).mean()}


@pytest.mark.parametrize(("strategy", "shown"), [("steps", ["step 2/3", "step 3/3"]), ("no", [])])
def test_the_last_step_is_logged_with_its_loss(tmp_path, capsys, strategy, shown):
    """Three steps logged every two: the third has a line of its own; nothing where nothing is to be logged."""
    args = TrainingArguments(
        str(tmp_path), max_steps=3, logging_steps=2, logging_strategy=strategy, use_cpu=True, report_to="none",
        save_strategy="no",
    )  # fmt: skip
    trainer = Trainer(Line(), args, train_dataset=[{"x": torch.ones(1), "labels": torch.ones(1)}] * 24)
    show_progress(trainer, SimpleNamespace(say=lambda line: None))
    trainer.train()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step")]
    assert [line.split("  ")[0] for line in lines] == shown
    assert all("  loss " in line for line in lines)


@pytest.mark.parametrize("quiet", [True, False])
def test_training_prints_lines_and_no_dictionaries(tmp_path, capsys, quiet):
    """Three steps logged one by one, no terminal: three lines, the last of them with no time left, and no bar."""
    args = TrainingArguments(
        str(tmp_path), max_steps=3, logging_steps=1, use_cpu=True, report_to="none", save_strategy="no",
        disable_tqdm=quiet,
    )  # fmt: skip
    rows = [{"x": torch.ones(1), "labels": torch.ones(1)}] * 24
    trainer = Trainer(Line(), args, train_dataset=rows)
    show_progress(trainer, SimpleNamespace(say=lambda line: print(f"line: {line}")), "leg 1 of 2")
    trainer.train()
    captured = capsys.readouterr()
    assert captured.out.splitlines()[0] == "line: leg 1 of 2: training all 1 weights on 24 rows: 3 steps of 8 rows"
    lines = [line for line in captured.out.splitlines() if line.startswith("step")]
    assert [line.split("  ")[0] for line in lines] == ["step 1/3", "step 2/3", "step 3/3"]
    assert lines[0].startswith("step 1/3  loss 1  ")
    assert lines[0].endswith(" left")
    assert not lines[-1].endswith(" left")
    assert "{" not in captured.out + captured.err
    assert "it/s" not in captured.err


def test_a_figure_may_be_missing():
    """TRL logs None where a window had nothing to average."""
    assert log_line({"loss": 0.5, "reward": None, "kl": None}, 1, 4, 0.0, 0) == "step 1/4  loss 0.5"
    assert log_line({"reward": None}, 1, 4, 0.0, 0) is None
    assert log_line({"eval_reward": None, "eval_loss": 1.0}, 1, 4, 0.0, 0) == "step 1/4  held out:  loss 1"
