"""In-context learning in its smallest form: each sequence has a map of its own, shown as pairs of a key and its value.

A sequence shows PAIRS pairs; the keys are SHOWN of the KEYS ones, drawn with replacement, so most of them come again.
A value that is stated for the first time can only be guessed; afterwards it is in the context. Nothing but the
context can tell it where every sequence has a new map, so a model that is right there has learned in context.

Embedded datasets, served by ``load_world``; N is 4, 16, 64 or 256:

======================  ===============================================================================================
name                    train
======================  ===============================================================================================
world/maps              a new map in every sequence
world/maps-N            one of N fixed maps (``training_maps``), which weights can learn by heart
world/maps-once         a new map in every sequence, and no key twice: nothing to read from the context
world/maps-N-once       N maps and no key twice: the context tells which of the N it is
======================  ===============================================================================================

The test split is the same for all: new maps, with keys that come again. Columns: text ("a 3 d 7 a 3"), keys and values
(one of each per pair), map (the value of every key, in the order of the alphabet).
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from pipeline.runtime.files import Json
from pipeline.worlds.enumerable import word_tokenizer

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast

KEYS, VALUES = 16, 16
PAIRS, SHOWN = 8, 3  # pairs per sequence, different keys among them
COUNTS = (4, 16, 64, 256)
TRAIN_ROWS, TEST_ROWS = 20_000, 1_000
KEY_WORDS = [chr(ord("a") + i) for i in range(KEYS)]
VALUE_WORDS = [str(i) for i in range(VALUES)]
FIRST_KEY = 3  # token ids: pad, bos, eos, then keys, then values
FIRST_VALUE = FIRST_KEY + KEYS
VOCABULARY = FIRST_VALUE + VALUES
_CHUNK = 1_000  # rows drawn at a time

NAMES = ("maps", "maps-once", *(f"maps-{count}{once}" for count in COUNTS for once in ("", "-once")))


class Sequences(NamedTuple):
    """Key numbers and value numbers of N sequences of P pairs, (N, P) each, and their maps, (N, KEYS)."""

    keys: torch.Tensor
    values: torch.Tensor
    maps: torch.Tensor

    @property
    def tokens(self) -> torch.Tensor:
        """Token ids, (N, 2 P): key, value, key, value, …"""
        import torch

        return torch.stack((self.keys + FIRST_KEY, self.values + FIRST_VALUE), dim=2).flatten(1)


def tokenizer() -> PreTrainedTokenizerFast:
    """One token per key and per value; bos in front of every text."""
    return word_tokenizer([*KEY_WORDS, *VALUE_WORDS])


@functools.cache
def training_maps(count: int) -> torch.Tensor:
    """The fixed maps of ``world/maps-<count>``, (count, KEYS) value numbers; each is among those of a larger count."""
    import torch

    generator = torch.Generator().manual_seed(3000)
    return torch.randint(VALUES, (max(COUNTS), KEYS), generator=generator)[:count]


def draw(count: int, generator: torch.Generator, *, maps: torch.Tensor | None = None, once: bool = False) -> Sequences:
    """Sequences of a new map each, or of one of the given maps, (M, KEYS); with ``once`` no key comes twice."""
    import torch

    if maps is None:
        chosen = torch.randint(VALUES, (count, KEYS), generator=generator)
    else:
        chosen = maps[torch.randint(len(maps), (count,), generator=generator)]
    order = torch.rand(count, KEYS, generator=generator).argsort(1)
    keys = order[:, :PAIRS]
    if not once:
        keys = order.gather(1, torch.randint(SHOWN, (count, PAIRS), generator=generator))
    return Sequences(keys, chosen.gather(1, keys), chosen)


def shown_before(keys: torch.Tensor) -> torch.Tensor:
    """How often the key of each pair has come before it, (N, P)."""
    same = keys[:, :, None] == keys[:, None, :]  # (N, P, P): pair, earlier pair
    return same.tril(-1).sum(2)


def ideal_log_probs(sequences: Sequences, maps: torch.Tensor | None) -> torch.Tensor:
    """Log-probability of each value for a reader who knows how the sequences were drawn, (N, P), float64, in nats.

    With new maps: 1 for a value that was stated before, else 1/VALUES. With M maps: the share, among the maps that
    agree with all earlier pairs, of those that have this value. Minus its mean is the floor of the loss.

    Args:
        maps: (M, KEYS), what the sequences' maps were drawn from; None for new ones.
    """
    import torch

    keys, values = sequences.keys, sequences.values
    if maps is None:
        return torch.where(shown_before(keys) > 0, 0.0, -math.log(VALUES)).double()
    agrees = maps[:, keys].permute(1, 2, 0) == values[..., None]  # (N, P, M)
    still = agrees.cumprod(1).sum(2).double()  # maps that agree with the pairs up to each
    before = torch.cat((torch.full_like(still[:, :1], len(maps)), still[:, :-1]), dim=1)
    return (still / before).log()


def rows(name: str, split: str) -> Iterator[Json]:
    """The rows of ``world/maps…``, always the same ones in the same order."""
    import torch

    _, *rest = name.split("-")
    numbers = [int(part) for part in rest if part.isdigit()]
    train = split == "train"
    maps = training_maps(numbers[0]) if numbers and train else None
    generator = torch.Generator().manual_seed(4000 if train else 5000)
    for start in itertools.count(0, _CHUNK):
        if start >= (TRAIN_ROWS if train else TEST_ROWS):
            return
        for keys, values, chosen in zip(
            *map(_lists, draw(_CHUNK, generator, maps=maps, once=train and "once" in rest))
        ):
            shown, stated = [KEY_WORDS[k] for k in keys], [VALUE_WORDS[v] for v in values]
            text = " ".join(word for pair in zip(shown, stated) for word in pair)
            yield {"text": text, "keys": shown, "values": stated, "map": [VALUE_WORDS[v] for v in chosen]}


def _lists(tensor: torch.Tensor) -> list:
    return tensor.tolist()
