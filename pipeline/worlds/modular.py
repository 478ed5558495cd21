"""Rules that are held out: y = (a x + b) mod 11, shown by example, with the exact reader who knows the family.

There are 110 rules (a from 1, b from 0); a fifth of them occurs in no training text, so that a model can only be right
about those by inferring the rule from the examples, not by knowing it. Two examples fix a rule: a reader who knows the
family is right from the second one on (`ideal`), while a reader who only leaves out the values already shown, since
no value comes twice, is right in 1/(11 - k) of the cases (`elimination`).

=============  ================================================  ======================================================
name           columns                                           what it is
=============  ================================================  ======================================================
world/modular  train: text; test: prompt (plain text), answer,   eight pairs, ``3 7 5 2 …``; of the test split
               examples, kind, ideal, baseline                   seven are examples and the eighth is asked for
=============  ================================================  ======================================================

Who knows which rules training has shown does a little better about those; that reader is ``ideal`` of kind ``seen``.

``kind`` is ``seen`` (rules of the training text), ``held out`` (of the same family) or ``another family`` (squares,
(a x^2 + b) mod 11, of which no text is in training). ``examples`` are prompt and completion of each; ``ideal`` and
``baseline`` are the accuracy of the two readers after 0, 1, 2, … of them.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from fractions import Fraction
from typing import TYPE_CHECKING

from pipeline.runtime.files import Json
from pipeline.worlds.enumerable import word_tokenizer
from pipeline.worlds.truth import held_out, seeded

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

NAMES = ("modular",)
MODULUS, PAIRS = 11, 8
KINDS = ("seen", "held out", "another family")
TRAIN_ROWS, TEST_ROWS = 20_000, 600  # of the test split as many of each kind
Rule = tuple[int, int]


def value(rule: Rule, x: int, power: int = 1) -> int:
    """(a x^power + b) mod 11."""
    return (rule[0] * x**power + rule[1]) % MODULUS


@functools.cache
def rules(kind: str) -> tuple[Rule, ...]:
    """The rules (a, b) of a kind: 80% of the 110 are seen in training, the others held out."""
    everything = [(a, b) for a in range(1, MODULUS) for b in range(MODULUS)]
    if kind == "another family":
        return tuple(everything)
    return tuple(rule for rule in everything if held_out(20, "modular", *rule) == (kind == "held out"))


def tokenizer() -> PreTrainedTokenizerFast:
    """One token per number; bos in front of every text."""
    return word_tokenizer([*map(str, range(MODULUS))])


def ideal(shown: list[tuple[int, int]], x: int, family: tuple[Rule, ...] | None = None) -> list[Fraction]:
    """Probability of each of the 11 values at ``x`` for a reader who takes all rules of the family that agree with the
    examples for equally likely: the exact Bayes predictor. The family is all 110 rules where none is given.
    """
    family = rules("seen") + rules("held out") if family is None else family
    agreeing = [rule for rule in family if all(value(rule, u) == v for u, v in shown)]
    found = [value(rule, x) for rule in agreeing]
    return [Fraction(found.count(y), max(1, len(found))) for y in range(MODULUS)]


def rows(name: str, split: str) -> Iterator[Json]:
    """The rows of ``world/modular``, always the same ones in the same order."""
    r = seeded(name, split)
    if split == "train":
        for _ in range(TRAIN_ROWS):
            rule = r.choice(rules("seen"))
            yield {"text": " ".join(f"{x} {value(rule, x)}" for x in r.sample(range(MODULUS), PAIRS))}
        return
    for kind in KINDS:
        for _ in range(TEST_ROWS // len(KINDS)):
            rule = r.choice(rules(kind))
            power = 2 if kind == "another family" else 1
            family = rules("seen") if kind == "seen" else None
            *shown, (x, y) = [(x, value(rule, x, power)) for x in r.sample(range(MODULUS), PAIRS)]
            yield {
                "prompt": str(x),
                "answer": str(y),
                "examples": [{"prompt": str(u), "completion": str(v)} for u, v in shown],
                "kind": kind,
                "ideal": [float(max(ideal(shown[:k], x, family))) for k in range(PAIRS)] if power == 1 else None,
                "baseline": [1 / (MODULUS - k) for k in range(PAIRS)] if power == 1 else None,
            }
