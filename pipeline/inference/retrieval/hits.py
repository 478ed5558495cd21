"""Words of a text, and ranked lists: what a retriever returns for a query, and the fusion of several of them."""

import re
from collections.abc import Sequence

import numpy as np

Hits = list[tuple[int, float]]  # (place of a text, score), best first
RRF = 60  # Cormack, Clarke and Buettcher 2009


def words(text: str) -> list[str]:
    """The words of a text in lower case: runs of letters and digits."""
    return re.findall(r"\w+", text.lower())


def best(scores: np.ndarray, count: int, above: float = -np.inf) -> Hits:
    """The places of the ``count`` highest scores above a bound, highest first; of equal scores the earlier place.

    Args:
        scores: (N,), one per text.
    """
    places = np.flatnonzero(scores > above)
    order = places[np.argsort(-scores[places], kind="stable")][:count]
    return [(int(place), float(scores[place])) for place in order]


def fuse(rankings: Sequence[Hits], count: int) -> Hits:
    """Reciprocal rank fusion: score(d) = sum over the rankings that hold d of 1 / (60 + rank of d), ranks from 1."""
    scores: dict[int, float] = {}
    for ranking in rankings:
        for rank, (place, _) in enumerate(ranking, 1):
            scores[place] = scores.get(place, 0.0) + 1 / (RRF + rank)
    return sorted(scores.items(), key=lambda hit: (-hit[1], hit[0]))[:count]
