"""Trainer callbacks that every training stage has."""

from transformers import TrainerCallback

from pipeline.runtime.record import Run


class StopOnSignal(TrainerCallback):
    """After SIGINT or SIGTERM: finish the step, write a checkpoint, stop. The run then exits with 130 or 143."""

    def __init__(self, run: Run):
        self.run = run

    def on_step_end(self, args, state, control, **kwargs) -> None:
        """Ask for a checkpoint and the end of training once a signal was seen."""
        if self.run.stop_signal is not None:
            control.should_save = True
            control.should_training_stop = True
