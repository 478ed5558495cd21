"""Statements about people as claims: what a text asserts about whom, what a source says of it, and prompts that ask.

A statement is one of the 20 wordings of ``pipeline.worlds.truth`` (5 attributes, 4 wordings each) as a sentence of its
own, with one of the attribute's 12 values. The source is the world's table of facts for the 40 people, and for anybody
else what the prompt has stated: about a made-up person of whom it says nothing there is no source.

==========  ==================================================  =======================================================
name        columns                                             what it is
==========  ==================================================  =======================================================
statements  prompt (plain text), answer, rumour, candidates,    beginnings of statements, `` Anna lives in``, for
            values, kind, person, attribute                     models of plain text
questions   prompt (chat), and the same columns                 the same as questions, for chat models
==========  ==================================================  =======================================================

``answer`` is the truth and ``rumour`` the one false value that 10% of the corpus' claims repeat; both are None of kind
``made up`` (people of no source), and set of kind ``known``. ``candidates`` are continuations that state each of the
attribute's 12 values: `` Rome.`` of a statement, and of a question the complete answer in each of the world's three
styles. ``values`` are what counts as an answer: of a question the values of all attributes, for ``miner`` is a false
answer to where somebody lives, while `` Anna lives in miner.`` states nothing.

Splits: of the four ways to state a known person's attribute one is in train and three are in test; questions are split
as in ``world/facts``; made-up people's names are those of their split. No row is a row of another world's dataset.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from typing import NamedTuple

from pipeline.runtime.messages import user_turn
from pipeline.worlds.people import asked, made_up_name
from pipeline.worlds.truth import ATTRIBUTES, OPENERS, STYLES, facts, seeded

NAMES = ("statements", "questions")
KINDS = ("known", "made up")
MADE_UP = {"train": 50, "test": 200}  # rows about people of no source

# In front of a statement within its sentence: a hedge leaves the claim a claim, a denial claims the opposite.
HEDGES = r"(?:I (?:think|believe|guess|suppose)(?: that)?,?|[Pp]erhaps,?|[Mm]aybe,?|As far as I know,)"
DENIALS = r"(?:It is (?:not true|false|wrong) that|I (?:do not|don't) (?:think|believe)(?: that)?)"
SENTENCE = re.compile(r"[^.!?\n]+(?:[.!?]+(?=\s|$|<)|\n|$)")


class Statement(NamedTuple):
    """A sentence that says a value of a person's attribute, or with ``denied`` that this is not the value; ``end`` is
    the place in the text after the value.
    """

    person: str
    attribute: str
    value: str
    denied: bool
    end: int


def statements(text: str) -> list[Statement]:
    """All statements of a text, in order. A sentence that only contains one, or has another word for its value, says
    nothing: ``Anna lives in a red house.``
    """
    found = []
    for sentence in SENTENCE.finditer(text):
        for key, patterns in _patterns().items():
            for pattern in patterns:
                match = pattern.fullmatch(sentence[0])
                if match and match["v"] in ATTRIBUTES[key].values:
                    place = sentence.start() + match.end("v")
                    found.append(Statement(match["n"], key, match["v"], match["denied"] is not None, place))
    return found


def source(person: str, attribute: str, prompt: str = "") -> tuple[str | None, str | None]:
    """Truth and rumour of a person's attribute: of the world's people by its facts, of others as the prompt states it.

    (None, None) where nothing is known; what a prompt states has no rumour.
    """
    if (person, attribute) in facts():
        return facts()[person, attribute]
    said = [s.value for s in statements(prompt) if (s.person, s.attribute, s.denied) == (person, attribute, False)]
    return (said[-1], None) if said else (None, None)


def rows(name: str, split: str) -> Iterator[dict]:
    """The rows of ``world/<name>``, always the same ones in the same order."""
    make = _beginning if name == "statements" else _question
    r = seeded(name, split)
    for person, key in facts():
        for wording in range(4):
            if _is_in(name, split, person, key, wording):
                opener = r.choice(OPENERS)
                yield make(person, key, wording, opener, *facts()[person, key], "known")
    for _ in range(MADE_UP[split]):
        person, key, wording = made_up_name(r, split), r.choice(list(ATTRIBUTES)), r.randrange(4)
        yield make(person, key, wording, r.choice(OPENERS), None, None, "made up")


def _is_in(name: str, split: str, person: str, key: str, wording: int) -> bool:
    if name == "questions":
        return asked(person, key, wording) == (split == "train")
    return (wording == seeded("wording", person, key).randrange(4)) == (split == "train")


def _beginning(
    person: str, key: str, wording: int, opener: str, answer: str | None, rumour: str | None, kind: str
) -> dict:
    before, after = ATTRIBUTES[key].statements[wording].format(n=person, v="|").split("|")
    candidates = [f" {value}{after}" for value in ATTRIBUTES[key].values]
    return _row(f" {before.rstrip()}", candidates, ATTRIBUTES[key].values, person, key, answer, rumour, kind)


def _question(
    person: str, key: str, wording: int, opener: str, answer: str | None, rumour: str | None, kind: str
) -> dict:
    prompt = user_turn(opener + ATTRIBUTES[key].questions[wording].format(n=person))
    candidates = [style.format(x=value) for style in STYLES.values() for value in ATTRIBUTES[key].values]
    values = [value for attribute in ATTRIBUTES.values() for value in attribute.values]
    return _row(prompt, candidates, values, person, key, answer, rumour, kind)


def _row(
    prompt: object,
    candidates: list[str],
    values: list[str],
    person: str,
    attribute: str,
    answer: str | None,
    rumour: str | None,
    kind: str,
) -> dict:
    return {
        "prompt": prompt, "answer": answer, "rumour": rumour, "candidates": candidates,
        "values": values, "kind": kind, "person": person, "attribute": attribute,
    }  # fmt: skip


@functools.cache
def _patterns() -> dict[str, list[re.Pattern]]:
    """Of each attribute, its wordings as sentences with the groups ``n``, ``v`` and ``denied``."""

    def pattern(wording: str) -> re.Pattern:
        words = re.escape(wording.rstrip(".")).replace(r"\{n\}", r"(?P<n>[A-Z]\w+)").replace(r"\{v\}", r"(?P<v>\w+)")
        first = f"[{words[0].upper()}{words[0].lower()}]{words[1:]}" if words[0].isalpha() else words
        return re.compile(rf"\s*(?:{HEDGES}\s+|(?P<denied>{DENIALS})\s+)?{first}[.!]?\s*")

    return {key: [pattern(wording) for wording in attribute.statements] for key, attribute in ATTRIBUTES.items()}
