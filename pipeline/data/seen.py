"""Loaded rows with images before a trainer takes them: what a model of text cannot read, and what may not be cut.

TRL prepares such rows batch by batch, so they stay as they are; their lengths are counted here, with images' places.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from pipeline.data.images import PLACE, has_images
from pipeline.data.loading import Data
from pipeline.data.mixing import Place
from pipeline.model.dialogue_tokens import encode_rendered
from pipeline.model.tokens import encode_exchange
from pipeline.model.vision import processor_of
from pipeline.runtime.errors import UserError

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerBase
    from trl import DPOConfig

    from pipeline.data.streaming import DocumentStream


def require_sight(data: Data, tokenizer: "PreTrainedTokenizerBase") -> None:
    """Hold rows with images to a model that sees.

    Raises:
        UserError: the model reads text only.
    """
    for rows, places in ((data.train, data.train_places), (data.evaluation, data.evaluation_places)):
        if rows is None or not has_images(rows.column_names) or processor_of(tokenizer) is not None:
            continue
        place = next((i for i, images in enumerate(undecoded(rows)["images"]) if images), 0)
        raise UserError(
            f"{place_of(places, place)}has an image, but the model reads text only: name a model that sees, or rename "
            "the column (dataset_map image=picture)"
        )


# By which of these TRL takes a row for a dialogue is a matter of chance, and it wants one where there are images.
TOLD_BY = ("completion", "chosen", "rejected", "messages")


def for_rollouts(data: Data) -> Data:
    """Prompts with images without columns of answers, which TRL could take the row's form from; others as they are."""
    if not has_images(data.train.column_names):
        return data

    def without(rows: "datasets.Dataset | None") -> "datasets.Dataset | None":
        return rows and rows.remove_columns([name for name in TOLD_BY if name in rows.column_names])

    return replace(data, train=without(data.train), evaluation=without(data.evaluation))


def refuse_images(data: Data, stage: str) -> None:
    """Stop a stage that reads text only before it trains on words about images it has not seen.

    Raises:
        UserError: the rows have images.
    """
    if has_images(data.train.column_names):
        raise UserError(f"{stage} reads text only, and the rows have images: use sft, dpo or grpo for them")


def pairs_within_length(data: Data, tokenizer: "PreTrainedTokenizerBase", config: "DPOConfig") -> None:
    """Refuse pairs with images that ``max_length`` would cut; TRL is then told to cut nothing.

    Raises:
        UserError: the first such pair.
    """
    if not has_images(data.train.column_names):
        return
    rows = without_images(data.train)
    answers = ([row[name] for row in rows] for name in ("chosen", "rejected"))
    lengths = [
        [len(encode_exchange(tokenizer, row["prompt"], answer, row)) for row, answer in zip(rows, side)]
        for side in answers
    ]
    within_length(data, config.max_length, lengths)
    config.max_length = None


def within_length(data: Data, max_length: int | None, lengths: Sequence[Sequence[int]]) -> None:
    """Refuse rows with images that are longer than ``max_length``: cutting them would cut images' places off.

    Args:
        lengths: of the training rows in tokens, places of images too; several lists, as of two answers.

    Raises:
        UserError: the first such row.
    """
    for place, row in enumerate(zip(*lengths, strict=True)):
        if max_length is not None and max(row) > max_length:
            raise UserError(
                f"{place_of(data.train_places, place)}has {max(row)} tokens with its images, and max_length is "
                f"{max_length}: cutting it would cut into an image; raise max_length, or shorten the row"
            )


def undecoded(rows: "datasets.Dataset") -> "datasets.Dataset":
    """Rows whose images stay the bytes they are stored as."""
    if not has_images(rows.column_names):
        return rows
    import datasets

    return rows.cast_column("images", datasets.List(datasets.Image(decode=False)))


def without_images(rows: "datasets.Dataset") -> "datasets.Dataset":
    """The words of rows, with the places of their images."""
    return rows.remove_columns("images") if has_images(rows.column_names) else rows


def place_of(places: Sequence[Place], place: int) -> str:
    """``rows.jsonl, row 3: ``, where a row was read, as the beginning of a message."""
    return "{}, row {}: ".format(*places[place]) if places else f"row {place + 1}: "


def words_of(rows: "datasets.Dataset | DocumentStream") -> "datasets.Dataset | DocumentStream | dict[str, list[str]]":
    """Documents as a tokenizer is trained on them: without the places of images."""
    if not has_images(getattr(rows, "column_names", ())):
        return rows
    return {"text": [text.replace(PLACE, "") for text in rows["text"]]}


def captions(data: Data, tokenizer: "PreTrainedTokenizerBase", max_length: int) -> Data:
    """Documents with images, each as one row that begins with BOS, ends with EOS and has the model's image token.

    Raises:
        UserError: a model of text, or a row of more than ``max_length`` tokens with its images.
    """
    require_sight(data, tokenizer)
    token = getattr(processor_of(tokenizer), "image_token", PLACE)

    def written(rows: "datasets.Dataset | None") -> "datasets.Dataset | None":
        if rows is None:
            return None
        texts = [text.replace(PLACE, token) for text in rows["text"]]
        ends = tokenizer.bos_token or "", tokenizer.eos_token
        return rows.remove_columns("text").add_column("text", [text.join(ends) for text in texts])

    train = written(data.train)
    within_length(data, max_length, [[len(encode_rendered(tokenizer, text)) for text in train["text"]]])
    return replace(data, train=train, evaluation=written(data.evaluation))
