"""One leg of a longer run: a round of rejection sampling, or a corpus of continual learning.

Leg k of K starts from the folder of leg k-1 (``round-1``, ``corpus-1``, ...; the first from the run's start); the last
one fills the run's own folder. A leg that is complete has a ``leg.json`` and is not repeated by a run that resumes;
its figures are in that file, and go back into the run record.
"""

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from transformers import PreTrainedTokenizerBase, TrainingArguments

from pipeline.model.loading import load_tokenizer
from pipeline.model.policy import ModelArguments, Policy, load_policy
from pipeline.runtime.arguments import StageArguments
from pipeline.runtime.checkpoints import check_saved
from pipeline.runtime.comparison import changed_arguments
from pipeline.runtime.errors import UserError
from pipeline.runtime.files import write_json
from pipeline.runtime.record import Run
from pipeline.training.learning import could_learn
from pipeline.training.session import forget_deepspeed, train_and_save, train_from_newest

if TYPE_CHECKING:
    from transformers import Trainer

LEG_FILE = "leg.json"
FIGURES = ("metrics", "curves", "tables", "learned", "dropped", "unused_message_keys")  # of the run record
SETTINGS = ("stage", "given", "defaults", "arguments", "processes")  # of the run record, to be compared on a resume


class Leg:
    """One leg: its start, its folder, its model, its training.

    Attributes:
        number: from 1 to ``total``.
        origin: the run's start.
        start: what this leg starts from.
        folder: where its result goes.
    """

    kind: Literal["round", "corpus"]

    def __init__(
        self,
        run: Run,
        number: int,
        total: int,
        model_args: ModelArguments,
        config: TrainingArguments,
        template: str | None = None,
    ):
        self.run, self.number, self.total, self.template = run, number, total, template
        self.model_args, self.base_config = model_args, config
        self.origin = model_args.model_name_or_path
        self.start = self.origin if number == 1 else str(self._folder(number - 1))
        self.folder = self._folder(number)

    @property
    def last(self) -> bool:
        """Whether this leg's result is the run's."""
        return self.number == self.total

    def _folder(self, number: int) -> Path:
        return self.run.folder if number == self.total else self.run.folder / f"{self.kind}-{number}"

    def done(self) -> bool:
        """Whether an earlier process of this run finished this leg; the last one ends with the run itself.

        The figures of a leg that is done are put back into the run record.

        Raises:
            UserError: it did, with other settings.
        """
        file = self.folder / LEG_FILE
        if self.last or not file.is_file():
            return False
        saved = json.loads(file.read_text(encoding="utf-8"))
        if changes := changed_arguments(saved, self.run.given):
            raise UserError(
                f"{self.folder} was learned with other settings ({changes[0]}): choose another output_dir, or --force"
            )
        for key in FIGURES:
            for entry, value in saved.get(key, {}).items():
                self.run.note(key, value, entry=entry)
        return True

    def config(self) -> TrainingArguments:
        """The run's training arguments with this leg's folder; a new copy, since a trainer changes its own."""
        forget_deepspeed()
        config = copy.copy(self.base_config)
        config.output_dir, config.push_to_hub = str(self.folder), config.push_to_hub and self.last
        return config

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The start's tokenizer, with the run's chat template and EOS."""
        eos_token = getattr(self.base_config, "eos_token", None)
        tokenizer = load_tokenizer(self.origin, self.base_config.trust_remote_code, eos_token=eos_token)
        tokenizer.chat_template = self.template
        return tokenizer

    def load_policy(self, args: ModelArguments, *, reference: bool = False, **later: str) -> Policy:
        """The model to train: the run's start, in later legs what the leg before left, its adapter continued.

        Args:
            args: the model's arguments.
            reference: the objective has a pi_ref, which is printed.
            later: what is different in later legs, e.g. ``adapter_mode="stack"``.
        """
        remote = self.base_config.trust_remote_code
        if self.number > 1:
            args = replace(args, **{"model_name_or_path": self.start, "adapter_mode": "continue"} | later)
            if not self.run.record["parents"]:  # resumed: the first leg, which records the start, is done
                self.run.add_parent(self.origin, self.model_args.model_revision)
                self.run.note("pi_ref", self.origin)
        first = self.number == 1
        policy = load_policy(args, self.run, trust_remote_code=remote, is_start=first, reference=reference)
        policy.tokenizer.chat_template = self.template
        return policy

    def train(self, trainer: "Trainer", own: StageArguments, finish: Callable[[Path], None]) -> None:
        """Train this leg from its newest checkpoint and save it where the next one starts; the last one as the run.

        Args:
            trainer: built on ``config``.
            own: the stage's own fields.
            finish: called on the main process with the leg's folder once the weights are saved, before they are
                checked.
        """
        name = f"{self.kind} {self.number} of {self.total}" if self.total > 1 else ""
        if self.last:
            train_and_save(self.run, trainer, own, finish, name)
            return
        train_from_newest(self.run, trainer, self.folder, name)
        trainer.save_model(str(self.folder))
        trainer.save_state()
        if self.run.is_main:
            (self.folder / "training_args.bin").unlink(missing_ok=True)
            finish(self.folder)
            check_saved(self.folder, trained=could_learn(trainer))
            # Written last: it says that the leg is complete.
            kept = {key: self.run.record[key] for key in (*SETTINGS, *FIGURES) if key in self.run.record}
            write_json(self.folder / LEG_FILE, kept)
        trainer.accelerator.wait_for_everyone()
