"""Turns of a conversation: the text of one, and text as one.

A turn, be it a prompt or a completion, is text or a dialogue (a list of messages), as in TRL's datasets and trainers.
"""

from collections.abc import Mapping, Sequence
from typing import Required, TypedDict, TypeGuard

REASONING = ("reasoning_content", "reasoning", "thinking")  # keys of a message, by chat template

GIVEN_AS_TEXT = "given_as_text"  # a column of prompts: the row had a string, which a chat template writes as a turn

SYSTEM_ROLES = ("system", "developer")

# The columns that hold an answer, by the kind of data; of ``ranked`` it is a list of them.
ANSWERS = {"sft": ("completion",), "preference": ("chosen", "rejected"), "labelled": ("completion",)}

Content = str | Sequence[str | Mapping[str, object]] | None


class Message(TypedDict, total=False):
    """One message of a dialogue, with what chat templates and TRL read of it."""

    role: Required[str]
    content: Content
    tool_calls: list[dict[str, object]]
    tool_call_id: str
    name: str
    reasoning_content: str
    weight: int  # 0: the message is context and is not learned


Turn = str | list[Message]


def is_dialogue(turn: object) -> TypeGuard[list[Message]]:
    """Whether a turn is a list of messages rather than text."""
    return isinstance(turn, Sequence) and not isinstance(turn, str)


def content_text(content: object) -> str:
    """Text of a message's ``content``: a string, nothing, or a list of parts of which the text parts count.

    Raises:
        TypeError: it is anything else.
    """
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        parts = (part if isinstance(part, str) else part.get("text") for part in content)
        return "".join(part for part in parts if isinstance(part, str))
    raise TypeError(f"a message's content must be text or a list of parts, not {type(content).__name__}")


def text_of(turn: object, role: str | None = "assistant") -> str:
    """Text of a turn: the turn itself, or of a dialogue the last message of a role (None: of any); "" without one.

    In a completion with tool calls the last message of the assistant is what the user reads.

    Raises:
        TypeError: the turn is neither text nor a list of messages.
    """
    if isinstance(turn, str):
        return turn
    if is_dialogue(turn) and all(isinstance(message, Mapping) for message in turn):
        spoken = [message for message in turn if role in (None, message.get("role", "assistant"))]
        return content_text(spoken[-1].get("content")) if spoken else ""
    raise TypeError(f"a turn must be a string or a list of messages, not {type(turn).__name__}")


def user_text(prompt: object) -> str:
    """What the user asks: the prompt itself, or the user's last message in it; "" without one."""
    return text_of(prompt, "user")


def user_turn(text: str) -> list[Message]:
    """A dialogue of one message of the user."""
    return [{"role": "user", "content": text}]


def assistant_turn(text: str) -> list[Message]:
    """A dialogue of one message of the assistant."""
    return [{"role": "assistant", "content": text}]


def as_answer(prompt: object, answer: Turn) -> Turn:
    """The answer in the form of its prompt: text after a dialogue becomes a message of the assistant."""
    return assistant_turn(answer) if is_dialogue(prompt) and isinstance(answer, str) else answer


# ---------------------------------------------------------------------- system messages and rows


def has_system(dialogue: Sequence[Mapping[str, object]]) -> bool:
    """Whether a dialogue begins with a system message; some formats call it the developer's."""
    return bool(dialogue) and dialogue[0]["role"] in SYSTEM_ROLES


def begun(dialogue: list[Message], system: str | None) -> list[Message]:
    """The dialogue with a system message in front, where it has none of its own; None or "" for no message."""
    return dialogue if not system or has_system(dialogue) else [{"role": "system", "content": system}, *dialogue]


def as_turns(row: Mapping[str, object], kind: str, *, mark: bool = True) -> dict[str, object]:
    """A converted row of a kind of data whose strings are one turn each: a system prompt, the user's, what is learned.

    What is a dialogue stays as it is, and so does running text. Of kind ``prompt`` nothing is learned: the columns
    beside it are the rewards'.

    Args:
        mark: note for the rewards (``GIVEN_AS_TEXT``) that a prompt was text.
    """
    turned = dict(row)
    if isinstance(row.get("prompt"), str):
        turned["prompt"] = begun(user_turn(row["prompt"]), turned.pop("system", None))
        if kind == "prompt" and mark:
            turned[GIVEN_AS_TEXT] = True
    for name in ANSWERS.get(kind, ()):
        if isinstance(row.get(name), str):
            turned[name] = assistant_turn(row[name])
    if kind == "ranked":
        turned["ranked"] = [assistant_turn(y) if isinstance(y, str) else y for y in row["ranked"]]
    return turned


def answers_of(row: Mapping[str, object], kind: str) -> dict[str, Turn]:
    """The answers of a converted row by their place in it: ``chosen``, ``ranked[0]``, …"""
    if kind == "ranked":
        return {f"ranked[{place}]": answer for place, answer in enumerate(row["ranked"])}
    return {name: row[name] for name in ANSWERS.get(kind, ()) if name in row}
