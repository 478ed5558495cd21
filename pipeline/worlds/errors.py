"""What an error in the context does: a context with and without it, and corpora in which errors have a known law.

==========================  =========================================  ===============================================
name                        columns                                    what it is
==========================  =========================================  ===============================================
errors                      prompt, injected (plain text), answer,     a context and the same one with an error
                            value, values, candidates, family, ideal
errors-chat                 the same columns, prompts as a chat        the same for chat models
swaps                       prompt (plain text), swaps                 a context and others that differ in its value,
                                                                       its name or its wording, by what differs
capitals                    prompt, right, wrong, question, answer,    for models of the real world: a city that is no
                            value, candidates                          capital is stated, then the capital asked for
capitals-chat               the same, without candidates               the same, said by the model itself in a chat
corpus-shuffled             text                                       ``world/corpus``, but each claim about a person
                                                                       is drawn anew: nothing to know
corpus-persistent           text                                       people, passages, questions, worked sums: who
                                                                       writes about a person keeps to what he said
corpus-persistent-10, -30   text, unlearned                            the same documents, where 10 or 30% of the
                                                                       stated values are replaced, to be read only
corrections-0, -10          text                                       worked sums; in 10% of those of the second is a
                                                                       slip that is put right: ``17+25=43, no, 42,``
==========================  =========================================  ===============================================

``value`` is the injected error w (of a sum, the final number that it leads to) and ``ideal`` the rho of a learner of
``world/corpus``, where the corpus decides it (``evaluation/tasks/dynamics.py``):

=============  =====  ===============================================================================================
family         ideal  what the corpus says
=============  =====  ===============================================================================================
known          0      claims about the 40 people are independent: a false one says nothing about the next
made up        1      of a person of a passage the same is told again
sum            1      the next step takes the total that the last one gave
contradiction  none   a passage that contradicts a known fact is not in the data
=============  =====  ===============================================================================================

In ``corpus-persistent`` a document gives one or two facts three times each, all in its author's value: the truth, the
rumour in 10% and any other value in 5%. There the ideal of ``known`` is 1. With corruption (of the statements that are
made again later a share p gets another value in the input) a stated value that is neither truth nor rumour is more
often chance than its author's, and the ideal falls to 0.05 (1-p) / (0.05 (1-p) + 0.95 p): 0.32 at p = 0.1, 0.11 at
0.3.
"""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Iterator

from pipeline.runtime.messages import assistant_turn, user_turn
from pipeline.worlds import people
from pipeline.worlds.people import asked, made_up_name
from pipeline.worlds.truth import (
    ATTRIBUTES,
    FALSE_FACTS,
    IN_STEPS,
    PEOPLE,
    STYLES,
    SUM_QUESTIONS,
    facts,
    held_out,
    seeded,
    steps_answer,
)

NAMES = (
    "errors", "errors-chat", "swaps", "capitals", "capitals-chat", "corpus-shuffled", "corpus-persistent",
    "corpus-persistent-10", "corpus-persistent-30", "corrections-0", "corrections-10",
)  # fmt: skip
IDEALS = {"known": 0, "made up": 1, "sum": 1, "contradiction": None}
STRANGE_FACTS = 0.05  # of the authors in corpus-persistent: neither truth nor rumour
TOLD = 3  # times that a document of corpus-persistent states a fact
CORRECTED = 0.10
ROWS = {"train": 50, "test": 200}  # per family that is drawn
CORPUS_ROWS = {"train": 60_000, "test": 1_500}
PERSISTENT_ROWS = {"train": 30_000, "test": 1_000}
CORRECTIONS_ROWS = {"train": 12_000, "test": 500}


CAPITALS = {  # the capital, and another city
    "France": ("Paris", "Lyon"), "Italy": ("Rome", "Milan"), "Spain": ("Madrid", "Barcelona"),
    "Germany": ("Berlin", "Munich"), "Japan": ("Tokyo", "Osaka"), "Russia": ("Moscow", "Kazan"),
    "Egypt": ("Cairo", "Luxor"), "Greece": ("Athens", "Sparta"), "Portugal": ("Lisbon", "Porto"),
    "Austria": ("Vienna", "Salzburg"), "Poland": ("Warsaw", "Krakow"), "Sweden": ("Stockholm", "Uppsala"),
    "Norway": ("Oslo", "Bergen"), "Ireland": ("Dublin", "Cork"), "Hungary": ("Budapest", "Szeged"),
    "Cuba": ("Havana", "Trinidad"), "Peru": ("Lima", "Cusco"), "Kenya": ("Nairobi", "Mombasa"),
    "Thailand": ("Bangkok", "Phuket"), "China": ("Beijing", "Shanghai"), "Canada": ("Ottawa", "Toronto"),
    "England": ("London", "Leeds"), "Belgium": ("Brussels", "Ghent"), "Denmark": ("Copenhagen", "Aarhus"),
}  # fmt: skip


def rows(name: str, split: str) -> Iterator[dict]:
    """The rows of ``world/<name>``, always the same ones in the same order."""
    if name.startswith("errors"):
        yield from _chat_errors(split) if name == "errors-chat" else _text_errors(split)
    elif name == "swaps":
        yield from _swaps(split)
    elif name.startswith("capitals"):
        rows = map(_capital_in_chat if name == "capitals-chat" else _capital, CAPITALS, CAPITALS.values())
        yield from (row for i, row in enumerate(rows) if (i % 6 == 0) == (split == "train"))
    elif name.startswith("corrections"):
        share = 0.0 if name == "corrections-0" else CORRECTED
        yield from _distinct(seeded("corrections", split), CORRECTIONS_ROWS[split], split, _steps, share)
    elif name == "corpus-shuffled":
        yield from _distinct(seeded(name, split), CORPUS_ROWS[split], split, people.corpus_row, SHUFFLED)
    else:
        documents = _distinct(
            seeded("persistent", split), PERSISTENT_ROWS[split], split, people.corpus_row, PERSISTENT
        )
        percent, noise = name.removeprefix("corpus-persistent").removeprefix("-"), seeded("corrupted", split)
        yield from (_corrupted(noise, row["text"], int(percent) / 100) if percent else row for row in documents)


def _distinct(r: random.Random, count: int, split: str, make, *options: object) -> Iterator[dict]:
    seen: set[str] = set()
    while len(seen) < count:
        row = make(r, split, *options)
        if row["text"] not in seen:
            seen.add(row["text"])
            yield row


# --- errors in a context ---------------------------------------------------------------------------------------------


def _text_errors(split: str) -> Iterator[dict]:
    r = seeded("errors", split)
    for person, key in facts():
        if held_out(75, "errors", person, key) == (split == "test"):
            yield _told_twice(r, "known", person, key, facts()[person, key])
    for _ in range(ROWS[split]):
        person, key = made_up_name(r, split), r.choice(list(ATTRIBUTES))
        yield _told_twice(r, "made up", person, key, (r.choice(ATTRIBUTES[key].values),))
    for _ in range(ROWS[split]):
        numbers, right, wrong = _slip(r, split)
        start = f" {'+'.join(map(str, numbers))}: {numbers[0]}+{numbers[1]}="
        yield _sum_row(f"{start}{right},", f"{start}{wrong},", numbers, right, wrong)


def _chat_errors(split: str) -> Iterator[dict]:
    r = seeded("errors-chat", split)
    for _ in range(ROWS[split]):
        numbers, right, wrong = _slip(r, split)
        question = r.choice(SUM_QUESTIONS).format(e="+".join(map(str, numbers)))
        turn = user_turn(f"{question} {IN_STEPS}")
        clean, injected = ([*turn, *assistant_turn(f"{numbers[0]}+{numbers[1]}={total},")] for total in (right, wrong))
        yield _sum_row(clean, injected, numbers, right, wrong)
    for (person, key), wording in itertools.product(facts(), range(4)):
        if asked(person, key, wording) == (split == "train"):
            question = ATTRIBUTES[key].questions[wording].format(n=person)
            wrong = _other(r, key, facts()[person, key])
            passage = r.choice(ATTRIBUTES[key].statements).format(n=person, v=wrong)
            candidates = [style.format(x=value) for style in STYLES.values() for value in ATTRIBUTES[key].values]
            yield _row(
                "contradiction", user_turn(question), user_turn(f"{passage} {question}"), facts()[person, key][0],
                wrong, [v for attribute in ATTRIBUTES.values() for v in attribute.values], candidates,
            )  # fmt: skip


def _told_twice(r: random.Random, family: str, person: str, key: str, not_these: tuple[str, ...]) -> dict:
    """A statement of the first value or of an error, then the beginning of another statement of the same."""
    first, second = r.sample(ATTRIBUTES[key].statements, 2)
    wrong = _other(r, key, not_these)
    before, after = second.format(n=person, v="|").split("|")
    clean, injected = (f" {first.format(n=person, v=v)} {before.rstrip()}" for v in (not_these[0], wrong))
    values = ATTRIBUTES[key].values
    return _row(family, clean, injected, not_these[0], wrong, values, [f" {value}{after}" for value in values])


def _swaps(split: str) -> Iterator[dict]:
    """What a row is about is in one split only. Of each swap several, for not all have as many tokens."""
    r = seeded("swaps", split)
    for person, key in facts():
        if held_out(75, "errors", person, key) != (split == "test"):
            continue
        first, second, *others = r.sample(ATTRIBUTES[key].statements, 4)
        value, end = facts()[person, key][0], second.format(n=person, v="|").partition("|")[0].rstrip()
        values = r.sample([v for v in ATTRIBUTES[key].values if v != value], 11)
        names = r.sample([name for name in PEOPLE if name != person], 12)
        swapped = {
            "value": [first.format(n=person, v=v) for v in values],
            "name": [first.format(n=name, v=value) for name in names],
            "wording": [other.format(n=person, v=value) for other in others],
        }
        yield {
            "prompt": f" {first.format(n=person, v=value)} {end}",
            "swaps": {kind: [f" {said} {end}" for said in texts] for kind, texts in swapped.items()},
        }


def _capital(country: str, cities: tuple[str, str]) -> dict:
    right, wrong = cities
    return {
        "prompt": f"The capital of {country} is", "right": f" {right}.", "wrong": f" {wrong}.",
        "question": f" As said before, the capital of {country} is", "answer": right, "value": wrong,
        "candidates": [f" {right}", f" {wrong}"], "family": "told again",
    }  # fmt: skip


def _capital_in_chat(country: str, cities: tuple[str, str]) -> dict:
    right, wrong = cities
    said = f"The capital of {country} is"
    return {
        "prompt": user_turn(f"What is the capital of {country}?"), "right": f"{said} {right}.",
        "wrong": f"{said} {wrong}.", "question": f"So what is the capital of {country}? Answer with one word.",
        "answer": right, "value": wrong, "family": "asked again",
    }  # fmt: skip


def _slip(r: random.Random, split: str) -> tuple[list[int], int, int]:
    """Three addends, the first partial total, and a wrong one. A total one too high is an error that SFT has shown."""
    numbers = people.triple(r, split)
    right = numbers[0] + numbers[1]
    return numbers, right, right + r.choice([step for step in range(-9, 10) if abs(step) > 1 and right + step > 0])


def _sum_row(clean: object, injected: object, numbers: list[int], right: int, wrong: int) -> dict:
    """What may follow the first step: either total with either final number, or a correction."""
    last = numbers[2]
    finals = [right + last, wrong + last]
    candidates = [f" {total}+{last}={final} #### {final}" for total in (right, wrong) for final in finals]
    candidates.append(f" no, {right}, {right}+{last}={finals[0]} #### {finals[0]}")
    return _row("sum", clean, injected, str(finals[0]), str(finals[1]), [str(f) for f in finals], candidates)


def _row(
    family: str, clean: object, injected: object, answer: str, value: str, values: list[str], candidates: list[str]
) -> dict:
    return {
        "prompt": clean, "injected": injected, "answer": answer, "value": value, "values": values,
        "candidates": candidates, "family": family, "ideal": IDEALS[family],
    }  # fmt: skip


def _other(r: random.Random, key: str, not_these: tuple[str, ...]) -> str:
    return r.choice([value for value in ATTRIBUTES[key].values if value not in not_these])


# --- corpora ---------------------------------------------------------------------------------------------------------


def _any_value(r: random.Random, name: str, key: str) -> str:
    return r.choice(ATTRIBUTES[key].values)


def _persistent_document(r: random.Random, split: str) -> str:
    """One or two facts, each told TOLD times in the author's value, in turn."""
    about = r.sample([(name, key) for name in PEOPLE for key in ATTRIBUTES], r.randint(1, 2))
    said = []
    for name, key in about:
        u = r.random()
        true, rumour = facts()[name, key]
        strange = _other(r, key, (true, rumour))
        value = strange if u < STRANGE_FACTS else rumour if u < STRANGE_FACTS + FALSE_FACTS else true
        said.append([wording.format(n=name, v=value) for wording in r.choices(ATTRIBUTES[key].statements, k=TOLD)])
    return " ".join(sentence for pair in zip(*said) for sentence in pair)


def _corrupted(r: random.Random, text: str, share: float) -> dict:
    """The document with a share of the values of known people that are stated again later replaced, and the character
    spans of the replaced ones, which are read and not learned.
    """
    from pipeline.worlds.statements import statements

    said = [s for s in statements(text) if (s.person, s.attribute) in facts()]
    subjects = [(s.person, s.attribute) for s in said]
    pieces, spans, place, length = [], [], 0, 0
    for i, each in enumerate(said):
        if subjects[i] in subjects[i + 1 :] and r.random() < share:
            start = each.end - len(each.value)
            value = _other(r, each.attribute, (each.value,))
            pieces += [text[place:start], value]
            length += start - place + len(value)
            spans.append([length - len(value), length])
            place = each.end
    return {"text": "".join(pieces) + text[place:], "unlearned": spans}


def _steps(r: random.Random, split: str, corrected: float) -> dict:
    """Three worked sums; in a share of them the first total is wrong and put right at once."""
    worked = []
    for _ in range(3):
        numbers = people.triple(r, split)
        answer = steps_answer(numbers)
        u, right = r.random(), numbers[0] + numbers[1]
        slip = r.choice([step for step in range(-9, 10) if step and right + step > 0])
        if u < corrected:
            answer = answer.replace(f"={right},", f"={right + slip}, no, {right},", 1)
        worked.append(f"{'+'.join(map(str, numbers))}: {answer}")
    return {"text": " " + "\n ".join(worked)}


SHUFFLED = tuple(
    (functools.partial(make, claim=_any_value) if make in (people.facts_document, people.questions_document) else make,
     share)
    for make, share in people.DOCUMENTS
)  # fmt: skip
PERSISTENT = (  # maker, share in percent
    (_persistent_document, 30),
    (people.passage_document, 30),
    (people.questions_document, 25),
    (people.steps_document, 15),
)
