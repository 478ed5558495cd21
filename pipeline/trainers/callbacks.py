"""Callbacks that watch one training objective for what its loss does not show."""

from transformers import TrainerCallback


class WarnWhenChosenFalls(TrainerCallback):
    """DPO's margin can grow while both log-likelihoods fall; say so once the chosen answers became less likely.

    Args:
        nats: how far (in nats, mean over a logging window) log pi(chosen) may fall below its first value.
    """

    def __init__(self, nats: float = 1.0):
        self.nats = nats
        self.first: float | None = None
        self.warned = False

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        """Compare ``logps/chosen`` with the first logged value; warn once, on the main process."""
        value = (logs or {}).get("logps/chosen")
        if value is None:
            return
        if self.first is None:
            self.first = value
        elif not self.warned and value < self.first - self.nats:
            self.warned = True
            if state.is_world_process_zero:
                print(
                    f"warning: log-likelihood of chosen answers fell from {self.first:.2f} to {value:.2f} at step "
                    f"{state.global_step}: the margin grows by making both answers less likely. A larger "
                    "beta, a lower learning_rate, or sft in loss_type keeps them up.",
                    flush=True,
                )
