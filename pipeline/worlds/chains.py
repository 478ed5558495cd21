"""Direct and worked answers in equal numbers: what a chain of thought adds when training has shown both as often.

===================  =========================================  =======================================================
name                 columns                                    what it is
===================  =========================================  =======================================================
chains-corpus        text                                       pretraining documents of three problems each
chains-sums          prompt (plain text), completion, answer,   sums of 2 to 5 terms to be asked; ``completion`` is the
                     kind, intact, corrupted, corrupted_answer  worked answer, ``… #### 42``
chains-tens          prompt, completion, answer, kind           sums by tens
chains-lines         prompt, completion, answer, kind           lines shown by examples
paper-examples       prompt, answer, kind                       the three examples of the paper's Part 5, word for word
===================  =========================================  =======================================================

A sum is shown in one of three forms, drawn for every problem with equal probability, so that its difficulty and its
form are independent: ``34+48+27, at once: #### 109``, ``…, in steps: 34+48=82, 82+27=109 #### 109``, and ``…, with
dots: . . . #### 109``, as many dots as the steps have characters (a token each in a tokenizer that splits digits):
the time to compute without the steps. Sums by tens and lines are written as in Part 5, ``17 + 25 = (10 + 20) +
(7 + 5) = 30 + 12 = 42``, and asked for with and without it in equal numbers.

``intact`` and ``corrupted`` begin the worked answer, up to one of the steps, with its true total and with a wrong one;
``corrupted_answer`` is what follows from the wrong one.

Splits: a sum falls into train or test by the hash of its terms, pairs that are held out occur in no step of training
either, and lines by the hash of their two coefficients: no rule of the test split is in training, nor 2 x + 1, nor
17 + 25.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

from pipeline.runtime.files import Json
from pipeline.runtime.messages import user_turn
from pipeline.worlds.truth import held_out, seeded, steps_answer

NAMES = ("chains-corpus", "chains-sums", "chains-tens", "chains-lines", "paper-examples")
FORMS = ("at once", "in steps", "with dots")
THEMES = {"sums": 70, "tens": 10, "lines": 20}  # percent of the corpus
TERMS = (2, 3, 4, 5)
DOCUMENTS = {"train": 30_000, "test": 500}
ROWS = {"train": {"sums": 2_000, "tens": 200, "lines": 400}, "test": {"sums": 800, "tens": 200, "lines": 400}}
PER_DOCUMENT = 3
BY_TENS = "Let's solve step by step. "

PAPER_EXAMPLES = (
    ("example 1", "2 ↦ 4\n3 ↦ 9\n5 ↦ 25\nNow compute: 7 ↦ ?", "49"),
    ("example 2", "Let’s solve step by step. What is 17 + 25?", "42"),
    ("example 3", "Example: f(2) = 5, f(3) = 7, f(4) = 9.\nNow compute f(10) step by step.", "21"),
)


def rows(name: str, split: str) -> Iterator[Json]:
    """The rows of ``world/<name>``, always the same ones in the same order."""
    if name == "paper-examples":
        yield from (
            {"prompt": user_turn(text), "answer": answer, "kind": kind} for kind, text, answer in PAPER_EXAMPLES
        )
        return
    r = seeded(name, split)
    if name == "chains-corpus":
        for _ in range(DOCUMENTS[split]):
            [theme] = r.choices(list(THEMES), list(THEMES.values()))
            yield {"text": "\n".join(f" {_written(r, theme, split)}" for _ in range(PER_DOCUMENT))}
        return
    theme = name.removeprefix("chains-")
    count = ROWS[split][theme]
    for place in range(count):
        yield MAKERS[theme](r, split, place * len(TERMS) // count)


def pair_held_out(a: int, b: int) -> bool:
    """Whether a + b (and b + a) is kept out of training; never for two single digits, which are too few."""
    return max(a, b) > 9 and ({a, b} == {17, 25} or held_out(12, "chain pair", min(a, b), max(a, b)))


def line_held_out(a: int, b: int) -> bool:
    """Whether the rule a x + b is kept out of training."""
    return (a, b) == (2, 1) or held_out(20, "line", a, b)


# --- problems, each drawn for one split ------------------------------------------------------------------------------


def _number(r: random.Random) -> int:
    return r.randint(10, 99) if r.random() < 0.5 else r.randint(1, 9)


def _terms(r: random.Random, split: str, count: int) -> list[int]:
    while True:
        numbers = [_number(r) for _ in range(count)]
        steps = list(zip(itertools.accumulate(numbers), numbers[1:]))
        kept = pair_held_out(*numbers) if count == 2 else held_out(12, "chain", *numbers)
        if split == "test" and kept:
            return numbers
        if split == "train" and not kept and not any(pair_held_out(*step) for step in steps):
            return numbers


def _sum(r: random.Random, split: str, number: int) -> Json:
    numbers = _terms(r, split, TERMS[number])
    worked, total = steps_answer(numbers), sum(numbers)
    steps = worked.partition(" ####")[0].split(", ")
    place = r.randrange(len(steps))
    before, _, at = steps[place].partition("=")
    wrong = r.choice([d for d in range(-9, 10) if d and total + d > 0])
    wrong = wrong if int(at) + wrong > 0 else -wrong
    begun = [*steps[:place], f"{before}="]
    end = "," if place + 1 < len(steps) else " ####"
    return {
        "prompt": "+".join(map(str, numbers)),
        "completion": worked,
        "answer": str(total),
        "kind": f"{len(numbers)} terms",
        "intact": f" {', '.join(begun)}{at}{end}",
        "corrupted": f" {', '.join(begun)}{int(at) + wrong}{end}",
        "corrupted_answer": str(total + wrong),
    }


def _tens(r: random.Random, split: str, number: int) -> Json:
    while True:
        a, b = r.randint(11, 99), r.randint(11, 99)
        if pair_held_out(a, b) == (split == "test") and a % 10 and b % 10:
            break
    tens, ones = a // 10 * 10 + b // 10 * 10, a % 10 + b % 10
    parts = f"({a // 10 * 10} + {b // 10 * 10}) + ({a % 10} + {b % 10})"
    worked = f"{a} + {b} = {parts} = {tens} + {ones} = {a + b} #### {a + b}"
    return {"prompt": f"What is {a} + {b}?", "completion": worked, "answer": str(a + b), "kind": "by tens"}


def _line(r: random.Random, split: str, number: int) -> Json:
    while True:
        a, b = r.randint(1, 9), r.randint(0, 9)
        if line_held_out(a, b) == (split == "test"):
            break
    *shown, x = r.sample(range(1, 13), r.randint(2, 4) + 1)
    examples = ", ".join(f"f({u}) = {a * u + b}" for u in sorted(shown))
    worked = f"f(x) = {a}x + {b}, f({x}) = {a}*{x} + {b} = {a * x} + {b} = {a * x + b} #### {a * x + b}"
    return {
        "prompt": f"Example: {examples}.\nNow compute f({x})",
        "completion": worked,
        "answer": str(a * x + b),
        "kind": f"{len(shown)} examples",
    }


MAKERS = {"sums": _sum, "tens": _tens, "lines": _line}


def _written(r: random.Random, theme: str, split: str) -> str:
    """A problem and its answer in one of the forms of its theme."""
    row = MAKERS[theme](r, split, r.randrange(len(TERMS)))
    worked, answer = row["completion"], f"#### {row['answer']}"
    if theme == "sums":
        form = r.choice(FORMS)
        dots = " ".join("." * len(" " + worked.partition(" ####")[0]))
        return f"{row['prompt']}, {form}: " + {"at once": answer, "in steps": worked}.get(form, f"{dots} {answer}")
    asked = r.random() < 0.5
    if theme == "tens":
        return f"{BY_TENS}{row['prompt']} {worked}" if asked else f"{row['prompt']} {answer}"
    return f"{row['prompt']} step by step. {worked}" if asked else f"{row['prompt']}. {answer}"
