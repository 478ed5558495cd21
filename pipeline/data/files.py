"""Local files: which ones belong to a split, and their rows one by one.

JSON is read line by line and never through a type-guessing reader: date-like strings stay strings, integers of any
length stay exact, a missing field stays missing, and every row knows its number in the file. Row numbers count from 1:
the line of a jsonl file, the record of a csv, parquet or json file, the first line of a passage of a text file.

Reading is strict: a row that cannot be read exactly is a `RowError` (the caller raises it or counts it), and a file
where the end of a row is unknown (cut, not what its suffix says, a quote that is never closed) is a `UserError`.
"""

import gzip
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.data.csv_files import csv_rows, refuse_repeated
from pipeline.data.json_files import json_rows, jsonl_rows
from pipeline.data.rows import BEGINNING, Cursor, Row, RowError
from pipeline.data.text_files import decode, open_text, refuse_other_content
from pipeline.runtime.errors import UserError

SUFFIXES = (".jsonl", ".json", ".parquet", ".csv", ".txt")
COMPRESSED = (".gz", ".zst", ".bz2", ".xz", ".zip")
PASSAGE_CHARACTERS = 4000
SYNONYMS = {"validation": ("validation", "valid", "val", "dev"), "train": ("train", "training")}


def suffix_of(path: Path) -> str:
    """The data suffix, seen through ``.gz``; empty when it is none of ours."""
    suffixes = [s.lower() for s in path.suffixes]
    last = suffixes[-1] if suffixes else ""
    if last == ".gz" and len(suffixes) > 1 and suffixes[-2] in (".jsonl", ".json", ".txt", ".csv"):
        return suffixes[-2]
    return last if last in SUFFIXES else ""


def _known_suffix(path: Path) -> str:
    """`suffix_of`. UserError where the name does not say how the file is read."""
    suffix = suffix_of(path)
    if not suffix:
        raise UserError(f"{path} is not a data file: use one of {', '.join(SUFFIXES)}, or .gz of a text one")
    return suffix


def _belongs_to(path: Path, split: str) -> bool:
    """Whether a file is named for a split: ``train.jsonl``, ``train-00000-of-00002.parquet``, ``test_part.csv``."""
    names = "|".join(SYNONYMS.get(split, (split,)))
    return re.match(rf"(?:{names})(?:[-_.]|$)", path.name, re.IGNORECASE) is not None


def split_files(path: Path, split: str) -> list[Path]:
    """Files of a local dataset that hold ``split``, in the order of their names.

    A single file is read for any split. In a folder (or its ``data/``), files named for splits (``train.*``,
    ``test-0001.*``) are those splits; files of one kind without such names are all ``train``.

    Raises:
        UserError: no such path, no data files, several kinds of files, or no files for the split.
    """
    if path.is_file():
        _known_suffix(path)
        return [path]
    if not path.is_dir():
        raise UserError(f"dataset {str(path)!r} does not exist: give a file, a folder, a Hub id or world/<name>")
    folders = [path, path / "data"] if (path / "data").is_dir() else [path]
    inside = [f for folder in folders for f in sorted(folder.iterdir()) if f.is_file()]
    _refuse_unreadable(path, inside)
    files = [f for f in inside if suffix_of(f)]
    if not files:
        raise UserError(f"folder {path} holds no data files ({', '.join(SUFFIXES)})")
    named = [f for f in files if _belongs_to(f, split)]
    if named:
        return named
    known = [s for s in ("train", "test", "validation") if any(_belongs_to(f, s) for f in files)]
    kinds = sorted({suffix_of(f) for f in files})
    if not known and split == "train" and len(kinds) == 1:
        return files
    if known:
        raise UserError(f"folder {path} has no split {split!r}: its files make {', '.join(known)}")
    names = ", ".join(f.name for f in files[:6])
    raise UserError(f"folder {path} has no files named {split}.*: name one of its files ({names})")


def _refuse_unreadable(folder: Path, files: Sequence[Path]) -> None:
    """Raises UserError where a folder holds data in a form that would be passed over without a word."""
    for file in files:
        suffixes = [suffix.lower() for suffix in file.suffixes[-2:]]
        if len(suffixes) == 2 and suffixes[0] in SUFFIXES and suffixes[1] in COMPRESSED and not suffix_of(file):
            raise UserError(f"{file} is compressed in a way that is not read: unpack it, or use .gz for a text file")
        if file.suffix == ".arrow":
            raise UserError(f"folder {folder} holds Arrow files ({file.name}): save the dataset by to_parquet instead")


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


_READERS = {
    ".jsonl": jsonl_rows,
    ".json": json_rows,
    ".txt": _passage_rows,
    ".csv": csv_rows,
    ".parquet": _parquet_rows,
}


def read_rows(path: Path, start: Cursor = BEGINNING) -> Iterator[Row]:
    """Rows of one file from ``start`` on, which is the ``after`` of an earlier row (the beginning by default).

    Raises:
        UserError: the file cannot be read at all. One bad row is not raised but yielded as a ``RowError``.
    """
    try:
        reader = _READERS[_known_suffix(path)]
        refuse_other_content(path)
        yield from reader(path, start)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path} is a cut or damaged gzip file ({error}): download or pack it again") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
