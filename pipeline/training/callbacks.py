"""Callbacks of the trainers: stop on a signal, push checkpoints, and warn of what a loss does not show."""

import json
import os
import shutil
import signal
import tempfile
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from accelerate import Accelerator
from transformers import TrainerCallback, TrainingArguments

from pipeline.publish.hub import retried, upload
from pipeline.runtime.distributed import agreed, mean_over_processes
from pipeline.runtime.errors import UserError
from pipeline.runtime.files import write_json
from pipeline.runtime.record import Run


class StopOnSignal(TrainerCallback):
    """After SIGINT or SIGTERM: finish the step, write a checkpoint, stop. The run then exits with 130 or 143.

    All processes stop at the same step, whichever of them got the signal: one that saved alone would wait for ever.
    """

    def __init__(self, run: Run):
        self.run = run

    def on_step_end(self, args, state, control, **kwargs) -> None:
        """Ask for a checkpoint and the end of training once a signal was seen."""
        if agreed(self.run.stop_signal is not None):
            self.run.stop_signal = self.run.stop_signal or signal.SIGTERM
            control.should_save = True
            control.should_training_stop = True


class MeanLoss(TrainerCallback):
    """The loss over all steps of a run, of this process and of those before it: Trainer's is that since the resume.

    Summed in double precision from what is handed to ``accelerator.backward``.

    Attributes:
        total: sum over the steps so far, the mean over processes at every checkpoint; None where the checkpoint that
            the run resumed from has none.
    """

    def __init__(self, accelerator: Accelerator):
        self.total: float | None = 0.0
        self._step: list[torch.Tensor] = []
        backward = accelerator.backward

        def watched(loss: torch.Tensor, **kwargs) -> None:
            self._step.append(loss.detach())
            backward(loss, **kwargs)

        accelerator.backward = watched

    def state_dict(self) -> dict[str, float | None]:
        """The sum so far, the mean over processes."""
        if self.total is not None:
            self.total = mean_over_processes(self.total)
        return {"total": self.total}

    def load_state_dict(self, state: dict[str, float | None]) -> None:
        """Take over the sum of the steps before the checkpoint, where it has one."""
        self.total = state.get("total")

    def on_step_end(self, args, state, control, **kwargs) -> None:
        """Add the step's loss, that of its accumulation steps together."""
        losses, self._step = self._step, []
        if self.total is None:
            return
        self.total += sum(loss.float().mean().item() for loss in losses)
        if control.should_training_stop:
            self.total = mean_over_processes(self.total)

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        """Correct the summary in the log's history."""
        if "train_loss" in (logs or {}):
            state.log_history[-1] |= self.metrics(state.global_step)

    def metrics(self, steps: int) -> dict[str, float]:
        """``train_loss`` of the run, where it is known."""
        return {"train_loss": self.total / steps} if self.total is not None and steps else {}


class RequireMetric(TrainerCallback):
    """Refuse a ``metric_for_best_model`` that the evaluation does not give, where something is chosen by it."""

    def on_evaluate(self, args, state, control, metrics=None, **kwargs) -> None:
        """Raises UserError at the first evaluation; Trainer would raise KeyError, or never stop early."""
        name = args.metric_for_best_model
        if not name or not metrics or name in metrics or f"eval_{name}" in metrics:
            return
        known = [key.removeprefix("eval_") for key in metrics if key.startswith("eval_")]
        raise UserError(
            f"metric_for_best_model: the evaluation gives no {name!r}; it gives {', '.join(sorted(known))}"
        )


class PushCheckpoints(TrainerCallback):
    """Send checkpoints to the Hub while training continues, by TRL's ``hub_strategy``; failures are warnings.

    ``every_save`` puts the weights so far where the finished run will be; ``checkpoint`` puts beside them, in
    ``last-checkpoint``, what resumes the run on another machine; ``all_checkpoints`` gives each checkpoint a branch of
    its own, so that ``from_pretrained(repo, revision="checkpoint-200")`` loads it.
    """

    def __init__(self, run: Run, args: TrainingArguments):
        self.run, self.args = run, args
        self.strategy = getattr(args.hub_strategy, "value", args.hub_strategy)
        self._worker = ThreadPoolExecutor(max_workers=1)
        self._last: Future | None = None

    def on_save(self, args, state, control, **kwargs) -> None:
        """Take a copy of the checkpoint, which may soon be deleted, and send it in the background."""
        checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if not list(checkpoint.glob("*.safetensors")) or not (
            self.args.hub_always_push or self._last is None or self._last.done()
        ):
            return
        copy = Path(tempfile.mkdtemp(prefix=".push-", dir=self.run.folder))
        shutil.copytree(checkpoint, copy / checkpoint.name, copy_function=_link)
        self._last = self._worker.submit(self._push, copy, checkpoint.name)

    def finish(self) -> None:
        """Wait for what is being sent; called before the finished run is pushed."""
        self._worker.shutdown(wait=True)

    def _push(self, copy: Path, name: str) -> None:
        folder, args = copy / name, self.args
        try:
            repo = upload(
                folder,
                self.run.record,
                args.hub_model_id or self.run.folder.resolve().name,
                message=f"{name}, in training",
                private=args.hub_private_repo,
                token=args.hub_token,
                revision=name if self.strategy == "all_checkpoints" else args.hub_revision,
            )
            if self.strategy == "checkpoint":
                self._push_resumable(folder, repo)
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            print(f"warning: {name} was not pushed ({reason}); training continues", flush=True)
        finally:
            shutil.rmtree(copy, ignore_errors=True)

    def _push_resumable(self, folder: Path, repo: str) -> None:
        """The complete checkpoint, without pickled arguments and without the paths of this machine."""
        from huggingface_hub import HfApi

        (folder / "training_args.bin").unlink(missing_ok=True)
        (folder / "README.md").unlink(missing_ok=True)
        state = json.loads((folder / "trainer_state.json").read_text())
        if state.get("best_model_checkpoint"):
            state["best_model_checkpoint"] = Path(state["best_model_checkpoint"]).name
        write_json(folder / "trainer_state.json", state)  # in place of a link to the run's own
        config = folder / "adapter_config.json"
        if config.is_file():
            plain = json.loads(config.read_text())
            plain["base_model_name_or_path"] = Path(str(plain.get("base_model_name_or_path"))).name
            write_json(config, plain)
        retried(
            lambda: HfApi(token=self.args.hub_token).upload_folder(
                repo_id=repo,
                folder_path=folder,
                path_in_repo="last-checkpoint",
                revision=self.args.hub_revision,
                commit_message=f"{folder.name}, to resume from",
            )
        )


def _link(source: str, target: str) -> None:
    """A hard link, or a copy where the file system has none: either outlives the source's name."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


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

    def state_dict(self) -> dict[str, bool]:
        """Whether the warning was given."""
        return {"warned": self.warned}

    def load_state_dict(self, state: dict[str, bool]) -> None:
        """Warn once in a run, also over a resume."""
        self.warned = state.get("warned", False)

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
