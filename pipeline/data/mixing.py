"""Several datasets as one: exact duplicates, held-out rows, leaks, sampling weights.

Works on plain lists of converted rows with an identity (hash of content) each. Everything random follows the seed.
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pipeline.data.formats import content_hash, prompt_hash, to_messages
from pipeline.data.sources import Source
from pipeline.runtime.errors import UserError
from pipeline.runtime.files import Json

Place = tuple[str, int]
ALONGSIDE = ("ranked", "ranks", "system", "tools", "chat_template_kwargs", "images")  # not what a form is told by


@dataclass(frozen=True)
class Part:
    """The converted rows of one source; ``hashes`` and ``prompts`` are their identities, ``places`` where they were
    read (file or dataset, row number), row by row; ``reading`` says from which columns (`schemas.Form.reading`)."""

    source: Source
    rows: list[Json]
    hashes: list[str]
    prompts: list[str]
    fingerprint: str | None
    counts: dict[str, int]
    bad_rows: tuple[str, ...] = ()
    reading: str = ""
    notes: Json | None = None
    places: Sequence[Place] = ()

    def select(self, keep: Sequence[int], **changed_counts: int) -> "Part":
        """The part with only the rows at these places (a place may come several times)."""
        return replace(
            self,
            rows=[self.rows[i] for i in keep],
            hashes=[self.hashes[i] for i in keep],
            prompts=[self.prompts[i] for i in keep],
            places=[self.places[i] for i in keep] if self.places else (),
            counts={**self.counts, **changed_counts},
        )

    def record(self) -> Json:
        """This part's entry in the run record."""
        entry = {
            "name": self.source.name,
            "split": self.source.split,
            "role": self.source.role,
            "rows": len(self.rows),
            "fingerprint": self.fingerprint,
            **self.counts,
            "read_as": self.reading,
        }
        if self.source.files():
            entry["files"] = [str(file) for file in self.source.files()]
        if self.source.config:
            entry["config"] = self.source.config
        if self.source.dataset_map:
            entry["dataset_map"] = ",".join(f"{old}={new}" for old, new in self.source.dataset_map.items())
        if self.bad_rows:
            entry["first_bad_rows"] = list(self.bad_rows)
        return {**entry, **(self.notes or {})}


def deduplicate(parts: Sequence[Part]) -> list[Part]:
    """Every row content once in all parts together; the first one stays."""
    seen: set[str] = set()
    result = []
    for part in parts:
        keep = []
        for place, digest in enumerate(part.hashes):
            if digest not in seen:
                seen.add(digest)
                keep.append(place)
        result.append(part.select(keep, duplicates=len(part.rows) - len(keep)))
    return result


def hold_out(parts: Sequence[Part], rows: int, seed: int) -> tuple[list[Part], list[Part]]:
    """``(training, evaluation)``: about ``rows`` rows drawn from all parts, in proportion to their sizes.

    Rows that share a prompt move together, in all parts, so the held-out prompts are new to the model. Where one
    prompt is asked too often for that (instructions that never vary), single rows are drawn instead.
    """
    if rows == 0:
        return list(parts), []
    places = [(p, i) for p, part in enumerate(parts) for i in range(len(part.rows))]
    groups: dict[str, list[tuple[int, int]]] = {}
    for p, i in places:
        groups.setdefault(parts[p].prompts[i], []).append((p, i))
    order = list(groups)
    random.Random(f"hold out {seed}").shuffle(order)
    chosen: set[tuple[int, int]] = set()
    for prompt in order:
        if len(chosen) + len(groups[prompt]) <= rows:
            chosen.update(groups[prompt])
    by = "prompt"
    if len(chosen) < max(1, rows // 2):
        by = "row"
        chosen = set(random.Random(f"hold out {seed}").sample(places, rows))
    training, evaluation = [], []
    for p, part in enumerate(parts):
        inside = [i for i in range(len(part.rows)) if (p, i) in chosen]
        outside = [i for i in range(len(part.rows)) if (p, i) not in chosen]
        training.append(part.select(outside))
        if inside:
            held = part.select(inside, duplicates=0, bad_rows=0, rows_read=len(inside))
            source = replace(part.source, role="evaluation", weight=None, fraction=None)
            notes = {"held_out_of": "train", "held_out_by": by, "seed": seed}
            evaluation.append(replace(held, source=source, bad_rows=(), notes=notes))
    return training, evaluation


def remove_leaks(parts: Sequence[Part], evaluation: Sequence[Part], kind: str) -> list[Part]:
    """Training parts without the rows that are in any evaluation part: the same content, or, where a row is only a
    prompt with columns for the rewards (an id, a level), the same prompt."""
    identity = "prompts" if kind == "prompt" else "hashes"
    known = {digest for part in evaluation for digest in getattr(part, identity)}
    result = []
    for part in parts:
        keep = [i for i, digest in enumerate(getattr(part, identity)) if digest not in known]
        result.append(part.select(keep, removed_from_train=len(part.rows) - len(keep)))
    return result


def same_form(parts: Sequence[Part], kind: str, also: Sequence[Part] = ()) -> tuple[list[Part], list[Part]]:
    """Parts with one form for all: where they differ, texts become dialogues (and prompt+completion messages)."""
    every = [*parts, *also]
    if len({_shape(part.rows[0], kind) for part in every if part.rows}) > 1:
        every = [_lifted(part, kind) for part in every]
        if len({_shape(part.rows[0], kind) for part in every}) > 1:
            forms = "; ".join(f"{part.source.label}: {'+'.join(part.rows[0])}" for part in every)
            raise UserError(
                f"datasets of different forms do not fit into one mixture ({forms}): rename by dataset_map"
            )
    return every[: len(parts)], every[len(parts) :]


def _shape(row: Json, kind: str) -> tuple[tuple[str, bool], ...]:
    """The columns that make the form and whether each is text."""
    names = ("prompt",) if kind == "prompt" else [name for name in row if name not in ALONGSIDE]
    return tuple(sorted((name, isinstance(row[name], str)) for name in names))


def _lifted(part: Part, kind: str) -> Part:
    rows = [to_messages(row, kind) for row in part.rows]
    return replace(
        part, rows=rows, hashes=[content_hash(row) for row in rows], prompts=[prompt_hash(row) for row in rows]
    )


def weigh(parts: Sequence[Part], seed: int) -> list[Part]:
    """Parts resized to their sampling weights or fractions.

    ``weight``: the mixture keeps its total size N and part i gets N w_i / sum(w) rows: a seeded draw without
    replacement where it has more, full repetitions and a seeded draw where it has fewer (recorded as ``repeats``).
    ``fraction`` is TRL's: the largest mixture in which no row repeats, and the first rows of each part.
    """
    if parts[0].source.weight is None and parts[0].source.fraction is None:
        return list(parts)
    result = []
    if parts[0].source.fraction is not None:
        shares = [part.source.fraction / sum(p.source.fraction for p in parts) for part in parts]
        total = min(len(part.rows) / share for part, share in zip(parts, shares))
        for part, share in zip(parts, shares):
            result.append(_noted(part.select(range(round(share * total))), fraction=part.source.fraction))
        return result
    total, weights = sum(len(part.rows) for part in parts), sum(part.source.weight for part in parts)
    for number, part in enumerate(parts):
        wanted = max(1, round(total * part.source.weight / weights))
        rounds, rest = divmod(wanted, len(part.rows))
        drawn = sorted(random.Random(f"weigh {seed} {number}").sample(range(len(part.rows)), rest))
        repeats = round(wanted / len(part.rows), 4)
        keep = [*list(range(len(part.rows))) * rounds, *drawn]
        result.append(_noted(part.select(keep), weight=part.source.weight, repeats=repeats))
    return result


def balance(
    parts: Sequence[Part], side: Callable[[Json], int], by: Literal["dropping", "repeating"], seed: int
) -> list[Part]:
    """Each part with as many preference rows of side 1 as of side -1; those of side 0 stay.

    Keeping a share r of the rows of side 1 moves their log-odds by log r in every prompt alike: annotators who give a
    property the reward a then look like annotators who give it a + log r. ``log_odds_removed`` records -log r, and
    ``repeating`` has the same effect with every row kept.

    Args:
        side: 1 where only the chosen answer has a property, -1 where only the rejected one has it, else 0.
        by: drop rows of the commoner side, or repeat those of the rarer; what is left over is drawn by the seed.

    Raises:
        UserError: a part that has rows of one side only, or another number.
    """
    result = []
    for number, part in enumerate(parts):
        sides = [side(row) for row in part.rows]
        if wrong := next((value for value in sides if value not in (-1, 0, 1)), None):
            raise UserError(f"balance: the function returned {wrong!r}: return 1, -1 or 0")
        groups = {value: [i for i, found in enumerate(sides) if found == value] for value in (1, -1, 0)}
        more, less = sorted((groups[1], groups[-1]), key=len, reverse=True)
        if not less:
            raise UserError(
                f"{part.source.label}: balance: {len(groups[1])} rows are of side 1 and {len(groups[-1])} of side -1: "
                "there is nothing to balance with"
            )
        r = random.Random(f"balance {seed} {number}")
        if by == "dropping":
            kept = [*r.sample(more, len(less)), *less]
        else:
            rounds, rest = divmod(len(more), len(less))
            kept = [*more, *less * rounds, *r.sample(less, rest)]
        removed = round(math.log(len(groups[1]) / len(groups[-1])), 4)
        counts = {"chosen_only": len(groups[1]), "rejected_only": len(groups[-1]), "log_odds_removed": removed}
        result.append(_noted(part.select(sorted([*kept, *groups[0]])), balance=counts | {"by": by}))
    return result


def _noted(part: Part, **notes: object) -> Part:
    return replace(part, notes={**(part.notes or {}), **notes})
