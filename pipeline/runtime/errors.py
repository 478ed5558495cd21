"""The exceptions that reach the terminal as one ``error:`` line, and the name that a mistyped one is nearest to."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in the user's input: a flag, a file, a row, a model name.

    The message is one line that says what is wrong, where (file, row, field) and what to do. Stages print it as
    ``error: <message>`` on rank 0 and exit with code 2, without a traceback.
    """


class PushError(RuntimeError):
    """The upload to the Hub failed; the run on disk is complete. The message says how to push again; exit code 1."""


class DivergedError(RuntimeError):
    """Training met a number that is not finite. The message says at which step, what to try and what was kept; exit
    code 1, and the run's status is ``failed``.
    """


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The known name that is most similar to ``name``, or None where none is.

    Args:
        name: what the user wrote.
        known: the names that there are.
        cutoff: smallest similarity, from 0 (nothing in common) to 1 (equal).
    """
    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)), None)


def did_you_mean(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """The end of a message about an unknown name: ``; did you mean beta?``, or ``; `` and ``otherwise``."""
    found = nearest(name, known)
    if found is not None:
        return f"; did you mean {found}?"
    return f"; {otherwise}" if otherwise else ""
