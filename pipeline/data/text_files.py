"""The bytes and lines of text files: UTF-8, packed or not, and refused where they are something else."""

import gzip
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from pipeline.data.rows import RowError
from pipeline.runtime.errors import UserError

# Reasons of bad rows.
NUL = "a NUL character, which no text file has"
LATIN_1 = "; if the file is in Windows-1252 or Latin-1, save it as UTF-8"
# First bytes.
_GZIP = b"\x1f\x8b"
_LFS_POINTER = b"version https://git-lfs"


def refuse_other_content(path: Path) -> None:
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


@contextmanager
def open_text(path: Path) -> Iterator[IO[bytes]]:
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


def decode(line: bytes, first: bool) -> str:
    """A line as text; before the first line of a file may be a byte order mark. RowError where it is not UTF-8."""
    try:
        text = line.decode("utf-8-sig" if first else "utf-8")
    except UnicodeDecodeError as error:
        raise RowError("", f"not UTF-8 text at byte {error.start} of the row{LATIN_1}") from None
    if "\0" in text:
        raise RowError("", NUL)
    return text
