"""A row as it is in its file, and the place just after it."""

from typing import NamedTuple

from pipeline.runtime.files import Json


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
    """A row as it is in the file (or why it cannot be read), its number, and the place just after it."""

    number: int
    content: "Json | RowError"
    after: Cursor
