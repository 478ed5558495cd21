"""Reward models from complete rankings and from labels: TRL's RewardTrainer with another likelihood.

    L = -log prod_i exp(R(x, y_i)) / sum_{j >= i} exp(R(x, y_j))        y_1 the best

For two candidates it is TRL's Bradley-Terry loss exactly. Ties, stated by a column ``ranks``, count the likelihood of
all their orders. (Plackett, 1975; the paper's Part 2, section 1A.) Labelled single answers are a binary classifier's,
the paper's other example of a reward model.
"""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NamedTuple

import torch
from datasets import Dataset, Image, List, concatenate_datasets
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import ModelOutput

from pipeline.data.account import LONG, report_dropped
from pipeline.data.comparisons import settle_pairs
from pipeline.data.images import has_images, opened
from pipeline.data.loading import Data
from pipeline.data.seen import undecoded, without_images
from pipeline.model.policy import Policy
from pipeline.model.tokens import encode_exchange
from pipeline.model.vision import pixels_of
from pipeline.objectives.preference import binary_reward_loss, plackett_luce_loss
from pipeline.runtime.compat import pad, require
from pipeline.runtime.errors import UserError
from pipeline.runtime.files import Json
from pipeline.runtime.record import Run
from pipeline.training.trainers import RewardTrainer

if TYPE_CHECKING:
    from trl import RewardConfig

require("RankedRewardTrainer")
require("LabelledRewardTrainer")


def encode_ranking(example: Json, tokenizer: PreTrainedTokenizerBase) -> Json:
    """Token ids of every candidate with its prompt, as RewardTrainer writes them: chat template, or text and one eos.

    ``chosen_ids`` and ``rejected_ids`` (the best and the last) tell RewardTrainer that the row is tokenized.
    """
    ids = [encode_exchange(tokenizer, example["prompt"], answer, example) for answer in example["ranked"]]
    ranks = example.get("ranks") or list(range(1, len(ids) + 1))
    return {"chosen_ids": ids[0], "rejected_ids": ids[-1], "candidate_ids": ids, "ranks": ranks}


def encode_rankings(dataset: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> Dataset:
    """A ``prompt`` + ``ranked`` dataset tokenized; a row with a candidate longer than ``max_length`` is left out."""
    dataset = dataset.map(
        encode_ranking, fn_kwargs={"tokenizer": tokenizer}, remove_columns=dataset.column_names, desc="Tokenizing"
    )
    if max_length is None:
        return dataset
    return dataset.filter(lambda row: all(len(ids) <= max_length for ids in row["candidate_ids"]))


class _Padding:
    """A collator that pads sequences to one length."""

    def __init__(self, pad_token_id: int):
        self.pad_token_id = pad_token_id

    def padded(self, sequences: Iterable[list[int]]) -> dict[str, torch.Tensor]:
        """Token ids with their mask, padded on the right."""
        ids = [torch.tensor(sequence) for sequence in sequences]
        return {
            "input_ids": pad(ids, padding_value=self.pad_token_id, padding_side="right"),
            "attention_mask": pad([torch.ones_like(x) for x in ids], padding_value=0, padding_side="right"),
        }


class DataCollatorForRanking(_Padding):
    """Rows of any number of candidates as one flat batch: (sum of N, T) ids, and the ranks of each row, (B, max N).

    Absent candidates have rank 0; real ranks start at 1.
    """

    def __call__(self, rows: list[Json]) -> dict[str, torch.Tensor]:
        """Pad the candidates to one length and the ranks to one width."""
        ranks = pad([torch.tensor(row["ranks"]) for row in rows], padding_value=0, padding_side="right")
        return self.padded(ids for row in rows for ids in row["candidate_ids"]) | {"ranks": ranks}


class RankedRewardTrainer(RewardTrainer):
    """RewardTrainer on rankings; only the loss differs.

    It takes datasets of ``encode_rankings``, a ``DataCollatorForRanking`` and ``remove_unused_columns=False``.
    """

    def compute_loss(
        self,
        model: PreTrainedModel,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, ModelOutput]:
        """Mean Plackett-Luce loss of the batch's rankings, with RewardTrainer's metrics."""
        mode = "train" if self.model.training else "eval"
        ranks = inputs["ranks"]
        mask = ranks > 0
        outputs = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False)
        flat = outputs.logits.squeeze(-1)
        scores = flat.new_zeros(ranks.shape).masked_scatter(mask, flat)
        strict = torch.equal(ranks, torch.arange(1, ranks.size(1) + 1, device=ranks.device) * mask)
        loss = plackett_luce_loss(scores, mask, None if strict else ranks).mean()
        if self.args.center_rewards_coefficient is not None:  # for two candidates RewardTrainer's (R+ + R-)^2
            centre = 2 * (scores * mask).sum(1) / mask.sum(1)
            loss = loss + self.args.center_rewards_coefficient * (centre**2).mean()

        with torch.no_grad():
            better = (ranks[:, :, None] < ranks[:, None, :]) & mask[:, :, None] & mask[:, None, :]  # (B, N, N)
            margins = (scores[:, :, None] - scores[:, None, :])[better]
            won = torch.heaviside(margins, margins.new_tensor(0.5))  # a tie is half right
            statistics = torch.stack([won.sum(), margins.sum(), better.sum()]).float()
            right, margin, pairs = self.accelerator.reduce(statistics, reduction="sum").tolist()
            tokens = self.accelerator.gather_for_metrics(inputs["attention_mask"].sum()).sum().item()
            if mode == "train":
                self._total_train_tokens += tokens
            every = self.accelerator.gather(torch.stack([flat.min(), flat.mean(), flat.max()])[None])
            for name, value in {
                "min_reward": every[:, 0].min().item(),
                "mean_reward": every[:, 1].mean().item(),
                "max_reward": every[:, 2].max().item(),
                "accuracy": right / max(pairs, 1),
                "margin": margin / max(pairs, 1),
            }.items():
                self._metrics[mode][name].append(value)
            self._metrics[mode]["num_tokens"] = [self._total_train_tokens]
        return (loss, outputs) if return_outputs else loss


def encode_labelled(dataset: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> Dataset:
    """A ``prompt`` + ``completion`` + ``label`` dataset tokenized; a row longer than ``max_length`` is left out."""

    def encode(row: Json) -> Json:
        ids = encode_exchange(tokenizer, row["prompt"], row["completion"], row)
        return {"chosen_ids": ids, "rejected_ids": ids, "label": row["label"]}  # by their names TRL sees tokens

    dataset = dataset.map(encode, remove_columns=dataset.column_names, desc="Tokenizing")
    return dataset if max_length is None else dataset.filter(lambda row: len(row["chosen_ids"]) <= max_length)


def encode_seen(dataset: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> Dataset:
    """Pairs with ``images`` tokenized, with every place of an image; a pair longer than ``max_length`` is left out."""

    def encode(row: Json) -> Json:
        both = {name: encode_exchange(tokenizer, row["prompt"], row[name], row) for name in ("chosen", "rejected")}
        return {f"{name}_ids": ids for name, ids in both.items()}

    words = without_images(dataset)
    coded = words.map(encode, remove_columns=words.column_names, desc="Tokenizing")
    lengths = [max(map(len, row)) for row in zip(coded["chosen_ids"], coded["rejected_ids"])]
    kept = [i for i, length in enumerate(lengths) if max_length is None or length <= max_length]
    joined = concatenate_datasets([coded, undecoded(dataset).select_columns("images")], axis=1)
    return joined.select(kept).cast_column("images", List(Image()))


class DataCollatorForSeen(_Padding):
    """Pairs with images as RewardTrainer takes pairs: chosen answers, then rejected ones, and the pixels in that
    order. TRL has no such collator.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        super().__init__(tokenizer.pad_token_id)
        self.tokenizer = tokenizer

    def __call__(self, rows: list[Json]) -> dict[str, torch.Tensor]:
        """input_ids and attention_mask (2 B, T), and pixel_values (2 I, C, Y, X) where a row has an image."""
        batch = self.padded(row[name] for name in ("chosen_ids", "rejected_ids") for row in rows)
        images = [image for row in rows for image in opened(row["images"])] * 2
        return batch | ({"pixel_values": pixels_of(self.tokenizer, images)} if images else {})


class DataCollatorForLabels(_Padding):
    """Rows as (B, T) ids with their mask, and ``labels``, (B,)."""

    def __call__(self, rows: list[Json]) -> dict[str, torch.Tensor]:
        """Pad the rows to one length."""
        labels = torch.tensor([float(row["label"]) for row in rows])
        return self.padded(row["chosen_ids"] for row in rows) | {"labels": labels}


class LabelledRewardTrainer(RewardTrainer):
    """RewardTrainer on labelled single answers.

    It takes datasets of ``encode_labelled``, a ``DataCollatorForLabels`` and ``remove_unused_columns=False``.
    """

    def compute_loss(
        self,
        model: PreTrainedModel,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, ModelOutput]:
        """Mean binary cross-entropy of the scores, with the share of answers on the right side of 0 as accuracy."""
        mode = "train" if self.model.training else "eval"
        outputs = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False)
        scores = outputs.logits.squeeze(-1).float()
        loss = binary_reward_loss(scores, inputs["labels"]).mean()
        with torch.no_grad():
            right = ((scores > 0) == (inputs["labels"] > 0.5)).float().mean()
            for name, value in {"accuracy": right, "mean_reward": scores.mean()}.items():
                self._metrics[mode][name].append(self.accelerator.gather(value).mean().item())
        return (loss, outputs) if return_outputs else loss


# ---------------------------------------------------------------------- what a reward model is fitted to


class Objective(NamedTuple):
    """The trainer of the loss, and (none where TRL's are used) its collator and tokenization."""

    trainer: type[RewardTrainer]
    collator: Callable[[int], Callable] | None = None
    encode: Callable[[Dataset, PreTrainedTokenizerBase, int | None], Dataset] | None = None


OBJECTIVES = {
    "pairwise": Objective(RewardTrainer),
    "listwise": Objective(RankedRewardTrainer, DataCollatorForRanking, encode_rankings),
    "binary": Objective(LabelledRewardTrainer, DataCollatorForLabels, encode_labelled),
}


def build_trainer(objective: Objective, start: Policy, data: Data, config: "RewardConfig", run: Run) -> RewardTrainer:
    """The trainer of an objective on its data; rows that are too long are left out, and counted in the run record.

    Raises:
        UserError: no row is left, or images beside rankings or labels.
    """
    seen = has_images(data.train.column_names)
    if seen:
        if objective is not OBJECTIVES["pairwise"]:
            raise UserError("objective: rows with images are compared in pairs; leave it at pairwise")
        objective = objective._replace(encode=encode_seen)
    train, evaluation, encode = data.train, data.evaluation, objective.encode
    if encode:
        config.remove_unused_columns = False
        train = encode(train, start.tokenizer, config.max_length)
        report_dropped(run, "train", {LONG: len(data.train) - len(train)}, len(data.train))
        if evaluation is not None:
            evaluation = encode(evaluation, start.tokenizer, config.max_length)
            lost, needed = len(data.evaluation) - len(evaluation), config.eval_strategy != "no"
            report_dropped(run, "evaluation", {LONG: lost}, len(data.evaluation), needed=needed)
    collator = objective.collator(start.tokenizer.pad_token_id) if objective.collator else None
    trainer = objective.trainer(
        model=start.model,
        args=config,
        train_dataset=train,
        eval_dataset=evaluation,
        processing_class=start.tokenizer,
        peft_config=start.peft_config,
        data_collator=DataCollatorForSeen(start.tokenizer) if seen else collator,
    )
    if not encode:
        settle_pairs(trainer, data, run)
    return trainer
