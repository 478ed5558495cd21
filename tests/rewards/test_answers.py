"""Where the answer stands: thoughts, turns and markers."""

import time

import pytest

from pipeline.rewards.answers import gold_text, marked_answer, outside_thoughts, visible_text


@pytest.mark.parametrize(
    ("text", "visible"),
    [
        ("plain", "plain"),
        ("<think>a</think>b", " b"),
        ("a<think>b</think>c", "a c"),
        ("a</think>b", "b"),  # the prompt opened the thought
        ("a<think>b", "a"),  # never closed: all thought
        ("a<think>b<think>c</think>d</think>e", "a e"),  # a thought in a thought
        ("<think>say <think> aloud</think>a", " a"),  # the tag only mentioned inside
        ("a</think>b</think>c", "c"),
        ("a<THINK>b</Think>c", "a c"),
    ],
)
def test_outside_thoughts(text, visible):
    assert outside_thoughts(text) == visible


@pytest.mark.parametrize(
    "token", ["<|eos|>", "<|im_end|>", "<|eot_id|>", "</s>", "<|endoftext|>", "<end_of_turn>", "<|user|>"]
)
def test_nothing_after_the_end_of_the_turn_counts(token):
    assert visible_text(f"#### 1{token}#### 2") == "#### 1"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("no marker", None),
        ("#### 5", "5"),
        ("#### 5\nand so on", "5"),
        ("#### 5\n#### 6", "6"),
        ("#### 5 #### 6", "6"),
        ("##### 5", None),  # five: a heading
        (r"\boxed{5}", "5"),
        (r"\boxed {5}", "5"),
        (r"\boxed{\frac{1}{2}} or \boxed{\sqrt{2}}", r"\sqrt{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),  # escaped braces are no braces
        (r"\boxed{\boxed{5}}", "5"),
        (r"\boxed{5", ""),  # never closed: a marker that holds nothing
        (r"\boxed{oops \boxed{5}", "5"),
        (r"#### \boxed{5}", "5"),
        (r"#### \boxed{5} or 6", "5  or 6"),  # the box belongs to the line: its neighbour counts too
        (r"\boxed{#### 5}", "#### 5"),
        ("#### 6 or \\boxed{\n5}", "6 or  \n5"),  # a line break in the box does not end the line
        (r"#### 6" + "\n" + r"\boxed{5}", "5"),
        ("\\boxed{5}\n#### 6", "6"),
        ("<answer>5</answer>", "5"),
        ("<answer>5</answer>\n#### 6", "6"),
        ("#### 6\n<answer>5</answer>", "5"),
        ("<answer>5", None),
        ("<answer> 5 </answer>, <answer>6</answer>", "6"),
        ("####", ""),
        ("####\n5", ""),  # the answer stands on the marker's line
    ],
)
def test_marked_answer(text, answer):
    assert marked_answer(text) == answer


@pytest.mark.parametrize(
    ("gold", "text"),
    [
        ("72", "72"),
        (72, "72"),
        (0.5, "0.5"),
        ("work\n#### 72", "72"),
        (r"so $\boxed{\pi}$.", r"\pi"),
        *((nothing, None) for nothing in (None, "", "  ", True, [1])),
    ],
)
def test_gold_text(gold, text):
    assert gold_text(gold) == text


@pytest.mark.parametrize(
    "hostile",
    [
        *(
            unit * 100_000
            for unit in (
                "\\boxed{",
                "\\boxed{1}",
                "<answer>",
                "<answer>1</answer>",
                "<think>",
                "</think>",
                "#### ",
                "{",
                "#",
            )
        ),
        "####" + "\\boxed{" * 50_000 + "}" * 50_000,
        "\\boxed" + " " * 100_000,
    ],
    ids=["open", "closed", "answer", "answers", "think", "unthink", "hashes", "braces", "hash", "nested", "spaces"],
)
def test_linear_time(hostile):
    """A quadratic pass over 1e5 markers would take minutes."""
    start = time.perf_counter()
    marked_answer(visible_text(hostile))
    assert time.perf_counter() - start < 3
