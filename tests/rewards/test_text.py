"""Rewards that read the text alone."""

import pytest

from pipeline.rewards.judging import Sample
from pipeline.rewards.text import choice_judge, exact_judge, format_judge, length_judge, repetition_judge
from pipeline.runtime.errors import UserError


def sample(text, **row):
    return Sample(None, text, text, row)


@pytest.mark.parametrize(
    ("text", "answer", "verdict"),
    [
        ("Rome", "Rome", "right"),
        (" Rome\n", "Rome", "right"),
        ("<think>Oslo?</think>Rome<|eos|>Oslo", "Rome", "right"),
        ("It is #### Rome", "Rome", "right"),
        ("Rome", ["Roma", "Rome"], "right"),
        ("7", 7, "right"),
        ("rome", "Rome", "wrong"),
        ("Rome, Italy", "Rome", "wrong"),
        ("", "Rome", "wrong"),
        ("Rome", None, "unscorable"),
        ("", "", "unscorable"),
        ("Rome", [], "unscorable"),
    ],
)
def test_exact(text, answer, verdict):
    assert exact_judge(sample(text, answer=answer)).verdict == verdict


@pytest.mark.parametrize(
    ("text", "answer", "verdict"),
    [
        ("B", "B", "right"),
        ("(B)", "B", "right"),
        ("B.", "(B)", "right"),
        ("b", "B", "right"),
        ("**B**", "B", "right"),
        ("The answer is B.", "B", "right"),
        ("Answer: (B)", "B", "right"),
        ("because … #### B", "B", "right"),
        (r"\boxed{\text{B}}", "B", "right"),
        ("A or C? <answer>B</answer>", "B", "right"),
        ("<think>A</think>B", "B", "right"),
        ("B", 1, "right"),
        ("A", "B", "wrong"),
        ("A B", "B", "wrong"),
        ("#### A or B", "B", "wrong"),
        ("A, B, C, D", "B", "wrong"),
        ("B is not A", "B", "wrong"),
        ("I like B", "B", "wrong"),
        ("", "B", "wrong"),
        ("B", None, "unscorable"),
        ("B", "B or C", "unscorable"),
        ("B", -1, "unscorable"),
        ("B", True, "unscorable"),
    ],
)
def test_choice(text, answer, verdict):
    assert choice_judge(sample(text, answer=answer)).verdict == verdict


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("<think>a</think><answer>b</answer>", "right"),
        ("<think>\na\n</think>\n<answer>b</answer>\n", "right"),
        ("<think>a</think><answer>b</answer><|eos|>x", "right"),
        ("<think></think><answer>b</answer>", "wrong"),
        ("<think>a</think><answer> </answer>", "wrong"),
        ("<answer>b</answer>", "wrong"),
        ("<think>a</think><answer>b</answer> so", "wrong"),
        ("<think>a</think><think>a</think><answer>b</answer>", "wrong"),
        ("<answer>b</answer><think>a</think>", "wrong"),
        ("<think>a<answer>b</answer></think>", "wrong"),
    ],
)
def test_format(text, verdict):
    assert format_judge(sample(text)).verdict == verdict


@pytest.mark.parametrize(("words", "score"), [(0, 0.0), (6, 0.0), (8, -0.5), (10, -1.0), (99, -1.0)])
def test_length_falls_linearly_over_the_buffer(words, score):
    """limit 10, buffer 4: no penalty up to 6 words, half of it in the middle of 6..10, all of it from 10 on."""
    assert length_judge(sample("w " * words), limit=10, buffer=4).score == score
    assert length_judge(sample("", completion_ids=[1] * words), limit=10, buffer=4).score == score


def test_length_needs_a_buffer_within_its_limit():
    with pytest.raises(UserError, match="buffer"):
        length_judge(sample("w"), limit=10, buffer=11)


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("a b c d", 0.0),  # abc, bcd
        ("a b c a b c", -0.25),  # abc, bca, cab, abc: 3 of 4 differ
        ("a a a a a a", -0.75),  # one of 4
        ("a b", 0.0),
        ("", 0.0),
    ],
)
def test_repetition(text, score):
    assert repetition_judge(sample(text), size=3).score == pytest.approx(score)
