"""CSV read strictly: every row has the header's cells, and a quote that is never closed swallows no row."""

import csv
import io
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from pipeline.data.rows import Cursor, Row, RowError
from pipeline.data.text_files import LATIN_1, NUL, open_text
from pipeline.runtime.errors import UserError

CSV_CELL_CHARACTERS = 2**28
DELIMITERS = ",;\t"


def csv_rows(path: Path, start: Cursor) -> Iterator[Row]:
    """Every cell stays text ("007" is no number). Cells are separated as in the header: by ``,``, else ``;`` or tab.

    A quoted cell that is not closed would take the rows after it for its text, so what follows a closing quote must be
    the end of the cell.
    """
    csv.field_size_limit(CSV_CELL_CHARACTERS)
    # Bytes that are not UTF-8 become lone surrogates, so that they make one row bad and not the file.
    with open_text(path) as raw, io.TextIOWrapper(raw, "utf-8-sig", errors="surrogateescape", newline="") as file:
        first = file.readline()
        delimiter = next((d for d in DELIMITERS if len(next(csv.reader([first], delimiter=d), ())) > 1), ",")
        reader = csv.reader(chain([first], file), delimiter=delimiter, strict=True)
        number, line, header = 0, 1, None
        try:
            for cells in reader:
                if cells and header is None:
                    header = _csv_header(path, cells)
                elif cells:
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


def _csv_header(path: Path, cells: list[str]) -> list[str]:
    """The names of the columns, without the spaces that some programs write around commas."""
    names = [cell.strip() for cell in cells]
    refuse_repeated(path, names)
    return names


def _csv_content(header: list[str], cells: list[str], line: int) -> "dict[str, str] | RowError":
    if len(cells) != len(header):
        reason = f"cells: {len(cells)}, columns in the header: {len(header)} (the row begins at line {line})"
        return RowError("", reason)
    text = "".join(cells)
    if "\0" in text or not _is_text(text):
        name = next(name for name, cell in zip(header, cells) if "\0" in cell or not _is_text(cell))
        return RowError(name, NUL if "\0" in text else f"not UTF-8 text{LATIN_1} (the row begins at line {line})")
    return dict(zip(header, cells))


def _is_text(cell: str) -> bool:
    """Whether all bytes of a cell were UTF-8; the others were read as lone surrogates."""
    try:
        cell.encode()
    except UnicodeEncodeError:
        return False
    return True


def refuse_repeated(path: Path, names: list[str]) -> None:
    """Raises UserError where two columns have one name, for a row could keep only one of their values."""
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UserError(f"{path} has {names.count(twice[0])} columns of the name {twice[0]!r}: rename all but one")
