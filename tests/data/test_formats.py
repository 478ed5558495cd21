"""Every accepted form to the standard one, and every way a row can be bad, by hand."""

import pytest

from pipeline.data.dialogues import messages_of
from pipeline.data.formats import content_hash, convert, prompt_hash, to_messages
from pipeline.data.rows import RowError
from pipeline.data.schemas import Form, detect
from pipeline.runtime.errors import UserError

U, A, S = ({"role": role, "content": role[0]} for role in ("user", "assistant", "system"))


def say(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def read(row: dict, kind: str) -> dict:
    return convert(row, detect([row], kind, "here"), kind)


@pytest.mark.parametrize(
    ("kind", "row", "expected"),
    [
        ("text", {"text": "a b"}, {"text": "a b"}),
        ("text", {"prompt": "2+2?", "completion": "4"}, {"text": "2+2?\n\n4"}),
        ("text", {"prompt": "2+2=", "completion": " 4"}, {"text": "2+2= 4"}),
        ("text", {"messages": [U, A]}, {"text": "u\n\na"}),
        ("sft", {"prompt": "p", "completion": "c", "id": 3}, {"prompt": "p", "completion": "c"}),
        ("sft", {"messages": [S, U, A]}, {"messages": [S, U, A]}),
        (
            "sft",
            {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "r", "weight": 1}]},
            {"messages": [say("user", "q"), say("assistant", "r")]},
        ),
        (
            "sft",
            {"prompt": [U], "completion": "c"},
            {"prompt": [U], "completion": [say("assistant", "c")]},
        ),
        ("sft", {"text": "only text"}, {"text": "only text"}),
        (
            "preference",
            {"prompt": "p", "chosen": "good", "rejected": "bad", "score": 2},
            {"prompt": "p", "chosen": "good", "rejected": "bad"},
        ),
        (
            "preference",
            {
                "conversations": [{"from": "human", "value": "q"}],
                "chosen": {"from": "gpt", "value": "good"},
                "rejected": {"from": "gpt", "value": "bad"},
            },
            {
                "prompt": [say("user", "q")],
                "chosen": [say("assistant", "good")],
                "rejected": [say("assistant", "bad")],
            },
        ),
        (  # UltraFeedback: the prompt as text, and complete dialogues that begin with it
            "preference",
            {"prompt": "q", "chosen": [say("user", "q"), A], "rejected": [say("user", "q"), say("assistant", "b")]},
            {"prompt": [say("user", "q")], "chosen": [A], "rejected": [say("assistant", "b")]},
        ),
        (  # a system turn given apart is put in front
            "preference",
            {"prompt": [S], "chosen": [U, A], "rejected": [U, say("assistant", "b")]},
            {"prompt": [S, U], "chosen": [A], "rejected": [say("assistant", "b")]},
        ),
        (
            "preference",
            {
                "chosen": "\n\nHuman: hi\n\nAssistant: yes?\n\nHuman: more\n\nAssistant: good",
                "rejected": "\n\nHuman: hi\n\nAssistant: yes?\n\nHuman: more\n\nAssistant: bad",
            },
            {
                "prompt": [say("user", "hi"), say("assistant", "yes?"), say("user", "more")],
                "chosen": [say("assistant", "good")],
                "rejected": [say("assistant", "bad")],
            },
        ),
        (
            "prompt",
            {"prompt": "p", "answer": 10**30, "when": "2020-01-01"},
            {"prompt": "p", "answer": 10**30, "when": "2020-01-01"},
        ),
        ("prompt", {"messages": [U, A], "answer": "x"}, {"prompt": [U], "messages": [U, A], "answer": "x"}),
        (
            "ranked",
            {"prompt": "p", "ranked": ["third", "first", "second"], "ranks": [3, 1, 2]},
            {"prompt": "p", "ranked": ["first", "second", "third"], "ranks": [1, 2, 3]},
        ),
        ("ranked", {"prompt": "p", "ranked": ["a", "b"]}, {"prompt": "p", "ranked": ["a", "b"], "ranks": [1, 2]}),
        (
            "labelled",
            {"prompt": "p", "completion": "a", "label": "0"},
            {"prompt": "p", "completion": "a", "label": False},
        ),
        (
            "labelled",
            {"prompt": [{"role": "user", "content": "p"}], "completion": "a", "label": 1},
            {
                "prompt": [{"role": "user", "content": "p"}],
                "completion": [{"role": "assistant", "content": "a"}],
                "label": True,
            },
        ),
        (
            "ranked",
            {"prompt": "p", "chosen": "good", "rejected": "bad"},
            {"prompt": "p", "ranked": ["good", "bad"], "ranks": [1, 2]},
        ),
    ],
)
def test_forms(kind, row, expected):
    assert read(row, kind) == expected


GOOD = {"prompt": "p", "chosen": "a", "rejected": "b"}


@pytest.mark.parametrize(
    ("kind", "good", "bad", "field", "reason"),
    [
        ("sft", {"prompt": "p", "completion": "c"}, {"prompt": "p", "completion": " "}, "completion", "is empty"),
        ("sft", {"prompt": "p", "completion": "c"}, {"prompt": "p"}, "completion", "found nothing"),
        ("sft", {"prompt": "p", "completion": "c"}, {"prompt": "p", "completion": 4}, "completion", "found int"),
        ("sft", {"prompt": "p", "completion": "c"}, {"prompt": "", "completion": "c"}, "prompt", "is empty"),
        ("sft", {"messages": [U, A]}, {"messages": [U]}, "messages", "no turn of the assistant"),
        ("sft", {"messages": [U, A]}, {"messages": []}, "messages", "is empty"),
        ("sft", {"messages": [U, A]}, {"messages": [U, say("assistant", "")]}, "messages", "empty turn"),
        (
            "sft",
            {"messages": [U, A]},
            {"messages": [U, say("robot", "x")]},
            "messages[1].role",
            "unknown role 'robot'",
        ),
        (
            "sft",
            {"messages": [U, A]},
            {"messages": [U, {"role": "assistant"}]},
            "messages[1].content",
            "found nothing",
        ),
        ("sft", {"messages": [U, A]}, {"messages": ["hi"]}, "messages[0]", "a message was expected"),
        ("sft", {"messages": [U, A]}, {"messages": "free text"}, "messages", "a dialogue was expected"),
        ("preference", GOOD, {**GOOD, "rejected": "a"}, "rejected", "the same as chosen"),
        ("preference", GOOD, {**GOOD, "chosen": ""}, "chosen", "is empty"),
        (
            "preference",
            {"chosen": [U, A], "rejected": [U, say("assistant", "b")]},
            {"chosen": [U, A], "rejected": [say("user", "other"), A]},
            "rejected",
            "different prompts",
        ),
        (  # the two part at a turn of the user: chosen is no answer to the shared prompt
            "preference",
            {"chosen": [U, A], "rejected": [U, say("assistant", "b")]},
            {"chosen": [U, A, say("user", "x"), A], "rejected": [U, A, say("user", "y"), A]},
            "chosen",
            "must begin and end with a turn of the assistant",
        ),
        (
            "preference",
            {"prompt": "u", "chosen": [U, A], "rejected": [U, say("assistant", "b")]},
            {"prompt": "other", "chosen": [U, A], "rejected": [U, say("assistant", "b")]},
            "prompt",
            "is not the beginning of chosen",
        ),
        ("ranked", {"prompt": "p", "ranked": ["a", "b"]}, {"prompt": "p", "ranked": ["a"]}, "ranked", "at least two"),
        (
            "labelled",
            {"prompt": "p", "completion": "a", "label": True},
            {"prompt": "p", "completion": "a", "label": 2},
            "label",
            "true or false",
        ),
        ("ranked", {"prompt": "p", "ranked": ["a", "b"]}, {"prompt": "p", "ranked": ["a", "a"]}, "ranked", "twice"),
        (
            "ranked",
            {"prompt": "p", "ranked": ["a", "b"]},
            {"prompt": "p", "ranked": ["a", "b"], "ranks": [1]},
            "ranks",
            "2 integers",
        ),
        ("prompt", {"prompt": "p"}, {"prompt": None}, "prompt", "found nothing"),
        ("text", {"text": "t"}, {"text": "\n"}, "text", "is empty"),
    ],
)
def test_bad_rows_name_field_and_reason(kind, good, bad, field, reason):
    form = detect([good], kind, "here")
    convert(good, form, kind)
    with pytest.raises(RowError) as error:
        convert(bad, form, kind)
    assert error.value.field == field
    assert reason in error.value.reason


def test_hh_turns_of_one_speaker_are_joined_and_text_kept():
    dialogue = "\n\nHuman: a: b\n\nHuman: c\n\nAssistant: say Human: x\n\nit goes on"
    assert messages_of(dialogue, "chosen") == [
        say("user", "a: b\n\nc"),
        say("assistant", "say Human: x\n\nit goes on"),
    ]


def test_pair_of_dialogues_with_several_turns_after_the_shared_ones():
    """The answers part at the first reply; what follows in chosen (a further question and reply) stays its answer."""
    row = {"chosen": [U, A, U, say("assistant", "z")], "rejected": [U, say("assistant", "b")]}
    assert read(row, "preference")["chosen"] == [A, U, say("assistant", "z")]


def test_missing_columns_name_what_is_there_and_how_to_rename():
    with pytest.raises(UserError, match=r"has sentence, answer; try --dataset_map sentence=prompt,answer=completion"):
        detect([{"sentence": "q", "answer": "a"}], "sft", "f.jsonl")
    with pytest.raises(UserError, match="try --dataset_map promt=prompt"):
        detect([{"promt": "q", "completion": "a"}], "sft", "f.jsonl")
    with pytest.raises(UserError, match="chosen and rejected texts but no prompt"):
        detect([{"chosen": "q", "rejected": "a"}], "preference", "f.jsonl")
    with pytest.raises(UserError, match="kind 'dpo' is none of text, sft"):
        detect([{"text": "q"}], "dpo", "f.jsonl")
    with pytest.raises(UserError, match="the first 1 rows leave prompt or completion empty"):
        detect([{"prompt": None, "completion": "a"}], "sft", "f.jsonl")


def test_columns_the_user_renamed_decide_the_form():
    row = {"messages": [U, A], "prompt": "p", "completion": "c"}
    assert detect([row], "sft", "here").columns == ("messages",)
    assert detect([row], "sft", "here", {"prompt"}) == Form(("prompt", "completion"), False, also=("messages",))


def test_identity_ignores_column_order_and_sees_every_change():
    row = {"prompt": "p", "completion": "c"}
    assert content_hash(row) == content_hash({"completion": "c", "prompt": "p"})
    assert content_hash(row) != content_hash({**row, "completion": "c "})
    assert prompt_hash(row) == prompt_hash({"prompt": "p", "completion": "other"})
    assert prompt_hash({"messages": [U, A]}) == prompt_hash({"messages": [U, say("assistant", "other")]})
    assert prompt_hash({"messages": [U, A]}) != prompt_hash({"messages": [S, A]})


def test_text_rows_become_dialogues_where_a_mixture_needs_it():
    pair = to_messages({"prompt": "p", "chosen": "a", "rejected": "b"}, "preference")
    assert pair == {
        "prompt": [say("user", "p")],
        "chosen": [say("assistant", "a")],
        "rejected": [say("assistant", "b")],
    }
    assert to_messages({"prompt": "p", "completion": "c"}, "sft") == {
        "messages": [say("user", "p"), say("assistant", "c")]
    }
    kept = to_messages({"prompt": "p", "completion": "gold"}, "prompt")
    assert kept == {"prompt": [say("user", "p")], "completion": "gold"}
