"""The embedded datasets by name, ``world/<name>``. A new one is a module with ``NAMES`` and ``rows``, listed here."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from pipeline.runtime.errors import UserError, did_you_mean
from pipeline.worlds import (
    chains,
    continual,
    enumerable,
    enumerable_sycophancy,
    errors,
    maps,
    modular,
    people,
    retrieval,
    safety,
    statements,
    sycophancy,
    vision,
)

if TYPE_CHECKING:
    from datasets import Dataset

PREFIX = "world/"
MODULES = (
    people, chains, continual, enumerable, enumerable_sycophancy, maps, modular, retrieval, safety, statements, errors,
    sycophancy, vision,
)  # fmt: skip
# name without the prefix -> rows(name, split), always the same rows in the same order
WORLDS = {name: module.rows for module in MODULES for name in module.NAMES}


def is_world(name: str) -> bool:
    """Whether a dataset's name is that of an embedded one."""
    return name.startswith(PREFIX)


@functools.cache
def load_world(name: str, split: str = "train") -> Dataset:
    """The embedded dataset ``world/<name>``, with or without the prefix; its columns are those of its module's table.

    Raises:
        UserError: there is no such dataset or split.
    """
    from datasets import Dataset

    name = name.removeprefix(PREFIX)
    require_world(name, split)
    return Dataset.from_list(list(WORLDS[name](name, split)))


def require_world(name: str, split: str = "train") -> None:
    """Refuse what ``load_world`` does not have, before anything is made.

    Raises:
        UserError: there is no such dataset or split.
    """
    name = name.removeprefix(PREFIX)
    if name not in WORLDS:
        known = [PREFIX + other for other in WORLDS]
        hint = did_you_mean(PREFIX + name, known)
        raise UserError(f"there is no embedded dataset world/{name}; choose one of {', '.join(known)}{hint}")
    if split not in ("train", "test"):
        raise UserError(f"world/{name} has no split {split!r}; choose train or test")
