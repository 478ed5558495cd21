"""Turns of a conversation: the text of one, and text as one.

A turn, be it a prompt or a completion, is text or a dialogue (a list of messages), as in TRL's datasets and trainers.
"""

from collections.abc import Mapping, Sequence
from typing import Required, TypedDict, TypeGuard

REASONING = ("reasoning_content", "reasoning", "thinking")  # keys of a message, by chat template

GIVEN_AS_TEXT = "given_as_text"  # a column of prompts: the row had a string, which a chat template writes as a turn

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
