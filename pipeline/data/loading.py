"""Data for a stage: read, brought to a standard form, cleaned of duplicates, and split without leakage.

`load_data` is what training stages call; `read_split` reads one dataset for judging; `source_fingerprints` says what
would be read, without reading it. None of them imports torch (a stream does). Everything random follows the seed, so
every process of a distributed run makes the same data.
"""

import json
import re
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.data import mixing
from pipeline.data.arguments import DataArguments
from pipeline.data.files import read_rows
from pipeline.data.formats import (
    check_map,
    content_hash,
    convert,
    detect,
    parse_map,
    prompt_hash,
    rename,
    unused_keys,
)
from pipeline.data.mixing import Part, Place, Source
from pipeline.data.rows import RowError
from pipeline.runtime.distributed import is_main
from pipeline.runtime.errors import UserError
from pipeline.runtime.files import files_sha256

if TYPE_CHECKING:
    import datasets

EVAL_SHARE, EVAL_ROWS = 0.1, 500
PEEK = 100
CHUNK = 10_000
_SLICE = re.compile(r"^([^\[\]]+)(?:\[(-?\d+%?)?:(-?\d+%?)?\])?$")


@dataclass(frozen=True)
class Data:
    """What a stage trains on and is judged by, and the run record's account of both.

    ``train`` is a ``datasets.Dataset`` (from `load_stream` a ``DocumentStream``), ``evaluation`` one too, or
    None when ``eval_rows`` is 0. ``sources`` has an entry for each dataset read: name, split, rows (that remain),
    fingerprint, files (local ones), bad_rows, duplicates, removed_from_train, and in mixtures weight and repeats.
    ``train_places`` and ``evaluation_places`` say of every row where it was read: file or dataset, and row number.
    """

    train: "datasets.Dataset"
    evaluation: "datasets.Dataset | None"
    sources: list[dict[str, Any]]
    train_places: Sequence[Place] = ()
    evaluation_places: Sequence[Place] = ()


def load_data(arguments: DataArguments, kind: str, seed: int) -> Data:
    """Training and evaluation rows of one kind (text, sft, preference, prompt, ranked) for a stage.

    Evaluation is, in this order: ``eval_dataset_name``; the split ``dataset_test_split`` of every training dataset;
    else rows held out of the training split, drawn by the seed so that rows with one prompt stay on one side. Rows of
    the evaluation data are then removed from training by content.

    Raises:
        UserError: anything wrong in the names, files, columns or rows.
    """
    if arguments.dataset_streaming:
        raise UserError(f"dataset_streaming is for pretraining text; {kind} data is loaded whole: switch it off")
    sources = sources_of(arguments)
    judges = evaluation_sources(arguments, sources)
    parts, held_out = ([_announced(s, kind, arguments.skip_bad_rows) for s in group] for group in (sources, judges))
    parts, held_out = mixing.same_form(parts, kind, also=held_out)
    if arguments.deduplicate:
        parts, held_out = mixing.deduplicate(parts), mixing.deduplicate(held_out)
    if not held_out:
        rows = _held_out_rows(arguments.eval_rows, parts)
        parts, held_out = mixing.hold_out(parts, rows, seed)
    parts = mixing.remove_leaks(parts, held_out, kind)
    _say_left_out(parts)
    for part in parts:
        if not part.rows:
            counts = part.counts
            raise UserError(
                f"{part.source.label}: no training row is left of {counts['rows_read']}: {counts['bad_rows']} bad, "
                f"{counts['duplicates']} duplicates, {counts['removed_from_train']} stand in the evaluation data"
            )
    parts = mixing.weigh(parts, seed)
    evaluation = to_dataset(chain.from_iterable(p.rows for p in held_out), kind) if held_out else None
    train = [pair for p in parts for pair in zip(p.rows, p.places, strict=True)]
    if len(parts) > 1:
        mixing.shuffle(train, seed)
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

    A single local file is read whole whatever the split is called; ``split`` may carry a slice (``test[:200]``).
    """
    source = Source(name=name, split=split, config=config, dataset_map=parse_map(dataset_map))
    return to_dataset(_announced(source, kind, skip_bad_rows).rows, kind)


def sources_of(arguments: DataArguments) -> list[Source]:
    """The training datasets the arguments name, one or a mixture, without reading any."""
    if arguments.datasets:
        if arguments.dataset_name:
            raise UserError("give either dataset_name or datasets (a mixture), not both")
        return mixing.parse_mixture(arguments.datasets, arguments.dataset_map)
    if not arguments.dataset_name:
        raise UserError(
            "no data: give --dataset_name (a Hub id, a file, a folder or world/<name>) or datasets in YAML"
        )
    return [
        Source(
            name=arguments.dataset_name,
            split=arguments.dataset_train_split,
            config=arguments.dataset_config,
            revision=arguments.dataset_revision,
            dataset_map=parse_map(arguments.dataset_map),
        )
    ]


def evaluation_sources(arguments: DataArguments, sources: Sequence[Source]) -> list[Source]:
    """The evaluation datasets the arguments name; empty where rows are to be held out of training."""
    split = arguments.dataset_test_split
    if arguments.eval_dataset_name:
        own = arguments.eval_dataset_name == arguments.dataset_name
        return [
            Source(
                name=arguments.eval_dataset_name,
                split=split or "test",
                config=arguments.dataset_config if own else None,
                revision=arguments.dataset_revision if own else None,
                dataset_map=parse_map(arguments.dataset_map),
                role="evaluation",
            )
        ]
    if not split:
        return []
    for source in sources:
        if source.files(must_exist=False) and Path(source.name).is_file():
            raise UserError(
                f"{source.name} is one file and has no split {split!r}: name the evaluation file by eval_dataset_name"
            )
    return [replace(s, split=split, weight=None, fraction=None, role="evaluation") for s in sources]


def source_fingerprints(arguments: DataArguments) -> list[dict[str, Any]]:
    """``{"name", "split", "fingerprint"}`` of everything `load_data` would read, without reading rows.

    Two equal answers mean equal input: the bytes of local files, the version of the embedded world, the commit of a
    Hub dataset. A Hub dataset that can be neither asked nor found in the cache has the fingerprint None.
    """
    sources = sources_of(arguments)
    return [
        {"name": s.name, "split": s.split, "fingerprint": source_fingerprint(s)}
        for s in (*sources, *evaluation_sources(arguments, sources))
    ]


def source_fingerprint(source: Source) -> str | None:
    """SHA-256 of local files, ``world-<version>/<name>/<split>``, or the commit of a Hub dataset."""
    if source.is_world:
        from pipeline.worlds.truth import WORLD_VERSION

        return f"world-{WORLD_VERSION}/{source.name.removeprefix('world/')}/{source.split}"
    files = source.files()
    if not files:
        return _hub_commit(source)
    try:
        return files_sha256(files)
    except OSError as error:
        raise UserError(f"{error.filename or source.label} cannot be read: {error.strerror or error}") from None


def _hub_commit(source: Source) -> str | None:
    """The commit a Hub dataset stands at: asked of the Hub, else what the cache last saw."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.file_download import repo_folder_name

    revision = source.revision or "main"
    if re.fullmatch(r"[0-9a-f]{40}", revision):
        return revision
    try:
        return HfApi().dataset_info(source.name, revision=revision, timeout=10).sha
    except (HfHubHTTPError, OSError, ValueError):
        ref = Path(
            constants.HF_HUB_CACHE, repo_folder_name(repo_id=source.name, repo_type="dataset"), "refs", revision
        )
        return ref.read_text().strip() if ref.is_file() else None


def raw_rows(source: Source) -> Iterator[tuple[str, int, "dict[str, Any] | RowError"]]:
    """``(place, row number, row or why it cannot be read)`` of a dataset as it stands, before renaming."""
    if source.is_world:
        from pipeline.worlds.table import load_world

        name, split = source.name.removeprefix("world/"), source.split_name
        yield from ((source.label, n, row) for n, row in enumerate(_by_batches(load_world(name, split)), start=1))
        return
    files = source.files()
    if files:
        for file in files:
            yield from ((str(file), row.number, row.content) for row in read_rows(file))
        return
    yield from ((source.label, n, row) for n, row in enumerate(_by_batches(load_hub(source)), start=1))


def _by_batches(dataset: "datasets.Dataset") -> Iterator[dict[str, Any]]:
    """The rows of a dataset, decoded a thousand at a time (several times faster than one by one)."""
    for batch in dataset.iter(batch_size=1000):
        yield from (dict(zip(batch, values)) for values in zip(*batch.values()))


def load_hub(source: Source, streaming: bool = False) -> "datasets.Dataset | datasets.IterableDataset":
    """A dataset of the Hub, or of its cache when offline.

    Raises:
        UserError: it cannot be reached or does not exist, or has no such configuration or split.
    """
    import datasets

    label = source.name + (f" ({source.config})" if source.config else "")
    try:
        return datasets.load_dataset(
            source.name,
            name=source.config,
            revision=source.revision,
            data_dir=source.data_dir,
            data_files=source.data_files,
            split=source.split_name,
            streaming=streaming,
        )
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = str(error).strip().splitlines()
        raise UserError(
            f"dataset {label}, split {source.split_name!r}, cannot be loaded: it is no local file or folder, and the "
            f"Hub or its cache says {type(error).__name__}: {reason[0] if reason else 'nothing'}"
        ) from error


def read_source(source: Source, kind: str, skip_bad_rows: bool, keep: Collection[str] = ()) -> Part:
    """All rows of one dataset in the standard form of ``kind``, with their identities and what was skipped.

    ``keep`` names further columns that stay in the rows that have them (those of kind ``prompt`` have all).

    Raises:
        UserError: no rows, columns that do not fit, or the first bad row (file, row, field, reason) unless skipped.
    """
    digest = source_fingerprint(source)
    rows = _sliced(raw_rows(source), source)
    first = list(islice(rows, PEEK))
    if not first:
        raise UserError(f"{source.label} is empty: there are no rows in split {source.split!r}")
    form = find_form(source, kind, first)
    good: list[dict[str, Any]] = []
    bad: list[str] = []
    places: list[Place] = []
    unused: Counter[str] = Counter()
    for place, number, row in chain(first, rows):
        try:
            if isinstance(row, RowError):
                raise row
            given = prepare(row, source)
            converted = convert(given, form, kind)
            good.append(converted | {name: given[name] for name in keep if name in given and name not in converted})
            places.append((place, number))
            unused.update(unused_keys(given, kind))
        except RowError as error:
            described = f"{place}, row {number}: {error}"
            if not skip_bad_rows:
                raise UserError(f"{described} (fix the row, or pass --skip_bad_rows)") from None
            bad.append(described)
    if not good:
        raise UserError(f"{source.label}: every row is bad; the first: {bad[0]}")
    counts = {"rows_read": len(good) + len(bad), "bad_rows": len(bad), "duplicates": 0, "removed_from_train": 0}
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


def _say_left_out(parts: Sequence[Part]) -> None:
    """One line to the terminal for each dataset from which good rows are left out, with the causes."""
    for part in parts:
        causes = {
            "exact duplicates": part.counts["duplicates"],
            "that are also in the evaluation data": part.counts["removed_from_train"],
        }
        listed = " and ".join(f"{count} {cause}" for cause, count in causes.items() if count)
        if listed:
            say(f"{part.source.label}: training leaves out {listed}, of {part.counts['rows_read']} rows")


def prepare(row: Mapping[str, Any], source: Source) -> dict[str, Any]:
    """A raw row after the entry's ``columns`` and ``dataset_map``."""
    if source.columns is not None:
        row = {key: row[key] for key in source.columns if key in row}
    return rename(row, source.dataset_map)


def find_form(source: Source, kind: str, first: Iterable[tuple[str, int, "dict[str, Any] | RowError"]]) -> Any:
    """The form of a dataset by its first readable rows; UserError where a named column is missing or none fits."""
    rows = [row for _, _, row in first if not isinstance(row, RowError)]
    if not rows:
        place, number, error = next(iter(first))
        raise UserError(f"{place}, row {number}: {error}")
    columns = list(dict.fromkeys(key for row in rows for key in row))
    for name in source.columns or ():
        if name not in columns:
            raise UserError(f"{source.label} has no column {name!r} (columns); it has {', '.join(columns)}")
    kept = [c for c in columns if source.columns is None or c in source.columns]
    check_map(source.dataset_map, kept, source.label)
    return detect([prepare(row, source) for row in rows], kind, source.label, set(source.dataset_map.values()))


def _sliced(rows: Iterator[Any], source: Source) -> Iterator[Any]:
    """The rows that a slice in the split's name asks for: ``train[:100]``, ``train[10%:]``, ``train[-50:]``."""
    match = _SLICE.match(source.split)
    if not match:
        raise UserError(f"split {source.split!r} is not a name, or a name with one slice such as train[:1000]")
    start, stop = match[2], match[3]
    if not (start or stop):
        return rows
    if not any(bound and (bound.endswith("%") or bound.startswith("-")) for bound in (start, stop)):
        return islice(rows, int(start or 0), int(stop) if stop else None)
    every = list(rows)

    def place(bound: str | None) -> int | None:
        if not bound:
            return None
        return round(int(bound[:-1]) / 100 * len(every)) if bound.endswith("%") else int(bound)

    return iter(every[place(start) : place(stop)])


def _same_columns(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
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
    """One line for the person at the terminal, from the first process only; standard output stays for results."""
    if is_main():
        print(line, file=sys.stderr, flush=True)


def to_dataset(rows: Iterable[Mapping[str, Any]], kind: str) -> "datasets.Dataset":
    """Converted rows as a ``datasets.Dataset`` with features we choose, so that nothing is guessed or rounded.

    Text columns and dialogues have fixed types; dialogues whose messages have more than role and content are JSON, so
    that no message gets empty keys from another. Other columns (kind prompt) keep their numbers and lists where Arrow
    can hold them exactly; integers beyond 64 bits and columns of mixed types become text, objects become JSON.
    """
    import datasets
    import pyarrow as pa

    rows = list(rows)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    arrays, features = {}, {}
    for name in columns:
        values = [row.get(name) for row in rows]
        if name == "chat_template_kwargs":
            values = [value or {} for value in values]  # TRL takes them by **
        feature = _standard_feature(name, values, kind) or _free_feature(values)
        if isinstance(feature, datasets.Json):
            values = [None if v is None else json.dumps(_plain(v), ensure_ascii=False, default=str) for v in values]
            arrays[name] = pa.chunked_array([pa.array(values, type=pa.string()).cast(pa.json_())])
        elif isinstance(feature, datasets.Value) and feature.dtype == "string":
            values = [v if v is None or isinstance(v, str) else json.dumps(v, default=str) for v in values]
            arrays[name] = _chunked(values, pa.string())
        else:
            arrays[name] = _chunked(values, datasets.Features({name: feature}).arrow_schema.field(name).type)
        features[name] = feature
    digest = content_hash({"kind": kind, "rows": [content_hash(row) for row in rows]})
    info = datasets.DatasetInfo(features=datasets.Features(features))
    return datasets.Dataset(pa.table(arrays), info=info, fingerprint=digest[:16])


def _chunked(values: list[Any], kind: Any) -> Any:
    """An Arrow column in chunks, for one chunk of text may not pass 2 GiB."""
    import pyarrow as pa

    chunks = [pa.array(values[i : i + CHUNK], type=kind) for i in range(0, len(values), CHUNK)]
    return pa.chunked_array(chunks, type=kind)


def _standard_feature(name: str, values: Sequence[Any], kind: str) -> Any:
    """The type of a column of a standard form; None for the free columns that go with a prompt."""
    import datasets

    text = datasets.Value("string")
    message = {"role": text, "content": text}
    if (kind == "prompt" and name != "prompt") or name in ("tools", "chat_template_kwargs"):
        return None
    if any(_more_than_said(value) for value in values):
        return datasets.Json()
    if name == "label":
        return datasets.Value("bool")
    if name == "ranks":
        return datasets.List(datasets.Value("int64"))
    if name == "ranked":
        return datasets.List(text if isinstance(values[0][0], str) else datasets.List(message))
    return text if isinstance(values[0], str) else datasets.List(message)


def _more_than_said(value: Any) -> bool:
    """Whether a message in a (list of) dialogues has keys beside role and content."""
    if isinstance(value, Mapping):
        return len(value) > 2
    return isinstance(value, list) and any(map(_more_than_said, value))


def _free_feature(values: Sequence[Any]) -> Any:
    """The narrowest type that keeps every value as it is; text or JSON where there is none."""
    import datasets
    import pyarrow as pa

    if any(_holds_object(value) for value in values):
        return datasets.Json()
    try:
        found = pa.array(values).type
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        return datasets.Json() if any(isinstance(value, list) for value in values) else datasets.Value("string")
    if pa.types.is_null(found):
        return datasets.Value("string")
    return datasets.features.features.generate_from_arrow_type(found)


def _holds_object(value: Any) -> bool:
    return isinstance(value, Mapping) or (isinstance(value, list) and any(_holds_object(item) for item in value))


def _plain(value: Any) -> Any:
    """The value with integers beyond 64 bits as text: JSON readers would round them."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, int) and not -(2**63) <= value < 2**63 else value
