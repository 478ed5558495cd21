"""The account of rows that are lost: counted by cause in the run record (``dropped``), reported in one line, and
refused when none is left.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pipeline.data.loading import Data
from pipeline.data.mixing import Place
from pipeline.runtime.errors import UserError

if TYPE_CHECKING:
    import datasets

    from pipeline.runtime.record import Run

REFUSED = "refused by the chat template"
BEYOND = "with nothing to learn within max_length"
SILENT = "with nothing to learn"
LONG = "longer than max_length"
NO_ANSWER = "whose prompt fills max_length"
EQUAL = "whose answers are the same within max_length"


def report_unused(run: "Run", label: str, keys: Mapping[str, int]) -> None:
    """Puts the keys of messages that the chat template does not write into the run record and on the terminal, once.

    Reasoning is text that was given to be learned, but many templates write none: it is counted, and is no error.
    """
    if not keys or run.record.get("unused_message_keys", {}).get(label) == dict(keys):
        return
    run.note("unused_message_keys", dict(keys), entry=label)
    each = ", ".join(f"{key} ({count} rows)" for key, count in sorted(keys.items()))
    run.say(f"keys of messages that the chat template does not write ({label}): {each}")


def splits_of(data: Data, name: str) -> list[tuple["datasets.Dataset", Sequence[Place], str]]:
    """Training and held-out rows, where each row was read, and what the run record calls them."""
    splits = [(data.train, data.train_places, name)]
    if data.evaluation is not None:
        held_out = "evaluation" if name == "train" else f"{name}, held out"
        splits.append((data.evaluation, data.evaluation_places, held_out))
    return splits


def kept_rows(
    rows: "datasets.Dataset",
    lost: Sequence[str],
    run: "Run",
    label: str,
    places: Sequence[Place] = (),
    refused: Sequence[str] = (),
    *,
    skip: bool = False,
    needed: bool = True,
) -> "datasets.Dataset":
    """The rows that are not lost; the others are counted by cause and reported.

    Raises:
        UserError: a row that the template refuses, unless ``skip``; or none is left.
    """
    lost = list(lost)
    if REFUSED in lost and not skip:
        first = lost.index(REFUSED)
        where = "{}, row {}".format(*places[first]) if places else f"{label}, row {first + 1}"
        raise UserError(f"{where}: {refused[first]} (change the row, or pass --skip_bad_rows)")
    report_dropped(run, label, Counter(filter(None, lost)), len(lost), needed=needed)
    return rows.select([place for place, cause in enumerate(lost) if not cause]) if any(lost) else rows


def report_dropped(run: "Run", label: str, causes: Mapping[str, int], total: int, *, needed: bool = True) -> None:
    """Puts the rows lost of ``total`` into the run record and on the terminal.

    Raises:
        UserError: none is left, and they are needed (held-out rows are where the trainer evaluates).
    """
    causes = {cause: count for cause, count in causes.items() if count}
    if not causes:
        return
    run.note("dropped", causes, entry=label)
    each = ", ".join(f"{count} {cause}" for cause, count in causes.items())
    if needed and sum(causes.values()) >= total:
        raise UserError(f"{label}: no row is left of {total}: {each}; raise max_length, or look at the rows")
    run.say(f"dropped {sum(causes.values())} of {total} rows ({label}): {each}")
