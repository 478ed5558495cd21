"""Documents of any data source, and the chunks of them that are retrieved.

A document is a row with a ``text`` (or what kind ``text`` of `pipeline.data.formats` reads), named by its column
``id``, or a complete ``.md`` or ``.txt`` file, named by its path. A chunk is a part of the document's own text, from
the first character of a unit (sentence, word or token) to the last of another, so nothing is rewritten.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pipeline.data.loading import read_source
from pipeline.data.rows import RowError
from pipeline.data.sources import Source
from pipeline.data.text_files import decode, open_text, refuse_other_content
from pipeline.runtime.errors import UserError
from pipeline.runtime.files import Json, files_sha256

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

UNITS = ("sentences", "words", "tokens")
TEXT_FILES = (".md", ".markdown", ".txt")
_WORD = re.compile(r"\S+")
_SENTENCE = re.compile(r"\S.*?(?:[.!?]+(?=\s)|(?=\n)|(?=\s*\Z))", re.DOTALL)


class Document(NamedTuple):
    """A text with a name that no other document of the index has."""

    id: str
    text: str


class Chunk(NamedTuple):
    """What is retrieved: a part of a document. ``id`` is the document's, with ``#1``, ``#2``, … if it has several."""

    id: str
    text: str
    document: str


def read_documents(source: Source, skip_bad_rows: bool = False) -> tuple[list[Document], Json]:
    """All documents of a source, in order, and its entry for a run record.

    Raises:
        UserError: it cannot be read, has no document, or two documents of one id.
    """
    files = _text_files(Path(source.name).expanduser())
    if files:
        documents = [Document(name, _whole(file)) for name, file in files]
        paths = [file for _, file in files]
        record = {"name": source.name, "files": [str(f) for f in paths], "fingerprint": files_sha256(paths)}
        places = [str(file) for file in paths]
    else:
        part = read_source(source, "text", skip_bad_rows, keep=("id",))
        places = [f"{place}, row {number}" for place, number in part.places]
        named = zip(part.rows, part.places)
        documents = [
            Document(str(row.get("id") or f"{Path(place).name}:{number}"), row["text"])
            for row, (place, number) in named
        ]
        record = part.record()
    _require_different(documents, places)
    return documents, record | {"rows": len(documents), "role": "documents"}


def _text_files(path: Path) -> list[tuple[str, Path]]:
    """``(id, file)`` of a text file, or of the text files of a folder that has no data files; else nothing."""
    if path.is_file():
        return [(path.name, path)] if path.suffix.lower() in TEXT_FILES else []
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else []
    found = [(file.relative_to(path).as_posix(), file) for file in files if file.suffix.lower() in TEXT_FILES]
    return found if any(file.suffix.lower() != ".txt" for _, file in found) or len(found) == len(files) else []


def _whole(path: Path) -> str:
    try:
        refuse_other_content(path)
        with open_text(path) as file:
            return decode(file.read(), first=True)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    except RowError as error:
        raise UserError(f"{path}: {error}") from None


def _require_different(documents: Sequence[Document], places: Sequence[str]) -> None:
    seen: dict[str, str] = {}
    for document, place in zip(documents, places, strict=True):
        if document.id in seen:
            raise UserError(
                f"{place}: the id {document.id!r} is that of {seen[document.id]} too: give every document its own"
            )
        seen[document.id] = place


def chunks_of(
    documents: Sequence[Document],
    *,
    unit: str = "sentences",
    size: int = 5,
    overlap: int = 1,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
) -> list[Chunk]:
    """The chunks of all documents, in order; a document without a unit (white space) has none.

    Args:
        unit: what is counted: sentences, words (separated by white space), or tokens of ``tokenizer``.
        size: units per chunk; the last chunk of a document may have fewer.
        overlap: units that a chunk shares with the one before it.
        tokenizer: of unit ``tokens``; a fast one, which knows the characters of its tokens.

    Raises:
        UserError: an option out of range, no tokenizer for tokens, or no chunk at all.
    """
    check_chunking(unit, size, overlap, tokenizer is not None)
    found = []
    for document in documents:
        spans = list(_windows(_units(document.text, unit, tokenizer), size, overlap))
        for number, (start, end) in enumerate(spans, 1):
            name = document.id if len(spans) == 1 else f"{document.id}#{number}"
            found.append(Chunk(name, document.text[start:end], document.id))
    if not found:
        raise UserError("the documents have no text: there is nothing to retrieve")
    return found


def check_chunking(unit: str, size: int, overlap: int, has_tokenizer: bool) -> None:
    """Raises UserError where the options of `chunks_of` cannot be."""
    if unit not in UNITS:
        raise UserError(f"chunk_by {unit!r} is not one of {', '.join(UNITS)}")
    if size < 1:
        raise UserError(f"chunk_size is {size}: give 1 or more {unit}")
    if not 0 <= overlap < size:
        raise UserError(f"chunk_overlap is {overlap}: give 0 or more, and less than chunk_size, which is {size}")
    if unit == "tokens" and not has_tokenizer:
        raise UserError("chunk_by tokens needs tokenizer_name: the model or tokenizer whose tokens are counted")


def _units(text: str, unit: str, tokenizer: "PreTrainedTokenizerBase | None") -> list[tuple[int, int]]:
    """First character and end of every unit of a text."""
    if unit != "tokens":
        return [match.span() for match in (_WORD if unit == "words" else _SENTENCE).finditer(text)]
    if not tokenizer.is_fast:
        raise UserError("the tokenizer does not report the characters of its tokens: use chunk_by words or sentences")
    coded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return [(start, end) for start, end in coded["offset_mapping"] if end > start]


def _windows(units: list[tuple[int, int]], size: int, overlap: int) -> Iterator[tuple[int, int]]:
    """Windows of ``size`` units, each ``size - overlap`` after the one before, until one holds the last unit."""
    for first in range(0, len(units), size - overlap):
        window = units[first : first + size]
        yield window[0][0], window[-1][1]
        if first + size >= len(units):
            return
