"""Numbers that are not finite end a training run, in every stage, before they reach its weights or its checkpoints.

Trainer alone steps with NaN gradients, logs their loss as 0 (``logging_nan_inf_filter``) and saves the result.
"""

import math
from collections.abc import Iterable

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from transformers import Trainer, TrainerCallback

from pipeline.runtime.distributed import agreed
from pipeline.runtime.errors import DivergedError

ADVICE = (
    "lower learning_rate (or warm it up, or set max_grad_norm) and start again with --force; if the first steps fail "
    "already, look for rows without a learned token, enormous rewards, or a dtype that is too narrow"
)


class StopWhenNotFinite(TrainerCallback):
    """Raise ``DivergedError`` before the optimizer steps on a loss or gradient that is not finite.

    Where it looks, and why there:

    - ``accelerator.backward`` hands over the loss of every accumulation step. Under DeepSpeed it also steps the
      optimizer, so there the loss is looked at before it.
    - ``accelerator.clip_grad_norm_`` hands over the gradient's norm, which is that of all shards and processes. Under
      fp16 an infinite one is no fault: the scaler skips that step.
    - The weights themselves before every checkpoint, since a finite gradient can still overflow them.
    - ``eval_loss``, which is the first to see what the last step did.

    All processes stop at the same step, whichever of them found it.

    Args:
        trainer: the trainer to watch.
        stage: name of the stage, for the message.
    """

    def __init__(self, trainer: Trainer, stage: str):
        self.trainer, self.stage = trainer, stage
        accelerator = trainer.accelerator
        self._steps_in_backward = accelerator.distributed_type == DistributedType.DEEPSPEED
        self._scaled = accelerator.mixed_precision == "fp16"
        self._checks_evaluations = not hasattr(trainer, "reward_funcs")  # a rollout's loss is no measure
        self._losses: list[torch.Tensor] = []
        self._norm: torch.Tensor | float | None = None
        self._watch(accelerator)
        trainer.args.logging_nan_inf_filter = False

    def _watch(self, accelerator: Accelerator) -> None:
        backward, clip = accelerator.backward, accelerator.clip_grad_norm_

        def watched_backward(loss: torch.Tensor, **kwargs) -> None:
            self._losses.append(loss.detach())
            if self._steps_in_backward:
                self._require_finite_loss()
            backward(loss, **kwargs)

        def watched_clip(*args, **kwargs) -> torch.Tensor | None:
            self._norm = clip(*args, **kwargs)
            return self._norm

        accelerator.backward, accelerator.clip_grad_norm_ = watched_backward, watched_clip

    def on_pre_optimizer_step(self, args, state, control, **kwargs) -> None:
        """Check the loss and the gradient of the step that is about to be made."""
        norm, self._norm = self._norm, None
        norm = None if norm is None or self._scaled else float(norm)
        self._require_finite_loss(norm)
        self._losses.clear()

    def on_step_end(self, args, state, control, model=None, **kwargs) -> None:
        """Check the weights where a checkpoint of them, or the end of the run, comes next."""
        if control.should_save or control.should_training_stop:
            self._require_finite_weights(model, state.global_step)

    def on_epoch_end(self, args, state, control, model=None, **kwargs) -> None:
        """The same for ``save_strategy: epoch``."""
        self.on_step_end(args, state, control, model=model)

    def on_evaluate(self, args, state, control, metrics=None, **kwargs) -> None:
        """Check the loss on held-out rows, which has every weight in it."""
        loss = (metrics or {}).get("eval_loss")
        if self._checks_evaluations and isinstance(loss, float) and not math.isfinite(loss):
            raise self._diverged(f"eval_loss is {loss} after step {state.global_step}")

    def _require_finite_loss(self, norm: float | None = None) -> None:
        """One exchange between the processes: a loss is of one process, and all must stop."""
        broken = bool(self._losses) and not bool(torch.isfinite(torch.stack(self._losses)).all())
        if agreed(broken or (norm is not None and not math.isfinite(norm))):
            loss = sum(float(loss) for loss in self._losses)
            gradient = "" if norm is None else f", its gradient's norm {norm:.4g}"
            step = self.trainer.state.global_step + 1
            raise self._diverged(f"step {step} was not made: its loss is {loss:.4g}{gradient}")

    def _require_finite_weights(self, model: torch.nn.Module | None, step: int) -> None:
        if model is not None and agreed(not all_finite(model.parameters())):
            raise self._diverged(f"the weights are not finite after step {step}")

    def _diverged(self, what: str) -> DivergedError:
        return DivergedError(
            f"{self.stage} diverged: {what}. Nothing of it was saved, earlier checkpoints are kept; {ADVICE}"
        )


def all_finite(tensors: Iterable[torch.Tensor]) -> bool:
    """Whether every number in them is finite; of a sharded tensor this process's part."""
    local = (tensor.to_local() if hasattr(tensor, "to_local") else tensor for tensor in tensors)
    return all(bool(torch.isfinite(t).all()) for t in local if t.is_floating_point())


def diverged_in_sampling(error: RuntimeError) -> bool:
    """Whether sampling failed for logits that are not finite, which is how a rollout meets broken weights first."""
    return "probability tensor contains" in str(error)
