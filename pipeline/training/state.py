"""What a run must remember besides weights, optimizer and random states: one ``state.json`` in every checkpoint.

Trainer's own checkpoint holds weights, optimizer, scheduler, random states and the step, which also fixes the epoch
and so the order of rows. Everything else that training changes is a part with ``state_dict`` and ``load_state_dict``,
as a PyTorch module has them: a callback (sums of losses, guards), or the trainer itself (the place in a stream, an
adapted coefficient). A resumed run is then equal to an uninterrupted one.

What outlives a trainer is not here but in the folder of its leg or run: ``leg.json`` (a leg is finished, and
its figures), ``omega.json`` with its tensors (what continual learning remembers), candidates, and pass rates of a
prefilter.
"""

import json
import shutil
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, TrainOutput

from pipeline.runtime.checkpoints import UNFINISHED, publish_checkpoint
from pipeline.runtime.compat import require, rotate_checkpoints
from pipeline.runtime.files import write_json

require("Resumable")

STATE_FILE = "state.json"

State = dict[str, Any]  # as JSON can hold it


@runtime_checkable
class Stateful(Protocol):
    """A part of a run that changes in training."""

    def state_dict(self) -> State:
        """Its state, as JSON can hold it; called on every process, so that it may average over them."""

    def load_state_dict(self, state: State) -> None:
        """Take over the state of a checkpoint; ``{}`` where that checkpoint does not have this part."""


class Resumable:
    """Mixed into a Trainer: its checkpoints hold the state of the trainer and its callbacks; none is half written."""

    _saving = False

    def parts(self) -> dict[str, Stateful]:
        """The parts by name: ``trainer``, and the callbacks by their class."""
        found: dict[str, Stateful] = {"trainer": self} if isinstance(self, Stateful) else {}
        for part in self.callback_handler.callbacks:
            name = type(part).__name__
            if isinstance(part, Stateful):
                assert name not in found, f"two callbacks {name} would share one state"
                found[name] = part
        return found

    def train(self, resume_from_checkpoint: str | Path | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """The parent's, once every part has taken over its state of the checkpoint."""
        if resume_from_checkpoint:
            file = Path(resume_from_checkpoint, STATE_FILE)
            saved = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
            for name, part in self.parts().items():
                part.load_state_dict(saved.get(name, {}))
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _get_output_dir(self, trial: object) -> str:
        """The parent's; while a checkpoint is written, the folder beside it where no name counts as a checkpoint."""
        folder = super()._get_output_dir(trial)
        return str(Path(folder, UNFINISHED)) if self._saving else folder

    def _save_checkpoint(self, model: torch.nn.Module, trial: object) -> None:
        """The parent's and ``state.json``, written aside; the folder gets its name once everything is on the disk.

        The parent rotates before anybody can verify the new checkpoint, so older ones are removed here, at the end.
        ``training_args.bin`` is a pickle that may hold the Hub's token: it is in no checkpoint.
        """
        state = {name: part.state_dict() for name, part in self.parts().items()}
        run_dir, name = Path(self._get_output_dir(trial)), f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        written = run_dir / UNFINISHED / name
        if self.args.should_save:
            shutil.rmtree(written.parent, ignore_errors=True)  # of a process that was killed
        self.accelerator.wait_for_everyone()
        self._saving = True
        try:
            super()._save_checkpoint(model, trial)
        except BaseException:
            shutil.rmtree(written.parent, ignore_errors=True)  # a full disk has room again
            raise
        finally:
            self._saving = False
        self.accelerator.wait_for_everyone()
        best = f"{PREFIX_CHECKPOINT_DIR}-{self.state.best_global_step}"
        if best == name or (run_dir / best).is_dir():
            self.state.best_model_checkpoint = str(run_dir / best)
        if self.args.should_save:
            (written / TRAINING_ARGS_NAME).unlink(missing_ok=True)
            write_json(written / STATE_FILE, state)
            self.state.save_to_json(str(written / TRAINER_STATE_NAME))
            publish_checkpoint(written, run_dir / name)
            rotate_checkpoints(
                str(run_dir), self.args.save_total_limit, self.state.best_model_checkpoint, use_mtime=True
            )
        self.accelerator.wait_for_everyone()
