"""Turns: text or dialogues, in both directions."""

import pytest

from pipeline.runtime.messages import as_answer, assistant_turn, is_dialogue, text_of, user_text, user_turn


def test_the_text_of_a_turn_is_the_assistants_last_message():
    assert text_of("a") == "a"
    assert text_of(assistant_turn("a")) == "a"
    assert text_of([{"role": "assistant", "content": [{"type": "text", "text": "a"}, {"type": "image"}]}]) == "a"
    tools = [{"role": "assistant", "content": None, "tool_calls": []}, {"role": "tool", "content": "9"}]
    assert text_of([*tools, *assistant_turn("a")]) == "a"
    assert text_of(tools) == ""
    assert text_of(user_turn("q")) == ""
    assert text_of(tools, role=None) == "9"


@pytest.mark.parametrize("turn", [3, None, {"content": "a"}, [3], [{"role": "assistant", "content": 3}]])
def test_what_is_no_turn_is_refused(turn):
    with pytest.raises(TypeError, match="must be"):
        text_of(turn)


def test_what_the_user_asks():
    assert user_text("q") == "q"
    system = {"role": "system", "content": "s"}
    assert user_text([system, *user_turn("first"), *assistant_turn("a"), *user_turn("last")]) == "last"
    assert user_text([system, *user_turn("q"), *assistant_turn("begun")]) == "q"
    assert user_text([system]) == ""


def test_an_answer_has_the_form_of_its_prompt():
    assert as_answer("q", "a") == "a"
    assert as_answer(None, "a") == "a"
    assert as_answer(user_turn("q"), "a") == assistant_turn("a")
    assert as_answer(user_turn("q"), assistant_turn("a")) == assistant_turn("a")
    assert [is_dialogue(turn) for turn in ("q", None, user_turn("q"))] == [False, False, True]
