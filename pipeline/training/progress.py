"""What a training run says in the terminal: a bar where there is a person, and one short line a log entry."""

import sys
import time
from collections.abc import Callable, Mapping

from tqdm.auto import tqdm
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback, TrainerState

from pipeline.runtime.formatting import counted, short
from pipeline.runtime.record import Run
from pipeline.runtime.terminal import hide_weight_bars

# What to show of a log entry, in this order, and under which name. run.json and trainer_state.json keep all of it.
SHOWN = {
    "loss": "loss",
    "mean_token_accuracy": "token accuracy",
    "reward": "reward",
    "kl": "KL",
    "objective/scores": "score",
    "objective/kl": "KL",
    "val/explained_variance": "explained variance",
    "rewards/accuracies": "accuracy",
    "accuracy": "accuracy",
    "rewards/margins": "margin",
    "margin": "margin",
    "frac_reward_zero_std": "groups without signal",
    "completions/mean_length": "length",
    "completions/clipped_ratio": "truncated",
    "grad_norm": "gradient",
    "learning_rate": "lr",
}


def log_line(logs: Mapping[str, float | None], step: int, steps: int, seconds: float, done: int) -> str | None:
    """A log entry in one line, or None where it holds nothing that is shown (the summary at the end).

    Args:
        logs: what the Trainer logs.
        step: the step reached.
        steps: the steps there are in all.
        seconds: time since this process began to train.
        done: steps made in that time (fewer than ``step`` after a resume).
    """
    evaluated = any(key.startswith("eval_") for key in logs)
    prefix = "eval_" if evaluated else ""
    # A figure may be None: TRL logs that where a window had nothing to average, such as no completion with a score.
    figures = {name: logs[prefix + key] for key, name in SHOWN.items() if logs.get(prefix + key) is not None}
    if not figures:
        return None
    words = [f"{name} {float(value):.4g}" for name, value in figures.items()]
    if evaluated:
        return "  ".join([f"step {step}/{steps}  held out:", *words])
    if done and seconds > 0 and step < steps:
        left = round((steps - step) * seconds / done)
        words.append(f"{left // 60}:{left % 60:02d} left")
    return "  ".join([f"step {step}/{steps}", *words])


class Progress(ProgressCallback):
    """transformers' progress bar, with ``log_line`` for its dictionaries; without a terminal the lines alone."""

    def __init__(self, bar: bool, begin: Callable[[TrainerState], None] = lambda state: None):
        super().__init__()
        self.bar, self.began, self.first, self.begin, self.ended = bar, 0.0, 0, begin, False

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        self.began, self.first = time.monotonic(), state.global_step
        if state.is_world_process_zero:
            self.begin(state)
        if self.bar:
            super().on_train_begin(args, state, control, **kwargs)
            self.training_bar.update(state.global_step)  # resumed: the bar starts where the run stood
        self.current_step = state.global_step

    def on_step_end(self, args, state, control, **kwargs) -> None:
        # The last step is logged wherever logging_steps falls: a run shorter than that would never show its loss.
        if args.logging_strategy != "no" and state.global_step >= state.max_steps:
            control.should_log = True
        if self.training_bar is not None:
            super().on_step_end(args, state, control, **kwargs)

    def on_prediction_step(self, args, state, control, **kwargs) -> None:
        if self.bar:
            super().on_prediction_step(args, state, control, **kwargs)
        if self.prediction_bar is not None:
            self.prediction_bar.leave = False  # that of an evaluation after the training would stay

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        if self.ended or not state.is_world_process_zero or not logs:
            return  # an evaluation after the end is what the run's last lines report
        seconds, done = time.monotonic() - self.began, state.global_step - self.first
        line = log_line(logs, state.global_step, state.max_steps, seconds, done)
        if line is not None:
            tqdm.write(line)
            sys.stdout.flush()

    def on_train_end(self, args, state, control, **kwargs) -> None:
        self.ended = True
        if self.training_bar is not None:
            super().on_train_end(args, state, control, **kwargs)


def plan(trainer: Trainer, state: TrainerState) -> str:
    """What is about to be trained, on how much, in a line: rows, steps, rows per step, passes, weights."""
    args = trainer.args
    batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    samples = "completions" if hasattr(trainer, "num_generations") else "rows"
    sized = hasattr(trainer.train_dataset, "__len__")
    rows = counted(len(trainer.train_dataset), "row") if sized else "a stream of rows"
    if getattr(trainer, "eval_dataset", None) is not None:
        rows += f", {len(trainer.eval_dataset):,} held out"
    parameters = [(getattr(p, "ds_numel", p.numel()), p.requires_grad) for p in trainer.model.parameters()]
    total, trained = sum(size for size, _ in parameters), sum(size for size, needs in parameters if needs)
    weights = f"all {short(total)} weights" if trained == total else f"{short(trained)} of {short(total)} weights"
    passes = f" ({state.num_train_epochs:.3g} {'pass' if state.num_train_epochs == 1 else 'passes'})"
    passes = passes if sized and args.max_steps <= 0 else ""
    steps = f"{counted(state.max_steps, 'step')} of {batch} {samples}{passes}"
    return f"training {weights} on {rows}: {steps}"


def show_progress(trainer: Trainer, run: Run, leg: str = "") -> TrainerCallback:
    """Put ``Progress`` in the place of what transformers prints; ``disable_tqdm: true`` keeps the lines alone."""
    hide_weight_bars()
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    # Not the argument: where nothing is given, Trainer sets it by the level of transformers' log, which is quiet here.
    bar = sys.stderr.isatty() and not run.given.get("disable_tqdm")
    progress = Progress(bar, lambda state: run.say(f"{leg}: " * bool(leg) + plan(trainer, state)))
    trainer.add_callback(progress)
    return progress
