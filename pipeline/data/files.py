"""Local files: which ones belong to a split, and their rows one by one.

JSON is read line by line and never through a type-guessing reader: date-like strings stay strings, integers of any
length stay exact, a missing field stays missing, and every row knows its number in the file. Row numbers count from 1:
the line of a jsonl file, the record of a csv, parquet or json file, the first line of a passage of a text file.

Reading is strict: a row that cannot be read exactly is a `RowError` (the caller raises it or counts it), and a file
where the end of a row cannot be told (cut, not what its suffix says, a quote that is never closed) is a `UserError`.
"""

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import IO, Any, NamedTuple

from pipeline.runtime.errors import UserError

SUFFIXES = (".jsonl", ".json", ".parquet", ".csv", ".txt")
COMPRESSED = (".gz", ".zst", ".bz2", ".xz", ".zip")
PASSAGE_CHARACTERS = 4000
# Deeper values would overflow the stack of what reads them next (hashing, Arrow).
JSON_LEVELS = 100
CSV_CELL_CHARACTERS = 2**28
DELIMITERS = ",;\t"
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

    A file is its own only split. In a folder (or its ``data/``), files named for splits (``train.*``, ``test-0001.*``)
    are those splits; files of one kind without such names are all ``train``.

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


def _refuse_other_content(path: Path) -> None:
    """Raises UserError where the first bytes of a file are not of the kind that its name says."""
    with open(path, "rb") as file:
        head = file.read(len(_LFS_POINTER))
    packed = path.suffix.lower() == ".gz"
    if head == _LFS_POINTER:
        raise UserError(f"{path} is a pointer of Git LFS, not the data: run `git lfs pull` in its repository")
    if packed and not head.startswith(_GZIP):
        raise UserError(f"{path} is not a gzip file: rename it if it is plain text, or download it again")
    if not packed and head.startswith(_GZIP):
        raise UserError(f"{path} is a gzip file: rename it to {path.name}.gz")


_GZIP = b"\x1f\x8b"
_LFS_POINTER = b"version https://git-lfs"


@contextmanager
def _open(path: Path) -> Iterator[IO[bytes]]:
    """The bytes of a text file, unpacked.

    Raises:
        UserError: it is in UTF-16 or UTF-32, or not a text file.
    """
    packed = path.suffix.lower() == ".gz"
    with gzip.open(path, "rb") if packed else open(path, "rb") as file:
        head = file.peek(4)[:4]
        if head[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in head:
            raise UserError(f"{path} is in UTF-16 or UTF-32, or is not a text file: save it as UTF-8")
        yield file


def _decode(line: bytes, first: bool) -> str:
    try:
        text = line.decode("utf-8-sig" if first else "utf-8")
    except UnicodeDecodeError as error:
        raise RowError("", f"not UTF-8 text at byte {error.start} of the row{_LATIN_1}") from None
    if "\0" in text:
        raise RowError("", _NUL)
    return text


_NUL = "a NUL character, which no text file has"
_LATIN_1 = "; if the file is in Windows-1252 or Latin-1, save it as UTF-8"


def _number(text: str) -> int:
    """``json``'s integers without Python's limit of 4300 digits, which would raise a bare ValueError."""
    if len(text) > 4000:
        raise RowError("", f"an integer of {len(text)} digits")
    return int(text)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these pairs. ``json`` would keep the last value of a key that comes twice, and lose the other."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise RowError(next(key for key in keys if keys.count(key) > 1), "comes twice in one object")
    return found


_JSON = json.JSONDecoder(parse_int=_number, object_pairs_hook=_unique)


def _json_object(text: str, start: int = 0) -> tuple[dict[str, Any], int]:
    """The JSON object that begins at ``start`` and the place where it ends.

    Raises:
        RowError: no JSON, no object, or an object that cannot be stored exactly.
    """
    try:
        value, end = _JSON.raw_decode(text, start)
    except json.JSONDecodeError as error:
        line = f" of line {error.lineno}" if error.lineno > 1 else ""
        raise RowError("", f"not valid JSON: {error.msg} at column {error.colno}{line}") from None
    except RecursionError:
        raise RowError("", _TOO_DEEP) from None
    _check_object(value, text[start:end])
    return value, end


_TOO_DEEP = f"JSON nested too deeply (more than {JSON_LEVELS} levels)"


def _check_object(value: Any, text: str) -> None:
    """Raises RowError unless ``value``, written as ``text``, is an object that can be hashed and stored as it is."""
    if not isinstance(value, dict):
        raise RowError("", f"a JSON object was expected, found {type(value).__name__}")
    if text.count("[") + text.count("{") > JSON_LEVELS and _deeper(value, JSON_LEVELS):
        raise RowError("", _TOO_DEEP)
    if "\\ud" in text or "\\uD" in text:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise RowError("", "half a surrogate pair (\\ud800 to \\udfff alone) is not text") from None


def _deeper(value: Any, levels: int) -> bool:
    """Whether objects and lists in ``value`` are nested more than ``levels`` deep."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return inner is not None and (levels == 0 or any(_deeper(item, levels - 1) for item in inner))


def _whole_object(text: str) -> dict[str, Any]:
    """The one JSON object of a line; RowError where it has anything else."""
    text = text.strip()
    value, end = _json_object(text)
    if end < len(text):
        raise RowError("", f"not valid JSON: more text after the object, at column {end + 1}")
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
                content = _whole_object(_decode(line, number == 1))
            except RowError as error:
                cut = "" if line.endswith(b"\n") else "; the file ends in this row: is it cut?"
                content = RowError(error.field, error.reason + cut)
            yield Row(number, content, Cursor(offset, number))


def _passage_rows(path: Path, start: Cursor) -> Iterator[Row]:
    """A text file as passages of whole paragraphs of about ``PASSAGE_CHARACTERS``.

    A passage ends at the first blank line after that length, or, where a paragraph does not end, at the line that
    reaches twice the length. Nothing is lost but blank lines between passages and lines that are no text, each of
    which is a bad row.
    """
    with _open(path) as file:
        file.seek(start.offset)
        offset, number = start
        first, lines, length = number + 1, [], 0
        for line in file:
            before = Cursor(offset, number)
            offset, number = offset + len(line), number + 1
            try:
                text = _decode(line, number == 1).replace("\r\n", "\n")
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


def _json_rows(path: Path, start: Cursor) -> Iterator[Row]:
    """A ``.json`` file is one list of objects, or, as the Hub often has it, one object a line."""
    with _open(path) as file:
        head = file.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n")
    if head[:1] == b"{" and not head.partition(b"\n")[0].strip(b"{ \t\r"):
        raise UserError(f"{path} spreads an object over several lines: give a list of objects, or one object a line")
    if not head.startswith(b"["):
        yield from _jsonl_rows(path, start)
        return
    with _open(path) as file:
        try:
            text = _decode(file.read(), first=True)
        except RowError as error:
            raise UserError(f"{path}: {error}".replace(" of the row", "")) from None
    for number, content in enumerate(_listed_objects(path, text), start=1):
        if number > start.records:
            yield Row(number, content, Cursor(0, number))


_SPACE = re.compile(r"[ \t\r\n]*")


def _listed_objects(path: Path, text: str) -> Iterator["dict[str, Any] | RowError"]:
    """The members of the JSON list that ``text`` is, one by one. UserError where it is none."""
    number = 0

    def wrong(reason: object) -> UserError:
        return UserError(f"{path}, row {number}: {reason}")

    place = _SPACE.match(text, text.index("[") + 1).end()
    while number or text[place : place + 1] != "]":
        number += 1
        content: dict[str, Any] | RowError
        try:
            content, place = _json_object(text, place)
        except RowError as error:
            try:
                place = json.JSONDecoder(parse_int=str).raw_decode(text, place)[1]
            except (json.JSONDecodeError, RecursionError):
                raise wrong(error) from None
            content = error
        yield content
        place = _SPACE.match(text, place).end()
        if text[place : place + 1] == "]":
            break
        if text[place : place + 1] != ",":
            raise wrong("no comma or closing bracket after it: not a JSON list, or a cut one")
        place = _SPACE.match(text, place + 1).end()
        if text[place : place + 1] == "]":
            raise wrong("a comma after the last row, which JSON does not have")
    if text[place + 1 :].strip():
        raise UserError(f"{path} goes on after its list: give one list of objects, or one object a line")


def _csv_rows(path: Path, start: Cursor) -> Iterator[Row]:
    """Every cell stays text ("007" is no number). Cells are parted as the header's are: by ``,`` or else ``;`` or tab.

    A quoted cell that is not closed would take the rows after it for its text, so what follows a closing quote must be
    the end of the cell.
    """
    csv.field_size_limit(CSV_CELL_CHARACTERS)
    # Bytes that are not UTF-8 become lone surrogates, so that they make one row bad and not the file.
    with _open(path) as raw, io.TextIOWrapper(raw, "utf-8-sig", errors="surrogateescape", newline="") as file:
        first = file.readline()
        delimiter = next((d for d in DELIMITERS if len(next(csv.reader([first], delimiter=d), ())) > 1), ",")
        reader = csv.reader(chain([first], file), delimiter=delimiter, strict=True)
        number, line, header = 0, 1, None
        try:
            for cells in reader:
                if not cells:
                    line = reader.line_num + 1
                    continue
                if header is None:
                    header = _csv_header(path, cells)
                else:
                    number += 1
                    if number > start.records:
                        yield Row(number, _csv_content(header, cells, line), Cursor(0, number))
                line = reader.line_num + 1
        except csv.Error as error:
            where = f"row {number + 1}" if header else "the header"
            raise UserError(f"{path}, {where}, which begins at line {line}: {_csv_reason(error)}") from None


def _csv_reason(error: csv.Error) -> str:
    if "field larger" in str(error) or "end of data" in str(error):
        return "a quote opens a cell and is never closed"
    if "expected after" in str(error):
        return 'text after the closing quote of a cell; the quote is not meant to close it, or is written twice: ""'
    return str(error)


def _refuse_repeated(path: Path, names: list[str]) -> None:
    """Raises UserError where two columns have one name, for a row could keep only one of their values."""
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UserError(f"{path} has {names.count(twice[0])} columns of the name {twice[0]!r}: rename all but one")


def _csv_header(path: Path, cells: list[str]) -> list[str]:
    """The names of the columns, without the spaces that some programs write around commas."""
    names = [cell.strip() for cell in cells]
    _refuse_repeated(path, names)
    return names


def _csv_content(header: list[str], cells: list[str], line: int) -> "dict[str, str] | RowError":
    if len(cells) != len(header):
        reason = f"cells: {len(cells)}, columns in the header: {len(header)} (the row begins at line {line})"
        return RowError("", reason)
    whole = "".join(cells)
    if "\0" in whole or not _is_text(whole):
        name = next(name for name, cell in zip(header, cells) if "\0" in cell or not _is_text(cell))
        return RowError(name, _NUL if "\0" in whole else f"not UTF-8 text{_LATIN_1} (the row begins at line {line})")
    return dict(zip(header, cells))


def _is_text(cell: str) -> bool:
    """Whether all bytes of a cell were UTF-8; the others were read as lone surrogates."""
    try:
        cell.encode()
    except UnicodeEncodeError:
        return False
    return True


def _parquet_rows(path: Path, start: Cursor) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            _refuse_repeated(path, file.schema_arrow.names)
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
    try:
        reader = _READERS[_known_suffix(path)]
        _refuse_other_content(path)
        yield from reader(path, start)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path} is a cut or damaged gzip file ({error}): download or pack it again") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
