"""Turns: text or dialogues, in both directions."""

import pytest

from pipeline.runtime.messages import (
    GIVEN_AS_TEXT,
    answers_of,
    as_answer,
    as_turns,
    assistant_turn,
    begun,
    is_dialogue,
    text_of,
    user_text,
    user_turn,
)


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


def test_a_dialogue_begins_with_one_system_message_whatever_the_role_is_called():
    brief = {"role": "system", "content": "Be brief."}
    assert begun(user_turn("q"), "Be brief.") == [brief, *user_turn("q")]
    assert begun([], "Be brief.") == [brief]
    assert begun(user_turn("q"), None) == begun(user_turn("q"), "") == user_turn("q")
    for role in ("system", "developer"):
        own = [{"role": role, "content": "Be kind."}, *user_turn("q")]
        assert begun(own, "Be brief.") == own


def test_strings_of_a_row_are_turns_and_dialogues_stay():
    """A row whose prompt is a dialogue and whose answer is text has its answer lifted too."""
    brief = {"role": "system", "content": "s"}
    row = {"prompt": "q", "chosen": "a", "rejected": "b", "system": "s"}
    pair = {"prompt": [brief, *user_turn("q")], "chosen": assistant_turn("a"), "rejected": assistant_turn("b")}
    assert as_turns(row, "preference") == pair
    assert as_turns(pair, "preference") == pair
    assert as_turns(pair | {"rejected": "b"}, "preference") == pair
    ranked = as_turns({"prompt": "q", "ranked": ["a", "b"], "ranks": [1, 2]}, "ranked")
    assert ranked == {"prompt": user_turn("q"), "ranked": [assistant_turn("a"), assistant_turn("b")], "ranks": [1, 2]}
    assert answers_of(ranked, "ranked") == {"ranked[0]": assistant_turn("a"), "ranked[1]": assistant_turn("b")}
    assert answers_of(pair, "preference") == {"chosen": assistant_turn("a"), "rejected": assistant_turn("b")}
    assert as_turns({"text": "t"}, "sft") == {"text": "t"}


def test_a_prompt_that_was_text_is_marked_and_columns_of_rewards_are_left_alone():
    row = {"prompt": "q", "completion": "gold"}
    assert as_turns(row, "prompt") == {"prompt": user_turn("q"), "completion": "gold", GIVEN_AS_TEXT: True}
    assert as_turns(row, "prompt", mark=False) == {"prompt": user_turn("q"), "completion": "gold"}
    assert as_turns({"prompt": user_turn("q")}, "prompt") == {"prompt": user_turn("q")}
    assert answers_of(row, "prompt") == {}
