"""Pretraining on corpora larger than memory: documents read as they are needed, packed into blocks, endlessly.

`DocumentStream` reads a corpus in windows of ``WINDOW`` documents, drawn from its sources by their weights and
shuffled inside the window by the seed; files are taken in an order that changes with every pass. `PackedStream` turns
windows into blocks and never ends: ``max_steps`` says how much is learned, and passes over the corpus follow one
another without a seam.

**Resume.** The block sequence is a function of the arguments and the seed alone, so a Trainer that skips the blocks
it has seen resumes exactly. To make that skip cheap each checkpoint holds `PackedStream.position`: where the window of
the next block begins (a byte offset, no text). `PackedStream.fast_forward` then yields placeholders for the blocks
that the Trainer throws away and continues at that place, so nothing before it is read or tokenized again.
(Accelerate's stateful data loaders would need torchdata, and know nothing of byte offsets in local files.)

**Several processes.** Accelerate shards an iterable dataset itself: one process reads and hands out batches, or
(``dispatch_batches: false``) every process reads the stream and keeps its share of the batches. Either way no block
is seen twice and the order does not depend on how. Sharding here by rank as well would lose data.

Exact deduplication of a complete corpus would need it in memory and is not done; documents of the evaluation data are
left out by content wherever they are.
"""

import hashlib
import json
import math
import random
from collections import deque
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from pipeline.data.arguments import DataArguments
from pipeline.data.arrow import to_dataset
from pipeline.data.files import read_rows
from pipeline.data.formats import content_hash, convert
from pipeline.data.loading import EVAL_ROWS, PEEK, Data, load_data, read_source, say, say_reading
from pipeline.data.packing import Packer
from pipeline.data.rows import Cursor, RowError
from pipeline.data.schemas import find_form, prepare
from pipeline.data.sources import RawRow, Source, eval_sources, load_hub, raw_rows, source_fingerprint, sources_of
from pipeline.model.tokens import encode_documents
from pipeline.runtime.errors import UserError
from pipeline.runtime.files import Json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WINDOW = 1000

Position = Json


class SourceReader:
    """Documents of one source from any place on, pass after pass; the order of files follows ``order``, a seed.

    A place is ``{"pass", "file", "offset", "records"}``, or ``{"pass", "hub"}`` with the state of a Hub stream: plain
    JSON. Reading on from where the last call stopped costs nothing; any other place is sought.

    ``record`` is the source's entry in the run record; its ``bad_rows`` counts the different bad rows skipped so far.
    """

    def __init__(self, source: Source, order: str, skip_bad_rows: bool, held_out: frozenset[bytes]):
        if "[" in source.split:
            raise UserError(f"split {source.split!r}: a stream takes a complete split; use max_steps, or no streaming")
        self.source, self.order, self.skip_bad_rows = source, order, skip_bad_rows
        self.held_out = held_out
        self.files = source.files()
        self.record: Json = {"bad_rows": 0}
        self._bad: set[tuple[str, int]] = set()
        self._rows = None if self.files or source.is_world else load_hub(source, streaming=True)
        if source.is_world:
            self._rows = [row for _, _, row in raw_rows(source)]
        first = self._first()
        self.form = find_form(source, "text", first)
        rows = [prepare(row, source) for _, _, row in first if not isinstance(row, RowError)]
        self.reading = self.form.reading(list(dict.fromkeys(key for row in rows for key in row)), "text")
        self._live: tuple[Position, Iterator[tuple[str, Position]]] | None = None

    def _first(self) -> list[RawRow]:
        """The first rows as they are stored, by which the form is found."""
        if self.files:
            first = [(str(self.files[0]), row.number, row.content) for row in islice(read_rows(self.files[0]), PEEK)]
        else:
            first = [(self.source.label, n, row) for n, row in enumerate(islice(self._rows, PEEK), start=1)]
        if not first:
            raise UserError(f"{self.source.label} is empty: there are no rows in split {self.source.split!r}")
        return first

    def take(self, count: int, place: Position) -> tuple[list[str], Position]:
        """``count`` documents from ``place`` on and the place after them; the next pass begins where one ends."""
        if self._live is None or self._live[0] != place:
            self._live = (place, self._documents(place))
        documents = self._live[1]
        taken = list(islice(documents, count))
        after = taken[-1][1] if taken else place
        self._live = (after, documents)
        return [text for text, _ in taken], after

    def _documents(self, place: Position) -> Iterator[tuple[str, Position]]:
        while True:
            fresh = place == _start(place["pass"])
            found = False
            for number, content, where, after in self._one_pass(place):
                text = self.text(content, where, number)
                if text is not None:
                    found = True
                    yield text, after
            if fresh and not found:
                raise UserError(f"{self.source.label}: no document is left besides bad and held-out ones")
            place = _start(place["pass"] + 1)

    def _one_pass(self, place: Position) -> Iterator[tuple[int, Json | RowError, str, Position]]:
        """``(row number, row, file, place after it)`` from a place to the end of its pass."""
        turn = place["pass"]
        if self.files:
            order = list(self.files)
            random.Random(f"files {self.order} {turn}").shuffle(order)
            for index in range(place.get("file", 0), len(order)):
                start = Cursor(place["offset"], place["records"]) if index == place.get("file") else Cursor()
                for row in read_rows(order[index], start):
                    after = {"pass": turn, "file": index, "offset": row.after.offset, "records": row.after.records}
                    yield row.number, row.content, str(order[index]), after
        elif isinstance(self._rows, list):
            for number, row in enumerate(self._rows[place.get("records", 0) :], start=place.get("records", 0) + 1):
                yield number, row, self.source.label, {"pass": turn, "records": number}
        else:
            stream = load_hub(self.source, streaming=True) if "hub" in place else self._rows
            if "hub" in place:
                stream.load_state_dict(place["hub"])
            for number, row in enumerate(stream, start=1):
                yield number, row, self.source.label, {"pass": turn, "hub": stream.state_dict()}

    def text(self, content: Json | RowError, where: str, number: int) -> str | None:
        """The document of a row; None for one that is held out or, where that is allowed, bad."""
        try:
            if isinstance(content, RowError):
                raise content
            row = convert(prepare(content, self.source), self.form, "text")
            if "unlearned" in row:
                raise UserError(f"{where}: the column unlearned needs the documents in memory: no --dataset_streaming")
        except RowError as error:
            if not self.skip_bad_rows:
                raise UserError(f"{where}, row {number}: {error} (fix the row, or pass --skip_bad_rows)") from None
            self._bad.add((where, number))
            self.record["bad_rows"] = len(self._bad)
            if len(self._bad) == 1:
                say(f"{where}, row {number}: {error}: skipped, as will be all bad rows")
            return None
        return None if self.held_out and _key(row) in self.held_out else row["text"]


def _start(turn: int) -> Position:
    return {"pass": turn}


def _key(row: Json) -> bytes:
    return bytes.fromhex(content_hash(row))


class DocumentStream:
    """Windows of documents from one or several sources, endlessly, in an order that the seed fixes.

    Args:
        sources: the corpora; with more than one each needs a ``weight``, its relative share of the documents.
        seed: fixes the order of files and of documents within a window.
        skip_bad_rows: skip bad rows instead of raising UserError at the first.
        held_out: content hashes of the evaluation documents, which are left out.
        window: documents read and shuffled together.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        seed: int,
        *,
        skip_bad_rows: bool = False,
        held_out: frozenset[bytes] = frozenset(),
        window: int = WINDOW,
    ):
        if len(sources) > 1 and sources[0].weight is None:
            raise UserError(
                "a streamed mixture needs a weight on every entry of datasets (relative share of documents)"
            )
        self.seed = seed
        self.readers = [
            SourceReader(source, f"{seed} {number}", skip_bad_rows, held_out) for number, source in enumerate(sources)
        ]
        weights = [source.weight or 1.0 for source in sources]
        self.counts = [max(1, round(window * weight / sum(weights))) for weight in weights]

    def start(self) -> Position:
        """The place of the first window."""
        return {"window": 0, "sources": [_start(0) for _ in self.readers]}

    def texts(self) -> Iterator[str]:
        """Documents from the beginning, in the order and shares of training, until every source came by once."""
        for texts, place in self.windows(self.start()):
            yield from texts
            if all(at["pass"] for at in place["sources"]):
                return

    def windows(self, place: Position) -> Iterator[tuple[list[str], Position]]:
        """``(documents, place after them)`` from a place on, without end."""
        while True:
            texts: list[str] = []
            places = []
            for reader, count, at in zip(self.readers, self.counts, place["sources"]):
                taken, after = reader.take(count, at)
                texts += taken
                places.append(after)
            random.Random(f"window {self.seed} {place['window']}").shuffle(texts)
            place = {"window": place["window"] + 1, "sources": places}
            yield texts, place


class PackedStream(IterableDataset):
    """Packed blocks of a `DocumentStream`, without end, for a Trainer with ``max_steps``.

    Yields ``{"input_ids", "labels", "position_ids"}`` of int64 arrays (T,), made as in `pipeline.data.packing`.
    With DataLoader workers each takes every W-th window, so no document is read twice; the order then depends on W.
    """

    def __init__(self, documents: DocumentStream, tokenizer: "PreTrainedTokenizerBase", max_length: int):
        self.documents, self.tokenizer, self.max_length = documents, tokenizer, max_length
        Packer(max_length)  # raises on a bad length now, not at the first step
        encode_documents(tokenizer, [""])
        self._begin = {"blocks": 0, "place": documents.start(), "unfinished": None}
        self._placeholders = 0
        self._positions: deque[Position] = deque(maxlen=64)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        worker = get_worker_info()
        share, shares = (worker.id, worker.num_workers) if worker else (0, 1)
        nothing = np.zeros(self.max_length, dtype=np.int64)
        for _ in range(self._placeholders):
            yield {"input_ids": nothing, "labels": nothing, "position_ids": nothing}
        blocks, place = self._begin["blocks"], self._begin["place"]
        packer = Packer(self.max_length, self._begin["unfinished"])
        self._positions.clear()
        self._positions.append({"blocks": blocks, "place": place, "unfinished": packer.unfinished()})
        for texts, after in self.documents.windows(place):
            mine = place["window"] % shares == share
            for tokens in encode_documents(self.tokenizer, texts) if mine else ():
                for block in packer.add(tokens):
                    blocks += 1
                    if blocks > self._placeholders:
                        yield {name: np.asarray(values, dtype=np.int64) for name, values in block.items()}
            place = after
            self._positions.append({"blocks": blocks, "place": place, "unfinished": packer.unfinished()})

    def position(self, blocks: int) -> Position | None:
        """Where to begin reading so that block number ``blocks`` comes next (or soon); None if that is not known."""
        known = [position for position in self._positions if position["blocks"] <= blocks]
        return {**known[-1], "wanted": blocks} if known else None

    def fast_forward(self, position: Position) -> None:
        """Continues at a position: the blocks before it, which the Trainer skips, come as zeros at no cost."""
        self._begin = {key: position[key] for key in ("blocks", "place", "unfinished")}
        self._placeholders = position["wanted"]

    @cached_property
    def fingerprint(self) -> str:
        """What the block sequence depends on besides the bytes of the corpus; a position is only good for the same."""
        readers = self.documents.readers
        parts = {
            "sources": [[r.source.split, [f.name for f in r.files] or r.source.name, r.form] for r in readers],
            "held_out": sorted(key.hex() for key in readers[0].held_out),
            "counts": self.documents.counts,
            "seed": self.documents.seed,
            "max_length": self.max_length,
            "vocabulary": sorted(self.tokenizer.get_vocab().items()),
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def pack_stream(
    documents: DocumentStream, tokenizer: "PreTrainedTokenizerBase", max_length: int, max_steps: int
) -> PackedStream:
    """A stream of blocks for a Trainer.

    Args:
        documents: what ``load_stream`` gave.
        tokenizer: encodes the documents.
        max_length: T, tokens per block.
        max_steps: the steps to train, which must be given, since the stream never ends.

    Raises:
        UserError: no ``max_steps``.
    """
    if max_steps <= 0:
        raise UserError("dataset_streaming reads without end: say how many steps to train by max_steps")
    return PackedStream(documents, tokenizer, max_length)


def load_documents(arguments: DataArguments, seed: int) -> Data:
    """Text for pretraining: as a stream with ``dataset_streaming``, else loaded into memory."""
    return load_stream(arguments, seed) if arguments.dataset_streaming else load_data(arguments, "text", seed)


def load_stream(arguments: DataArguments, seed: int) -> Data:
    """`load_data` for ``dataset_streaming``: the training documents as a stream, the evaluation documents in memory.

    Where no evaluation data is named, ``eval_rows`` (default 500) documents are held out: the first ones of every
    file, as many of each, for a draw from a corpus that cannot be held would need to read it all.

    Raises:
        UserError: anything wrong in names, columns or rows.
    """
    sources = sources_of(arguments)
    held = eval_sources(arguments, sources)
    parts = [read_source(source, "text", arguments.skip_bad_rows) for source in held]
    records = [part.record() for part in parts]
    rows = [row for part in parts for row in part.rows]
    if not parts:
        wanted = EVAL_ROWS if arguments.eval_rows is None else arguments.eval_rows
        for source in sources:
            held = _first_documents(source, math.ceil(wanted / len(sources)), arguments.skip_bad_rows)
            rows += [{"text": text} for text in held]
            if held:
                entry = {"name": source.name, "split": source.split, "role": "evaluation", "rows": len(held)}
                records.append({**entry, "held_out_of": "train", "held_out_by": "first documents of every file"})
    held_out = frozenset(_key(row) for row in rows)
    train = DocumentStream(sources, seed, skip_bad_rows=arguments.skip_bad_rows, held_out=held_out)
    say_reading([(reader.source, reader.reading) for reader in train.readers], "text")
    for source, reader in zip(sources, train.readers):
        reader.record |= {
            "name": source.name,
            "split": source.split,
            "role": "train",
            "rows": None,
            "read_as": reader.reading,
            "fingerprint": source_fingerprint(source),
            "streaming": True,
            **({"files": [str(file) for file in source.files()]} if source.files() else {}),
            **({"weight": source.weight} if source.weight else {}),
        }
    streamed = [reader.record for reader in train.readers]
    return Data(train, to_dataset(rows, "text") if rows else None, streamed + records)


def _first_documents(source: Source, count: int, skip_bad_rows: bool) -> list[str]:
    """About ``count`` different documents, evenly from the beginnings of the source's files."""
    reader = SourceReader(source, "", skip_bad_rows, frozenset())
    if not reader.files:
        texts, _ = reader.take(count, _start(0)) if count else ([], None)
        return list(dict.fromkeys(texts))
    texts: dict[str, None] = {}
    for file in reader.files:
        rows = (reader.text(row.content, str(file), row.number) for row in read_rows(file))
        texts.update(dict.fromkeys(islice((t for t in rows if t is not None), math.ceil(count / len(reader.files)))))
    return list(texts)[:count]
