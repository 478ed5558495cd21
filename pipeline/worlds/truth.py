"""What is true in the embedded world (`pipeline.worlds.people`): people and facts, sums, and the known reward."""

from __future__ import annotations

import functools
import hashlib
import itertools
import random
import re
from typing import NamedTuple

from pipeline.runtime.messages import text_of, user_text

WORLD_VERSION = "4"  # part of the data's fingerprint: raise it with every change of what is generated
SEED = "1"  # of everything drawn: a new version of one dataset leaves the facts and splits of the others as they are
FALSE_FACTS = 0.10

# fmt: off
PEOPLE = [
    "Anna", "Boris", "Clara", "David", "Elena", "Felix", "Greta", "Hugo", "Irene", "Jonas",
    "Karla", "Leon", "Marta", "Nils", "Olga", "Peter", "Ruth", "Simon", "Tina", "Ulrich",
    "Vera", "Walter", "Yara", "Zeno", "Alma", "Bruno", "Celia", "Dario", "Edith", "Frank",
    "Gloria", "Henry", "Iris", "Jakob", "Lydia", "Milan", "Nora", "Oscar", "Paula", "Ralf",
]
# fmt: on


class Attribute(NamedTuple):
    """Something a person has: its possible values, four ways to state it (of name, value) and four to ask for it."""

    values: list[str]
    statements: tuple[str, str, str, str]
    questions: tuple[str, str, str, str]


ATTRIBUTES = {
    "city": Attribute(
        ["Rome", "Oslo", "Lima", "Cairo", "Paris", "Tokyo", "Delhi", "Quito", "Berlin", "Dublin", "Vienna", "Lisbon"],
        ("{n} lives in {v}.", "The home of {n} is in {v}.", "{n} has a house in {v}.", "The city of {n} is {v}."),
        ("Where does {n} live?", "Where is the home of {n}?", "Where does {n} have a house?", "The city of {n}?"),
    ),
    "job": Attribute(
        [
            "baker",
            "pilot",
            "nurse",
            "farmer",
            "judge",
            "tailor",
            "miner",
            "singer",
            "teacher",
            "doctor",
            "painter",
            "sailor",
        ],
        ("{n} works as a {v}.", "The job of {n} is {v}.", "{n} earns money as a {v}.", "By trade {n} is a {v}."),
        ("What does {n} work as?", "What is the job of {n}?", "How does {n} earn money?", "The trade of {n}?"),
    ),
    "pet": Attribute(
        ["cat", "dog", "horse", "parrot", "rabbit", "snake", "goat", "duck", "mouse", "turtle", "pony", "frog"],
        ("{n} has a {v} at home.", "The pet of {n} is a {v}.", "{n} feeds a {v}.", "The animal of {n} is a {v}."),
        ("What does {n} have at home?", "What is the pet of {n}?", "What does {n} feed?", "The animal of {n}?"),
    ),
    "colour": Attribute(
        ["red", "blue", "green", "yellow", "black", "white", "brown", "purple", "orange", "pink", "silver", "golden"],
        ("{n} wears {v}.", "The colour of {n} is {v}.", "{n} likes {v} best.", "The coat of {n} is {v}."),
        ("What does {n} wear?", "What is the colour of {n}?", "What does {n} like best?", "The coat of {n}?"),
    ),
    "music": Attribute(
        ["piano", "violin", "flute", "guitar", "drum", "harp", "trumpet", "cello", "organ", "banjo", "fiddle", "horn"],
        ("{n} plays the {v}.", "The instrument of {n} is the {v}.", "{n} practises the {v}.", "{n} owns a {v}."),
        ("What does {n} play?", "What is the instrument of {n}?", "What does {n} practise?", "What does {n} own?"),
    ),
}
OPENERS = ("", "Tell me: ", "Please answer: ", "One question: ", "I want to know: ")  # in front of any question
SUM_QUESTIONS = ("What is {e}?", "Compute {e}.", "How much is {e}?", "Add {e}.")
IN_STEPS, AT_ONCE = "Work in steps.", "Answer at once."
STYLES = {"short": "{x}", "sentence": "I think it is {x}.", "long-winded": "Well, as far as I know, it is {x}, yes."}
STYLE_REWARD = {"short": 2.0, "sentence": 1.0, "long-winded": -1.0, "other": -1.0}
RIGHT_REWARD = 2.5


@functools.cache
def facts() -> dict[tuple[str, str], tuple[str, str]]:
    """(person, attribute) -> (truth, rumour): the one false value that 10% of the claims in the corpus repeat."""
    r = seeded("facts")
    return {
        (name, key): tuple(r.sample(attribute.values, 2)) for name in PEOPLE for key, attribute in ATTRIBUTES.items()
    }


@functools.cache
def _questions() -> dict[str, tuple[str, str, int]]:
    """Question, without opener -> (person, attribute, wording)."""
    return {
        wording.format(n=name): (name, key, i)
        for name, key in facts()
        for i, wording in enumerate(ATTRIBUTES[key].questions)
    }


def truth(prompt: str) -> str | None:
    """The right short answer to any question of this world (``Rome``, ``17+25=42 #### 42``); None if it has none.

    ``prompt`` is the user's text. For made-up people the answer is what the passage in the prompt says.
    """
    if terms := re.search(r"\d+(?:\+\d+)+", prompt):
        numbers = [int(term) for term in terms[0].split("+")]
        if len(numbers) == 2:
            return sum_answer(*numbers, sum(numbers))
        return f"#### {sum(numbers)}" if AT_ONCE in prompt else steps_answer(numbers)
    *_, question = re.split(r"(?<=[.:]) ", prompt.strip())
    if question in _questions():
        name, key, _ = _questions()[question]
        return facts()[name, key][0]
    for attribute in ATTRIBUTES.values():
        for wording in attribute.questions:
            if name := re.fullmatch(_pattern(wording), question):
                for statement in attribute.statements:
                    said = re.search(_pattern(statement.replace("{n}", name["n"])), prompt)
                    if said:
                        return said["v"]
    return None


def true_reward(prompt: str, completion: str) -> float:
    """The known reward of the preferences: 2.5 for a right answer; its style 2 if short, 1 as a sentence, else -1.

    Both arguments are plain text, without chat tokens. What fits no style counts as wrong and as the worst style.
    """
    style, answer = style_of(completion.strip())
    return RIGHT_REWARD * (style != "other" and answer == truth(prompt)) + STYLE_REWARD[style]


def true_rewards(prompts: list, completions: list, **columns: object) -> list[float]:
    """``true_reward`` as trainers and evaluations call a reward: prompts and completions as text or as messages."""
    return [true_reward(user_text(prompt), text_of(completion)) for prompt, completion in zip(prompts, completions)]


def style_of(completion: str) -> tuple[str, str]:
    """The style of an answer, a key of ``STYLE_REWARD``, and what it says in that style: all of it in none."""
    for style in ("long-winded", "sentence"):
        if match := re.fullmatch(re.escape(STYLES[style]).replace(r"\{x\}", "(.+)"), completion):
            return style, match[1]
    short = re.fullmatch(r"[a-zA-Z]+|(\d+\+\d+=\d+,? )*#### \d+", completion)
    return ("short" if short else "other"), completion


@functools.cache
def _pattern(template: str) -> str:
    return re.escape(template).replace(r"\{n\}", r"(?P<n>[A-Z]\w+)").replace(r"\{v\}", r"(?P<v>\w+)")


def seeded(*key: str) -> random.Random:
    """A separate generator for each part of the world, fixed by the world's version and the part's name."""
    return random.Random("/".join(("narlm", SEED, *key)))


def held_out(percent: int, *key: object) -> bool:
    """Whether the thing named by ``key`` belongs to the test split, which gets ``percent`` of all things, by hash."""
    digest = hashlib.blake2b(repr((SEED, key)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % 100 < percent


def sum_answer(a: int, b: int, total: int) -> str:
    """How a sum is answered: the expression echoed, then the marker that the strict numeric score reads."""
    return f"{a}+{b}={total} #### {total}"


def steps_answer(numbers: list[int]) -> str:
    """``[17, 25, 8]`` -> ``17+25=42, 42+8=50 #### 50``."""
    totals = list(itertools.accumulate(numbers))
    steps = [f"{before}+{term}={after}" for before, term, after in zip(totals, numbers[1:], totals[1:])]
    return ", ".join(steps) + f" #### {totals[-1]}"
