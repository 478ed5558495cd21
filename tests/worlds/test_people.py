"""The embedded world: what it claims about itself, counted and recomputed independently of the code that made it."""

import functools
import hashlib
import itertools
import json
import math
import re
import time
from collections import Counter

import pytest

from pipeline.runtime.errors import UserError
from pipeline.worlds import people
from pipeline.worlds.people import pair_held_out
from pipeline.worlds.table import load_world
from pipeline.worlds.truth import ATTRIBUTES, PEOPLE, WORLD_VERSION, facts, true_reward, true_rewards, truth

COLUMNS = {
    "corpus": ["text"],
    "sft": ["prompt", "completion"],
    "preferences": ["prompt", "chosen", "rejected", "reward_chosen", "reward_rejected"],
    "preferences-people": ["prompt", "chosen", "rejected", "reward_chosen", "reward_rejected"],
    "ranked": ["prompt", "ranked", "ranks", "rewards"],
    "logic": ["prompt", "answer", "kind"],
    "programs": ["prompt", "tests", "solution", "kind"],
    **{name: ["prompt", "answer", "kind"] for name in ("prompts", "facts", "sums", "reading", "steps", "rules")},
}
SPLITS = list(itertools.product(COLUMNS, ("train", "test")))
PLAIN_SUM = re.compile(r"(?<![\d+])(\d+)\+(\d+)=(\d+)")


def said(messages):
    return messages if isinstance(messages, str) else messages[-1]["content"]


def digest(text):
    return hashlib.sha256(text.encode()).hexdigest()


def addends(text):
    """Every pair of numbers that is added somewhere in ``text``, smaller first; 1+2+3 adds 1+2 only."""
    return {tuple(sorted(map(int, m))) for m in re.findall(r"(?<![\d+])(\d+)\+(\d+)(?!\d)", text)}


@functools.cache
def rows(name, split):
    """All rows as dicts, read from the dataset once."""
    return load_world(f"world/{name}", split).to_list()


def column(name, split, key="prompt"):
    return [said(row[key]) for row in rows(name, split)]


@pytest.fixture(scope="module", autouse=True)
def seconds():
    start = time.process_time()
    for name, split in SPLITS:
        load_world(name, split)
    return time.process_time() - start


@pytest.fixture(scope="module")
def trained_on():
    """Every text of a training split, one string a column entry."""
    names = {"corpus": ["text"], "sft": ["prompt", "completion"], "preferences": ["prompt", "chosen", "rejected"]}
    names["preferences-people"] = names["preferences"]
    names |= {name: ["prompt"] for name in ("ranked", "prompts", "sums", "steps", "facts", "reading")}
    return [text for name, keys in names.items() for key in keys for text in column(name, "train", key)]


def test_there_are_no_other_datasets_and_all_are_made_quickly(seconds):
    assert sorted(people.WORLD) == sorted(COLUMNS)
    assert seconds < 25  # of CPU; 6 on an idle core
    assert load_world("world/corpus", "train") is load_world("world/corpus", "train")


@pytest.mark.parametrize(("name", "split"), SPLITS)
def test_columns_counts_and_no_repetition(name, split):
    data = load_world(f"world/{name}", split)
    assert data.column_names == COLUMNS[name]
    _, train, test = people.WORLD[name]
    assert len(data) == (train if split == "train" else test)
    assert len({str(row) for row in rows(name, split)}) == len(data)


@pytest.mark.parametrize("name", COLUMNS)
def test_no_prompt_or_document_of_test_stands_in_train(name):
    key = "text" if name == "corpus" else "prompt"
    train, test = ({digest(text) for text in column(name, split, key)} for split in ("train", "test"))
    assert test
    assert not train & test


def test_what_is_asked_in_test_is_nowhere_in_any_training_split(trained_on):
    """Not only other rows: the pairs of addends and the made-up people of the tests never occur in training."""
    trained_pairs = set().union(*map(addends, trained_on))
    tested = set().union(*(addends(p) for name in ("prompts", "sums") for p in column(name, "test")))
    assert len(tested) > 200
    assert not tested & trained_pairs
    assert all(max(pair) > 9 for pair in tested)
    # The parser above does see what training holds.
    assert {(2, 2), (1, 9)} <= trained_pairs

    shape = re.compile(r"\b[BDFGKLMNPRSTVZ][aeiou][bdfgklmnprstvz][aeiou][mnrsx]\b")
    made_up = {n for p in column("reading", "test") for n in shape.findall(p)} - {*ATTRIBUTES["city"].values}
    known = {n for text in trained_on for n in shape.findall(text)}
    assert len(made_up) > 300
    assert len(known) > 1000
    assert not made_up & known


def test_questions_held_out_are_asked_in_no_training_split(trained_on):
    text = "\n".join(trained_on)
    unasked = {re.sub(r"^[A-Z][a-z ]+: ", "", p) for p in column("facts", "test")}
    assert len(unasked) > 150
    assert not [question for question in unasked if question in text]
    assert column("facts", "train")[0] in text  # as those that may be asked are
    assert {row["kind"] for row in rows("facts", "test")} == {"never asked", "reworded"}


def test_shares_of_wrong_sums_and_of_rumours():
    """Binomial standard errors here are below 0.003 and 0.005; five of them make the bounds."""
    plain = [
        m
        for t in column("corpus", "train", "text")
        if re.match(r" \d", t) and "####" not in t
        for m in PLAIN_SUM.findall(t)
    ]
    wrong = [int(c) - int(a) - int(b) for a, b, c in plain]
    assert {*wrong} == {0, 1}
    assert sum(wrong) / len(wrong) == pytest.approx(0.25, abs=0.01)

    answers = column("sft", "train", "completion")
    wrong = [int(c) - int(a) - int(b) for t in answers for a, b, c in PLAIN_SUM.findall(t) if t.count("=") == 1]
    assert {*wrong} == {0, 1}
    assert sum(wrong) / len(wrong) == pytest.approx(0.35, abs=0.04)

    claims = Counter()
    for name, value in re.findall(
        r"(?:The \w+ of|By trade) (\w+) is (?:in |a |the )?(\w+)\.", "".join(column("corpus", "train", "text"))
    ):
        if name in PEOPLE:
            (attribute,) = (key for key, own in ATTRIBUTES.items() if value in own.values)
            claims[facts()[name, attribute].index(value)] += 1
    assert claims.keys() == {0, 1}  # a claim is the truth or the one rumour, nothing else
    assert claims[1] / claims.total() == pytest.approx(0.10, abs=0.02)


def test_worked_steps_are_always_right():
    for row in rows("steps", "train"):
        assert row["answer"] == str(sum(map(int, re.findall(r"\d+", said(row["prompt"])))))
    assert truth("Tell me: Add 17+25+8. Work in steps.") == "17+25=42, 42+8=50 #### 50"
    assert truth("Add 17+25+8. Answer at once.") == "#### 50"


@pytest.mark.parametrize("name", ["facts", "sums", "reading", "steps"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_gold_answers_agree_with_truth(name, split):
    for row in rows(name, split):
        known = truth(said(row["prompt"]))
        if row["kind"] == "without passage":
            assert known is None
        elif name in ("sums", "steps"):
            assert known.rpartition("#### ")[2] == row["answer"]
        else:
            assert known == row["answer"]


def test_chats_in_the_corpus_are_what_the_chat_template_writes():
    from pipeline.model.tokenizer import train_tokenizer

    tokenizer = train_tokenizer(["nothing"], vocab_size=270)
    chats = [text for text in column("corpus", "test", "text") if text.startswith("<")][:50]
    assert chats
    for text in chats:
        turns = re.findall(r"<\|(user|assistant)\|> (.*?)(?=<)", text + "<|eos|>")
        rendered = tokenizer.apply_chat_template([{"role": r, "content": c} for r, c in turns], tokenize=False)
        assert rendered == f"<|bos|>{text}<|eos|>"


def test_facts_are_what_the_corpus_says_most_often():
    name, key = "Anna", "city"
    said_of_anna = Counter(re.findall(r"Anna lives in (\w+)\.", " ".join(column("corpus", "train", "text"))))
    assert said_of_anna.most_common(1)[0][0] == facts()[name, key][0]
    assert {*said_of_anna} <= {*facts()[name, key]}


@pytest.mark.parametrize(
    ("answer", "reward"),
    [  # 2.5 right + style: 2 short, 1 sentence, -1 long-winded or none of them
        ("{right}", 4.5),
        (" {right}\n", 4.5),
        ("I think it is {right}.", 3.5),
        ("Well, as far as I know, it is {right}, yes.", 1.5),
        ("{wrong}", 2.0),
        ("I think it is {wrong}.", 1.0),
        ("Well, as far as I know, it is {wrong}, yes.", -1.0),
        ("{right} {right}", -1.0),
        ("", -1.0),
    ],
)
def test_true_reward_by_hand(answer, reward):
    right, wrong = facts()["Anna", "city"]
    assert true_reward("Tell me: Where does Anna live?", answer.format(right=right, wrong=wrong)) == reward


@pytest.mark.parametrize(
    ("answer", "reward"),
    [
        ("17+25=42 #### 42", 4.5),
        ("17+25=43 #### 43", 2.0),
        ("17+25=42 #### 43", 2.0),
        ("I think it is 17+25=42 #### 42.", 3.5),
        ("42", -1.0),
    ],
)
def test_true_reward_of_sums_by_hand(answer, reward):
    assert true_reward("Compute 17+25.", answer) == reward


def test_true_rewards_take_text_and_messages():
    chat = [{"role": "user", "content": "Compute 17+25."}]
    right = [{"role": "assistant", "content": "17+25=42 #### 42"}]
    assert true_rewards([chat, "Compute 17+25."], [right, " 17+25=43 #### 43"], answer=["42", "42"]) == [
        4.5,
        2.0,
    ]


@pytest.mark.parametrize("name", ["preferences", "preferences-people"])
def test_preferences_follow_the_bradley_terry_law(name):
    """In each reward gap d the share of pairs where the better one is chosen is sigma(d), to five standard errors."""
    data = load_world(name, "train")
    better = Counter()
    for row in data.select(range(300)):
        for side in ("chosen", "rejected"):
            assert row[f"reward_{side}"] == true_reward(said(row["prompt"]), said(row[side]))
    for chosen, rejected in zip(data["reward_chosen"], data["reward_rejected"]):
        better[abs(chosen - rejected), chosen > rejected] += 1
    gaps = {gap for gap, _ in better if gap > 0}
    assert len(gaps) >= 5
    for gap in gaps:
        n, p = better[gap, True] + better[gap, False], 1 / (1 + math.exp(-gap))
        assert abs(better[gap, True] / n - p) < 5 * math.sqrt(p * (1 - p) / n), gap


@pytest.mark.parametrize("name", ["preferences", "preferences-people"])
def test_the_bayes_accuracy_of_the_pairs_is_clearly_between_chance_and_one(name):
    for split in ("train", "test"):
        data = load_world(name, split)
        wins = [
            1.0 if c > r else 0.5 if c == r else 0.0 for c, r in zip(data["reward_chosen"], data["reward_rejected"])
        ]
        assert 0.75 < sum(wins) / len(wins) < 0.92


def test_what_tells_two_preferred_answers_apart_stands_in_the_prompt():
    """About a passage one answer is right; to a sum or about a person both say the same, in other styles.

    A value is its answer without the style's words. Four fifths are about passages, and a little more, since what
    occurs again is dropped and there are far fewer people than passages.
    """
    words = re.compile(r"I think it is |Well, as far as I know, it is |, yes|\.$")
    passages = 0
    for row in rows("preferences", "train"):
        prompt, values = said(row["prompt"]), [words.sub("", said(row[side])) for side in ("chosen", "rejected")]
        if told := re.match(r"\w.*\. \w.*\?$", prompt):
            passages += 1
            assert truth(prompt) in values
            assert values[0] != values[1]
            assert sum(value in told[0] for value in values) == 1, prompt
        else:
            assert values[0] == values[1], prompt
    assert 0.79 < passages / len(rows("preferences", "train")) < 0.83


def test_ranked_lists_are_noisy_but_ordered_with_ties_as_competition_ranks():
    first_is_best, ties = 0, 0
    data = load_world("ranked", "train")
    for row in data:
        assert len(row["ranked"]) == len(row["ranks"]) == len(row["rewards"]) >= 3
        assert len({said(answer) for answer in row["ranked"]}) == len(row["ranked"])
        for i, rank in enumerate(row["ranks"]):
            assert rank == i + 1 or rank == row["ranks"][i - 1]
        ties += len(row["ranks"]) - len(set(row["ranks"]))
        first_is_best += row["rewards"][0] == max(row["rewards"])
    assert 0.5 < first_is_best / len(data) < 0.95
    assert ties / sum(len(ranks) - 1 for ranks in data["ranks"]) == pytest.approx(0.2, abs=0.03)


def test_rules_hold_in_every_example_shown():
    for row in rows("rules", "test"):
        shown = [(int(x), int(y)) for x, y in re.findall(r"(\d+)->(\d+)", row["prompt"])]
        asked = int(re.search(r"(\d+)->$", row["prompt"])[1])
        assert str(len(shown)) == row["kind"]
        assert {y - x for x, y in shown} <= {int(row["answer"]) - asked}


def test_logic_answers_are_equivalent_by_truth_table():
    def holds(formula, values):
        for name, symbol in (("<->", "=="), ("->", "<=")):  # on booleans <= is implication and == equivalence
            parts = re.split(rf" {name} (?![^(]*\))", formula)
            if len(parts) == 2:
                a, b = (holds(part, values) for part in parts)
                return a == b if symbol == "==" else a <= b
        if formula.startswith("(") and ") and (" in formula:
            return all(holds(part.strip("()"), values) for part in formula.split(") and ("))
        return bool(eval(formula, {"__builtins__": {}}, values))  # our own formulas of and, or, not

    for row in rows("logic", "train"):
        formula = re.fullmatch(r"Write (.*?) (?:with|as) .*", said(row["prompt"]).replace("without", "with"))[1]
        letters = sorted(set(re.findall(r"\b[a-z]\b", formula)))
        for values in itertools.product((False, True), repeat=len(letters)):
            table = dict(zip(letters, values))
            assert holds(formula, table) == holds(row["answer"], table), row


def test_programs_pass_their_own_tests_and_an_empty_one_does_not():
    for row in rows("programs", "test"):
        assert len(row["tests"]) == 3
        scope = {}
        exec(row["solution"], scope)
        for line in row["tests"]:
            exec(line, scope)
        with pytest.raises(AssertionError):
            exec("\n".join(["def f(x):\n    return None", *row["tests"]]), {})


def test_the_same_rows_every_time_and_in_every_process():
    """The digest of the first rows, so that a change of the world cannot pass without a new WORLD_VERSION."""
    text = json.dumps([WORLD_VERSION, *(load_world(*pair).select(range(40)).to_list() for pair in SPLITS)])
    assert digest(text)[:16] == "3451ea140720b9c2"


@pytest.mark.parametrize(
    ("name", "split", "message"),
    [("nothing", "train", "choose one of world/corpus"), ("sft", "dev", "train or test")],
)
def test_unknown_names_are_the_users_error(name, split, message):
    with pytest.raises(UserError, match=message):
        load_world(name, split)


def test_single_digit_pairs_are_never_held_out():
    assert not any(pair_held_out(a, b) for a in range(10) for b in range(10))
    share = sum(pair_held_out(a, b) for a in range(10, 100) for b in range(10, 100)) / 90**2
    assert share == pytest.approx(0.12, abs=0.02)
