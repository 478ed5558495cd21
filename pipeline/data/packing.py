"""Packing for pretraining: documents to blocks of one length, with the boundaries kept.

A document is ``[bos] tokens eos`` (bos only where the tokenizer has one). Documents follow one another without gaps
and are cut into blocks of ``max_length`` tokens. ``position_ids`` start at 0 with every document and with every block,
and there is no attention mask: from that transformers builds a block-diagonal mask, so that no document is read as the
beginning of the next (in eq. 9 a token is conditioned on the text of its document alone). A document longer than the
rest of its block continues in the next one, with fresh positions and without what came before.

Two things switch that mask off silently: an attention mask (transformers' padding collator adds one; use
``default_data_collator``) and, in most models, a cache (train with ``use_cache=False``).

Tokens within the character spans of a document's column ``unlearned`` (``[[start, end], …]``) are read, and their
labels are -100: text that is there to be seen and not to be said.

No token is lost. The last block is filled with the pad token, as a further document whose labels are -100. Labels
equal the input, except -100 at the first token of a document, which nothing comes before.

SFT needs none of this: TRL's ``packing: true`` packs complete examples and resets positions likewise.

Columns: input_ids, labels, position_ids, each (T,) with T = max_length.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pipeline.model.tokens import encode_documents
from pipeline.runtime.errors import UserError

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
BATCH = 1000

Block = dict[str, list[int]]


class Packer:
    """Cuts documents into blocks as they come; between two calls it holds the unfinished block.

    Args:
        max_length: T, tokens in a block.
        unfinished: what `unfinished` gave, to continue from.
    """

    def __init__(self, max_length: int, unfinished: Block | None = None):
        if max_length < 2:
            raise UserError(f"max_length {max_length}: a block needs at least two tokens, one to predict another")
        self.max_length = max_length
        self._block: Block = {k: list(v) for k, v in unfinished.items()} if unfinished else _empty()

    def unfinished(self) -> Block:
        """A copy of the block that is being filled."""
        return {name: list(values) for name, values in self._block.items()}

    def __len__(self) -> int:
        """Tokens in the unfinished block."""
        return len(self._block["input_ids"])

    def add(self, tokens: Sequence[int], unlearned: Sequence[bool] = ()) -> Iterator[Block]:
        """Appends one document (T_doc,) and yields every block it completes.

        Args:
            unlearned: of each token, or of none, whether it is only read.
        """
        start = 0
        while start < len(tokens):
            taken = tokens[start : start + self.max_length - len(self)]
            labels = list(taken)
            for i, unsaid in enumerate(unlearned[start : start + len(taken)]):
                if unsaid:
                    labels[i] = IGNORED
            if start == 0:
                labels[0] = IGNORED
            self._append(taken, labels)
            start += len(taken)
            if len(self) == self.max_length:
                block, self._block = self._block, _empty()
                yield block

    def flush(self, pad_token_id: int) -> Iterator[Block]:
        """Yields the unfinished block, if there is one, filled with padding that is not learned."""
        rest = self.max_length - len(self)
        if len(self):
            self._append([pad_token_id] * rest, [IGNORED] * rest)
            block, self._block = self._block, _empty()
            yield block

    def _append(self, tokens: Sequence[int], labels: Sequence[int]) -> None:
        self._block["input_ids"] += tokens
        self._block["labels"] += labels
        self._block["position_ids"] += range(len(tokens))


def _empty() -> Block:
    return {"input_ids": [], "labels": [], "position_ids": []}


def _within(
    tokenizer: "PreTrainedTokenizerBase", text: str, spans: Sequence[Sequence[int]], length: int
) -> list[bool]:
    """Whether each of a document's ``length`` tokens, BOS and EOS among them, has a character of a span."""
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"]
    inside = [any(a < end and b > start for start, end in spans) for a, b in offsets]
    return [False] * (length - len(offsets) - 1) + inside + [False]


def pack(dataset: "datasets.Dataset", tokenizer: "PreTrainedTokenizerBase", max_length: int) -> "datasets.Dataset":
    """All documents of a ``text`` dataset as packed blocks (see above); nothing is cached on disk.

    Raises:
        UserError: no eos token, or max_length below 2.
    """
    import datasets
    import numpy as np
    import pyarrow as pa

    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    columns: dict[str, list] = _empty()
    packer = Packer(max_length)
    read = [name for name in ("text", "unlearned") if name in dataset.column_names]

    def blocks() -> Iterator[Block]:
        for batch in dataset.select_columns(read).iter(BATCH):
            spans = batch.get("unlearned") or [None] * len(batch["text"])
            for text, marked, tokens in zip(batch["text"], spans, encode_documents(tokenizer, batch["text"])):
                yield from packer.add(tokens, _within(tokenizer, text, marked, len(tokens)) if marked else ())
        yield from packer.flush(pad)

    for block in blocks():
        for name, values in block.items():
            columns[name].append(np.asarray(values, dtype=np.int32))
    # Arrow tables straight from NumPy: one Python int per token would cost thirty times the memory.
    feature = datasets.Features({name: datasets.List(datasets.Value("int32")) for name in columns})
    arrays = {}
    for name, blocks in columns.items():
        flat = pa.array(np.concatenate(blocks) if blocks else np.empty(0, np.int32))
        ends = pa.array(np.arange(0, len(flat) + 1, max_length, dtype=np.int32))
        arrays[name] = pa.ListArray.from_arrays(ends, flat)
    return datasets.Dataset(pa.table(arrays), info=datasets.DatasetInfo(features=feature))
