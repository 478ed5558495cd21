"""Callbacks that watch one training objective for what its loss does not show."""

from transformers import TrainerCallback


class WarnWhenChosenFalls(TrainerCallback):
    """DPO's margin can grow while both log-likelihoods fall; say so once the chosen answers became less likely.

    Batches differ in their log-likelihoods by far more than training moves them, so each answer is compared with
    itself: TRL's ``rewards/chosen`` is the mean of ``beta (log pi(y+|x) - log pi_ref(y+|x))`` over a logging window,
    which is 0 before the first step whatever the rows are.

    Args:
        nats: how far (in nats per answer, mean over a logging window) the chosen answers may fall below pi_ref.
    """

    def __init__(self, nats: float = 1.0):
        self.nats = nats
        self.warned = False

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        """Look at the training rows of one logging window; warn once, on the main process."""
        value = (logs or {}).get("rewards/chosen")
        if value is None or self.warned or not args.beta:
            return
        fallen = -value / args.beta
        if fallen > self.nats:
            self.warned = True
            if state.is_world_process_zero:
                print(
                    f"warning: step {state.global_step}: the chosen answers are {fallen:.2f} nats less likely than "
                    "under pi_ref: the margin grows by making both answers less likely. A larger beta, a lower "
                    "learning_rate, or sft in loss_type keeps them up.",
                    flush=True,
                )
