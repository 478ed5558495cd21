"""The bytes and lines of text files: UTF-8, packed or not, and refused where they are something else."""

import gzip
import io
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
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_LFS_POINTER = b"version https://git-lfs"


def refuse_other_content(path: Path) -> None:
    """Raises UserError where the first bytes of a file are not of the kind that its name says."""
    with open(path, "rb") as file:
        head = file.read(len(_LFS_POINTER))
    packed = path.suffix.lower()
    if head == _LFS_POINTER:
        raise UserError(f"{path} is a pointer of Git LFS, not the data: run `git lfs pull` in its repository")
    for suffix, name, start in ((".gz", "gzip", _GZIP), (".zst", "zstd", _ZSTD)):
        if packed == suffix and not head.startswith(start):
            raise UserError(f"{path} is not a {name} file: rename it if it is plain text, or download it again")
        if packed not in (".gz", ".zst") and head.startswith(start):
            raise UserError(f"{path} is a {name} file: rename it to {path.name}{suffix}")


class _Unpacked(io.RawIOBase):
    """The bytes of a zstd file. Seeking forward reads; one place is sought, once, when a stream resumes."""

    def __init__(self, path: Path):
        import pyarrow as pa

        self._stream = pa.input_stream(str(path), compression="zstd")
        self._place = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:
        content = self._stream.read(len(buffer))
        buffer[: len(content)] = content
        self._place += len(content)
        return len(content)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence != io.SEEK_SET or offset < self._place:
            raise io.UnsupportedOperation("a zstd file is read forwards")
        while self._place < offset and (content := self._stream.read(min(1 << 20, offset - self._place))):
            self._place += len(content)
        return self._place

    def tell(self) -> int:
        return self._place


def _open(path: Path) -> IO[bytes]:
    packed = path.suffix.lower()
    if packed == ".zst":
        return io.BufferedReader(_Unpacked(path), 1 << 16)
    return gzip.open(path, "rb") if packed == ".gz" else open(path, "rb")


@contextmanager
def open_text(path: Path) -> Iterator[IO[bytes]]:
    """The bytes of a text file, unpacked.

    Raises:
        UserError: it is in UTF-16 or UTF-32, or not a text file.
    """
    with _open(path) as file:
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
