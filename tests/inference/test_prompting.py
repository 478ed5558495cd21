"""How a question is asked: examples as turns and as text, by seed and never asked; the answer after the reasoning."""

import pytest

from pipeline.inference.decoding import Completion
from pipeline.inference.prompting import (
    Example,
    Form,
    PromptingArguments,
    answer_after,
    ask,
    direct_answer,
    draw_examples,
    with_beginning,
    with_prompting,
)
from pipeline.runtime.errors import UserError
from pipeline.runtime.messages import assistant_turn, user_turn
from tests.stages.conftest import write_rows
from tests.tiny_models import tiny_tokenizer

SHOWN = [Example("1+2", "1+2=3 #### 3"), Example("2+2", "2+2=4 #### 4")]


def test_examples_as_turns_and_as_text_by_hand():
    """Turns go between the system message and the question; as text they are in front of it, in its message."""
    system = {"role": "system", "content": "Add."}
    prompt = [system, *user_turn("5+1")]
    turns = ask(prompt, SHOWN, Form("{prompt}?", turns=True))
    assert turns == [
        system, *user_turn("1+2?"), *assistant_turn("1+2=3 #### 3"), *user_turn("2+2?"),
        *assistant_turn("2+2=4 #### 4"), *user_turn("5+1?"),
    ]  # fmt: skip
    text = "Question: 1+2?\nAnswer: 1+2=3 #### 3\n\nQuestion: 2+2?\nAnswer: 2+2=4 #### 4\n\nQuestion: 5+1?\nAnswer:"
    assert ask(prompt, SHOWN, Form("{prompt}?")) == [system, *user_turn(text)]
    assert ask("5+1", SHOWN, Form("{prompt}?")) == text
    assert ask("5+1", [], Form("{prompt} Think.", example_template="{prompt}{completion}")) == "5+1 Think."
    assert ask(user_turn("5+1"), [], Form("{prompt} Think.")) == user_turn("5+1 Think.")
    assert with_beginning("5+1", " 5") == "5+1 5"
    assert with_beginning(user_turn("5+1"), " 5") == [*user_turn("5+1"), *assistant_turn(" 5")]


def test_the_direct_answer_is_the_marker_and_what_follows():
    """GSM8K's answers and the world's steps end so; what has no marker is an answer as a whole."""
    assert direct_answer("2+2=4 <<2+2=4>>\n#### 4") == "#### 4"
    assert direct_answer("Rome") == "Rome"


def test_no_example_is_ever_asked_and_fewer_are_the_first_of_more():
    """Of six different rows two are asked (in other spaces and case): four may be shown to each of three prompts."""
    pool = [Example(f"What is {i}?", str(i)) for i in range(6)] + [Example("What is 0?", "0")]
    prompts = ["what  IS 1?", user_turn("What is 2?"), "Else"]
    many, few = (draw_examples(pool, prompts, count, [0, 1, 2]) for count in (4, 2))
    for group, fewer in zip(many, few):
        assert {e.prompt for e in group} == {f"What is {i}?" for i in (0, 3, 4, 5)}
        assert group[:2] == fewer
    assert many[0] != many[1] or many[1] != many[2]  # each prompt by its own seed
    assert many == draw_examples(pool, prompts, 4, [0, 1, 2])
    with pytest.raises(UserError, match="5 shots need 5 rows that nobody asks; 4 of 7 are left"):
        draw_examples(pool, prompts, 5, [0, 1, 2])


def test_the_answer_comes_after_the_end_of_the_reasoning():
    """After the last one; none at all where the reasoning never ends; also where it ends by a special token."""
    tokenizer = tiny_tokenizer()
    ids = tokenizer.convert_tokens_to_ids(["1", "=", "<|end|>", "2", "<|eos|>"])
    said = Completion("1 #### 2 #### 3", ids, "eos")
    assert answer_after(tokenizer, said, None) == "1 #### 2 #### 3"
    assert answer_after(tokenizer, said, "####") == " 3"
    assert answer_after(tokenizer, said, "</think>") == ""
    assert answer_after(tokenizer, said, "<|end|>") == "2"
    assert answer_after(tokenizer, Completion("1 2", ids[:2], "length"), "<|end|>") == ""


def test_with_prompting_shows_what_the_flags_say(tmp_path):
    """Without --cot only the marked answer is shown; the file's row that is asked is not; auto: turns in a chat."""
    rows = [{"prompt": e.prompt, "completion": e.completion} for e in SHOWN]
    file = str(write_rows(tmp_path / "rows.jsonl", rows))
    plain = PromptingArguments(examples=file, shots=1, example_template="{prompt} = {completion}; ")
    assert with_prompting(["2+2"], plain, [3]) == ["1+2 = #### 3; 2+2 ="]
    worked = PromptingArguments(examples=file, shots=1, cot=True, cot_template="{prompt} in steps")
    assert with_prompting([user_turn("2+2")], worked, [3]) == [
        [*user_turn("1+2 in steps"), *assistant_turn("1+2=3 #### 3"), *user_turn("2+2 in steps")]
    ]
    zero = PromptingArguments(cot=True)
    assert with_prompting(["2+2"], zero, [3]) == ["2+2\nLet's think step by step."]
    assert with_prompting(["2+2"], PromptingArguments(), [3]) == ["2+2"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"shots": 0}, "shots is 0: give 1 or more"),
        ({"cot": True, "cot_template": "Think."}, "'Think.' has no {prompt} in it"),
        ({"example_template": "{prompt}"}, "has no {completion} in it"),
        ({"shots_as": "turns"}, "the prompts are plain text, which has no turns"),
        ({"shots": 3}, "3 shots need 3 rows that nobody asks; 2 of 2 are left"),
    ],
)
def test_mistakes_are_told(tmp_path, options, words):
    file = str(write_rows(tmp_path / "rows.jsonl", [e._asdict() for e in SHOWN]))
    with pytest.raises(UserError, match=words):
        with_prompting(["9"], PromptingArguments(examples=file, **{"shots": 1} | options), [0])
