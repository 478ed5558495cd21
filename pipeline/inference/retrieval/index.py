"""An index: chunks with one or several retrievers over them, in memory or in a folder.

A folder has ``index.json`` (how it was built), ``chunks.jsonl`` (``id``, ``text``, ``document``) and a folder per
retriever. Several retrievers are fused by reciprocal rank. A new retriever is a class like `Retriever` and one line of
`RETRIEVERS`, or a user's own as ``package.module:Class``.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

from pipeline.data.sources import Source
from pipeline.inference.retrieval.documents import Chunk, read_documents
from pipeline.inference.retrieval.hits import Hits, fuse, words
from pipeline.runtime.errors import UserError
from pipeline.runtime.files import Json, path_sha256, write_json, write_rows
from pipeline.runtime.registry import find

RETRIEVERS = {
    "bm25": "pipeline.inference.retrieval.bm25:BM25",
    "dense": "pipeline.inference.retrieval.dense:Dense",
}
INDEX, CHUNKS = "index.json", "chunks.jsonl"
DEPTH = 100  # hits of each retriever that are fused


class Retriever(Protocol):
    """What a retriever has: two ways to come to be, `save`, and `search`."""

    @classmethod
    def build(cls, texts: Sequence[str], options: "IndexOptions") -> "Retriever":
        """A retriever over the texts."""

    @classmethod
    def load(cls, folder: Path, size: int, options: "IndexOptions") -> "Retriever":
        """What `save` wrote, over ``size`` texts."""

    def save(self, folder: Path) -> None:
        """Write everything that `load` needs."""

    def search(self, queries: Sequence[str], count: int) -> list[Hits]:
        """(place of a text, score) of at most ``count`` texts per query, best first."""


@dataclass(frozen=True)
class IndexOptions:
    """How an index searches; kept in ``index.json``."""

    retrievers: list[str] = field(default_factory=lambda: ["bm25"])
    encoder: str | None = None
    query_prefix: str = ""
    passage_prefix: str = ""


class Passage(NamedTuple):
    """A chunk that was found for a query, and its score."""

    id: str
    text: str
    score: float


class Index:
    """Chunks and the retrievers over them, by name."""

    def __init__(self, chunks: Sequence[Chunk], retrievers: dict[str, Retriever], options: IndexOptions):
        self.chunks, self.retrievers, self.options = list(chunks), retrievers, options

    @classmethod
    def build(cls, chunks: Sequence[Chunk], options: IndexOptions) -> "Index":
        """An index in memory.

        Raises:
            UserError: an unknown retriever, or one that cannot be built.
        """
        texts = [chunk.text for chunk in chunks]
        return cls(chunks, {n: retriever_class(n).build(texts, options) for n in options.retrievers}, options)

    def save(self, folder: Path, notes: Json) -> None:
        """Write the index; ``index.json``, which makes the folder an index, comes last.

        Args:
            notes: what else is recorded there: the documents and how they were cut.
        """
        write_rows(folder / CHUNKS, (chunk._asdict() for chunk in self.chunks))
        for name, retriever in self.retrievers.items():
            retriever.save(folder / _folder_name(name))
        write_json(folder / INDEX, {"schema": 1, **asdict(self.options), "chunks": len(self.chunks), **notes})

    @classmethod
    def load(cls, folder: Path) -> "Index":
        """The index in a folder.

        Raises:
            UserError: it is not one, or damaged.
        """
        folder = Path(folder)
        try:
            notes = json.loads((folder / INDEX).read_text(encoding="utf-8"))
            with open(folder / CHUNKS, encoding="utf-8") as file:
                chunks = [Chunk(**json.loads(line)) for line in file]
            options = IndexOptions(**{name: notes[name] for name in IndexOptions.__dataclass_fields__})
            if len(chunks) != notes["chunks"]:
                raise ValueError(f"{len(chunks)} chunks, {notes['chunks']} expected")
            retrievers = {
                name: retriever_class(name).load(folder / _folder_name(name), len(chunks), options)
                for name in options.retrievers
            }
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{folder} is no index, or a damaged one ({error}): build it again "
                "(python -m pipeline.inference.retrieval build)"
            ) from None
        return cls(chunks, retrievers, options)

    def search(self, queries: Sequence[str], count: int, hops: int = 1) -> list[list[Passage]]:
        """The best ``count`` passages for each query; fewer where fewer match, none twice.

        Args:
            hops: with 2, half of the passages (rounded up) come from the query and the others from `reformulated`, so
                that what a first passage says of somebody else can be looked up.
        """
        first = self.ranked(queries, count)
        if hops > 1:
            kept = [hits[: (count + 1) // 2] for hits in first]
            texts = [[self.chunks[place].text for place, _ in hits] for hits in kept]
            second = self.ranked([reformulated(query, each) for query, each in zip(queries, texts)], count)
            first = [_joined(a, b, count) for a, b in zip(kept, second)]
        return [[Passage(*self.chunks[place][:2], score) for place, score in hits] for hits in first]

    def ranked(self, queries: Sequence[str], count: int) -> list[Hits]:
        """`search`'s places and scores: of the only retriever its own, of several the fused ones."""
        if count < 1:
            raise UserError(f"top_passages is {count}: give 1 or more")
        if len(self.retrievers) == 1:
            [retriever] = self.retrievers.values()
            return retriever.search(queries, count)
        rankings = [retriever.search(queries, max(DEPTH, count)) for retriever in self.retrievers.values()]
        return [fuse(each, count) for each in zip(*rankings)]


def reformulated(query: str, passages: Sequence[str]) -> str:
    """The query of a second search: words that either the query or its passages have, but not both.

    What the passages answered is left out; what they name beside it, and what is still asked, is searched for.
    """
    asked, found = words(query), [word for text in passages for word in words(text)]
    new = [word for word in found if word not in set(asked)]
    return " ".join(dict.fromkeys([*(word for word in asked if word not in set(found)), *new]))


def _joined(first: Hits, second: Hits, count: int) -> Hits:
    known = {place for place, _ in first}
    return (first + [hit for hit in second if hit[0] not in known])[:count]


def retriever_class(name: str) -> type[Retriever]:
    """The class of a registry name or dotted path. UserError where there is none."""
    return find(name, RETRIEVERS, "retrievers")


def _folder_name(name: str) -> str:
    return name.replace(":", ".").replace("/", "_")


def open_index(name: str, options: IndexOptions | None = None) -> tuple[Index, Json]:
    """An index folder, or documents that are indexed now, one chunk each; and its entry for a run record.

    Args:
        name: a folder that `build` made, or documents: a file, a folder, a Hub id or ``world/<name>``.
        options: how documents are searched; an index folder has its own.

    Raises:
        UserError: neither of them.
    """
    folder = Path(name).expanduser()
    if (folder / INDEX).is_file():
        index = Index.load(folder)
        record = {"name": name, "role": "documents", "rows": len(index.chunks), "fingerprint": path_sha256(folder)}
        return index, record
    documents, record = read_documents(Source(name=name))
    chunks = [Chunk(document.id, document.text, document.id) for document in documents]
    return Index.build(chunks, options or IndexOptions()), record
