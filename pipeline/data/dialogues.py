"""Dialogues in any accepted spelling as lists of messages, one value at a time.

A dialogue is a list of ``{"role", "content"}``, also with ``type`` for ``role``, a ShareGPT list of ``{"from",
"value"}``, a Capybara list of ``{"input", "output"}``, or one string with ``\\n\\nHuman:`` and
``\\n\\nAssistant:`` turns (HH-RLHF).

A message may have, beside role and content, ``tool_calls``, ``tool_call_id``, ``name``, ``reasoning_content``,
``reasoning`` and ``thinking``, which go to the chat template, and ``weight: 0`` (supervised learning leaves the turn
out). Content may be a list of ``{"type": "text", "text"}`` parts, with
``{"type": "image"}`` among them where the row has images (`pipeline.data.images`). Any other key is counted where the
rows are read (`unused_keys`), reasoning that the template leaves out where the rows are prepared.
"""

import json
import re
from collections.abc import Mapping

from pipeline.data.rows import RowError
from pipeline.runtime.files import Json
from pipeline.runtime.messages import REASONING, Message, Turn, assistant_turn, content_text, user_turn

_ROLES = {
    "system": "system",
    "developer": "developer",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "ai": "assistant",
}

_HH_TURN = re.compile(r"\n\n(Human|Assistant):")

# Keys of a message that the chat template gets as they are, where they hold something.
_PASSED = ("tool_calls", "tool_call_id", "name", *REASONING)

_READ = {"role", "type", "content", "from", "value", "weight", *_PASSED}
_EXCHANGE = {"input": "user", "output": "assistant"}  # the two turns of an exchange in Capybara


def checked_text(value: object, field: str, *, empty: bool = False) -> str:
    """The value if it is text with something in it, else a RowError."""
    if not isinstance(value, str):
        raise RowError(field, f"text was expected, found {type_name(value)}")
    if not empty and not value.strip():
        raise RowError(field, "is empty")
    return value


def checked_list(value: object, field: str) -> list:
    """The value if it is a list, else a RowError."""
    if not isinstance(value, list):
        raise RowError(field, f"a list was expected, found {type_name(value)}")
    return value


def type_name(value: object) -> str:
    """The type of a value as a message names it."""
    return "nothing" if value is None else "text" if isinstance(value, str) else type(value).__name__


def is_hh(value: object) -> bool:
    """Whether it is text that HH-RLHF's turns begin."""
    return isinstance(value, str) and value.lstrip("\n").startswith(("Human:", "Assistant:"))


def messages_of(value: object, field: str) -> list[Message]:
    """A dialogue in any accepted spelling as ``[{"role", "content", …}, …]``.

    Raises:
        RowError: not a dialogue, an unknown role, content that is not text, or a weight other than 0 and 1.
    """
    if isinstance(value, str):
        return _hh_messages(value, field)
    if isinstance(value, Mapping):
        value = [value]
    messages = []
    for place, message in enumerate(checked_list(value, field)):
        at = f"{field}[{place}]"
        messages += _exchange(message, at) if _is_exchange(message) else [_message(message, at)]
    if not messages:
        raise RowError(field, "is empty")
    return messages


def _is_exchange(message: object) -> bool:
    return isinstance(message, Mapping) and message.keys() >= _EXCHANGE.keys() and "role" not in message


def _exchange(pair: Mapping[str, object], at: str) -> list[Message]:
    """What the user says and what the assistant answers."""
    return [
        {"role": role, "content": checked_text(pair[key], f"{at}.{key}", empty=True)}
        for key, role in _EXCHANGE.items()
    ]


def _message(message: object, at: str) -> Message:
    if not isinstance(message, Mapping):
        raise RowError(at, f"a message was expected, found {type_name(message)}")
    role_key, content_key = ("role", "content") if "role" in message else ("from", "value")
    if "content" in message and role_key not in message:  # sycophancy-eval's
        role_key, content_key = "type", "content"
    role, content = message.get(role_key), message.get(content_key)
    if not isinstance(role, str) or role.lower() not in _ROLES:
        raise RowError(f"{at}.{role_key}", f"unknown role {role!r}: use system, developer, user, assistant or tool")
    passed = {key: message[key] for key in _PASSED if message.get(key) not in (None, "", [])}
    if "tool_calls" in passed:
        passed["tool_calls"] = _tool_calls(passed["tool_calls"], f"{at}.tool_calls")
        content = "" if content is None else content
    if isinstance(content, list):
        content = _parts(content, f"{at}.{content_key}")
    weight = message.get("weight")
    if weight not in (None, 0, 1):
        raise RowError(f"{at}.weight", f"{weight!r}: a turn is learned (1) or not (0)")
    if weight == 0:
        passed["weight"] = 0
    return {
        "role": _ROLES[role.lower()],
        "content": content if isinstance(content, list) else checked_text(content, f"{at}.{content_key}", empty=True),
        **passed,
    }


def _parts(parts: list[object], field: str) -> str | list[Mapping[str, str]]:
    """Content that is given as parts, ``{"type": "text", "text"}`` and ``{"type": "image"}``: the text where there
    are no images, else the parts, of which those of images are places alone.
    """
    kept: list[Mapping[str, str]] = []
    for place, part in enumerate(parts):
        kind = part.get("type") if isinstance(part, Mapping) else type_name(part)
        if kind == "text" and isinstance(part.get("text"), str):
            kept.append({"type": "text", "text": part["text"]})
        elif kind != "image":
            raise RowError(f"{field}[{place}]", f"a part of type {kind!r}: models read parts of type text and image")
        elif any(value is not None for key, value in part.items() if key not in ("type", "text")):
            raise RowError(f"{field}[{place}]", "holds its image itself: put the images of a row in its column images")
        else:
            kept.append({"type": "image"})
    if all(part["type"] == "text" for part in kept):
        return "".join(part["text"] for part in kept)
    return kept


def _tool_calls(calls: object, field: str) -> list[Json]:
    """Tool calls as chat templates take them: a list of mappings, arguments as an object rather than as its JSON."""
    read = []
    for place, call in enumerate(checked_list(calls, field)):
        function = call.get("function", call) if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise RowError(f"{field}[{place}]", "a call was expected: {function: {name, arguments}}")
        arguments = function.get("arguments")
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments or "{}")
            except ValueError:
                raise RowError(f"{field}[{place}].function.arguments", "is no JSON") from None
        outer = call if "function" in call else {"type": "function"}
        read.append({**outer, "function": {**function, "arguments": {} if arguments is None else arguments}})
    return read


def _hh_messages(value: str, field: str) -> list[Message]:
    """One string of ``\\n\\nHuman: …\\n\\nAssistant: …`` turns; turns of one speaker in a row are joined."""
    if not is_hh(value):
        raise RowError(field, "a dialogue was expected: a list of messages, or a text that starts with 'Human:'")
    pieces = _HH_TURN.split("\n\n" + value.lstrip("\n"))[1:]
    messages: list[Message] = []
    for speaker, content in zip(pieces[::2], pieces[1::2]):
        role = "user" if speaker == "Human" else "assistant"
        if messages and messages[-1]["role"] == role:
            messages[-1]["content"] = f"{messages[-1]['content']}\n\n{content.strip()}".strip()
        else:
            messages.append({"role": role, "content": content.strip()})
    return messages


def unused_keys(row: Json, kind: str) -> set[str]:
    """Keys of messages that nothing reads, in the columns of a row that are read.

    Running text (kind ``text``) holds the content of the messages alone. Reasoning that is null or empty is none.
    """
    read = _READ - set(REASONING) if kind == "text" else _READ
    turns = [turn for value in row.values() for turn in _turns(value)]
    return {
        key
        for turn in turns
        for key, value in turn.items()
        if key not in read and (key not in REASONING or value) and not (key in _EXCHANGE and _is_exchange(turn))
    }


def _turns(value: object) -> list[Json]:
    """The messages of a dialogue, or of a list of dialogues (``ranked``); nothing where it is neither."""
    if isinstance(value, Mapping):
        return [value]
    return [turn for item in value for turn in _turns(item)] if isinstance(value, list) else []


def template_columns(row: Json, dialogue: bool) -> Json:
    """``tools`` and ``chat_template_kwargs`` of a dialogue, decoded where they are JSON."""
    found = {}
    for name, kind in (("tools", list), ("chat_template_kwargs", dict)):
        value = row.get(name)
        if value in (None, "", [], {}) or not dialogue:
            continue
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except ValueError:
                raise RowError(name, "is no JSON") from None
        if not isinstance(value, kind):
            raise RowError(name, f"a {'list' if kind is list else 'mapping'} was expected, found {type_name(value)}")
        found[name] = value
    return found


def prompt_of(value: object, conversational: bool, field: str = "prompt") -> Turn:
    """A prompt: text, or messages."""
    if not conversational:
        return checked_text(value, field)
    if isinstance(value, str) and not is_hh(value):
        return user_turn(checked_text(value, field))
    messages = messages_of(value, field)
    if is_hh(value) and not messages[-1]["content"]:  # "\n\nAssistant:" without an answer asks for one
        messages.pop()
    if not any(content_text(message["content"]).strip() for message in messages):
        raise RowError(field, "is empty")
    return messages


def completion_of(value: object, conversational: bool, field: str) -> Turn:
    """An answer: text, or the assistant's messages."""
    if not conversational:
        return checked_text(value, field)
    if isinstance(value, str):
        return assistant_turn(checked_text(value, field))
    return checked_answer(messages_of(value, field), field)


def checked_answer(messages: list[Message], field: str) -> list[Message]:
    """The messages, once they are known to be an assistant's non-empty answer."""
    if not messages or messages[0]["role"] != "assistant" or messages[-1]["role"] != "assistant":
        raise RowError(field, "is not an answer: it must begin and end with a turn of the assistant")
    if not says_something(messages[-1]):
        raise RowError(field, "is empty")
    return messages


def says_something(message: Message) -> bool:
    """Whether a message has text or calls a tool."""
    return bool(content_text(message["content"]).strip() or message.get("tool_calls"))
