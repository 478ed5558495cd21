"""Comparisons of answers as a trainer can use them: within the model's positions, and different once they are cut."""

from typing import TYPE_CHECKING

from pipeline.data.account import EQUAL, LONG, NO_ANSWER, report_dropped, splits_of
from pipeline.data.images import has_images
from pipeline.data.loading import Data
from pipeline.model.tokens import encode_exchange
from pipeline.runtime.files import Json

if TYPE_CHECKING:
    import datasets
    from transformers import PretrainedConfig, PreTrainedTokenizerBase
    from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer

    from pipeline.runtime.record import Run


def readable_answers(
    rows: "datasets.Dataset | None", tokenizer: "PreTrainedTokenizerBase", model: "PretrainedConfig"
) -> "datasets.Dataset | None":
    """Of held-out comparisons or labelled answers those that the model has positions for; None where none is left.

    Args:
        model: the model's config.
    """
    from pipeline.model.loading import position_limit

    limit = position_limit(model)
    if rows is None or limit is None:
        return rows

    def fits(row: Json) -> bool:
        answers = row.get("ranked") or [row[name] for name in ("chosen", "rejected", "completion") if name in row]
        return all(len(encode_exchange(tokenizer, row["prompt"], answer, row)) <= limit for answer in answers)

    places = [place for place, row in enumerate(rows) if fits(row)]
    return rows.select(places) if places else None


def settle_pairs(trainer: "DPOTrainer | RewardTrainer", data: Data, run: "Run", name: str = "train") -> None:
    """Takes out of a DPO or reward trainer the pairs that cutting made equal, and accounts for those that TRL dropped.

    TRL drops what is longer than ``max_length`` (reward) or leaves no room for an answer (DPO). Of rows with images,
    which it prepares batch by batch, there is nothing to account for.

    Raises:
        UserError: no pair is left.
    """
    if has_images(data.train.column_names):
        return
    for (rows, _, label), attribute in zip(splits_of(data, name), ("train_dataset", "eval_dataset")):
        prepared = getattr(trainer, attribute)
        columns, by_trl = ["chosen_ids", "rejected_ids"], LONG
        if "prompt_ids" in prepared.column_names:
            columns, by_trl = ["prompt_ids", *columns], NO_ANSWER
        compared = prepared.map(
            _equal,
            input_columns=columns,
            fn_kwargs={"kept": _pair_part(trainer.args)},
            remove_columns=prepared.column_names,
            num_proc=trainer.args.dataset_num_proc,
            desc="Comparing answers",
        )
        equal = list(compared["equal"]) if len(prepared) else []
        needed = rows is data.train or trainer.args.eval_strategy != "no"
        causes = {by_trl: len(rows) - len(prepared), EQUAL: sum(equal)}
        report_dropped(run, label, causes, len(rows), needed=needed)
        if any(equal):
            prepared = prepared.select([place for place, same in enumerate(equal) if not same])
        setattr(trainer, attribute, prepared if len(prepared) else None)


def _pair_part(config: "DPOConfig | RewardConfig") -> slice:
    if config.max_length is None or getattr(config, "truncation_mode", "keep_start") == "keep_start":
        return slice(config.max_length)
    return slice(-config.max_length, None)


def _equal(*ids: list[int], kept: slice) -> dict[str, bool]:
    *prompt, chosen, rejected = ids
    head = prompt[0] if prompt else []
    return {"equal": (head + chosen)[kept] == (head + rejected)[kept]}
