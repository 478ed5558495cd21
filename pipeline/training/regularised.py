"""Eq. (12) on TRL's trainers: the loss of the new corpus plus lambda Omega."""

import copy
import random
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import datasets
import torch

from pipeline.inference.likelihood import last_hidden_states
from pipeline.model.adapters import has_narlm_adapter, load_adapter, save_adapter
from pipeline.objectives import regularisers
from pipeline.runtime.compat import require
from pipeline.runtime.errors import UserError
from pipeline.training.corpora_rules import TERMS
from pipeline.training.omega import Omega
from pipeline.training.trainers import DPOTrainer, SFTTrainer

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel
    from transformers.utils import ModelOutput

require("Regularised")

FISHER_ROWS = 128  # single-row backward passes after a corpus


class Regularised:
    """Mixed into a TRL trainer: ``L_new + sum lambda Omega``. With every lambda 0 it is that trainer, bit for bit.

    ``eval_dataset`` may be None; the memory's rows go through ``prepare`` and then through the trainer's own
    preparation, as an evaluation set does.
    """

    def __init__(
        self,
        *args: Any,
        omega: Omega,
        eval_dataset: datasets.Dataset | None = None,
        prepare: Callable[[list[dict]], datasets.Dataset] = datasets.Dataset.from_list,
        **kwargs: Any,
    ):
        sets = {"eval": eval_dataset} if eval_dataset is not None else {}
        if omega.uses("distillation", "replay", "ewc") and omega.rows:
            sets["memory"] = prepare(omega.rows)
        if omega.uses("distillation") and omega.memory.anchors:
            sets["anchors"] = prepare(omega.memory.anchors)
        super().__init__(*args, eval_dataset=sets or None, **kwargs)
        prepared = self.eval_dataset or {}
        self.eval_dataset, self.omega = prepared.get("eval"), omega
        self.memory_rows = list(prepared.get("memory", ()))
        self.anchor_rows = list(prepared.get("anchors", self.memory_rows))
        self._step, self._micro = -1, 0
        own = self._trainable()
        if omega.uses("l2", "ewc"):
            self.start = {name: value.detach().clone() for name, value in own.items()}
        if omega.uses("ewc"):
            if self.args.world_size > 1:
                raise UserError(
                    "omega ewc measures its Fisher on one process: use l2, distillation or replay on several"
                )
            if not omega.memory.fisher and self.memory_rows:
                omega.memory.fisher = self.fisher(self.memory_rows)
            self.start_fisher = {n: v.to(own[n].device) for n, v in omega.memory.fisher.items() if n in own}
        if omega.uses("distillation") and self.anchor_rows:
            head = self.model.get_output_embeddings()
            # theta_k's logits are its head on its hidden states; a head that is trained must be kept as it was.
            self.start_head = copy.deepcopy(head) if any(p.requires_grad for p in head.parameters()) else head
            self.start_hidden = self._hidden_states()

    def compute_loss(
        self,
        model: "PreTrainedModel | PeftModel",
        inputs: Mapping[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> "torch.Tensor | tuple[torch.Tensor, ModelOutput]":
        """The loss of the new corpus and, in training, lambda Omega."""
        found = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if not model.training or not self.omega.uses(*TERMS):
            return found
        loss, outputs = found if return_outputs else (found, None)
        penalty = 0.0
        for name, value in self.penalties(model).items():
            self._metrics["train"][f"omega/{name}"].append(float(value.detach()))
            penalty = penalty + self.omega.weights[name] * value
        if self.model_accepts_loss_kwargs and num_items_in_batch is not None:
            penalty = penalty / self.current_gradient_accumulation_steps  # Trainer leaves accumulation to the loss
        return (loss + penalty, outputs) if return_outputs else loss + penalty

    def penalties(self, model: "PreTrainedModel | PeftModel") -> dict[str, torch.Tensor]:
        """Every term of Omega at the current parameters, without its lambda; none that has nothing to go by."""
        omega, found = self.omega, {}
        if omega.uses("l2"):
            found["l2"] = regularisers.l2(self._trainable(), self.start)
        if omega.uses("ewc") and self.start_fisher:
            found["ewc"] = regularisers.ewc(self._trainable(), self.start, self.start_fisher)
        if omega.uses("orthogonal") and omega.old_reads:
            found["orthogonal"] = regularisers.orthogonality(*self._reads())
        draw = self._draw()
        if omega.uses("replay") and self.memory_rows:
            rows = self.memory_rows
            places = draw.sample(range(len(rows)), min(omega.batch_size, len(rows)))
            found["replay"] = super().compute_loss(model, self._collated(rows, places))
        if omega.uses("distillation") and self.anchor_rows:
            places = self._alike(draw)
            found["distillation"] = self._distillation(model, self._collated(self.anchor_rows, places), places)
        return found

    def fisher(self, rows: Sequence[Mapping]) -> dict[str, torch.Tensor]:
        """Normalised diagonal Fisher of the trainer's own loss on single prepared rows, at the current parameters."""
        own, gradients = self._trainable(), []
        training = self.model.training
        self.model.eval()
        for row in random.Random(self.omega.seed).sample(list(rows), min(FISHER_ROWS, len(rows))):
            loss = super().compute_loss(self.model, self._prepare_inputs(self.data_collator([row])))
            parts = torch.autograd.grad(loss, list(own.values()), allow_unused=True)
            zero = zip(own.items(), parts, strict=True)
            gradients.append({n: (torch.zeros_like(p) if g is None else g).detach().cpu() for (n, p), g in zero})
        self.model.train(training)
        return regularisers.normalised(regularisers.diagonal_fisher(gradients))

    def remember(self, rows: Sequence[dict], decay: float) -> None:
        """After training: the corpus's rows stream past the reservoir, and its Fisher joins the old one."""
        if self.omega.uses("ewc"):
            new = self.fisher(self.train_dataset)
            self.omega.memory.fisher = regularisers.online_fisher(self.omega.memory.fisher, new, decay)
        self.omega.memory.add(rows, self.omega.seed)

    def _distillation(
        self, model: "PreTrainedModel | PeftModel", batch: Mapping[str, torch.Tensor], places: Sequence[int]
    ) -> torch.Tensor:
        ids, mask = batch["input_ids"], batch["attention_mask"]
        sides = len(ids) // len(places)  # a preference batch holds the chosen answers, then the rejected ones
        rows = [self.start_hidden[i][side] for side in range(sides) for i in places]
        old = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(ids.device)
        old = torch.nn.functional.pad(old, (0, 0, 0, ids.shape[1] - old.shape[1]))
        out = model(input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False)
        total = 0.0
        if self.omega.distill in ("hidden", "both"):
            total = total + regularisers.hidden_distillation(out.hidden_states[-1].float(), old, mask)
        if self.omega.distill in ("logits", "both"):
            with torch.no_grad():
                logits = self.start_head(old.to(self.start_head.weight.dtype)).float()
            total = total + regularisers.logit_distillation(out.logits.float(), logits, mask)
        return total

    def _hidden_states(self, batch_size: int = 32) -> list[list[torch.Tensor]]:
        """F_theta_k(E) of the anchors: one (T, D) tensor each, or two of a preference pair; on the CPU."""
        sides = []  # what the collator leaves of each anchor
        for row in self.anchor_rows:
            batch = self.data_collator([row])
            ids = zip(batch["input_ids"], batch["attention_mask"].bool(), strict=True)
            sides.append([side[mask].tolist() for side, mask in ids])
        found = iter(last_hidden_states(self.model, list(chain.from_iterable(sides)), batch_size=batch_size))
        return [[next(found) for _ in anchor] for anchor in sides]

    def _reads(self) -> tuple[dict, dict]:
        """New and old LoRA A matrices by module."""
        new = {}
        for name, value in self._trainable().items():
            if ".lora_A." in name:
                new[name.partition(".lora_A.")[0]] = value
        return new, {name: self.omega.old_reads[name].to(value.device) for name, value in new.items()}

    def _draw(self) -> random.Random:
        """A generator for this step: of the step alone, so a resumed run draws what it would have drawn."""
        self._micro = self._micro + 1 if self.state.global_step == self._step else 0
        self._step = self.state.global_step
        return random.Random(f"{self.omega.seed}/{self.args.process_index}/{self._step}/{self._micro}")

    def _alike(self, draw: random.Random) -> list[int]:
        """Places of a step's anchors: of four times as many drawn, neighbours by length, so that little is padding."""
        rows, size = self.anchor_rows, min(self.omega.batch_size, len(self.anchor_rows))
        places = draw.sample(range(len(rows)), min(4 * size, len(rows)))
        places.sort(key=lambda i: sum(len(value) for name, value in rows[i].items() if name.endswith("ids")))
        start = draw.randrange(len(places) - size + 1)
        return places[start : start + size]

    def _collated(self, rows: Sequence[Mapping], places: Sequence[int]) -> Mapping:
        return self._prepare_inputs(self.data_collator([rows[i] for i in places]))

    def _trainable(self) -> dict[str, torch.Tensor]:
        return {name: value for name, value in self.model.named_parameters() if value.requires_grad}

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Adapters of our own are saved alone, as PEFT's are."""
        if not has_narlm_adapter(self.model):
            super()._save(output_dir, state_dict)
        elif self.args.should_save:
            save_adapter(self.model, output_dir or self.args.output_dir)
            self.processing_class.save_pretrained(output_dir or self.args.output_dir)

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: "PreTrainedModel | PeftModel | None" = None
    ) -> None:
        if has_narlm_adapter(self.model):
            load_adapter(self.model, resume_from_checkpoint, trainable=True)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)


class ContinualSFTTrainer(Regularised, SFTTrainer):
    """Next-token loss on text, or on the answers of SFT data, plus lambda Omega."""


class ContinualDPOTrainer(Regularised, DPOTrainer):
    """DPO's loss plus lambda Omega; pi_ref is the model as the corpus found it."""
