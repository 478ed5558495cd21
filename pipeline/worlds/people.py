"""A small world made by code from a seed: everything the quickstart and the tests learn from, with the truth known.

It has 40 people with 5 attributes each, sums, sums worked in steps, made-up people who exist only in the passage about
them, and rules shown by example. Nothing is downloaded and nothing is read from disk.

``pipeline.worlds.table.load_world(name, split)`` gives, for the splits ``train`` and ``test``:

=============  ==========================================  ==================================================
name           columns                                     what it is
=============  ==========================================  ==================================================
corpus         text                                        pretraining documents; 25% of the plain sums are one too
                                                           high and 10% of the claims about people are the rumour
sft            prompt, completion                          chat; 35% of the sums wrong, 12% of the facts wordy
preferences    prompt, chosen, rejected, reward_chosen,    pairs drawn from P(chosen) = sigma(r_chosen - r_rejected),
               reward_rejected                             r = ``true_reward``; so Bayes accuracy is known. Four fifths
                                                           are about a passage, which says which answer is right; the
                                                           answers to a sum or about a person differ in style only
preferences-   as preferences                              drawn likewise, about people and sums: right and wrong facts
people                                                     in all styles, which only a model that knows them can judge
ranked         prompt, ranked, ranks, rewards              four answers as in preferences, best first, by Plackett-Luce
prompts        prompt, answer, kind                        sums for reinforcement learning
facts          prompt, answer, kind                        about people: never asked, or never asked in these words
sums           prompt, answer, kind                        two-term sums, at least one term above 9
reading        prompt, answer, kind                        made-up people: with passage, without passage, two people
steps          prompt, answer, kind                        three-term sums: in steps, direct
rules          prompt (plain text), answer, kind           f: 1->6, 8->; for the base model, kind = examples shown
logic          prompt, answer, kind                        a formula to write without one connective
programs       prompt, tests, solution, kind               a one-line Python function, with assert statements
=============  ==========================================  ==================================================

``world/enumerable*``, a task whose every completion is known, is in ``pipeline/worlds/enumerable.py``, and
``world/continual-0`` to ``-4``, new and changed facts in a sequence, in ``pipeline/worlds/continual.py``; and
``world/retrieval-*``, a knowledge base of other people, in ``pipeline/worlds/retrieval.py``.

**Answers.** Sums and steps end in a marker, ``17+25=42 #### 42``, which is what the strict score of the ``numeric``
reward reads; their gold ``answer`` is the bare number. Facts, reading and rules are scored by ``exact`` (``Rome``).

**Splits** are disjoint by construction: what a row is about (an unordered pair of addends, a made-up name, a question
about a person in certain words, a document) falls into train or test by its hash, and pairs held out of training
do not occur in worked steps either. Pairs of single digits are too few to hold out and stay in train.
"""

from __future__ import annotations

import functools
import itertools
import math
import random
import re
from collections.abc import Callable, Iterator, Sequence

from pipeline.runtime.messages import assistant_turn, user_text, user_turn
from pipeline.worlds.truth import (
    AT_ONCE,
    ATTRIBUTES,
    FALSE_FACTS,
    IN_STEPS,
    OPENERS,
    PEOPLE,
    STYLES,
    SUM_QUESTIONS,
    facts,
    held_out,
    seeded,
    steps_answer,
    sum_answer,
    true_reward,
    truth,
)

# Pages of questions and answers are in the corpus as chats, in the tokens of NarLM's chat template: a model that has
# never seen them has so much to unlearn in SFT that it forgets what it knew.
USER, ASSISTANT, END = "<|user|>", "<|assistant|>", "<|eos|>"
WRONG_SUMS_CORPUS, WRONG_SUMS_SFT, LONG_WINDED_SFT = 0.25, 0.35, 12  # the last in percent

TWO_DIGITS_CORPUS = 0.7  # there are 99 numbers of two digits and 9 of one: those are what takes practice

# --- pieces, each drawn for one split --------------------------------------------------------------------------------


@functools.cache
def pair_held_out(a: int, b: int) -> bool:
    """Whether the sum a+b (and b+a) is kept out of training; never for two single digits."""
    return max(a, b) > 9 and held_out(12, "sum", min(a, b), max(a, b))


def _number(r: random.Random, two_digits: float = 0.5) -> int:
    return r.randint(10, 99) if r.random() < two_digits else r.randint(1, 9)


def _pair(r: random.Random, split: str, smallest: int = 1, two_digits: float = 0.5) -> tuple[int, int]:
    """Two addends, the larger at least ``smallest``; each has two digits with the given probability."""
    while True:
        a, b = _number(r, two_digits), _number(r, two_digits)
        if max(a, b) >= smallest and pair_held_out(a, b) == (split == "test"):
            return a, b


def triple(r: random.Random, split: str) -> list[int]:
    """Three addends of the split; of training without a pair that is held out."""
    while True:
        a, b, c = _number(r), _number(r), _number(r)
        test = held_out(12, "triple", a, b, c)
        if test == (split == "test") and (test or not (pair_held_out(a, b) or pair_held_out(a + b, c))):
            return [a, b, c]


def made_up_name(r: random.Random, split: str) -> str:
    """The name of a person who is in no table, of five letters; the two splits share none."""
    while True:
        name = "".join(r.choice("bdfgklmnprstvz") + r.choice("aeiou") for _ in range(2)).capitalize() + r.choice(
            "mnrsx"
        )
        if held_out(15, "name", name) == (split == "test") and name not in PEOPLE:
            return name


def _passage(
    r: random.Random, split: str, people: int, times: int = 1, most_facts: int = 3
) -> tuple[str, str, str, str]:
    """A passage about made-up people, one to ``most_facts`` facts each, then a name, an attribute and a value of it.

    With ``times`` above one every fact is repeated, which is what a model learns to look back from.
    """
    sentences, known = [], []
    for _ in range(people):
        name = made_up_name(r, split)
        for key in r.sample(list(ATTRIBUTES), r.randint(1, most_facts)):
            value = r.choice(ATTRIBUTES[key].values)
            wordings = r.choices(ATTRIBUTES[key].statements, k=times)
            sentences.append([wording.format(n=name, v=value) for wording in wordings])
            known.append((name, key, value))
    if people > 1:
        r.shuffle(sentences)
    return " ".join(s for order in itertools.zip_longest(*sentences) for s in order if s), *r.choice(known)


def asked(name: str, key: str, wording: int) -> bool:
    """Whether training may ask this question. A quarter of the facts is never asked, a tenth of the rest not so."""
    return not held_out(25, "fact", name, key) and not held_out(10, "wording", name, key, wording)


def fact_question(r: random.Random, split: str) -> tuple[str, str, str, str]:
    """A question about a person (without opener), its person and attribute, and in what way it is held out."""
    while True:
        name, key, wording = r.choice(PEOPLE), r.choice(list(ATTRIBUTES)), r.randrange(4)
        if asked(name, key, wording) == (split == "train"):
            kind = "asked" if split == "train" else "never asked" if held_out(25, "fact", name, key) else "reworded"
            return ATTRIBUTES[key].questions[wording].format(n=name), name, key, kind


def _claim(r: random.Random, name: str, key: str) -> str:
    return facts()[name, key][r.random() < FALSE_FACTS]


# --- the corpus ------------------------------------------------------------------------------------------------------


def _sums_document(r: random.Random, split: str) -> str:
    pairs = [_pair(r, split, two_digits=TWO_DIGITS_CORPUS) for _ in range(r.randint(4, 6))]
    return " ".join(f"{a}+{b}={a + b + (r.random() < WRONG_SUMS_CORPUS)}." for a, b in pairs)


def passage_document(r: random.Random, split: str) -> str:
    """A passage about one or two made-up people, every fact three times."""
    return _passage(r, split, 1 + (r.random() < 0.3), times=3)[0]


def questions_document(r: random.Random, split: str, claim: Callable = _claim) -> str:
    """A chat of one kind of question; ``claim`` draws what is said of a person's attribute."""
    kind = r.choices(("facts", "reading", "sums", "steps"), (40, 34, 13, 13))[0]
    if kind == "reading":
        passage, name, key, value = _passage(r, split, 1 + (r.random() < 0.3))
        question = r.choice(ATTRIBUTES[key].questions).format(n=name)
        return f"{USER} {passage} {question}{ASSISTANT} {value}"
    turns = []
    for _ in range(3):
        if kind == "facts":  # the corpus is no exam: its test split asks the same questions as its train split
            question, name, key, _ = fact_question(r, "train")
            answer = claim(r, name, key)
        elif kind == "sums":
            a, b = _pair(r, split, two_digits=TWO_DIGITS_CORPUS)
            question = r.choice(SUM_QUESTIONS).format(e=f"{a}+{b}")
            answer = sum_answer(a, b, a + b + (r.random() < WRONG_SUMS_CORPUS))
        else:
            numbers = triple(r, split)
            question = r.choice(SUM_QUESTIONS).format(e="+".join(map(str, numbers))) + " " + IN_STEPS
            answer = steps_answer(numbers)
        turns.append(f"{USER} {r.choice(OPENERS)}{question}{ASSISTANT} {answer}")
    return END.join(turns)


def steps_document(r: random.Random, split: str) -> str:
    """Three worked sums, a few of them at once."""
    worked = []
    for _ in range(3):
        numbers = triple(r, split)
        expression = "+".join(map(str, numbers))
        worked.append(f"{expression}: {steps_answer(numbers) if r.random() > 0.15 else f'#### {sum(numbers)}'}")
    return "\n ".join(worked)


def facts_document(r: random.Random, split: str, claim: Callable = _claim) -> str:
    """Statements about four to six people; ``claim`` draws what is said of a person's attribute."""
    about = [(r.choice(PEOPLE), r.choice(list(ATTRIBUTES))) for _ in range(r.randint(4, 6))]
    return " ".join(r.choice(ATTRIBUTES[key].statements).format(n=name, v=claim(r, name, key)) for name, key in about)


def _rule(r: random.Random, examples: int) -> tuple[str, str]:
    step, inputs = r.randint(1, 9), r.sample(range(1, 16), examples + 1)
    shown = "".join(f"{x}->{x + step}, " for x in inputs[:-1])
    return f"f: {shown}{inputs[-1]}->", str(inputs[-1] + step)


def _rules_document(r: random.Random, split: str) -> str:
    return "".join(_rule(r, 7))


DOCUMENTS = (  # maker, share in percent
    (_sums_document, 27),
    (passage_document, 16),
    (questions_document, 22),
    (steps_document, 16),
    (facts_document, 13),
    (_rules_document, 6),
)


def corpus_row(r: random.Random, split: str, documents: Sequence = DOCUMENTS) -> dict:
    """A document of the split, by makers with their shares."""
    make = r.choices(*zip(*documents))[0]
    while True:
        text = make(r, split)
        text = text if text.startswith(USER) else f" {text}"
        if held_out(5, text) == (split == "test"):
            return {"text": text}


# --- rows ------------------------------------------------------------------------------------------------------------


def _facts(r: random.Random, split: str) -> dict:
    question, name, key, kind = fact_question(r, split)
    return {"prompt": user_turn(r.choice(OPENERS) + question), "answer": facts()[name, key][0], "kind": kind}


def _sums(r: random.Random, split: str) -> dict:
    a, b = _pair(r, split, smallest=10)
    question = r.choice(OPENERS) + r.choice(SUM_QUESTIONS).format(e=f"{a}+{b}")
    return {"prompt": user_turn(question), "answer": str(a + b), "kind": "sum"}


def _reading(r: random.Random, split: str, kind: str | None = None) -> dict:
    kind = kind or r.choice(("with passage", "without passage", "two people"))
    passage, name, key, value = _passage(r, split, 1 + (kind == "two people"))
    question = r.choice(ATTRIBUTES[key].questions).format(n=name)
    text = r.choice(OPENERS) + question if kind == "without passage" else f"{passage} {question}"
    return {"prompt": user_turn(text), "answer": value, "kind": kind}


def _steps(r: random.Random, split: str, kind: str | None = None) -> dict:
    kind = kind or r.choice(("in steps", "direct"))
    numbers = triple(r, split)
    question = r.choice(OPENERS) + r.choice(SUM_QUESTIONS).format(e="+".join(map(str, numbers)))
    prompt = f"{question} {IN_STEPS if kind == 'in steps' else AT_ONCE}"
    return {"prompt": user_turn(prompt), "answer": str(sum(numbers)), "kind": kind}


def _rules(r: random.Random, split: str) -> dict:
    while True:
        examples = r.choice((0, 1, 3))
        prompt, answer = _rule(r, examples)
        if held_out(20, prompt) == (split == "test"):
            return {"prompt": prompt, "answer": answer, "kind": str(examples)}


def _sft(r: random.Random, split: str) -> dict:
    kind = r.choices(("facts", "sums", "reading", "steps", "direct"), (32, 25, 20, 20, 3))[0]
    if kind == "facts":
        row = _facts(r, split)
        wordy = held_out(LONG_WINDED_SFT, "wordy", user_text(row["prompt"]))  # one style a question
        style = r.choice(("sentence", "long-winded")) if wordy else "short"
        answer = STYLES[style].format(x=row["answer"])
    elif kind == "sums":
        prompt, answer = _summed(r, split)
        return {"prompt": user_turn(prompt), "completion": assistant_turn(answer)}
    elif kind == "reading":
        row = _reading(r, split, "two people" if r.random() < 0.3 else "with passage")
        answer = row["answer"]
    else:
        row = _steps(r, split, "in steps" if kind == "steps" else "direct")
        answer = truth(user_text(row["prompt"]))
    return {"prompt": row["prompt"], "completion": assistant_turn(answer)}


def _answers(r: random.Random, split: str, count: int) -> tuple[str, list[str]]:
    """A question and up to ``count`` different answers, which differ only in what the prompt decides.

    A passage states a single fact, and its answers are right and wrong in turn: that is the comparison which a reward
    model of three layers learns. The answers to a sum or about a person differ in style only.
    """
    styles, theme = list(STYLES.values()), r.random()
    if theme < 0.8:
        passage, name, key, value = _passage(r, split, 1, most_facts=1)
        wrong = r.choice([other for other in ATTRIBUTES[key].values if other != value])
        of_right = r.sample(styles, 3)
        of_wrong = of_right if r.random() < 0.8 else r.sample(styles, 3)
        answers = [style.format(x=x) for pair in zip(of_right, of_wrong) for style, x in zip(pair, (value, wrong))]
        return f"{passage} {r.choice(ATTRIBUTES[key].questions).format(n=name)}", answers[:count]
    if theme < 0.9:
        prompt, claim = _summed(r, split)
    else:
        question, name, key, _ = fact_question(r, split)
        prompt, claim = r.choice(OPENERS) + question, _claim(r, name, key)
    return prompt, _in_styles(r, claim, count)


def _answers_about_people(r: random.Random, split: str, count: int) -> tuple[str, list[str]]:
    """A question and ``count`` different answers to it, some wrong. The answers to a sum differ in style only."""
    if r.random() < 0.2:
        prompt, claim = _summed(r, split)
        return prompt, _in_styles(r, claim, count)
    question, name, key, _ = fact_question(r, split)
    answers = []
    while len(answers) < count:
        value = facts()[name, key][0] if r.random() < 0.5 else r.choice(ATTRIBUTES[key].values)
        answer = r.choice(list(STYLES.values())).format(x=value)
        if answer not in answers:
            answers.append(answer)
    return r.choice(OPENERS) + question, answers


def _in_styles(r: random.Random, claim: str, count: int) -> list[str]:
    """The same answer in up to ``count`` styles."""
    return [style.format(x=claim) for style in r.sample(list(STYLES.values()), min(count, len(STYLES)))]


def _summed(r: random.Random, split: str) -> tuple[str, str]:
    """A sum and an answer to it, as often wrong as in SFT."""
    prompt = user_text(_sums(r, split)["prompt"])
    a, b = map(int, re.findall(r"\d+", prompt))
    return prompt, sum_answer(a, b, a + b + (r.random() < WRONG_SUMS_SFT))


def _preferences(r: random.Random, split: str, answers_of: Callable = _answers) -> dict:
    prompt, answers = answers_of(r, split, 2)
    reward, other = (true_reward(prompt, answer) for answer in answers)
    if r.random() >= 1 / (1 + math.exp(other - reward)):  # Bradley-Terry: the second one is preferred
        answers, reward, other = answers[::-1], other, reward
    return {
        "prompt": user_turn(prompt),
        "chosen": assistant_turn(answers[0]),
        "rejected": assistant_turn(answers[1]),
        "reward_chosen": reward,
        "reward_rejected": other,
    }


def _ranked(r: random.Random, split: str) -> dict:
    """Plackett-Luce by its Gumbel form; then a fifth of the neighbours is declared a tie, whatever their order was."""
    prompt, answers = _answers(r, split, 4)
    scored = [(true_reward(prompt, answer), answer) for answer in answers]
    scored.sort(key=lambda pair: pair[0] - math.log(-math.log(r.random())), reverse=True)
    ranks = [1]
    while len(ranks) < len(scored):
        ranks.append(ranks[-1] if r.random() < 0.2 else len(ranks) + 1)
    return {
        "prompt": user_turn(prompt),
        "ranked": [assistant_turn(answer) for _, answer in scored],
        "ranks": ranks,
        "rewards": [reward for reward, _ in scored],
    }


LOGIC = {  # formula, what it may not use -> an equivalent one
    "implication": ("{p} -> {q}", "without ->", "not {p} or {q}"),
    "contraposition": ("{p} -> not {q}", "with both sides exchanged", "{q} -> not {p}"),
    "de morgan": ("not ({p} and {q})", "without and", "not {p} or not {q}"),
    "de morgan 2": ("not ({p} or {q})", "without or", "not {p} and not {q}"),
    "equivalence": ("{p} <-> {q}", "without <->", "({p} -> {q}) and ({q} -> {p})"),
    "distribution": ("{p} and ({q} or {s})", "as an or of two ands", "({p} and {q}) or ({p} and {s})"),
}


def _logic(r: random.Random, split: str) -> dict:
    while True:
        kind = r.choice(list(LOGIC))
        letters = dict(zip("pqs", ("not " * (r.random() < 0.3) + letter for letter in r.sample("abcdpqrs", 3))))
        formula, how, answer = (text.format(**letters) for text in LOGIC[kind])
        if held_out(20, formula) == (split == "test"):
            return {"prompt": user_turn(f"Write {formula} {how}."), "answer": answer, "kind": kind}


PROGRAMS = {  # what f(x) returns: its expression, and the same as a function of x and the constant c
    "x plus {c}": ("x + {c}", lambda x, c: x + c),
    "{c} times x": ("{c} * x", lambda x, c: c * x),
    "x squared plus {c}": ("x * x + {c}", lambda x, c: x * x + c),
    "whether x is greater than {c}": ("x > {c}", lambda x, c: x > c),
    "the remainder of x divided by {c}": ("x % {c}", lambda x, c: x % c),
    "the larger of x and {c}": ("max(x, {c})", lambda x, c: max(x, c)),
}


def _programs(r: random.Random, split: str) -> dict:
    while True:
        c, (what, (expression, value)) = r.randint(2, 40), r.choice(list(PROGRAMS.items()))
        if held_out(20, "program", what, c) == (split == "test"):
            return {
                "prompt": user_turn(f"Write a Python function f(x) that returns {what.format(c=c)}."),
                "tests": [f"assert f({x}) == {value(x, c)!r}" for x in (0, c, 3 * c + 1)],
                "solution": f"def f(x):\n    return {expression.format(c=c)}",
                "kind": what.format(c="c"),
            }


# name: (maker, rows of train, rows of test). Rows that occur again are dropped, so a small theme may give fewer.
WORLD: dict[str, tuple[Callable[[random.Random, str], dict], int, int]] = {
    "corpus": (corpus_row, 60_000, 1_500),
    "sft": (_sft, 14_000, 1_000),
    "preferences": (_preferences, 24_000, 1_000),
    "preferences-people": (functools.partial(_preferences, answers_of=_answers_about_people), 6_000, 1_000),
    "ranked": (_ranked, 2_000, 300),
    "prompts": (_sums, 6_000, 300),
    "facts": (_facts, 400, 300),
    "sums": (_sums, 300, 300),
    "reading": (_reading, 600, 600),
    "steps": (_steps, 500, 500),
    "rules": (_rules, 600, 600),
    "logic": (_logic, 500, 100),
    "programs": (_programs, 150, 40),
}


NAMES = tuple(WORLD)


def rows(name: str, split: str) -> Iterator[dict]:
    """The rows of ``world/<name>``, without repetitions, always the same ones in the same order."""
    make, *counts = WORLD[name]
    r, seen = seeded(name.partition("-")[0], split), set()  # a variant draws as its theme does
    count = counts[split == "test"]
    for _ in range(3 * count):
        row = make(r, split)
        key = repr(row["text"] if "text" in row else list(row.values())[:2])
        if key not in seen:
            seen.add(key)
            yield row
            if len(seen) == count:
                return
