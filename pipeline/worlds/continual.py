"""Corpora that come one after another: ``world/continual-1`` to ``-4`` bring new people and changed facts.

Each corpus states, as questions and answers, three facts about each of 12 people the world did not know and 12 facts
that have changed: of the 40 people of the world, and from the second corpus on also of people an earlier one brought.
A fact changes once at most. ``world/continual-0`` is what stays true and can do no harm to repeat: facts that never
change, and sums.

``world/continual-told`` has what the first corpus asks in its test split, with the fact in the prompt, alone (``1
fact``) or among four others of the corpus (``5 facts``), and without it (``0 facts``): learning from the context, to
be held against learning by weights. Its columns are prompt, answer and kind.

Columns: prompt, completion (chat); answer; kind (``new``, ``changed``; of continual-0 ``fact``, ``sum``); before (the
value that a changed fact had, else empty). Training asks in three of an attribute's four wordings, the test split in
the fourth. It asks only for what no later corpus changes, so a lower score on it later is forgetting and nothing else.
`truth_after` says what is true when.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

from pipeline.runtime.messages import assistant_turn, user_text, user_turn
from pipeline.worlds import people
from pipeline.worlds.truth import ATTRIBUTES, OPENERS, PEOPLE, facts, seeded, truth

CORPORA = 4
TOLD = "continual-told"
NAMES = (*(f"continual-{k}" for k in range(CORPORA + 1)), TOLD)
PER_PERSON, CHANGES, ASKED = 3, 12, 2  # facts about a newcomer, changes, times a wording is asked

# fmt: off
NEWCOMERS = [
    "Agnes", "Basil", "Conrad", "Daphne", "Ernest", "Fiona", "Gideon", "Hester", "Isaac", "Judith", "Kaspar", "Louise",
    "Magnus", "Nadia", "Oliver", "Phoebe", "Quentin", "Rosa", "Stefan", "Thelma", "Ursula", "Victor", "Wanda", "Xaver",
    "Yvonne", "Albert", "Bertha", "Cecil", "Doris", "Egon", "Flora", "Gustav", "Helga", "Ivan", "Johanna", "Konrad",
    "Lukas", "Mathilda", "Norbert", "Otti", "Pascal", "Renata", "Sergei", "Tamara", "Urban", "Viola", "Vilma", "Zita",
]
# fmt: on

Fact = tuple[str, str]  # person, attribute


@functools.cache
def facts_of(corpus: int) -> dict[Fact, tuple[str, str]]:
    """(person, attribute) -> (value, value before or ``""``): what one corpus says, new facts first."""
    r = seeded("continual", str(corpus))
    share = len(NEWCOMERS) // CORPORA
    learned: dict[Fact, tuple[str, str]] = {}
    for name in NEWCOMERS[(corpus - 1) * share : corpus * share]:
        for key in r.sample(list(ATTRIBUTES), PER_PERSON):
            learned[name, key] = (r.choice(ATTRIBUTES[key].values), "")
    earlier = [facts_of(k) for k in range(1, corpus)]
    known = truth_after(corpus - 1)
    changed = {fact for part in earlier for fact, (_, before) in part.items() if before}
    known_from_start = [fact for fact in facts() if fact not in changed]
    brought = [fact for part in earlier for fact in part if fact not in facts() and fact not in changed]
    moving = r.sample(known_from_start, CHANGES if not brought else CHANGES // 2)
    if brought:
        moving += r.sample(brought, CHANGES - len(moving))
    for fact in moving:
        learned[fact] = (r.choice([v for v in ATTRIBUTES[fact[1]].values if v != known[fact]]), known[fact])
    return learned


def truth_after(corpus: int) -> dict[Fact, str]:
    """What is true of everybody known once this corpus is out; 0 is the world as the base model learned it."""
    now = {fact: value for fact, (value, _) in facts().items()}
    for k in range(1, corpus + 1):
        now |= {fact: value for fact, (value, _) in facts_of(k).items()}
    return now


@functools.cache
def changed_after(corpus: int) -> frozenset[Fact]:
    """The facts that a later corpus changes."""
    return frozenset(f for k in range(corpus + 1, CORPORA + 1) for f, (_, before) in facts_of(k).items() if before)


def rows(name: str, split: str) -> Iterator[dict]:
    """The rows of ``world/continual-…``, always the same ones in the same order."""
    if name == TOLD:
        yield from _told(split)
        return
    corpus = int(name.rpartition("-")[2])
    if corpus == 0:
        yield from _lasting(split)
        return
    for (person, key), (value, before) in facts_of(corpus).items():
        if split == "test" and (person, key) in changed_after(corpus):
            continue
        questions = ATTRIBUTES[key].questions
        kept_back = seeded("continual", person, key).randrange(len(questions))
        for i, question in enumerate(questions):
            if (i == kept_back) != (split == "test"):
                continue
            r = seeded("continual", split, person, key, str(i))
            for opener in r.sample(OPENERS, ASKED if split == "train" else 1):
                yield _row(opener + question.format(n=person), value, value, "changed" if before else "new", before)


def _told(split: str) -> Iterator[dict]:
    """The questions of the first corpus with 0, 1 and 5 of its facts in front, that of the answer among the latter."""
    r, known = seeded(TOLD, split), list(facts_of(1))
    for row in rows("continual-1", split):
        question = user_text(row["prompt"])
        asked = next(
            fact
            for fact in known
            if question.endswith(tuple(q.format(n=fact[0]) for q in ATTRIBUTES[fact[1]].questions))
        )
        others = r.sample([fact for fact in known if fact != asked], 4)
        r.shuffle(told := [asked, *others])
        for shown in ([], [asked], told):
            stated = [r.choice(ATTRIBUTES[key].statements).format(n=n, v=facts_of(1)[n, key][0]) for n, key in shown]
            kind = f"{len(shown)} fact{'s' * (len(shown) != 1)}"
            yield {"prompt": user_turn(" ".join([*stated, question])), "answer": row["answer"], "kind": kind}


LASTING = {"fact": (300, 75), "sum": (100, 25)}  # rows of train, of test


def _lasting(split: str) -> Iterator[dict]:
    """What no corpus changes, drawn as the rows of ``world/facts`` and ``world/sums`` are."""
    for kind, counts in LASTING.items():
        taken = 0
        for row in people.rows(f"{kind}s", split):
            question = user_text(row["prompt"])
            if kind == "fact" and _moves(question):
                continue
            yield _row(question, truth(question), row["answer"], kind, "")
            taken += 1
            if taken == counts[split == "test"]:
                break


@functools.cache
def _moving() -> dict[str, set[str]]:
    """Person of the world (not of a corpus) -> the questions, without opener, whose answer some corpus changes."""
    return {
        name: {
            q.format(n=name) for person, key in changed_after(0) if person == name for q in ATTRIBUTES[key].questions
        }
        for name in PEOPLE
    }


def _moves(question: str) -> bool:
    return any(question.endswith(q) for questions in _moving().values() for q in questions)


def _row(question: str, completion: str, answer: str, kind: str, before: str) -> dict:
    return {
        "prompt": user_turn(question),
        "completion": assistant_turn(completion),
        "answer": answer,
        "kind": kind,
        "before": before,
    }
