"""Local files: which ones belong to a split, and their rows one by one.

JSON is read line by line and never through a type-guessing reader: date-like strings stay strings, integers of any
length stay exact, a missing field stays missing, and every row knows its number in the file. Row numbers count from 1:
the line of a jsonl file, the record of a csv, parquet or json file, the first line of a passage of a text file.

Reading is strict: a row that cannot be read exactly is a `RowError` (the caller raises it or counts it), and a file
where the end of a row is unknown (cut, not what its suffix says, a quote that is never closed) is a `UserError`.
"""

import gzip
import json
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.data.csv_files import csv_rows, refuse_repeated
from pipeline.data.json_files import json_rows, jsonl_rows
from pipeline.data.rows import BEGINNING, Cursor, Row, RowError
from pipeline.data.text_files import decode, open_text, refuse_other_content
from pipeline.runtime.errors import UserError
from pipeline.runtime.files import near_path

SUFFIXES = (".jsonl", ".json", ".parquet", ".csv", ".txt", ".arrow")
PACKED = (".gz", ".zst")  # read, of text files
COMPRESSED = (*PACKED, ".bz2", ".xz", ".zip")
PASSAGE_CHARACTERS = 4000
SYNONYMS = {"validation": ("validation", "valid", "val", "dev"), "train": ("train", "training")}
SPLITS = ("train", "test", "validation")
# What datasets and the Hub's tools write beside the data; the last two mark a folder of save_to_disk.
DESCRIPTIONS = ("dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json")


def suffix_of(path: Path) -> str:
    """The data suffix, seen through ``.gz`` and ``.zst``; empty when it is none of ours."""
    suffixes = [s.lower() for s in path.suffixes]
    last = suffixes[-1] if suffixes else ""
    if last in PACKED and len(suffixes) > 1 and suffixes[-2] in (".jsonl", ".json", ".txt", ".csv"):
        return suffixes[-2]
    return last if last in SUFFIXES else ""


def is_data_name(name: str) -> bool:
    """Whether a file below a folder may hold data or describe it: hidden files (macOS's ``._a.jsonl``, ``.DS_Store``)
    and what is in ``__MACOSX`` do not.
    """
    parts = Path(name).parts
    return not any(part.startswith((".", "__")) for part in parts) and (
        bool(suffix_of(Path(name))) or parts[-1] in DESCRIPTIONS
    )


def is_one_dataset(path: Path) -> bool:
    """Whether a path is one split, whatever it is asked for: a file, or a Dataset's folder of ``save_to_disk``."""
    return path.is_file() or (path / "state.json").is_file()


def _known_suffix(path: Path) -> str:
    """`suffix_of`. UserError where the name does not say how the file is read."""
    suffix = suffix_of(path)
    if not suffix:
        raise UserError(f"{path} is not a data file: use one of {', '.join(SUFFIXES)}, or .gz or .zst of a text one")
    return suffix


def _belongs_to(path: Path, split: str) -> bool:
    """Whether a file is named for a split (``train.jsonl``, ``train-00000-of-00002.parquet``, ``test_part.csv``), or a
    folder (``train``)."""
    names = "|".join(SYNONYMS.get(split, (split,)))
    end = "$" if path.is_dir() else "(?:[-_.]|$)"
    return re.match(rf"(?:{names}){end}", path.name, re.IGNORECASE) is not None


def absent(path: Path | str) -> str:
    """What is said of a local dataset that is not there."""
    hint = near_path(path, "give a file, a folder, a Hub id or world/<name>")
    return f"dataset {str(path)!r} does not exist{hint}"


def split_files(path: Path, split: str) -> list[Path]:
    """Files of a local dataset that hold ``split``, in the order of their names.

    A single file is read for any split, and so is a Dataset that ``save_to_disk`` wrote. In a folder (or its
    ``data/``), files named for splits (``train.*``, ``test-0001.*``) and folders named for them (``train/``, also as
    ``save_to_disk`` writes a DatasetDict) are those splits; files of one kind without such names are all ``train``.

    Raises:
        UserError: no such path, no data files, several kinds of files, or no files for the split.
    """
    if path.is_file():
        _known_suffix(path)
        return [path]
    if not path.is_dir():
        raise UserError(absent(path))
    if is_one_dataset(path):
        return _saved_files(path)
    places = [path, path / "data"] if (path / "data").is_dir() else [path]
    inside = [entry for place in places for entry in sorted(place.iterdir()) if not entry.name.startswith((".", "__"))]
    _refuse_unreadable([entry for entry in inside if entry.is_file()])
    files = [f for f in inside if f.is_file() and suffix_of(f) and f.name not in DESCRIPTIONS]
    folders = [f for f in inside if f.is_dir() and any(_belongs_to(f, s) for s in {split, *SPLITS})]
    named = [entry for entry in (*files, *folders) if _belongs_to(entry, split)]
    if len(named) > 1 and any(entry.is_dir() for entry in named):
        raise UserError(f"{path} has split {split!r} twice ({', '.join(e.name for e in named)}): name one of them")
    if named:
        return _one_kind(named[0], split) if named[0].is_dir() else named
    known = [s for s in SPLITS if any(_belongs_to(entry, s) for entry in (*files, *folders))]
    if not files and not known:
        raise UserError(f"folder {path} holds no data files ({', '.join(SUFFIXES)})")
    if not known and split == "train" and len({suffix_of(f) for f in files}) == 1:
        return files
    if known:
        raise UserError(f"folder {path} has no split {split!r}: its files make {', '.join(known)}")
    names = ", ".join(f.name for f in files[:6])
    raise UserError(f"folder {path} has no files named {split}.*: name one of its files ({names})")


def _one_kind(folder: Path, split: str) -> list[Path]:
    """The files of a split's folder: a saved Dataset, or data files of one kind, whatever their names."""
    if is_one_dataset(folder):
        return _saved_files(folder)
    inside = [f for f in sorted(folder.iterdir()) if f.is_file() and not f.name.startswith((".", "__"))]
    _refuse_unreadable(inside)
    files = [f for f in inside if suffix_of(f) and f.name not in DESCRIPTIONS]
    if len({suffix_of(f) for f in files}) != 1:
        found = f"files of several kinds ({', '.join(f.name for f in files[:6])})" if files else "no data files"
        raise UserError(f"folder {folder} (split {split!r}) holds {found}: name a file")
    return files


def _saved_files(folder: Path) -> list[Path]:
    """The Arrow files of a folder that ``Dataset.save_to_disk`` wrote, as its ``state.json`` lists them."""
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        files = [folder / entry["filename"] for entry in state["_data_files"]]
    except (OSError, ValueError, LookupError, TypeError):
        raise UserError(f"{folder / 'state.json'} is damaged: save the dataset again (save_to_disk)") from None
    missing = [file.name for file in files if not file.is_file()]
    if missing or not files:
        raise UserError(f"{folder}: {missing[0] if missing else 'every data file'} of the saved dataset is missing")
    return files


def _refuse_unreadable(files: Sequence[Path]) -> None:
    """Raises UserError where a folder holds data in a form that would be passed over without a word."""
    for file in files:
        suffixes = [suffix.lower() for suffix in file.suffixes[-2:]]
        if len(suffixes) == 2 and suffixes[0] in SUFFIXES and suffixes[1] in COMPRESSED and not suffix_of(file):
            raise UserError(
                f"{file} is compressed in a way that is not read: unpack it, or use .gz or .zst for a text file"
            )


def _passage_rows(path: Path, start: Cursor) -> Iterator[Row]:
    """A text file as passages of complete paragraphs, each of about ``PASSAGE_CHARACTERS``.

    A passage ends at the first blank line after that length, or, where a paragraph does not end, at the line that
    reaches twice the length. Nothing is lost but blank lines between passages and lines that are no text, each of
    which is a bad row.
    """
    with open_text(path) as file:
        file.seek(start.offset)
        offset, number = start
        first, lines, length = number + 1, [], 0
        for line in file:
            before = Cursor(offset, number)
            offset, number = offset + len(line), number + 1
            try:
                text = decode(line, number == 1).replace("\r\n", "\n")
            except RowError as error:
                if "".join(lines).strip():
                    yield Row(first, {"text": "".join(lines).strip("\n")}, before)
                yield Row(number, error, Cursor(offset, number))
                first, lines, length = number + 1, [], 0
                continue
            blank = not text.strip()
            if blank and not lines:
                first = number + 1
                continue
            lines.append(text)
            length += len(text)
            if (blank and length >= PASSAGE_CHARACTERS) or length >= 2 * PASSAGE_CHARACTERS:
                yield Row(first, {"text": "".join(lines).strip("\n")}, Cursor(offset, number))
                first, lines, length = number + 1, [], 0
        if "".join(lines).strip():
            yield Row(first, {"text": "".join(lines).strip("\n")}, Cursor(offset, number))


def _line_rows(path: Path) -> Iterator[Row]:
    """A text file as its lines; blank ones are left out, and one that is no text is a bad row."""
    with open_text(path) as file:
        offset = 0
        for number, line in enumerate(file, 1):
            offset += len(line)
            try:
                text = decode(line, number == 1).rstrip("\r\n")
            except RowError as error:
                yield Row(number, error, Cursor(offset, number))
                continue
            if text.strip():
                yield Row(number, {"text": text}, Cursor(offset, number))


def _parquet_rows(path: Path, start: Cursor) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            refuse_repeated(path, file.schema_arrow.names)
            for group in range(file.num_row_groups):
                rows = file.metadata.row_group(group).num_rows
                if number + rows <= start.records:
                    number += rows
                    continue
                for batch in file.iter_batches(batch_size=1024, row_groups=[group]):
                    if number + len(batch) <= start.records:
                        number += len(batch)
                        continue
                    for content in batch.to_pylist():
                        number += 1
                        if number > start.records:
                            yield Row(number, content, Cursor(0, number))
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{path} is not a parquet file, or is cut or damaged after row {number}: {reason}") from None


def _arrow_rows(path: Path, start: Cursor) -> Iterator[Row]:
    """The rows of an Arrow file of ``datasets`` (``save_to_disk``, its cache), with the features it was saved with."""
    import datasets
    import pyarrow as pa

    try:
        table = datasets.Dataset.from_file(str(path))
        number = start.records
        for place in range(number, len(table), 1000):
            batch = table[place : place + 1000]
            for values in zip(*batch.values(), strict=True):
                number += 1
                yield Row(number, dict(zip(batch, values)), Cursor(0, number))
    except (pa.ArrowException, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{path} is not an Arrow file of datasets, or is cut or damaged: {reason}") from None


_READERS = {
    ".jsonl": jsonl_rows,
    ".json": json_rows,
    ".txt": _passage_rows,
    ".csv": csv_rows,
    ".parquet": _parquet_rows,
    ".arrow": _arrow_rows,
}


def read_rows(path: Path, start: Cursor = BEGINNING, *, lines: bool = False) -> Iterator[Row]:
    """Rows of one file from ``start`` on, which is the ``after`` of an earlier row (the beginning by default).

    Args:
        path: the file.
        start: where to begin.
        lines: each line of a text file is a row, as in a list of prompts; else each of its passages.

    Raises:
        UserError: the file cannot be read at all. One bad row is not raised but yielded as a ``RowError``.
    """
    try:
        reader = _READERS[_known_suffix(path)]
        refuse_other_content(path)
        yield from _line_rows(path) if lines and reader is _passage_rows else reader(path, start)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path} is a cut or damaged gzip file ({error}): download or pack it again") from None
    except OSError as error:
        hint = "" if path.exists() else near_path(path)
        raise UserError(f"{path} cannot be read: {error.strerror or error}{hint}") from None
