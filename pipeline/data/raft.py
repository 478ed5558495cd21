"""Rows for RAFT (Zhang et al. 2024): questions answered beside their document and distractors, or distractors alone.

In a share ``1 - oracle_share`` of the rows the document with the answer (the oracle) is missing: the model learns to
answer from what it knows, or, with ``no_oracle_answer``, to say that the passages do not tell.
"""

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

from pipeline.data.rows import RowError
from pipeline.runtime.errors import UserError
from pipeline.runtime.files import Json
from pipeline.runtime.messages import Turn, as_answer

Write = Callable[[Turn, Sequence[str]], Turn]  # a prompt and the texts of its passages -> the prompt with them


class Grounded(NamedTuple):
    """A question with its answer and the texts that hold the answer."""

    prompt: Turn
    answer: Turn
    oracles: list[str]


def grounded(row: Json) -> Grounded:
    """A row of columns ``prompt``, ``answer`` or ``completion``, and ``document`` (a text, or a list of several).

    Raises:
        RowError: one of them is missing or empty.
    """
    answer = row.get("completion") or row.get("answer")
    if not answer:
        raise RowError("answer", "is missing or empty")
    documents = row.get("document")
    documents = [documents] if isinstance(documents, str) else documents
    if not documents or not all(isinstance(text, str) and text.strip() for text in documents):
        raise RowError("document", "must be a text or a list of texts, of which none is empty")
    return Grounded(row["prompt"], answer, list(documents))


def raft_rows(
    rows: Sequence[Grounded],
    write: Write,
    *,
    distractors: int,
    oracle_share: float,
    seed: int,
    no_oracle_answer: str | None = None,
    candidates: Sequence[Sequence[str]] | None = None,
) -> list[Json]:
    """``prompt`` + ``completion`` rows for SFT, in the order given, with the passages of each in a random order.

    Exactly ``round(oracle_share N)`` of the N rows hold their oracles, with ``distractors`` others beside them; the
    rest hold as many passages, all of them distractors. ``oracle`` says which.

    Args:
        rows: the questions.
        write: puts passages into a prompt.
        distractors: passages beside the oracles.
        oracle_share: share of the rows with their oracles.
        seed: of what is drawn.
        no_oracle_answer: the completion of rows without an oracle; default: the row's answer, as in RAFT.
        candidates: of each row, texts that distractors are taken from, the first ones first (what a search found);
            default: a draw of the other rows' oracles.

    Raises:
        UserError: an option out of range, or too few texts to draw from.
    """
    if distractors < 0:
        raise UserError(f"distractors is {distractors}: give 0 or more")
    if not 0 <= oracle_share <= 1:
        raise UserError(f"oracle_share is {oracle_share}: give a share from 0 to 1")
    r = random.Random(f"raft {seed}")
    chosen = set(r.sample(range(len(rows)), round(oracle_share * len(rows))))
    pool = list(dict.fromkeys(text for row in rows for text in row.oracles))
    made = []
    for place, row in enumerate(rows):
        held = place in chosen
        needed = distractors + (0 if held else len(row.oracles))
        others = _distractors(r, row, needed, pool, None if candidates is None else candidates[place])
        passages = [*row.oracles, *others] if held else others
        r.shuffle(passages)
        answer = row.answer if held or no_oracle_answer is None else no_oracle_answer
        made.append(
            {"prompt": write(row.prompt, passages), "completion": as_answer(row.prompt, answer), "oracle": held}
        )
    return made


def _distractors(
    r: random.Random, row: Grounded, count: int, pool: Sequence[str], candidates: Sequence[str] | None
) -> list[str]:
    """``count`` texts that are none of the row's oracles: the first candidates, then a draw of the pool."""
    found = [text for text in dict.fromkeys(candidates or ()) if text not in row.oracles][:count]
    if len(found) < count:
        known = {*found, *row.oracles}
        left = [text for text in pool if text not in known]
        if len(left) < count - len(found):
            raise UserError(
                f"distractors: a row needs {count} passages that do not answer it and there are "
                f"{len(left) + len(found)}: give more rows, an index to retrieve from, or fewer distractors"
            )
        found += r.sample(left, count - len(found))
    return found
