"""What a round of rejection sampling does besides selecting: where it starts, what it keeps, how it resumes.

Round k of K starts from round k-1's folder (`round-<k-1>`; the first from the run's start); the last fills the run's
own folder. Candidates of round k stand in `candidates/round-<k>`, with the settings they were made by.
"""

import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import torch

from pipeline.data.loading import Data, read_split
from pipeline.inference.decoding import sample
from pipeline.inference.vllm import vllm_sampler
from pipeline.model.loading import adapter_base, load_model, load_tokenizer
from pipeline.model.policy import ModelArguments, Policy, load_policy
from pipeline.rewards.judging import score
from pipeline.runtime.checkpoints import check_saved
from pipeline.runtime.errors import UserError
from pipeline.runtime.files import path_sha256, weights_sha256
from pipeline.runtime.record import Run, write_json
from pipeline.training.candidates import read_candidates, sample_candidates
from pipeline.training.learning import could_learn
from pipeline.training.session import forget_deepspeed, train_from_newest


class Round:
    """One round of a run: its start, its folder, its candidates."""

    def __init__(
        self, run: Run, number: int, of: int, model_args: ModelArguments, config: Any, template: str | None = None
    ):
        self.run, self.number, self.of, self.template = run, number, of, template
        self.model_args, self.base_config = model_args, config
        self.origin = model_args.model_name_or_path
        self.start = self.origin if number == 1 else str(run.folder / f"round-{number - 1}")
        self.folder = run.folder if number == of else run.folder / f"round-{number}"

    def done(self) -> bool:
        """Whether an earlier life of this run finished this round; the last one ends with the run itself."""
        return self.number < self.of and (self.folder / "round.json").is_file()

    def config(self) -> Any:
        """The SFT config with this round's folder, for a trainer that has not been before."""
        forget_deepspeed()
        config = copy.copy(self.base_config)
        config.output_dir = str(self.folder)
        return config

    def tokenizer(self) -> Any:
        """The start's tokenizer, with the run's chat template."""
        tokenizer = load_tokenizer(self.origin, self.base_config.trust_remote_code)
        tokenizer.chat_template = self.template
        return tokenizer

    def policy(self) -> Policy:
        """The model to train: the run's start, later the round before, whose adapter goes on training."""
        remote = self.base_config.trust_remote_code
        if self.number == 1:
            policy = load_policy(self.model_args, self.run, trust_remote_code=remote)
        else:
            record = copy.deepcopy(self.run.record)
            args = replace(self.model_args, model_name_or_path=self.start, adapter_mode="continue")
            try:
                policy = load_policy(args, self.run, trust_remote_code=remote)
            finally:  # a round is no parent of the run, and pi_ref stays the run's start
                self.run.record.update({key: record[key] for key in ("parents", "pi_ref") if key in record})
        policy.tokenizer.chat_template = self.template
        return policy

    def candidates(self, rows: list[dict], reward: Any, own: Any) -> list[list[dict[str, Any]]]:
        """This round's candidates by prompt, sampled and scored where they are not there already.

        Raises:
            UserError: there are candidates that were made by other settings.
        """
        folder = self.run.folder / "candidates" / f"round-{self.number}"
        settings = {
            "start": weights_sha256(Path(self.start)) if Path(self.start).is_dir() else self.start,
            "reward": own.reward,
            "n": own.num_candidates,
            "temperature": own.temperature,
            "max_new_tokens": own.max_completion_length,
            "rows": len(rows),
            "seed": self.base_config.seed,
        }
        written = folder / "settings.json"
        if written.is_file() and json.loads(written.read_text()) != settings:
            raise UserError(f"{folder} holds candidates made by other settings: delete it, or use --force")
        if self.run.is_main:
            write_json(written, settings)
        # pi_ref's ratio to the sampling law is 1 in the first round at temperature 1: nothing to measure then.
        weigh = own.select == "softmax" and (self.number > 1 or own.temperature != 1)
        reference = self._for_use(self.origin) if weigh else None
        model, tokenizer = self._for_use(self.start), self.tokenizer()
        sampler = {"sampler": self._engine(model, tokenizer, own, folder)} if own.use_vllm else {}
        files = sample_candidates(
            folder,
            model,
            tokenizer,
            rows,
            reward,
            n=own.num_candidates,
            max_new_tokens=own.max_completion_length,
            temperature=own.temperature,
            reference=reference,
            seed=self.base_config.seed + 100_003 * self.number,
            batch_size=own.sample_batch_size,
            **sampler,
        )
        shutil.rmtree(folder / "merged", ignore_errors=True)
        return list(read_candidates(files))

    def report(self, metrics: dict[str, float]) -> None:
        """Put a round's selection figures into the run record and on the terminal."""
        self.metrics = metrics
        self.run.add_metrics({f"round_{self.number}_{name}": value for name, value in metrics.items()})
        if self.run.is_main:
            figures = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
            print(f"{self.run.stage}: round {self.number} of {self.of}: {figures}", flush=True)

    def write_pairs(self, pairs: list[dict[str, Any]]) -> None:
        """The last round's pairs as ``pairs.jsonl``, a preference dataset."""
        if self.run.is_main and self.number == self.of:
            lines = (json.dumps(pair, ensure_ascii=False) + "\n" for pair in pairs)
            (self.run.folder / "pairs.jsonl").write_text("".join(lines), encoding="utf-8")
        self.run.add_metrics({"pairs": len(pairs)})

    def train(self, trainer: Any, policy: Policy) -> None:
        """Train a round that is not the last, from its newest checkpoint, and save it where the next one starts."""
        train_from_newest(self.run, trainer, self.folder)
        trainer.save_model(str(self.folder))
        if self.run.is_main:
            (self.folder / "training_args.bin").unlink(missing_ok=True)
            policy.finish(self.folder)
            check_saved(self.folder, trained=could_learn(trainer))
            write_json(self.folder / "round.json", self.metrics)  # last: it says that the round is whole
        trainer.accelerator.wait_for_everyone()

    def held_out_reward(self, folder: Path, rows: list[dict], reward: Any, own: Any) -> dict[str, float]:
        """Mean reward of one sample a held-out prompt, of the run's start and of what was saved in ``folder``."""
        if reward is None:
            return {}
        figures = {}
        for when, name in (("before", self.origin), ("after", str(folder))):
            drawn = sample(
                self._for_use(name),
                self.tokenizer(),
                [row["prompt"] for row in rows],
                max_new_tokens=own.max_completion_length,
                batch_size=own.sample_batch_size,
                seed=self.base_config.seed,
            )
            texts, ids = [c[0].text for c in drawn], [c[0].token_ids for c in drawn]
            scores = [value for value in score(reward, rows, texts, ids) if value is not None]
            if scores:
                figures[f"held_out_reward_{when}"] = sum(scores) / len(scores)
        return figures

    def _engine(self, model: Any, tokenizer: Any, own: Any, folder: Path) -> Any:
        """vLLM with the weights of this round's start; an adapter is merged into a folder of its own for it."""
        name = self.start
        if adapter_base(name) is not None:
            name = str(folder / "merged")
            model.save_pretrained(name)
            tokenizer.save_pretrained(name)
        return vllm_sampler(
            name,
            dtype=str(model.dtype).removeprefix("torch."),
            trust_remote_code=self.base_config.trust_remote_code,
            gpu_memory_utilization=own.vllm_gpu_memory_utilization,
            tensor_parallel_size=own.vllm_tensor_parallel_size,
            max_model_length=own.vllm_max_model_length,
            model_impl=own.vllm_model_impl,
        )

    def _for_use(self, name: str) -> Any:
        dtype = "bfloat16" if self.base_config.bf16 and torch.cuda.is_available() else "float32"
        attention = self.model_args.attn_implementation
        model = load_model(
            name,
            dtype=dtype,
            trust_remote_code=self.base_config.trust_remote_code,
            **({"attn_implementation": attention} if attention else {}),
        )
        return model.to(torch.cuda.current_device()) if torch.cuda.is_available() else model


def read_foreign(name: str, dataset_map: dict[str, str] | str | None) -> Data:
    """Candidates made elsewhere, with their entry for the run record.

    Raises:
        UserError: a row has no completion.
    """
    rows = read_split(name, "train", kind="prompt", dataset_map=dataset_map or "")
    for number, row in enumerate(rows, 1):
        if not row.get("completion"):
            raise UserError(f"{name}, row {number}: completion is missing; rename its column with dataset_map")
    digest = path_sha256(Path(name)) if Path(name).exists() else None
    return Data(rows, None, [{"name": name, "split": "train", "rows": len(rows), "fingerprint": digest}])


def to_dataset(rows: list[dict[str, Any]]) -> datasets.Dataset:
    """The selection as SFTTrainer takes it."""
    return datasets.Dataset.from_list(rows)
