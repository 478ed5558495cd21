"""Data for a stage: read, brought to a standard form, cleaned of duplicates, and split without leakage.

A row comes from `sources` (as `files` or the Hub store it), gets its form in `formats`, is kept or left out in
`mixing`, and becomes Arrow in `arrow`. `load_data` is what training stages call; `read_split` reads one dataset. None
of them imports torch (a stream does). Everything random follows the seed, so every process of a distributed run makes
the same data.
"""

import random
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import TYPE_CHECKING

from pipeline.data import mixing
from pipeline.data.arguments import DataArguments
from pipeline.data.arrow import to_dataset
from pipeline.data.columns import parse_map
from pipeline.data.dialogues import unused_keys
from pipeline.data.formats import content_hash, convert, prompt_hash, settle_systems
from pipeline.data.images import see
from pipeline.data.mixing import Part, Place
from pipeline.data.remote import is_url
from pipeline.data.rows import RowError
from pipeline.data.schemas import FORMS, find_form, prepare
from pipeline.data.sources import Source, eval_sources, raw_rows, sliced, source_fingerprint, sources_of
from pipeline.runtime.distributed import is_main
from pipeline.runtime.errors import UserError
from pipeline.runtime.files import Json
from pipeline.runtime.registry import import_function
from pipeline.worlds.table import require_world

if TYPE_CHECKING:
    import datasets

EVAL_SHARE, EVAL_ROWS = 0.1, 500  # held out by default: this share, at most so many rows
PEEK = 100  # rows by which the form of a dataset is found


@dataclass(frozen=True)
class Data:
    """What a stage trains on and is evaluated on, and the run record's account of both.

    ``train`` is a ``datasets.Dataset`` (from `load_stream` a ``DocumentStream``), ``evaluation`` one too, or
    None when ``eval_rows`` is 0. ``sources`` has an entry for each dataset read: name, split, rows (that remain),
    fingerprint, files (local ones), bad_rows, duplicates, removed_from_train, and in mixtures weight and repeats.
    ``train_places`` and ``evaluation_places`` hold where each row was read: file or dataset, and row number.
    """

    train: "datasets.Dataset"
    evaluation: "datasets.Dataset | None"
    sources: list[Json]
    train_places: Sequence[Place] = ()
    evaluation_places: Sequence[Place] = ()


def load_data(arguments: DataArguments, kind: str, seed: int, *, quiet: bool = False) -> Data:
    """Training and evaluation rows of one kind (text, sft, preference, prompt, ranked) for a stage.

    Evaluation is, in this order: ``eval_dataset_name``; the split ``dataset_test_split`` of every training dataset;
    else rows held out of the training split, drawn by the seed so that rows with one prompt stay on one side. Rows of
    the evaluation data are then removed from training by content. ``quiet`` prints nothing about it.

    Raises:
        UserError: anything wrong in the names, files, columns or rows.
    """
    if arguments.dataset_streaming:
        raise UserError(f"dataset_streaming is for pretraining text; {kind} data is loaded completely: switch it off")
    if kind != "preference" and getattr(arguments, "balance", None):
        raise UserError(
            f"balance is for preference pairs; {kind} data has no chosen and rejected answer: leave it out"
        )
    sources = sources_of(arguments)
    groups = sources, eval_sources(arguments, sources)
    read = read_source if quiet else _announced
    parts, held_out = ([read(s, kind, arguments.skip_bad_rows) for s in group] for group in groups)
    if not quiet:
        say_reading(((part.source, part.reading) for part in (*parts, *held_out)), kind)
    parts, held_out = mixing.same_form(parts, kind, also=held_out)
    if arguments.deduplicate:
        parts, held_out = mixing.deduplicate(parts), mixing.deduplicate(held_out)
    if not held_out:
        rows = _held_out_rows(arguments.eval_rows, parts)
        parts, held_out = mixing.hold_out(parts, rows, seed)
    parts = mixing.remove_leaks(parts, held_out, kind)
    if not quiet:
        _say_left_out(parts)
    for part in parts:
        if not part.rows:
            counts = part.counts
            raise UserError(
                f"{part.source.label}: no training row is left of {counts['rows_read']}: {counts['bad_rows']} bad, "
                f"{counts['duplicates']} duplicates, {counts['removed_from_train']} are in the evaluation data"
            )
    if by := getattr(arguments, "balance", None):
        parts = mixing.balance(parts, import_function(by, "balance"), arguments.balance_by, seed)
    parts = mixing.weigh(parts, seed)
    evaluation = to_dataset(chain.from_iterable(p.rows for p in held_out), kind) if held_out else None
    train = [pair for p in parts for pair in zip(p.rows, p.places, strict=True)]
    if len(parts) > 1:  # packing and unshuffled readers see all parts early
        random.Random(f"mixture {seed}").shuffle(train)
    return Data(
        to_dataset((row for row, _ in train), kind),
        evaluation,
        [p.record() for p in (*parts, *held_out)],
        [place for _, place in train],
        [place for p in held_out for place in p.places],
    )


def read_split(
    name: str,
    split: str,
    *,
    kind: str,
    dataset_map: str | Mapping[str, str] | None = "",
    config: str | None = None,
    skip_bad_rows: bool = False,
) -> "datasets.Dataset":
    """One split of one dataset in the standard form of its kind: every good row, in order, duplicates included.

    A single local file is read completely, whatever the split is called; ``split`` may carry a slice (``test[:200]``).
    """
    source = Source(name=name, split=split, config=config, dataset_map=parse_map(dataset_map))
    part = _announced(source, kind, skip_bad_rows)
    say_reading([(source, part.reading)], kind)
    return to_dataset(settle_systems(part.rows, kind, chat=True), kind)


def look_at(source: Source, kind: str | None = None) -> list[Json]:
    """The first rows of a local dataset; none of an embedded one, of a Hub id or of a URL, whose rows take longer.

    It takes a moment, before torch is imported; everything is checked again where the rows are read.

    Args:
        source: the dataset.
        kind: what it is read as; None looks only whether it is there.

    Raises:
        UserError: it is not there, or its columns do not fit.
    """
    if source.is_world:
        require_world(source.name, source.split_name)
    elif not is_url(source.name) and source.data_files is None and source.files() and kind is not None:
        first = list(islice(raw_rows(source), PEEK))
        if first:
            form = find_form(source, kind, first)
            return [form.read(prepare(row, source)) for _, _, row in first if not isinstance(row, RowError)]
    return []


def read_source(source: Source, kind: str, skip_bad_rows: bool, keep: Collection[str] = ()) -> Part:
    """All rows of one dataset in the standard form of ``kind``, with their identities and what was skipped.

    ``keep`` names further columns that stay in the rows that have them (those of kind ``prompt`` have all).

    Raises:
        UserError: no rows, columns that do not fit, or the first bad row (file, row, field, reason) unless skipped.
    """
    digest = source_fingerprint(source)
    rows = sliced(raw_rows(source), source)
    first = list(islice(rows, PEEK))
    if not first:
        raise UserError(f"{source.label} is empty: there are no rows in split {source.split!r}")
    form = find_form(source, kind, first)
    good: list[Json] = []
    bad: list[str] = []
    bad_answers = 0
    places: list[Place] = []
    columns: dict[str, None] = {}
    unused: Counter[str] = Counter()
    for place, number, row in chain(first, rows):
        try:
            if isinstance(row, RowError):
                raise row
            given = prepare(row, source)
            if kind == "sft" and "label" in form.stored and given.get("label") is False:
                bad_answers += 1  # what is not to be said is not to be imitated
                continue
            converted = see(convert(given, form, kind), given, kind, place)
            good.append(converted | {name: given[name] for name in keep if name in given and name not in converted})
            places.append((place, number))
            columns.update(dict.fromkeys(given))
            unused.update(unused_keys(form.read_columns(given), kind))
        except RowError as error:
            described = f"{place}, row {number}: {error}"
            if not skip_bad_rows:
                raise UserError(f"{described} (fix the row, or pass --skip_bad_rows)") from None
            bad.append(described)
    if not good:
        cause = f"every row is bad; the first: {bad[0]}" if bad else "label is false in every row: nothing to learn"
        raise UserError(f"{source.label}: {cause}")
    read = len(good) + len(bad) + bad_answers
    counts = {"rows_read": read, "bad_rows": len(bad), "duplicates": 0, "removed_from_train": 0}
    if bad_answers:
        counts["label_false"] = bad_answers
    if kind == "prompt":
        good = _same_columns(good)
    return Part(
        source=source,
        rows=good,
        hashes=[content_hash(row) for row in good],
        prompts=[prompt_hash(row) for row in good],
        fingerprint=digest,
        counts=counts,
        bad_rows=tuple(bad[:20]),
        places=places,
        reading=form.reading([name for name in columns if name not in keep], kind),
        notes={"unused_message_keys": dict(unused)} if unused else None,
    )


def _announced(source: Source, kind: str, skip_bad_rows: bool) -> Part:
    """`read_source`, with one line to the terminal where rows were skipped."""
    part = read_source(source, kind, skip_bad_rows)
    if part.bad_rows:
        bad, every = part.counts["bad_rows"], part.counts["rows_read"]
        say(f"{source.label}: skipped {bad} bad of {every} rows; the first: {part.bad_rows[0]}")
    if part.notes:
        keys = ", ".join(f"{key} ({count} rows)" for key, count in part.notes["unused_message_keys"].items())
        say(f"{source.label}: keys of messages that are not used: {keys}")
    return part


def say_reading(readings: Iterable[tuple[Source, str]], kind: str) -> None:
    """What was read of each dataset (`Form.reading`), once, to the terminal; nothing where it is all there is."""
    plain = {" + ".join(form) for form in FORMS[kind]}
    lines = (f"{source.label}: read as {reading}" for source, reading in readings if reading not in plain)
    for line in dict.fromkeys(lines):
        say(line)


def _say_left_out(parts: Sequence[Part]) -> None:
    """One line to the terminal for each dataset from which good rows are left out, with the causes."""
    for part in parts:
        causes = {
            "whose label is false": part.counts.get("label_false", 0),
            "exact duplicates": part.counts["duplicates"],
            "that are also in the evaluation data": part.counts["removed_from_train"],
        }
        listed = " and ".join(f"{count} {cause}" for cause, count in causes.items() if count)
        if listed:
            say(f"{part.source.label}: training leaves out {listed}, of {part.counts['rows_read']} rows")


def _same_columns(rows: list[Json]) -> list[Json]:
    """Rows with one set of columns: a field that a row lacks becomes None, which rewards read as "no gold answer"."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    return [{key: row.get(key) for key in columns} for row in rows]


def _held_out_rows(eval_rows: int | None, parts: Sequence[Part]) -> int:
    total = sum(len(part.rows) for part in parts)
    if eval_rows is None:
        eval_rows = min(EVAL_ROWS, max(1, round(EVAL_SHARE * total)))
    if eval_rows < 0:
        raise UserError(f"eval_rows {eval_rows} is negative: give the number of rows to hold out, or 0 for none")
    if eval_rows >= total:
        raise UserError(
            f"{parts[0].source.label}: {total} different rows cannot spare {eval_rows} for evaluation: give more "
            f"data, a smaller eval_rows (0 for none), dataset_test_split or eval_dataset_name"
        )
    return eval_rows


def say(line: str) -> None:
    """One line on the terminal, from the first process only; standard output is left to results."""
    if is_main():
        print(line, file=sys.stderr, flush=True)
