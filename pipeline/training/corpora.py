"""A corpus of continual learning: its data, its model, its trainer by eq. (12), and what it leaves in its folder.

Each folder holds the adapter together with Omega's memory (`training.omega.Memory`).
"""

import copy
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import datasets
from peft import LNTuningConfig, OSFConfig, PeftConfig, PeftModel
from safetensors.torch import load_file

from pipeline.data.arguments import DataArguments
from pipeline.data.arrow import to_dataset
from pipeline.data.comparisons import settle_pairs
from pipeline.data.images import has_images
from pipeline.data.loading import Data, load_data
from pipeline.data.preparation import encode, learned_of, supervised
from pipeline.inference.stopping import declare_stops
from pipeline.model.adapters import attach, backbone_sha256, has_narlm_adapter
from pipeline.model.chat import as_noted
from pipeline.model.loading import engine
from pipeline.model.policy import ModelArguments, Policy
from pipeline.model.routing import Router, load_routed, prompt_features, save_routed
from pipeline.model.tokens import Learned
from pipeline.model.vision import trained_with
from pipeline.runtime.errors import UserError
from pipeline.runtime.files import Json
from pipeline.runtime.record import Run
from pipeline.training.corpora_rules import CorpusFields
from pipeline.training.legs import Leg
from pipeline.training.omega import Memory, Omega
from pipeline.training.regularised import ContinualDPOTrainer, ContinualSFTTrainer
from pipeline.training.self_replay import written_by
from pipeline.training.trainers import vision_collator
from pipeline.worlds.table import is_world

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
    from trl import DPOConfig, SFTConfig


# ---------------------------------------------------------------------- data


def corpus_arguments(own: CorpusFields, data_args: DataArguments) -> list[tuple[str, DataArguments]]:
    """Name and data arguments of every corpus, in their order."""
    if data_args.datasets:
        return [(str(entry.get("path")), replace(data_args, datasets=[entry])) for entry in data_args.datasets]
    names = own.corpora or [data_args.dataset_name]
    return [(str(name), replace(data_args, dataset_name=name)) for name in names]


def old_arguments(own: CorpusFields, data_args: DataArguments) -> DataArguments:
    """Data arguments of what the model knew before the first corpus."""
    name = own.old_dataset_name
    split = "test" if is_world(name) else None
    return DataArguments(dataset_name=name, dataset_map=data_args.dataset_map, dataset_test_split=split)


def load_anchors(own: CorpusFields, seed: int) -> Data:
    """``anchor_rows`` rows of text, sampled once."""
    data = load_data(DataArguments(dataset_name=own.anchor_dataset_name, eval_rows=0), "text", seed)
    rows = data.train.shuffle(seed=seed).select(range(min(own.anchor_rows, len(data.train))))
    return Data(rows.select_columns("text"), None, data.sources)


def encode_memory(
    rows: list[Json], tokenizer: "PreTrainedTokenizerBase", config: "SFTConfig", learned: Learned
) -> datasets.Dataset:
    """Remembered rows prepared as those of the corpus are; those that cannot be trained on are left out."""
    kind = "text" if "text" in rows[0] else "sft"
    coded = encode(to_dataset(rows, kind), tokenizer, config, learned)
    return coded.filter(lambda cause: not cause, input_columns="lost").select_columns(["input_ids", "labels"])


# ---------------------------------------------------------------------- one corpus


class Corpus(Leg):
    """One corpus: theta_{k+1} from theta_k."""

    kind = "corpus"

    def __init__(
        self,
        run: Run,
        number: int,
        total: int,
        own: CorpusFields,
        model_args: ModelArguments,
        config: "SFTConfig | DPOConfig",
        template: str | None = None,
    ):
        super().__init__(run, number, total, model_args, config, template)
        self.own = own

    def policy(self) -> Policy:
        """theta_k with what ``method`` trains of it; the backbone's identity is kept for the check at the end.

        Raises:
            UserError: the start is an adapter of another method.
        """
        own = self.own
        targets = self.model_args.lora_target_modules or "all-linear"  # PEFT knows no default for a new model type
        args = replace(self.model_args, use_peft=own.method == "lora", lora_target_modules=targets)
        if own.adapters == "stacked" and args.adapter_mode == "continue":
            args = replace(args, adapter_mode="stack")
        policy = self.load_policy(
            args,
            reference=own.kind == "preference",
            model_name_or_path=self.origin if own.adapters == "routed" else self.start,
            adapter_mode="stack" if own.adapters == "stacked" else "continue",
        )
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
        complete = own.method not in ("full", "osf") and engine() is None
        self.backbone = backbone_sha256(policy.model) if complete else None
        return policy

    def omega(self, policy: Policy, new_rows: Sequence[Json], old: Data | None, anchors: Data | None) -> Omega:
        """Omega with the memory that corpus k-1 left, or that of the run's start, or one filled from old rows; less
        what the new rows contradict. With ``replay_source: model`` the policy writes what is replayed.
        """
        own = self.own
        memory = Memory.load(self.start, own.memory_rows)
        if "chat" in self.run.record:  # what an earlier run remembered may be strings
            memory.rows = as_noted(memory.rows, own.kind, self.run.record["chat"])
        if self.number == 1 and not memory.rows and old is not None:
            memory.add(list(old.train), self.base_config.seed)
        memory.anchors = memory.anchors or ([] if anchors is None else list(anchors.train))
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

    def trainer(
        self, policy: Policy, data: Data, omega: Omega, callbacks: Sequence["TrainerCallback"]
    ) -> ContinualSFTTrainer | ContinualDPOTrainer:
        """The trainer of this corpus, by the kind of data."""
        config = self.config()
        declare_stops(policy.model, policy.tokenizer, data.train[0])
        kind, extra = ContinualSFTTrainer, {}
        name = f"corpus {self.number}"
        if self.own.kind != "preference":
            learned = learned_of(self.run, config)
            if has_images(data.train.column_names) and omega is not None:
                raise UserError("omega: rows with images are learned without one; set omega none")
            data = supervised(data, policy.tokenizer, config, self.run, learned, name=name)
            extra["data_collator"] = vision_collator(trained_with(policy.tokenizer), config, data.train.column_names)
            extra["prepare"] = partial(encode_memory, tokenizer=policy.tokenizer, config=config, learned=learned)
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
            processing_class=trained_with(policy.tokenizer),
            peft_config=policy.peft_config,
            callbacks=list(callbacks),
            omega=omega,
            **extra,
        )
        if self.own.kind == "preference":
            settle_pairs(trainer, data, self.run, name)
        return trainer

    def finish(
        self, folder: Path, trainer: ContinualSFTTrainer | ContinualDPOTrainer, policy: Policy, rows: Sequence[Json]
    ) -> None:
        """What a saved corpus needs beside its weights: the backbone unchanged, Omega's memory.

        Raises:
            RuntimeError: the backbone has changed.
        """
        if self.backbone is not None and backbone_sha256(trainer.model) != self.backbone:
            raise RuntimeError(f"{self.own.method} changed the backbone, which it must not")
        policy.finish(folder)
        if self.own.method == "osf":  # its factors are of this corpus's weights: the next one needs the complete model
            for file in ("adapter_model.safetensors", "adapter_config.json"):
                (folder / file).unlink(missing_ok=True)
            copy.deepcopy(trainer.model).merge_and_unload().save_pretrained(folder)
        trainer.remember(rows, self.own.fisher_decay)
        trainer.omega.memory.save(folder)

    def route(
        self, folder: Path, model: PeftModel, prompts: Sequence[list[int]], known: Sequence[list[int]]
    ) -> tuple[PeftModel, Router]:
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


def _method_of(model: "PreTrainedModel | PeftModel") -> str | None:
    """The method of the adapter that a model carries; None where it carries none."""
    if has_narlm_adapter(model):
        return model.narlm_adapter["method"]
    if hasattr(model, "peft_config"):
        kind = str(getattr(model.peft_config["default"].peft_type, "value", ""))
        return {"LORA": "lora", "LN_TUNING": "layernorm"}.get(kind, kind.lower())
    return None


def peft_config_of(method: str, model: "PreTrainedModel") -> PeftConfig:
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


# ---------------------------------------------------------------------- what cannot be run


def check_split(own: CorpusFields) -> None:
    """Refuse what reads or merges complete weights where FSDP or ZeRO-3 splits them over the processes.

    Raises:
        UserError: the method or a term of Omega needs them complete.
    """
    if engine() not in ("fsdp", "zero3"):
        return
    terms = [name for name in ("l2", "ewc", "distillation", "orthogonal") if name in own.omega]
    refused = [f"omega {name}" for name in terms]
    refused += [f"method {own.method}"] if own.method not in ("lora", "full") else []
    refused += [f"adapters {own.adapters}"] if own.adapters != "shared" else []
    refused += ["replay_source model"] if own.replay_source == "model" else []
    refused += ["method full on pairs"] if own.method == "full" and own.kind == "preference" else []
    if refused:
        raise UserError(f"{refused[0]} needs complete weights, which FSDP and ZeRO-3 split: launch with ddp or zero2")
