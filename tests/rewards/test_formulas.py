"""The outer form of an answer (``formulas``), and what ``math`` makes of it: exact numbers, sets, regions."""

import time

import pytest

from pipeline.rewards.formulas import canonical, tree, without_names
from pipeline.rewards.registry import get_reward
from pipeline.rewards.symbolic import refusal


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("x+1", "x+1"),
        ("1, 2", ["set", "1", "2"]),
        (r"\{1, 2\}", ["set", "1", "2"]),
        ("x=1, x=2", ["set", "1", "2"]),
        (r"x = 1 \text{ or } x = 2", ["set", "1", "2"]),
        ("x=1, y=2", ["set", "x=1", "y=2"]),  # two variables: which is which matters
        (r"\pm 7", ["set", "7", "-7"]),
        (r"x = \pm 7", ["set", "7", "-7"]),
        (r"3 \pm a", ["set", "3 + a", "3 - a"]),
        (r"a \pm b \mp c", ["set", "a + b - c", "a - b + c"]),  # the two signs go together
        ("(1, 2)", ["sequence", "(", ")", "(1, 2)", "1", "2"]),
        (r"\left[0, \frac{1}{2}\right)", ["sequence", "[", ")", r"[0, \frac{1}{2} )", "0", r"\frac{1}{2}"]),
        (
            "(1,2), (3,4)",
            ["set", ["sequence", "(", ")", "(1,2)", "1", "2"], ["sequence", "(", ")", "(3,4)", "3", "4"]],
        ),
        ("f(x, y)", "f(x, y)"),
        (r"\text{one, or two}", r"\text{one, or two}"),
        (r"x < 1 \text{ or } x > 2", ["or", "x < 1", "x > 2"]),
        ("x > 1 and x < 2", ["and", "x > 1", "x < 2"]),
        (r"\{x \mid x > 2\}", "x > 2"),
        ("1,000", "1000"),
        ("1,", "1,"),
    ],
)
def test_forms(text, form):
    def squeezed(part):
        return part.replace(" ", "") if isinstance(part, str) else [squeezed(item) for item in part]

    assert squeezed(tree(canonical(text))) == squeezed(form)


EXACT = [
    ("1024", "2^{10}"), ("10!", "3628800"), (r"\frac{2006!}{2004!}", r"2006 \cdot 2005"), (r"\binom{10}{3}", "120"),
    (r"\frac{1}{2^{98}}", "2^{-98}"), (r"\frac{1}{10}", "0.1"), ("0.125", "2^{-3}"), (r"\frac 12", "0.5"),
    (r"\sqrt{2}+\sqrt{3}", r"\sqrt{5+2\sqrt{6}}"), (r"\frac{\pi}{6}", r"\arcsin\frac12"), ("2", r"\log_2 4"),
    ("2", r"\log 100"), (r"\ln 2", r"\log 2"), (r"\log 2", r"\ln 2"), ("1024_8", "1024_{8}"), ("1024_8", "01024_8"),
    (r"\begin{pmatrix}1\\0.5\end{pmatrix}", r"\begin{pmatrix}1\\\frac12\end{pmatrix}"), ("90", r"90^\circ"),
    (r"5\sqrt{2}", r"5\sqrt{2}\text{ cm}"), (r"5\sqrt{2}", r"**5\sqrt{2}**"), ("x^2-1", "(x-1)(x+1)"),
    ("1/3", r"0.\overline{3}"), (r"0.\overline{142857}", r"\frac17"), ("1/6", r"0.1\overline{6}"), ("1", r"0.\bar{9}"),
    ("-1/3", r"-.\overline{3}"), ("2i", r"2\sqrt{-1}"), (r"\sqrt{-4}", "2i"), ("3+4i", r"3+\sqrt{-16}"),
    ("2:1", "4:2"),
]  # fmt: skip
SETS = [
    ("1,2", "x=1, x=2"), ("1,2", r"x = 2 \text{ or } x = 1"), ("1,2", r"\{2, 1\}"), (r"\{1,2\}", r"x \in \{1,2\}"),
    (r"\pm 7", "-7, 7"), ("-7, 7", r"x = \pm 7"), ("0, 1, -1", r"\pm 1, 0"), (r"3\pm\sqrt2", r"3-\sqrt2, 3+\sqrt2"),
    (r"\frac{1\pm\sqrt{5}}{2}", r"\frac{1-\sqrt5}{2}, \frac{1+\sqrt5}{2}"), (r"\emptyset", r"\varnothing"),
    (r"\emptyset", r"\{\}"), ("(1,2),(3,4)", "(3,4),(1,2)"), ("x=1,y=2", "y=2,x=1"), ("(1,2)", r"(1, \frac42)"),
    ("1,2", r"1 \text{ or } 2"), ("1,2", r"1\text{ and }2"), ("1,2,3", r"\{1, 2 \text{ or } 3\}"),
    ("(1,2)", "(x,y)=(1,2)"), (r"(x, y) = \left(1, 2\right)", "(1,2)"), ("(y,x)=(1,2)", "(y, x) = (1, 2)"),
    ("(1,2),(3,4)", "(x,y)=(3,4), (x,y)=(1,2)"),
]  # fmt: skip
REGIONS = [
    ("(2, 5]", r"2 < x \le 5"), ("(2,5]", r"5 \ge x > 2"), ("(2,5]", r"x \in (2,5]"), (r"2 < x \le 5", "(2,5]"),
    (r"(2,\infty)", "x > 2"), (r"(-\infty, 2]", r"x \leq 2"), (r"[0, \infty)", r"[0,+\infty)"),
    (r"(-\infty,1)\cup(2,\infty)", r"x < 1 \text{ or } x > 2"), (r"(2,\infty)", r"\{x : x > 2\}"),
    (r"(-\infty,1)\cup(2,\infty)", r"(2,\infty)\cup(-\infty,1)"), (r"(-\infty,2)\cup(2,\infty)", r"x \ne 2"),
    ("(2,5)", r"x > 2 \text{ and } x < 5"), (r"\left(-\frac{1}{2},\infty\right)", r"(-0.5, \infty)"),
]  # fmt: skip
WRONG = [
    # numbers that agree to many digits
    (r"\frac{1}{2004!}", r"\frac{1}{2006!}"), (r"\frac{1}{2^{99}}", r"\frac{1}{2^{98}}"), ("2^{-99}", "2^{-98}"),
    (r"\pi", "3.14159265358979323846264338327950288"), (r"\sqrt2", r"\sqrt{2}+10^{-40}"), ("0", "10^{-30}"),
    ("e^{-1000}", "e^{-1001}"), ("e^{-1000}", "0"), ("2^{1000}", "2^{1000}+1"), (r"\sqrt{10^{40}+1}", "10^{20}"),
    (r"\frac{1}{3}", "0.3333333333333333"), ("x", "x+10^{-20}"), (r"\frac17", "0.142857142857142857142857"),
    # another base, another logarithm, another unit
    ("1024_8", "1024"), ("1024", "1024_8"), ("1024_8", "1024_9"), ("532", "1024_8"), (r"\ln 100", "2"),
    (r"\ln 2", r"\log_2 2"), (r"\frac{1}{2}", r"50\%"), (r"\frac{\pi}{2}", r"90^\circ"),
    # another set
    ("1,2", "1"), ("1,2", "1,2,3"), ("1,2", "1,1"), ("1", "1,1"), ("1,2", "(1,2)"), ("1,2", "x=1, y=2"),
    (r"\pm 7", "7"), ("7", r"\pm 7"), ("7", r"x = \pm 7"), (r"\emptyset", "0"), (r"\emptyset", r"\{0\}"),
    ("5", r"5 \text{ or } 6"), ("7", r"\{7, 8\}"), ("x=1,y=2", "x=2,y=1"), ("(1,2),(3,4)", "(1,2),(4,3)"),
    # another point or region
    ("(1,2)", "(2,1)"), ("(2,1)", "(3,1)"), ("(2,5]", "[2,5]"), ("(2,5]", "2 < x < 5"), ("(2,5]", "x > 2"),
    (r"[0,\infty)", r"(0,\infty)"), (r"(-\infty,1)\cup(2,\infty)", r"x<1 \text{ and } x>2"), ("(0,1)", "0=x"),
    (r"(-\infty,1)\cup(2,\infty)", r"(-\infty,1]\cup(2,\infty)"), ("5", r"x \ge 5"), (r"\infty", r"-\infty"),
    # words, bars, names and colons that must not help
    ("5", r"1 \text{ or } 5"), ("5", r"(4 \text{ and } 1)"), ("41", r"4 \text{ and } 1"), ("1/3", r"0.\overline{4}"),
    ("1/3", r"0.3\overline{0}"), ("16/3", r"5 0.\overline{3}"), ("(1,2)", "(y,x)=(1,2)"), ("(2,1)", "(x,y)=(1,2)"),
    ("(x,y)=(1,2)", "(a,b)=(1,2)"), ("(1,2)", "(x,y)=(3,4)=(1,2)"), ("(1,2)", "f(x,y)=(1,2)"), ("2i", r"\sqrt{-1}"),
    ("2i", r"-2\sqrt{-1}"), ("2", "2:1"), ("2:1", "2"), (r"\sqrt2", r"\sqrt{2}:1"), ("2", r"\{2:1\}"),
]  # fmt: skip
RIGHT = [*EXACT, *SETS, *REGIONS]


@pytest.fixture(scope="module")
def verdicts():
    """One call for all pairs of this file."""
    pairs = [*RIGHT, *WRONG]
    judgements = get_reward("math").judge(None, [rf"\boxed{{{a}}}" for _, a in pairs], answer=[g for g, _ in pairs])
    return dict(zip(pairs, judgements, strict=True))


@pytest.mark.parametrize("pair", RIGHT, ids=range(len(RIGHT)))
def test_the_same_value_in_another_form_is_right(verdicts, pair):
    assert verdicts[pair].verdict == "right", verdicts[pair].reason


@pytest.mark.parametrize("pair", WRONG, ids=range(len(WRONG)))
def test_another_value_is_wrong_however_near(verdicts, pair):
    assert verdicts[pair][:2] == ("wrong", 0.0)


@pytest.mark.parametrize(
    "gold",
    ["nan", "NaN", r"\text{nan}", float("nan"), "0/0", "1/0", r"$\frac{1}{0}$", r"\frac10", "inf", float("-inf")],
)
def test_a_gold_answer_that_is_no_number_makes_nothing_right(gold):
    judgements = get_reward("math").judge(
        None, [r"\boxed{5}", rf"\boxed{{{gold}}}", r"\boxed{n^2 a}"], answer=[gold] * 3
    )
    assert {j.verdict for j in judgements} == {"unscorable"}


@pytest.mark.parametrize(
    "hostile", ["(", ",", r"\pm", r"\{", "1,", "(1,", r"\text{", "x=", " or ", r"\text{" + " " * 9], ids=range(10)
)
def test_linear_time_in_hostile_answers(hostile):
    """A quadratic pass over 1e5 repetitions would take minutes."""
    start = time.perf_counter()
    text = canonical(hostile * 100_000)
    refusal(*without_names(text, "5"))
    tree(text)
    tree(canonical(hostile * 1000 + "1" + ")" * 1000))
    assert time.perf_counter() - start < 3
