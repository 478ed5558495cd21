"""Eq. (12) on TRL's trainers: the loss of the new corpus plus lambda Omega, and what Omega must remember.

A sequence of corpora is a chain of ordinary runs: corpus k starts from the folder of corpus k-1 (`corpus-<k-1>`), the
last fills the run's own folder, and each folder holds the adapter together with Omega's memory: ``omega.json`` (the
reservoir of rows, how many it has seen) and, for EWC, ``omega.safetensors`` (the Fisher).
"""

import copy
import functools
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import datasets
import torch
from peft import LNTuningConfig, OSFConfig
from safetensors.torch import load_file, save_file

from pipeline.data.loading import to_dataset
from pipeline.data.preparation import encode, learned_of, settle_pairs, supervised
from pipeline.inference.stopping import declare_stops
from pipeline.model.adapters import attach, backbone_sha256, has_own_adapter, load_adapter, save_adapter
from pipeline.model.loading import engine
from pipeline.model.policy import ModelArguments, Policy, load_policy
from pipeline.model.routing import Router, load_routed, prompt_features, save_routed
from pipeline.objectives import regularisers
from pipeline.runtime.checkpoints import check_saved
from pipeline.runtime.comparison import changed_arguments
from pipeline.runtime.compat import require
from pipeline.runtime.errors import UserError
from pipeline.runtime.record import Run, write_json
from pipeline.training.learning import could_learn
from pipeline.training.self_replay import written_by
from pipeline.training.session import forget_deepspeed, train_from_newest
from pipeline.training.trainers import DPOTrainer, SFTTrainer

require("Regularised")

TERMS = ("l2", "ewc", "function", "orthogonal", "replay")
FISHER_ROWS = 128  # single-row backward passes after a corpus


# ---------------------------------------------------------------------- what Omega remembers


@dataclass
class Memory:
    """What is kept of earlier corpora, of a size that does not grow with their number.

    ``rows``: a uniform sample of all rows seen (data of ``replay``, and anchors of ``function`` where ``anchors`` has
    none); ``fisher``: EWC's; ``anchors``: rows of text, the same from the first corpus to the last.
    """

    size: int
    rows: list[dict] = field(default_factory=list)
    seen: int = 0
    fisher: dict[str, torch.Tensor] = field(default_factory=dict)
    anchors: list[dict] = field(default_factory=list)

    def add(self, rows: Sequence[dict], seed: int) -> None:
        """Let rows stream past the reservoir."""
        draw = random.Random(f"{seed}/{self.seen}")
        self.rows, self.seen = regularisers.reservoir(self.rows, self.seen, rows, self.size, draw)

    def supersede(self, rows: Sequence[Mapping]) -> None:
        """Forget every row whose prompt a new row answers otherwise: what has changed must not pull back."""
        told = {repr(row["prompt"]): row["completion"] for row in rows if "prompt" in row and "completion" in row}
        self.rows = [
            row
            for row in self.rows
            if "completion" not in row or told.get(repr(row["prompt"]), row["completion"]) == row["completion"]
        ]

    def save(self, folder: Path) -> None:
        """Write ``omega.json`` and, where there is a Fisher, ``omega.safetensors`` beside the adapter."""
        write_json(
            Path(folder) / "omega.json", {name: getattr(self, name) for name in ("size", "seen", "rows", "anchors")}
        )
        if self.fisher:
            save_file({k: v.contiguous() for k, v in self.fisher.items()}, Path(folder) / "omega.safetensors")

    @classmethod
    def load(cls, folder: str | Path, size: int) -> "Memory":
        """The memory saved in a folder; an empty one where there is none. Never more than ``size`` rows."""
        file = Path(folder) / "omega.json"
        if not file.is_file():
            return cls(size)
        kept = json.loads(file.read_text(encoding="utf-8"))
        tensors = Path(folder) / "omega.safetensors"
        fisher = load_file(tensors) if tensors.is_file() else {}
        return cls(size, kept["rows"][:size], kept["seen"], fisher, kept.get("anchors", []))


# ---------------------------------------------------------------------- Omega in the loss


@dataclass
class Omega:
    """The terms of Omega with their lambdas, as one corpus sees them.

    ``old_reads``: the LoRA A matrices of earlier corpora, by module, for ``orthogonal``. ``written``: rows that the
    model wrote itself, read in place of the memory's.
    """

    weights: dict[str, float]
    memory: Memory
    distill: str = "both"
    batch_size: int = 16
    seed: int = 0
    old_reads: dict[str, torch.Tensor] = field(default_factory=dict)
    written: list[dict] | None = None

    @property
    def rows(self) -> list[dict]:
        """What is replayed, and read where there are no anchors."""
        return self.memory.rows if self.written is None else self.written

    def uses(self, *terms: str) -> bool:
        """Whether one of these terms has a weight above 0."""
        return any(self.weights.get(term, 0.0) > 0 for term in terms)


class Regularised:
    """Mixed into a TRL trainer: ``L_new + sum lambda Omega``. With every lambda 0 it is that trainer, bit for bit.

    ``eval_dataset`` may be None; the memory's rows go through ``prepare`` and then through the trainer's own
    preparation, as an evaluation set does.
    """

    def __init__(
        self,
        *args: Any,
        omega: Omega,
        eval_dataset: Any = None,
        prepare: Callable[[list[dict]], datasets.Dataset] = datasets.Dataset.from_list,
        **kwargs: Any,
    ):
        sets = {"eval": eval_dataset} if eval_dataset is not None else {}
        if omega.uses("function", "replay", "ewc") and omega.rows:
            sets["memory"] = prepare(omega.rows)
        if omega.uses("function") and omega.memory.anchors:
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
                raise UserError("omega ewc measures its Fisher on one process: use l2, function or replay on several")
            if not omega.memory.fisher and self.memory_rows:
                omega.memory.fisher = self.fisher(self.memory_rows)
            self.start_fisher = {n: v.to(own[n].device) for n, v in omega.memory.fisher.items() if n in own}
        if omega.uses("function") and self.anchor_rows:
            head = self.model.get_output_embeddings()
            # theta_k's logits are its head on its hidden states; a head that is trained must be kept as it was.
            self.start_head = copy.deepcopy(head) if any(p.requires_grad for p in head.parameters()) else head
            self.start_hidden = self._hidden_states()

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The corpus's own loss and, in training, lambda Omega."""
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

    def penalties(self, model: Any) -> dict[str, torch.Tensor]:
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
        if omega.uses("function") and self.anchor_rows:
            places = self._alike(draw)
            found["function"] = self._function(model, self._collated(self.anchor_rows, places), places)
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

    def _function(self, model: Any, batch: Mapping, places: Sequence[int]) -> torch.Tensor:
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

    @torch.no_grad()
    def _hidden_states(self, batch_size: int = 32) -> list[list[torch.Tensor]]:
        """F_theta_k(E) of the anchors: one (T, D) tensor each, or two of a preference pair; on the CPU."""
        found, training = [], self.model.training
        self.model.eval()
        for start in range(0, len(self.anchor_rows), batch_size):
            rows = self.anchor_rows[start : start + batch_size]
            batch = self._prepare_inputs(self.data_collator(rows))
            ids, mask = batch["input_ids"], batch["attention_mask"]
            out = self.model(input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False)
            states = zip(out.hidden_states[-1].float().cpu(), mask.sum(1), strict=True)
            kept = [state[: int(length)].clone() for state, length in states]
            found += [kept[i :: len(rows)] for i in range(len(rows))]
        self.model.train(training)
        return found

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
        if not has_own_adapter(self.model):
            super()._save(output_dir, state_dict)
        elif self.args.should_save:
            save_adapter(self.model, output_dir or self.args.output_dir)
            self.processing_class.save_pretrained(output_dir or self.args.output_dir)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if has_own_adapter(self.model):
            load_adapter(self.model, resume_from_checkpoint, trainable=True)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)


class ContinualSFTTrainer(Regularised, SFTTrainer):
    """Next-token loss on text, or on the answers of SFT data, plus lambda Omega."""


class ContinualDPOTrainer(Regularised, DPOTrainer):
    """DPO's loss plus lambda Omega; pi_ref is the model as the corpus found it."""


# ---------------------------------------------------------------------- one corpus of a sequence


def refuse_split(own: Any) -> None:
    """Refuse what reads or merges whole weights where FSDP or ZeRO-3 splits them over the processes.

    Raises:
        UserError: the method or a term of Omega needs them whole.
    """
    if engine() not in ("fsdp", "zero3"):
        return
    terms = [name for name in ("l2", "ewc", "function", "orthogonal") if name in own.omega]
    refused = [f"omega {name}" for name in terms]
    refused += [f"method {own.method}"] if own.method not in ("lora", "full") else []
    refused += [f"adapters {own.adapters}"] if own.adapters != "shared" else []
    refused += ["replay_source model"] if own.replay_source == "model" else []
    refused += ["method full on pairs"] if own.method == "full" and own.kind == "preference" else []
    if refused:
        raise UserError(f"{refused[0]} needs whole weights, which FSDP and ZeRO-3 split: launch with ddp or zero2")


def encode_memory(rows: list[dict], tokenizer: Any, config: Any, learned: Any) -> datasets.Dataset:
    """Remembered rows as the corpus's own are prepared; those that cannot be trained on are left out."""
    kind = "text" if "text" in rows[0] else "sft"
    coded = encode(to_dataset(rows, kind), tokenizer, config, learned)
    return coded.filter(lambda cause: not cause, input_columns="lost").select_columns(["input_ids", "labels"])


class Corpus:
    """One corpus of a run: its start, its folder, its model, its trainer."""

    def __init__(
        self,
        run: Run,
        number: int,
        of: int,
        own: Any,
        model_args: ModelArguments,
        config: Any,
        template: str | None = None,
    ):
        self.run, self.number, self.of, self.own, self.template = run, number, of, own, template
        self.model_args, self.base_config = model_args, config
        self.origin = model_args.model_name_or_path
        self.folder = run.folder if number == of else run.folder / f"corpus-{number}"
        self.start = self.origin if number == 1 else str(run.folder / f"corpus-{number - 1}")

    def done(self) -> bool:
        """Whether an earlier life of this run finished this corpus; the last one ends with the run itself.

        Raises:
            UserError: it did, with other settings.
        """
        file = self.folder / "corpus.json"
        if self.number == self.of or not file.is_file():
            return False
        settings = json.loads(file.read_text(encoding="utf-8"))
        if changes := changed_arguments(settings, self.run.given):
            raise UserError(
                f"{self.folder} was learned with other settings ({changes[0]}): choose another output_dir, or --force"
            )
        return True

    def policy(self) -> Policy:
        """theta_k with what ``method`` trains of it; the backbone's identity is kept for the check at the end.

        Raises:
            UserError: the start is an adapter of another method.
        """
        own, remote = self.own, self.base_config.trust_remote_code
        targets = self.model_args.lora_target_modules or "all-linear"  # PEFT knows no default for a new model type
        args = replace(self.model_args, use_peft=own.method == "lora", lora_target_modules=targets)
        if own.adapters == "stacked" and args.adapter_mode == "continue":
            args = replace(args, adapter_mode="stack")
        if self.number == 1:
            policy = load_policy(args, self.run, trust_remote_code=remote)
        else:
            if not self.run.record["parents"]:  # resumed: the first corpus, which records it, is done
                self.run.add_parent(self.origin, self.model_args.model_revision)
                self.run.record["pi_ref"] = self.origin
            record = copy.deepcopy(self.run.record)
            mode = "stack" if own.adapters == "stacked" else "continue"
            start = self.origin if own.adapters == "routed" else self.start
            args = replace(args, model_name_or_path=start, adapter_mode=mode)
            try:
                policy = load_policy(args, self.run, trust_remote_code=remote)
            finally:  # a corpus is no parent of the run, and pi_ref stays the run's start
                self.run.record.update({key: record[key] for key in ("parents", "pi_ref")})
        found = _method_of(policy.model)
        if own.adapters == "routed" and found is not None:
            raise UserError(f"adapters routed starts from a full model: merge {self.start} into its base first")
        if found not in (None, own.method):
            raise UserError(
                f"the start {self.start} is an adapter of method {found}, to be trained by {own.method}: continue it "
                f"by --method {found}, or merge it first (python pipeline/merge.py)"
            )
        if found is None and own.method in ("bias", "bottleneck"):
            attach(policy.model, own.method, base=policy.model.name_or_path, size=own.bottleneck_size)
        elif found is None and own.method in ("layernorm", "osf"):
            policy.peft_config = peft_config_of(own.method, policy.model)
        whole = own.method not in ("full", "osf") and engine() is None
        self.backbone = backbone_sha256(policy.model) if whole else None
        policy.tokenizer.chat_template = self.template
        return policy

    def omega(
        self, old_rows: Sequence[dict], new_rows: Sequence[Mapping], anchors: Sequence[dict], policy: Policy
    ) -> Omega:
        """Omega with the memory that corpus k-1 left, or that of the run's start, or one filled from old rows; less
        what the new rows contradict. With ``replay_source: model`` the policy writes what is replayed.
        """
        own = self.own
        memory = Memory.load(self.start, own.memory_rows)
        if self.number == 1 and not memory.rows:
            memory.add(old_rows, self.base_config.seed)
        memory.anchors = memory.anchors or list(anchors)
        memory.supersede(new_rows)
        reads = {}
        if own.adapters == "stacked" and (file := Path(self.start) / "adapter_model.safetensors").is_file():
            ends = ".lora_A.weight"
            reads = {name.removesuffix(ends): value for name, value in load_file(file).items() if name.endswith(ends)}
        return Omega(
            dict(zip(own.omega, own.omega_weight, strict=True)),
            memory,
            own.distill,
            own.memory_batch_size,
            self.base_config.seed,
            reads,
            self._written(policy, memory) if own.replay_source == "model" else None,
        )

    def _written(self, policy: Policy, memory: Memory) -> list[dict]:
        """What theta_k writes of the memory's prompts, or of nothing; how much of it is kept is in the run record."""
        own = self.own
        rows = written_by(
            policy.model,
            policy.tokenizer,
            memory.rows,
            kind=own.kind,
            count=own.memory_rows,
            max_new_tokens=own.replay_max_new_tokens,
            seed=self.base_config.seed + self.number,
        )
        self.run.add_metrics({f"corpus_{self.number}/self_replay_rows": len(rows)})
        return rows

    def trainer(self, policy: Policy, data: Any, omega: Omega, callbacks: Sequence[Any]) -> Any:
        """The trainer of this corpus, by the kind of data."""
        forget_deepspeed()
        config = copy.copy(self.base_config)
        config.output_dir, config.push_to_hub = str(self.folder), config.push_to_hub and self.number == self.of
        declare_stops(policy.model, policy.tokenizer, data.train[0])
        kind, extra = ContinualSFTTrainer, {}
        name = f"corpus {self.number}"
        if self.own.kind != "preference":
            learned = learned_of(self.run, config)
            data = supervised(data, policy.tokenizer, config, self.run, learned, name=name)
            extra["prepare"] = functools.partial(
                encode_memory, tokenizer=policy.tokenizer, config=config, learned=learned
            )
        else:
            kind = ContinualDPOTrainer
            if policy.peft_config is None and not hasattr(policy.model, "peft_config"):
                # Without PEFT TRL would reload the base, which lacks the adapter and everything learned since.
                extra["ref_model"] = copy.deepcopy(policy.model).requires_grad_(False)
        trainer = kind(
            model=policy.model,
            args=config,
            train_dataset=data.train,
            eval_dataset=data.evaluation,
            processing_class=policy.tokenizer,
            peft_config=policy.peft_config,
            callbacks=list(callbacks),
            omega=omega,
            **extra,
        )
        if self.own.kind == "preference":
            settle_pairs(trainer, data, self.run, name)
        return trainer

    def train(self, trainer: Any) -> None:
        """Train a corpus that is not the last, from its newest checkpoint, and save it where the next one starts."""
        train_from_newest(self.run, trainer, self.folder)
        trainer.save_model(str(self.folder))
        trainer.save_state()

    def finish(self, folder: Path, trainer: Any, policy: Policy, rows: Sequence[dict]) -> None:
        """What a saved corpus needs beside its weights: a sound adapter, the backbone unharmed, Omega's memory.

        Raises:
            RuntimeError: the backbone has changed.
        """
        (folder / "training_args.bin").unlink(missing_ok=True)
        if self.backbone is not None and backbone_sha256(trainer.model) != self.backbone:
            raise RuntimeError(f"{self.own.method} changed the backbone, which it must not")
        policy.finish(folder)
        if self.own.method == "osf":  # its factors are of this corpus's weights: the next one needs the whole model
            for file in ("adapter_model.safetensors", "adapter_config.json"):
                (folder / file).unlink(missing_ok=True)
            copy.deepcopy(trainer.model).merge_and_unload().save_pretrained(folder)
        trainer.remember(rows, self.own.fisher_decay)
        trainer.omega.memory.save(folder)
        check_saved(folder, trained=could_learn(trainer))

    def route(
        self, folder: Path, model: Any, prompts: Sequence[list[int]], known: Sequence[list[int]]
    ) -> tuple[Any, Router]:
        """Make the finished folder a routed one; the model with all its adapters as they were saved, and their router.

        Args:
            folder: this corpus's folder.
            model: with the corpus's own adapter.
            prompts: token ids of what the corpus asks.
            known: the same of what was known before the first corpus, which the backbone alone answers.
        """
        earlier = self.start if self.number > 1 else None
        with model.disable_adapter():
            features = prompt_features(model, prompts)
            router = Router.load(earlier) if earlier else Router.empty(features.shape[1])
            if known and not router.routes:
                router.add(0, prompt_features(model, known))
        router.add(self.number, features)
        save_routed(folder, earlier, self.number, self.origin, router)
        loaded, router = load_routed(folder, trust_remote_code=self.base_config.trust_remote_code)
        return loaded.to(model.device), router

    def mark(self) -> None:
        """Say that this corpus is whole; last of all."""
        if self.run.is_main and self.number < self.of:
            kept = ("stage", "given", "defaults", "arguments", "processes")
            write_json(self.folder / "corpus.json", {key: self.run.record[key] for key in kept})


def _method_of(model: Any) -> str | None:
    """The method of the adapter that a model carries; None where it carries none."""
    if has_own_adapter(model):
        return model.narlm_adapter["method"]
    if hasattr(model, "peft_config"):
        kind = str(getattr(model.peft_config["default"].peft_type, "value", ""))
        return {"LORA": "lora", "LN_TUNING": "layernorm"}.get(kind, kind.lower())
    return None


def peft_config_of(method: str, model: Any) -> Any:
    """PEFT's configuration of LayerNorm tuning (every module of that kind in the model) or OSF.

    Raises:
        UserError: the model has no norm that is called so.
    """
    if method == "osf":
        return OSFConfig(target_modules="all-linear", task_type="CAUSAL_LM")
    names = {name.rpartition(".")[2] for name, m in model.named_modules() if "norm" in type(m).__name__.lower()}
    if not names:
        raise UserError("method layernorm: no module of this model is a LayerNorm or RMSNorm by its class's name")
    return LNTuningConfig(target_modules=sorted(names), task_type="CAUSAL_LM")
