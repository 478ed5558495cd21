"""The rows an evaluation reads, and how the run record names them. Never training rows: the split is always given."""

from collections.abc import Collection, Mapping

from pipeline.data.columns import parse_map
from pipeline.data.formats import settle_systems
from pipeline.data.loading import read_source
from pipeline.data.sources import Source
from pipeline.evaluation.held_out import held_out_places
from pipeline.model.chat import as_noted
from pipeline.runtime.errors import UserError
from pipeline.runtime.files import Json


def read_rows(
    dataset: str,
    split: str = "test",
    *,
    kind: str,
    config: str | None = None,
    dataset_map: dict[str, str] | str | None = None,
    where: Mapping[str, object] | None = None,
    limit: int | None = None,
    skip_bad_rows: bool = False,
    columns: Collection[str] = (),
    held_out_of: str | None = None,
    as_chat: bool = False,
    system: str | None = None,
    images: bool = False,
) -> tuple[list[Json], Json]:
    """Rows of one dataset in the standard form of ``kind``, and their entry for the run record.

    Args:
        dataset: Hub id, local file or folder, or ``world/<name>``.
        split: its split; a slice such as ``test[:200]`` is allowed.
        kind: text, sft, preference, prompt or ranked (``pipeline.data.formats``).
        config: configuration of a Hub dataset.
        dataset_map: renames columns, ``old=new,…`` or a mapping.
        where: keep rows whose columns have these values, e.g. ``{kind: with passage}``.
        limit: at most this many rows, evenly spaced over the split.
        skip_bad_rows: leave out rows that do not fit instead of stopping.
        columns: further columns to keep where they exist; kind ``prompt`` keeps all of them anyway.
        held_out_of: the folder of a run: of this split only the rows that it held out.
        as_chat: strings become turns of a chat (``pipeline.model.chat``), for a model that was trained so.
        system: a message for the dialogues that have none.
        images: the evaluation shows a model the images of the rows.

    Raises:
        UserError: the dataset cannot be read, or no row is left.
    """
    source = Source(name=dataset, split=split, config=config, dataset_map=parse_map(dataset_map), role="evaluation")
    part = read_source(source, kind, skip_bad_rows, keep=(*columns, *(where or {})))
    if not images and any(row.get("images") for row in part.rows):
        raise UserError(f"{dataset}: the rows have images, which this evaluation does not show to a model")
    rows = part.rows if as_chat else settle_systems(part.rows, kind, chat=False)
    if held_out_of is not None:
        places = held_out_places(held_out_of)
        rows = [row for row, place in zip(rows, part.places, strict=True) if place in places]
    for column, value in (where or {}).items():
        if not any(column in row for row in rows):
            raise UserError(f"{dataset}: where names the column {column!r}, which the rows do not have")
        rows = [row for row in rows if row.get(column) == value]
    if limit is not None and limit < 1:
        raise UserError(f"limit is {limit}: give 1 or more, or leave it out for all rows")
    if limit is not None and limit < len(rows):
        rows = [rows[i * len(rows) // limit] for i in range(limit)]
    if not rows:
        raise UserError(f"{dataset}, split {split}: no row is left after where: {dict(where or {})}")
    rows = as_noted(rows, kind, {"as_chat": as_chat, "system": system})
    record = part.record() | {"rows": len(rows)}
    for name, value in (("where", dict(where or {})), ("limit", limit)):
        if value:
            record[name] = value
    return rows, record
