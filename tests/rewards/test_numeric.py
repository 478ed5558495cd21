"""The policy of ``numeric``: the table of docs/rewards.md, row by row."""

import json
import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.rewards.judging import Sample
from pipeline.rewards.numeric import judge, last_number, read_number, same_number


def verdict(text, gold):
    return judge(Sample(None, text, text, {"answer": gold}))


RIGHT = [
    ("#### 72", "72"), ("#### 72", 72), ("#### 72.0", "72"), ("#### 072", "72"), ("#### +72", "72"),
    ("#### 72.", "72"), ("#### **72**", "72"), ("**#### 72**", "72"), ("#### **72.**", "72"), ("#### **72**.", "72"),
    ("#### $72", "72"), ("#### 72$", "72"), ("#### $72$", "72"), ("#### €72", "72"), ("#### USD 72", "72"),
    ("#### -$72", "-72"), ("#### $-72", "-72"), ("#### −72", "-72"), ("#### -0", "0"),
    ("#### 72%", "72"), ("#### 72 %", "72"), ("#### 72 percent", "72"), (r"\boxed{72\%}", "72"),
    ("#### 72 clips", "72"), ("#### 72 dollars per hour", "72"), ("#### 72 km/h", "72"), ("#### 72cm^2", "72"),
    ("#### 72 m²", "72"), ("#### 72 m2", "72"), (r"\boxed{72^\circ}", "72"), ("#### 72°C", "72"), ("#### 72 s", "72"),
    (r"\boxed{72\text{ cm}}", "72"), (r"\boxed{72\,\mathrm{kg}}", "72"), (r"\boxed{\$72}", "72"),
    (r"\boxed{\text{\$}72}", "72"), (r"\boxed{\textbf{72}}", "72"), (r"so \(\boxed{72}\).", "72"),
    (r"\boxed{\(72\)}", "72"), ("#### 1,234,567.5", "1234567.5"), (r"\boxed{1{,}234}", "1234"),
    (r"\boxed{1,\!234}", "1234"), ("#### 1/2", "0.5"), ("#### -1/2", "-0.5"), ("#### 3 / 6", "1/2"),
    ("#### 3/4 cup", "0.75"), (r"\boxed{\frac{1}{2}}", "0.5"), (r"\boxed{-\dfrac{1}{2}}", "-0.5"),
    (r"\boxed{\frac{-1}{2}}", "-0.5"), (r"\boxed{\frac12}", "0.5"), ("#### .5", "1/2"), ("#### 1e3", "1000"),
    ("#### 1.5E-3", "0.0015"), (r"\boxed{1.5 \times 10^{3}}", "1500"), ("#### 1.5 × 10^-3", "0.0015"),
    (r"#### \boxed{72}", "72"), ("#### 71\n#### 72", "72"), ("<think>#### 1</think>#### 72", "72"),
    ("#### 72<|im_end|>\n#### 1", "72"), ("#### 72\n<think>#### 1", "72"), ("#### 72", "work\n#### 72"),
    ("#### 0.1", 0.1), ("#### " + "9" * 100_000, "9" * 100_000), ("#### 1" + "0" * 100_000, "1e100000"),
]  # fmt: skip
WRONG = [
    ("72", "72"), ("The answer is 72", "72"), ("<think>#### 72</think>", "72"), ("<think>#### 72", "72"),
    ("#### 72</think>", "72"), ("<|eos|>#### 72", "72"), ("#### 73", "72"), ("#### 72\n#### 73", "72"),
    ("#### 72 or 73", "72"), ("#### 72 or more", "72"), ("#### 72, 73", "72"), ("#### 72 73", "72"),
    ("#### 7 2", "72"), ("#### x = 72", "72"), ("#### 72 = 72", "72"), ("#### 70 + 2", "72"), ("#### 36*2", "72"),
    ("#### 72 to 80", "72"), ("#### 72-80", "72"), ("#### not 72", "72"), ("#### about 72", "72"), ("#### ~72", "72"),
    ("#### > 72", "72"), ("#### ±72", "72"), ("#### --72", "72"), ("#### - 72", "-72"), ("#### 72..", "72"),
    ("#### 72,", "72"), ("#### 72!", "72"), ("#### {72, 73}", "72"), ("#### [72]", "72"), ("#### (72)", "72"),
    ("#### 72 is wrong", "72"), ("#### 72 million", "72"), ("#### 72k", "72"), ("#### 72K", "72"), ("#### 72M", "72"),
    ("#### 72 dozen", "72"), ("#### 72x", "72"), ("#### 72i", "72"), ("#### 72nd", "72"), ("#### 72 pi", "72"),
    ("#### 72 squared", "72"), ("#### 72^2", "72"), ("#### 72²", "72"), ("#### 72_000", "72000"),
    ("#### 72%", "0.72"), ("#### 0.72", "72%"), ("#### 1,00", "100"), ("#### 1,2345", "12345"),
    ("#### 1.234,5", "1234.5"),
    ("#### 0,5", "0.5"), ("#### 0,072", "72"), ("#### 1 000", "1000"), (r"\boxed{1\,000}", "1000"),
    ("#### ٧٢", "72"), ("#### ７２", "72"), ("#### 7٢", "72"), ("#### –72", "-72"), ("#### 7\u200b2", "72"),
    ("#### nan", "72"), ("#### inf", "72"), ("#### Infinity", "72"), ("#### 1e999999999999999999999", "1"),
    ("#### 0x48", "72"), ("#### 0b1001000", "72"), ("#### 1 1/2", "1.5"), (r"\boxed{1\frac{1}{2}}", "1.5"),
    ("#### 1/2/3", "1/6"), ("#### 1/0", "1"), ("#### 0/0", "0"), ("#### 0.333333333333", "1/3"),
    ("#### 72.0000000000000001", "72"), (r"\boxed{72", "72"), (r"\boxed{}", "72"), ("####", "72"), ("####\n72", "72"),
    (r"\boxed{72} \boxed{}", "72"), ("##### 72", "72"), ("#### seventy-two", "72"), ("#### 7<think>x</think>2", "72"),
    ("#### " + "9" * 100_000, "9" * 99_999), ("#### 9^{9^{9^9}}", "72"), ("#### __import__('os')", "72"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "gold"), RIGHT, ids=range(len(RIGHT)))
def test_right(text, gold):
    assert verdict(text, gold)[:3] == ("right", 1.0, 1.0)


@pytest.mark.parametrize(("text", "gold"), WRONG, ids=range(len(WRONG)))
def test_wrong(text, gold):
    assert verdict(text, gold)[:2] == ("wrong", 0.0)


@pytest.mark.parametrize("gold", [None, "", "many", "1 or 2", "nan", float("nan"), float("inf"), True, [72], "1/0"])
def test_without_a_gold_number_nothing_is_right_or_wrong(gold):
    assert verdict("#### 72", gold)[:3] == ("unscorable", None, None)


@pytest.mark.parametrize(
    ("text", "lenient"),
    [
        ("so 70 + 2 = 72.", 1.0),  # no marker: the last number
        ("72 of 80", 0.0),
        ("<think>72</think> so 72!", 1.0),
        ("<think>72</think>", 0.0),
        ("#### 73, no, 72", 0.0),  # a marker decides, even a bad one
        ("none", 0.0),
        ("v72", 0.0),  # glued to letters
        ("It costs $72.", 1.0),
    ],
)
def test_lenient_reads_the_last_number_only_where_there_is_no_marker(text, lenient):
    judgement = verdict(text, "72")
    assert (judgement.score, judgement.lenient) == (0.0, lenient)


@given(st.fractions(), st.fractions())
def test_equality_is_that_of_exact_rationals(a, b):
    one, other = read_number(f"{a.numerator}/{a.denominator}"), read_number(f"{b.numerator}/{b.denominator}")
    assert same_number(one, other) == (a == b)
    assert same_number(one, read_number(f"{7 * a.numerator}/{7 * a.denominator}"))


@given(st.decimals(allow_nan=False, allow_infinity=False, places=6), st.integers(-8, 8))
def test_decimals_agree_with_fractions(value, power):
    expected = Fraction(value) * Fraction(10) ** power
    assert same_number(read_number(f"{value:f}e{power}"), read_number(f"{expected.numerator}/{expected.denominator}"))


@pytest.mark.parametrize(
    "hostile",
    [
        "9" * 1_000_000,
        *(unit * 200_000 for unit in ("1,", "1/", "1e", "-", " $", "1.", "\\frac{", "\\text{", "1 ", "a", "*")),
    ],
    ids=["digits", *(str(i) for i in range(11))],
)
def test_linear_time(hostile):
    start = time.process_time()
    verdict("#### " + hostile, "72")
    verdict(hostile, "72")
    assert time.process_time() - start < 3


def test_last_number_skips_what_is_glued():
    assert same_number(last_number("3 and x4 and 5kg"), read_number("3"))


def test_every_gsm8k_gold_answer_is_right_and_a_changed_one_wrong(real_data):
    """All 8133 rows: the gold solution as completion is right; with the number after #### made one larger, wrong."""
    rows = [
        json.loads(line) for name in ("train", "test_first_half") for line in real_data(f"gsm8k/{name}.jsonl").open()
    ]
    assert len(rows) == 7473 + 660
    for row in rows:
        solution = row["answer"]
        work, number = solution.split("####")
        changed = f"{work}#### {int(number.replace(',', '')) + 1}"
        assert verdict(solution, solution).verdict == "right", solution
        assert verdict(changed, solution).verdict == "wrong", solution


def test_the_paper_s_worked_answers_are_right():
    """Part 5, section 3, as printed: squares 2, 3, 5 -> 4, 9, 25 and so 7 -> 49; 17 + 25 in steps; f(2), f(3), f(4) =
    5, 7, 9 are 2x + 1 and so f(10) = 21."""
    assert [x * x for x in (2, 3, 5, 7)] == [4, 9, 25, 49]
    assert [2 * x + 1 for x in (2, 3, 4, 10)] == [5, 7, 9, 21]
    steps = r"17 + 25 = (10 + 20) + (7 + 5) = 30 + 12 = \boxed{42}."
    assert verdict(steps, str(17 + 25))[:3] == ("right", 1.0, 1.0)
    assert verdict(r"f(x) = 2x + 1, f(10) = 2 \cdot 10 + 1 = \boxed{21}", "21")[:3] == ("right", 1.0, 1.0)
    assert verdict(r"7 -> \boxed{49}", "49")[:3] == ("right", 1.0, 1.0)
    assert verdict(steps, "43")[:2] == ("wrong", 0.0)


def test_parts_of_fractions_are_multiplied_out_up_to_pythons_limit_on_digits():
    """2n/6 is n/3. With 4300 digits (or digits and zeros together) it is found to be; with one more the parts are
    compared as they are written, as turning them into integers would fail, or take quadratic time.
    """
    for ones, equal in [("1" * 4300, True), ("1" * 4301, False), ("1" + "0" * 4299, True), ("1" + "0" * 4300, False)]:
        twos = ones.replace("1", "2")
        assert same_number(read_number(f"{ones}/3"), read_number(f"{twos}/6")) is equal
        assert same_number(read_number(f"3/{ones}"), read_number(f"6/{twos}")) is equal
        assert same_number(read_number(f"{ones}/3"), read_number(f"{ones}/3"))
    start = time.perf_counter()
    assert verdict("#### " + "7" * 100_000 + "/3", "1/3").verdict == "wrong"
    assert time.perf_counter() - start < 1


@pytest.mark.parametrize(
    "completion",
    ["<answer>25</answer>", "<ANSWER> 25 </ANSWER>", "#### **25**", "#### *25*", "#### `25`", "#### *25*.",
     "#### ***25***", r"<answer>\boxed{25}</answer>", "<answer>24</answer> no: <answer>25</answer>",
     r"\boxed{24} <answer>25</answer>", r"<answer>24</answer> \boxed{25}", "<answer>*25*</answer>"],
)  # fmt: skip
def test_answer_tags_and_emphasis(completion):
    assert verdict(completion, "25").verdict == "right"
    assert verdict(completion, "26").verdict == "wrong"


@pytest.mark.parametrize(
    "completion",
    ["<answer>25", "25</answer>", "<answer></answer>25", "#### 5*5", "#### *25", "#### *2*5", "#### _2_5_"],
)
def test_what_is_no_tag_and_no_emphasis(completion):
    assert verdict(completion, "25").verdict == "wrong"
