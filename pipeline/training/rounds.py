"""A round of rejection sampling: its candidates, the figures of its selection, and the reward it ends with.

Candidates of round k are kept in ``candidates/round-<k>``, with the settings they were made by.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Protocol

import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.data.loading import Data, read_split
from pipeline.data.preparation import supervised
from pipeline.inference.decoding import Completion, sample
from pipeline.inference.stopping import declare_stops
from pipeline.inference.vllm import vllm_sampler
from pipeline.model.loading import adapter_base, load_for_use
from pipeline.model.policy import Policy
from pipeline.objectives.statistics import mean_interval, with_interval
from pipeline.rewards.judging import Reward, judge_rows, mean_parts, part_means
from pipeline.runtime.errors import UserError
from pipeline.runtime.files import Json, path_sha256, weights_sha256, write_json, write_rows
from pipeline.training.candidates import read_candidates, sample_candidates
from pipeline.training.legs import Leg
from pipeline.training.selection import Candidate, Selection, best_of_n_curve, selection_metrics
from pipeline.training.trainers import SFTTrainer


class RoundFields(Protocol):
    """The fields of the stage that are read here; `rsft.RSFTArguments` says what they mean."""

    reward: str | None
    select: str
    num_candidates: int
    max_completion_length: int
    temperature: float
    sample_batch_size: int
    use_vllm: bool
    vllm_gpu_memory_utilization: float
    vllm_tensor_parallel_size: int
    vllm_max_model_length: int | None
    vllm_model_impl: str


class Round(Leg):
    """One round: sample from what the round before left, select, imitate."""

    kind = "round"

    def policy(self) -> Policy:
        """The model to train."""
        return self.load_policy(self.model_args)

    def candidates(self, rows: list[Json], reward: Reward | None, own: RoundFields) -> list[list[Candidate]]:
        """This round's candidates by prompt, sampled and scored where they are not there already.

        Raises:
            UserError: there are candidates that were made by other settings.
        """
        folder = self.run.folder / "candidates" / f"round-{self.number}"
        settings = {
            "start": weights_sha256(Path(self.start)) if Path(self.start).is_dir() else self.start,
            "reward": own.reward,
            "reward_weights": own.reward_weights,
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
        # In the first round at temperature 1 the samples are pi_ref's, so there is no ratio to measure.
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

    def report(self, groups: list[list[Candidate]], rule: Selection) -> None:
        """What the selection does, by rank and by reward: in the run record and in a line on the terminal."""
        metrics = selection_metrics(groups, rule, self.number)
        self.run.add_metrics({f"round_{self.number}_{name}": value for name, value in metrics.items()})
        self.run.add_metrics(mean_parts(candidate.get("parts") for group in groups for candidate in group))
        self.run.add_curves("selection", {f"round {self.number}": best_of_n_curve(groups)})
        none_better = metrics["equal_share"] == 1
        lost = {
            "prompts without an acceptable one": "no_acceptable_share",
            "without a score": "unscored_share",
        }
        if not none_better:
            lost["prompts with equal rewards"] = "equal_share"
        more = "".join(f"; {metrics[key]:.0%} {what}" for what, key in lost.items() if metrics.get(key))
        chosen = f"{metrics['reward_after']:.4g} of those selected (KL {metrics['selection_kl']:.3g} nats)"
        if metrics.get("no_acceptable_share") == 1:
            chosen = "none selected"
        self.run.say(
            f"round {self.number} of {self.total}: mean reward {metrics['reward_before']:.4g} of all candidates, "
            f"{chosen}{more}"
        )
        if none_better:
            self.run.warn(
                f"all candidates of each prompt have the same reward (mean {metrics['reward_before']:.4g}): "
                "what is imitated is no better than the rest; prompts too easy or too hard, a verifier that reads "
                "another format, a temperature too low, or num_candidates 1"
            )

    def write_pairs(self, pairs: list[Json]) -> None:
        """The last round's pairs as ``pairs.jsonl``, a preference dataset."""
        if self.run.is_main and self.last:
            write_rows(self.run.folder / "pairs.jsonl", pairs)
        self.run.add_metrics({"pairs": len(pairs)})

    def imitation(self, policy: Policy, selected: list[Json], example: Json) -> SFTTrainer:
        """The trainer that raises the likelihood of what was selected.

        Args:
            policy: of this round.
            selected: rows of `candidates.sft_rows`.
            example: a row of the run's prompts, by whose form it is known what ends an answer.
        """
        declare_stops(policy.model, policy.tokenizer, example)
        config, chosen = self.config(), Data(Dataset.from_list(selected), None, [])
        data = supervised(chosen, policy.tokenizer, config, self.run, name=f"round {self.number}")
        return SFTTrainer(
            model=policy.model,
            args=config,
            train_dataset=data.train,
            processing_class=policy.tokenizer,
            peft_config=policy.peft_config,
        )

    def finish(
        self, folder: Path, policy: Policy, held_out: list[Json], reward: Reward | None, own: RoundFields
    ) -> None:
        """What a saved round needs beside its weights; the last one reports the reward of held-out prompts."""
        policy.finish(folder)
        if self.last and held_out:
            self.run.add_metrics(self.held_out_reward(folder, held_out, reward, own))

    def held_out_reward(
        self, folder: Path, rows: list[Json], reward: Reward | None, own: RoundFields
    ) -> dict[str, float]:
        """Mean reward of one sample per held-out prompt, of the run's start and of what was saved in ``folder``."""
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
            judgements = judge_rows(reward, rows, texts, ids)
            scores = [judgement.score for judgement in judgements if judgement.score is not None]
            if scores:
                mean = fmean(scores)
                figures |= with_interval(f"held_out_reward_{when}", mean, mean_interval(scores))
                figures["held_out_rows"] = len(rows)
                figures |= {f"held_out_{name}": value for name, value in part_means(judgements).items()}  # of the last
        return figures

    def _engine(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        own: RoundFields,
        folder: Path,
    ) -> Callable[..., list[list[Completion]]]:
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

    def _for_use(self, name: str) -> PreTrainedModel:
        dtype = "bfloat16" if self.base_config.bf16 and torch.cuda.is_available() else "float32"
        attention = self.model_args.attn_implementation
        given = {"attn_implementation": attention} if attention else {}
        remote = self.base_config.trust_remote_code
        return load_for_use(name, dtype=dtype, trust_remote_code=remote, **given)


def read_external(name: str, dataset_map: dict[str, str] | str | None) -> Data:
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
