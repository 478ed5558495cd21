"""BM25 by bm25s: score(q, d) = sum over the words w of q of idf(w) tf / (tf + k1 (1 - b + b |d| / mean |d|)).

``idf(w) = log(1 + (N - df + 0.5) / (df + 0.5))``, Lucene's form, which is never negative; a word that the query
repeats counts as often. Words are runs of letters and digits in lower case, without a list of stop words, so that any
language and any vocabulary (numbers, names, code) is searched alike.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.inference.retrieval.hits import Hits, best, words
from pipeline.runtime.errors import UserError

K1, B = 1.5, 0.75


class BM25:
    """The sparse retriever. Scores above 0 only: a chunk that shares no word with the query is not found."""

    def __init__(self, index: object, size: int):
        self.index, self.size = index, size

    @classmethod
    def build(cls, texts: Sequence[str], options: object = None) -> "BM25":
        """Index the texts."""
        index = _library().BM25(k1=K1, b=B, method="lucene")
        coded = [words(text) for text in texts]
        if not any(coded):
            raise UserError("bm25: the documents have no letter and no digit to search for")
        index.index(coded, show_progress=False)
        return cls(index, len(texts))

    def save(self, folder: Path) -> None:
        """Write the index into a folder of its own."""
        self.index.save(folder, show_progress=False)

    @classmethod
    def load(cls, folder: Path, size: int, options: object = None) -> "BM25":
        """The index of `save`, over ``size`` texts."""
        return cls(_library().BM25.load(folder), size)

    def search(self, queries: Sequence[str], count: int) -> list[Hits]:
        """The best ``count`` texts for each query."""
        found = []
        for query in queries:
            known = [word for word in words(query) if word in self.index.vocab_dict]
            scores = self.index.get_scores(known) if known else np.zeros(self.size)
            found.append(best(scores, count, above=0.0))
        return found


def _library():
    try:
        import bm25s
    except ImportError:
        raise UserError("bm25 needs the package bm25s: pip install 'narlm[retrieval]'") from None
    return bm25s
