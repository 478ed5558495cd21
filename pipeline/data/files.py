"""Local files: which ones belong to a split, and their rows one by one.

JSON is read line by line and never through a type-guessing reader: date-like strings stay strings, integers of any
length stay exact, a missing field stays missing, and every row knows its number in the file. Row numbers count from 1:
the line of a jsonl file, the record of a csv, parquet or json file, the first line of a passage of a text file.
"""

import csv
import gzip
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from pipeline.runtime.errors import UserError

SUFFIXES = (".jsonl", ".json", ".parquet", ".csv", ".txt")
PASSAGE_CHARACTERS = 4000
SYNONYMS = {"validation": ("validation", "valid", "val", "dev"), "train": ("train", "training")}


class RowError(Exception):
    """One row that cannot be used: the field and the reason. The caller adds the file and the row number."""

    def __init__(self, field: str, reason: str):
        super().__init__(f"{field}: {reason}" if field else reason)
        self.field = field
        self.reason = reason


class Cursor(NamedTuple):
    """A place between two rows of one file: bytes passed (formats that can seek) and records or lines passed."""

    offset: int = 0
    records: int = 0


BEGINNING = Cursor()


class Row(NamedTuple):
    """A row as it stands in the file (or why it cannot be read), its number, and the place just after it."""

    number: int
    content: "dict[str, Any] | RowError"
    after: Cursor


def suffix_of(path: Path) -> str:
    """The data suffix, seen through ``.gz``; empty when it is none of ours."""
    suffixes = [s.lower() for s in path.suffixes]
    last = suffixes[-1] if suffixes else ""
    if last == ".gz" and len(suffixes) > 1 and suffixes[-2] in (".jsonl", ".json", ".txt", ".csv"):
        return suffixes[-2]
    return last if last in SUFFIXES else ""


def _belongs_to(path: Path, split: str) -> bool:
    """Whether a file is named for a split: ``train.jsonl``, ``train-00000-of-00002.parquet``, ``test_part.csv``."""
    names = "|".join(SYNONYMS.get(split, (split,)))
    return re.match(rf"(?:{names})(?:[-_.]|$)", path.name, re.IGNORECASE) is not None


def split_files(path: Path, split: str) -> list[Path]:
    """Files of a local dataset that hold ``split``, in the order of their names.

    A file is its own only split. In a folder (or its ``data/``), files named for splits (``train.*``, ``test-0001.*``)
    are those splits; files of one kind without such names are all ``train``.

    Raises:
        UserError: no such path, no data files, several kinds of files, or no files for the split.
    """
    if path.is_file():
        if not suffix_of(path):
            raise UserError(f"{path} is not a data file: use one of {', '.join(SUFFIXES)}, or .gz of a text one")
        return [path]
    if not path.is_dir():
        raise UserError(f"dataset {str(path)!r} does not exist: give a file, a folder, a Hub id or world/<name>")
    folders = [path, path / "data"] if (path / "data").is_dir() else [path]
    files = [f for folder in folders for f in sorted(folder.iterdir()) if f.is_file() and suffix_of(f)]
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


def _open(path: Path) -> IO[bytes]:
    return gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb")


def _decode(line: bytes, first: bool) -> str:
    try:
        return line.decode("utf-8-sig" if first else "utf-8")
    except UnicodeDecodeError as error:
        raise RowError("", f"not UTF-8 text at byte {error.start} of the row") from None


def _number(text: str) -> int:
    """``json``'s integers without Python's limit of 4300 digits, which would raise a bare ValueError."""
    if len(text) > 4000:
        raise RowError("", f"an integer of {len(text)} digits")
    return int(text)


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text, parse_int=_number)
    except json.JSONDecodeError as error:
        raise RowError("", f"not valid JSON: {error.msg} at column {error.colno}") from None
    except RecursionError:
        raise RowError("", "JSON nested too deeply") from None
    if not isinstance(value, dict):
        raise RowError("", f"a JSON object was expected, found {type(value).__name__}")
    if "\\ud" in text or "\\uD" in text:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise RowError("", "half a surrogate pair (\\ud800 to \\udfff alone) is not text") from None
    return value


def _jsonl_rows(path: Path, start: Cursor) -> Iterator[Row]:
    with _open(path) as file:
        file.seek(start.offset)
        offset, number = start
        for line in file:
            offset, number = offset + len(line), number + 1
            if not line.strip():
                continue
            content: dict[str, Any] | RowError
            try:
                content = _json_object(_decode(line, number == 1))
            except RowError as error:
                content = error
            yield Row(number, content, Cursor(offset, number))


def _passage_rows(path: Path, start: Cursor) -> Iterator[Row]:
    """A text file as passages of whole paragraphs of about ``PASSAGE_CHARACTERS``.

    A passage ends at the first blank line after that length, or, where a paragraph does not end, at the line that
    reaches twice the length. Nothing is lost but blank lines between passages.
    """
    with _open(path) as file:
        file.seek(start.offset)
        offset, number = start
        first, lines, length = number + 1, [], 0
        for line in file:
            offset, number = offset + len(line), number + 1
            try:
                text = _decode(line, number == 1).replace("\r\n", "\n")
            except RowError as error:
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


def _json_rows(path: Path, start: Cursor) -> Iterator[Row]:
    """A ``.json`` file is one list of objects, or, as the Hub often has it, one object a line."""
    with _open(path) as file:
        head = file.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n")
    if not head.startswith(b"["):
        yield from _jsonl_rows(path, start)
        return
    with _open(path) as file:
        try:
            values = json.loads(file.read().decode("utf-8-sig"), parse_int=_number)
        except (json.JSONDecodeError, UnicodeDecodeError, RowError) as error:
            raise UserError(f"{path} is not valid JSON: {error}") from None
    for number, value in enumerate(values[start.records :], start=start.records + 1):
        good = isinstance(value, dict)
        content = value if good else RowError("", f"a JSON object was expected, found {type(value).__name__}")
        yield Row(number, content, Cursor(0, number))


def _csv_rows(path: Path, start: Cursor) -> Iterator[Row]:
    """Every cell stays text ("007" is no number); an absent cell is a missing field."""
    csv.field_size_limit(sys.maxsize)
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8-sig", newline="") as file:
        try:
            for number, row in enumerate(csv.DictReader(file), start=1):
                if number <= start.records:
                    continue
                extra = row.pop(None, None)
                content = {k: v for k, v in row.items() if v is not None}
                found = content if extra is None else RowError("", f"{len(extra)} more cells than the header names")
                yield Row(number, found, Cursor(0, number))
        except (csv.Error, UnicodeDecodeError) as error:
            raise UserError(f"{path} is not a csv file in UTF-8: {error}") from None


def _parquet_rows(path: Path, start: Cursor) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise UserError(f"{path} is not a parquet file: {error}") from None
    with file:
        number = 0
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


_READERS = {
    ".jsonl": _jsonl_rows,
    ".json": _json_rows,
    ".txt": _passage_rows,
    ".csv": _csv_rows,
    ".parquet": _parquet_rows,
}


def read_rows(path: Path, start: Cursor = BEGINNING) -> Iterator[Row]:
    """Rows of one file from ``start`` on, which is the ``after`` of an earlier row (the beginning by default).

    Raises:
        UserError: the file as a whole cannot be read. One bad row is not raised but yielded as a ``RowError``.
    """
    return _READERS[suffix_of(path)](path, start)
