"""``math`` in its killable worker, and ``logic`` by truth table."""

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.rewards.judging import Sample
from pipeline.rewards.registry import get_reward
from pipeline.rewards.symbolic import logic_judge, parse_formula, truth_table
from pipeline.runtime.errors import UserError

EQUAL = [
    ("5", "5"), ("5", "2+3"), ("5", "x=5"), ("5", r"\sqrt{25}"), ("1/2", "0.5"), (r"\frac{1}{2}", "1/2"),
    (r"\frac{\pi}{2}", r"\pi/2"), (r"\sqrt{2}", "2^{1/2}"), ("x^2+2x+1", "(x+1)^2"), ("[0,1)", "[0, 1)"),
    ("1,2", "2,1"), (r"\{1,2\}", r"\{2,1\}"), ("(1,2)", r"\left(1, 2\right)"), (r"\text{Evelyn}", r"\text{Evelyn}"),
    ("1000", "1,000"), (r"x \le 3", r"x \leq 3"), ("5\\frac{1}{2}", "11/2"), ("5", r"5\text{ cm}"), ("5\\%", "5"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"),
]  # fmt: skip
DIFFERENT = [
    ("5", "6"), ("5", "5, 6"), ("5", "6, 5"), ("5", r"5 \text{ or } 6"), ("5", r"\{5, 6\}"), ("5", "4 1"),
    ("41", "4 1"), ("5", r"4\text{ }1"), ("5", r"4\qquad 1"), ("5", r"4 \ldots 1"), ("5", r"\pm 5"), ("5", "5=5"),
    ("5", "4 < 5"), ("5", r"x \ge 5"), ("5", "500\\%"), ("0.05", "5\\%"), ("1/3", "0.333333333333"),
    (r"\sqrt{2}", "1.41421356"), ("(1,2)", "(2,1)"), ("(1,2)", "1,2"), ("(0,1)", "[0,1]"), ("5", r"\infty"),
    ("5", r"\text{five}"), ("5", ""), ("5", "x"), (r"\text{Evelyn}", r"\text{Angela}"), ("5", "5;6"), ("5", "٥"),
    ("5", "9" * 100_000), ("5", "__import__('os').system('touch /tmp/pwned')"),
]  # fmt: skip


@pytest.fixture(scope="module")
def math():
    """One judge for all pairs of this file."""
    pairs = [*EQUAL, *DIFFERENT]
    judgements = get_reward("math").judge(None, [rf"\boxed{{{a}}}" for _, a in pairs], answer=[g for g, _ in pairs])
    return dict(zip(pairs, judgements, strict=True))


@pytest.mark.parametrize("pair", EQUAL, ids=range(len(EQUAL)))
def test_equal_formulas(math, pair):
    assert math[pair].verdict == "right", math[pair].reason


@pytest.mark.parametrize("pair", DIFFERENT, ids=range(len(DIFFERENT)))
def test_different_formulas(math, pair):
    assert math[pair][:2] == ("wrong", 0.0)


@pytest.mark.parametrize("tower", ["9^{9^{9^9}}", "x" * 20_000])
def test_what_takes_for_ever_is_a_timeout_and_the_next_row_is_judged(tower):
    reward = get_reward("math", deadline=1.5)
    reward(None, [r"\boxed{2+3}"], answer=["5"])  # the worker's start is not the completion's
    start = time.monotonic()
    judgements = reward.judge(None, [rf"\boxed{{{tower}}}", r"\boxed{2+3}"], answer=["5", "5"])
    assert [j[:2] for j in judgements] == [("timeout", 0.0), ("right", 1.0)]
    assert time.monotonic() - start < 1.5 + 2 + 15  # a new worker imports sympy, which takes seconds on a busy machine


def test_gold_that_cannot_be_read_or_compared_is_never_the_completions_fault():
    reward = get_reward("math", deadline=1.5)
    golds = [None, "", r"\frac{", "9^{9^{9^9}}"]
    judgements = reward.judge(None, [r"\boxed{x+1}"] * 4, answer=golds)
    assert [j.verdict for j in judgements] == ["unscorable", "unscorable", "unscorable", "error"]
    assert all(j.score is None for j in judgements)


def test_marker_policy_is_that_of_numeric():
    texts = ["2+3", "<think>#### 2+3</think>", "#### 2+3", r"\boxed{6} \boxed{2+3}", "#### 2+3<|eos|>#### 6"]
    assert get_reward("math")(None, texts, answer=["5"] * 5) == [0.0, 0.0, 1.0, 1.0, 1.0]


def test_math_deadline_must_be_positive():
    with pytest.raises(UserError, match="deadline"):
        get_reward("math", deadline=-1)


def test_every_gsm8k_gold_answer_is_right_and_a_changed_one_wrong(real_data):
    rows = [json.loads(x) for name in ("train", "test_first_half") for x in real_data(f"gsm8k/{name}.jsonl").open()]
    golds = [row["answer"] for row in rows]
    changed = [f"#### {int(gold.split('####')[1].replace(',', '')) + 1}" for gold in golds]
    reward = get_reward("math")
    assert set(reward(None, golds, answer=golds)) == {1.0}
    assert set(reward(None, changed, answer=golds)) == {0.0}


def test_every_solution_of_competition_maths_is_right(real_data):
    """All 1500 rows of MATH: formulas, sets, intervals, matrices, names."""
    solutions = [json.loads(line)["solution"] for line in real_data("math/math.jsonl").open()]
    assert set(get_reward("math")(None, solutions, answer=solutions)) == {1.0}


@pytest.mark.parametrize(
    ("gold", "answer", "verdict"),
    [
        ("p -> q", "~p | q", "right"),
        ("p → q", "¬q → ¬p", "right"),
        (r"\neg (p \land q)", "not p or not q", "right"),
        ("p <-> q", "(p & q) | (~p & ~q)", "right"),
        ("p xor q", "p <-> ~q", "right"),
        ("p", "p & (q | ~q)", "right"),  # a variable that does not matter
        ("true", "p | ~p", "right"),
        ("0", "p & ~p", "right"),
        ("p -> q -> r", "p -> (q -> r)", "right"),  # to the right
        ("p | q & r", "p | (q & r)", "right"),
        ("p <-> q -> r", "p <-> (q -> r)", "right"),
        ("~p & q", "(~p) & q", "right"),
        ("rain implies wet", "!rain || wet", "right"),
        ("work\n#### p", "p", "right"),
        ("p -> q", "q -> p", "wrong"),
        ("p -> q -> r", "(p -> q) -> r", "wrong"),
        ("p", "q", "wrong"),
        ("p", "p, q", "wrong"),
        ("p", "p q", "wrong"),
        ("p", "(p", "wrong"),
        ("p", "p)", "wrong"),
        ("p", "()", "wrong"),
        ("p", "", "wrong"),
        ("p", "p = p", "wrong"),
        ("p", "p ^ p", "wrong"),  # and to some, xor to others: in neither grammar
        ("p", "__import__('os')", "wrong"),
        ("p", "(" * 20_000, "wrong"),
        ("p", "~" * 9_999 + "p", "wrong"),
        ("p", " | ".join(f"v{i}" for i in range(40)), "wrong"),
        ("p q", "p", "unscorable"),
        (None, "p", "unscorable"),
        (" | ".join(f"v{i}" for i in range(40)), "p", "unscorable"),
    ],
)
def test_logic(gold, answer, verdict):
    text = f"#### {answer}"
    assert logic_judge(Sample(None, text, text, {"answer": gold})).verdict == verdict


def test_truth_table_by_hand():
    """p, q over rows r = 0..3 with p = bit 0 and q = bit 1 of r: p is 0101 (from row 0), q is 0011.

    p -> q is 1 but in row 1 (p=1, q=0): rows 0, 2, 3, that is binary 1101 = 13. p xor q: rows 1, 2 = 6.
    """
    assert truth_table(parse_formula("p -> q"), ["p", "q"]) == 0b1101
    assert truth_table(parse_formula("p xor q"), ["p", "q"]) == 0b0110
    assert truth_table(parse_formula("not (p or q)"), ["p", "q"]) == 0b0001
    assert truth_table(parse_formula("true"), ["p", "q"]) == 0b1111


def formulas():
    """(text, function of a valuation) of random formulas, brackets everywhere."""
    leaves = st.sampled_from("pqr").map(lambda n: (n, lambda v, n=n: v[n]))
    operations = {"&": lambda a, b: a and b, "|": lambda a, b: a or b, "->": lambda a, b: not a or b}
    operations |= {"<->": lambda a, b: a == b, "xor": lambda a, b: a != b}

    def joined(parts):
        return st.tuples(parts, st.sampled_from(sorted(operations)), parts).map(
            lambda t: (f"({t[0][0]} {t[1]} {t[2][0]})", lambda v: bool(operations[t[1]](t[0][1](v), t[2][1](v))))
        ) | parts.map(lambda t: (f"~{t[0]}", lambda v: not t[1](v)))

    return st.recursive(leaves, joined, max_leaves=12)


@given(formulas())
def test_truth_table_agrees_with_evaluation(formula):
    text, value = formula
    rows = [{name: bool(row >> i & 1) for i, name in enumerate("pqr")} for row in range(8)]
    expected = sum(bool(value(valuation)) << row for row, valuation in enumerate(rows))
    assert truth_table(parse_formula(text), list("pqr")) == expected
