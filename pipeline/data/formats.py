"""From the columns a dataset happens to have to TRL's standard forms, one row at a time. Pure functions on dicts.

========== ============================================================ =============================================
kind       result                                                       accepted
========== ============================================================ =============================================
text       ``text``                                                     text; messages; prompt+completion
sft        ``messages``, or ``prompt``+``completion``, or ``text``      the same, most structured first
preference ``prompt``+``chosen``+``rejected``                           the same; chosen+rejected, whole dialogues
prompt     ``prompt`` and every other column, for the rewards           prompt; messages; chosen+rejected dialogues
ranked     ``prompt``+``ranked`` (best first)+``ranks`` (1 is best)     prompt+ranked(+ranks); any preference pair
labelled   ``prompt``+``completion``+``label`` (true: good)             the same; true/false, 1/0, as text too
========== ============================================================ =============================================

``conversations`` (ShareGPT) stands for ``messages``, and for the ``prompt`` of a preference pair. Dialogues bring the
columns ``tools`` (schemas, as a list or as JSON) and ``chat_template_kwargs`` along.

A message may have, beside role and content, ``tool_calls``, ``tool_call_id``, ``name``, ``reasoning_content``,
``reasoning`` and ``thinking``, which go to the chat template, and ``weight: 0`` (supervised learning leaves the turn
out). Content may be a list of ``{"type": "text", "text"}`` parts. Any other key is counted where the rows are read
(`unused_keys`), reasoning that the template leaves out where the rows are prepared.

A dialogue is a list of ``{"role", "content"}``, a ShareGPT list of ``{"from", "value"}``, or one string with
``\\n\\nHuman:`` and ``\\n\\nAssistant:`` turns (HH-RLHF). Within one dataset a prompt is either always a string or
always a dialogue; where a row has both, strings become messages.
"""

import hashlib
import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from pipeline.data.rows import RowError
from pipeline.runtime.errors import UserError, did_you_mean, nearest
from pipeline.runtime.messages import REASONING, Message, assistant_turn, user_turn

KINDS = ("text", "sft", "preference", "prompt", "ranked", "labelled")

# Columns that make a form, in order of preference for each kind.
FORMS: dict[str, tuple[tuple[str, ...], ...]] = {
    "text": (("text",), ("messages",), ("conversations",), ("prompt", "completion")),
    "sft": (("messages",), ("conversations",), ("prompt", "completion"), ("text",)),
    "preference": (("prompt", "chosen", "rejected"), ("conversations", "chosen", "rejected"), ("chosen", "rejected")),
    "prompt": (("prompt",), ("messages",), ("conversations",), ("chosen", "rejected")),
    "ranked": (
        ("prompt", "ranked"),
        ("prompt", "chosen", "rejected"),
        ("conversations", "chosen", "rejected"),
        ("chosen", "rejected"),
    ),
    "labelled": (("prompt", "completion", "label"),),
}
_WANTED = {
    "text": "text (or messages, or prompt+completion)",
    "sft": "messages, or prompt+completion (or text)",
    "preference": "prompt+chosen+rejected, or chosen+rejected that are whole dialogues",
    "prompt": "prompt (or messages)",
    "ranked": "prompt+ranked, best first",
    "labelled": "prompt+completion+label",
}
# What other people call these columns, for the hint that comes with an error.
_ALIASES = {
    "prompt": ("question", "instruction", "problem", "query", "user_query", "input", "task", "sentence", "text"),
    "completion": ("answer", "response", "output", "solution", "chatgpt_response", "target", "code", "label"),
    "text": ("content", "document", "sentence", "passage", "body", "code"),
    "messages": ("conversation", "dialogue", "dialog", "chat"),
    "chosen": ("preferred", "better", "accepted", "response_chosen", "answer_chosen"),
    "rejected": ("dispreferred", "worse", "response_rejected", "answer_rejected"),
    "ranked": ("ranking", "responses", "completions"),
}
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
}
_HH_TURN = re.compile(r"\n\n(Human|Assistant):")

# Keys of a message that the chat template gets as they are, where they hold something.
_PASSED = ("tool_calls", "tool_call_id", "name", *REASONING)
_READ = {"role", "content", "from", "value", "weight", *_PASSED}
DIALOGUES = ("messages", "conversations", "prompt", "completion", "chosen", "rejected", "ranked")


class Form(NamedTuple):
    """The form of one dataset: the columns it is read from, and whether prompts and answers are dialogues."""

    columns: tuple[str, ...]
    conversational: bool


def parse_map(dataset_map: str | Mapping[str, str] | None) -> dict[str, str]:
    """``old=new,…``, or a mapping from YAML, as ``{old: new}``.

    Raises:
        UserError: a part without ``=``, or two columns renamed to one.
    """
    if not dataset_map:
        return {}
    if isinstance(dataset_map, Mapping):
        renames = {str(old): new for old, new in dataset_map.items()}
        for old, new in renames.items():
            if not (isinstance(new, str) and new):
                raise UserError(f"dataset_map: {old}: the new name of a column must be text, found {new!r}")
    else:
        renames = {}
        for part in str(dataset_map).split(","):
            old, equals, new = (piece.strip() for piece in part.partition("="))
            if not (old and equals and new):
                raise UserError(f"dataset_map {dataset_map!r}: {part.strip()!r} is not old=new (old=new,old2=new2)")
            if old in renames:
                raise UserError(f"dataset_map {dataset_map!r} gives column {old!r} two names")
            renames[old] = new
    if len(set(renames.values())) < len(renames):
        raise UserError(f"dataset_map {dataset_map!r} gives two columns one name")
    return renames


def check_map(renames: Mapping[str, str], columns: Collection[str], where: str) -> None:
    """Raises UserError unless every renamed column is there and no new name hides a column that stays."""
    for old, new in renames.items():
        if old not in columns:
            hint = did_you_mean(old, columns)
            raise UserError(f"{where} has no column {old!r} to rename (dataset_map); it has {_listed(columns)}{hint}")
        if new in columns and new not in renames:
            raise UserError(
                f"{where} already has a column {new!r}: free the name in dataset_map too ({new}=old_{new},{old}={new})"
            )


def rename(row: Mapping[str, Any], renames: Mapping[str, str]) -> dict[str, Any]:
    """The row under its new column names."""
    return {renames.get(key, key): value for key, value in row.items()} if renames else dict(row)


def detect(rows: Sequence[Mapping[str, Any]], kind: str, where: str, mapped: Collection[str] = ()) -> Form:
    """The form of a dataset, from its first rows (columns already renamed).

    Columns that the user named in ``--dataset_map`` decide before our own order of preference.

    Raises:
        UserError: no form of this kind fits; the message lists the columns found and the nearest ``--dataset_map``.
    """
    if kind not in KINDS:
        raise UserError(f"kind {kind!r} is none of {', '.join(KINDS)}")
    columns = list(dict.fromkeys(key for row in rows for key in row))
    fitting = [form for form in FORMS[kind] if all(name in columns for name in form)]
    fitting.sort(key=lambda form: -len(set(form) & set(mapped)))
    if not fitting:
        raise UserError(
            f"{where} has no columns for {kind} data: it needs {_WANTED[kind]}; it has {_listed(columns)}"
            f"{_map_hint(columns, kind)}"
        )
    form = fitting[0]
    sample = next((row for row in rows if all(row.get(name) is not None for name in form)), None)
    if sample is None:
        raise UserError(f"{where}: the first {len(rows)} rows leave {' or '.join(form)} empty")
    if form == ("chosen", "rejected") and isinstance(sample["chosen"], str) and not _is_hh(sample["chosen"]):
        raise UserError(
            f"{where} has chosen and rejected texts but no prompt: add a prompt column (dataset_map), or give whole "
            f"dialogues; it has {_listed(columns)}"
        )
    dialogue = any(not isinstance(sample[name], str) for name in form if name not in ("text", "ranked", "label"))
    if "ranked" in form:
        dialogue = dialogue or any(not isinstance(c, str) for c in _list(sample["ranked"], "ranked"))
    return Form(form, dialogue or form[0] in ("messages", "conversations") or form == ("chosen", "rejected"))


def _listed(columns: Collection[str]) -> str:
    return ", ".join(columns) if columns else "no columns"


def _map_hint(columns: Sequence[str], kind: str) -> str:
    """``; try --dataset_map question=prompt,answer=completion`` for the form that most columns can be renamed to."""
    best: tuple[int, dict[str, str]] = (0, {})
    for form in FORMS[kind]:
        renames: dict[str, str] = {}
        for name in form:
            if name in columns:
                continue
            free = [c for c in columns if c not in renames and c not in form]
            known = [c for alias in _ALIASES.get(name, ()) for c in free if c.lower() == alias]
            column = known[0] if known else nearest(name, free, cutoff=0.75)
            if column:
                renames[column] = name
        complete = all(name in columns or name in renames.values() for name in form)
        score = len(renames) + 10 * complete
        if renames and score > best[0]:
            best = (score, renames)
    return "; try --dataset_map " + ",".join(f"{old}={new}" for old, new in best[1].items()) if best[1] else ""


def _is_hh(value: Any) -> bool:
    return isinstance(value, str) and value.lstrip("\n").startswith(("Human:", "Assistant:"))


def _list(value: Any, field: str) -> list[Any]:
    if not isinstance(value, list):
        raise RowError(field, f"a list was expected, found {_type(value)}")
    return value


def _type(value: Any) -> str:
    return "nothing" if value is None else "text" if isinstance(value, str) else type(value).__name__


def checked_text(value: Any, field: str, *, empty: bool = False) -> str:
    """The value if it is text with something in it, else a RowError."""
    if not isinstance(value, str):
        raise RowError(field, f"text was expected, found {_type(value)}")
    if not empty and not value.strip():
        raise RowError(field, "is empty")
    return value


def messages_of(value: Any, field: str) -> list[Message]:
    """A dialogue in any accepted spelling as ``[{"role", "content", …}, …]``.

    Raises:
        RowError: not a dialogue, an unknown role, content that is not text, or a weight other than 0 and 1.
    """
    if isinstance(value, str):
        return _hh_messages(value, field)
    if isinstance(value, Mapping):
        value = [value]
    messages = [_message(message, f"{field}[{place}]") for place, message in enumerate(_list(value, field))]
    if not messages:
        raise RowError(field, "is empty")
    return messages


def _message(message: Any, at: str) -> Message:
    if not isinstance(message, Mapping):
        raise RowError(at, f"a message was expected, found {_type(message)}")
    role_key, content_key = ("role", "content") if "role" in message else ("from", "value")
    role, content = message.get(role_key), message.get(content_key)
    if not isinstance(role, str) or role.lower() not in _ROLES:
        raise RowError(f"{at}.{role_key}", f"unknown role {role!r}: use system, developer, user, assistant or tool")
    passed = {key: message[key] for key in _PASSED if message.get(key) not in (None, "", [])}
    if "tool_calls" in passed:
        passed["tool_calls"] = _tool_calls(passed["tool_calls"], f"{at}.tool_calls")
        content = "" if content is None else content
    if isinstance(content, list):
        content = _joined_parts(content, f"{at}.{content_key}")
    weight = message.get("weight")
    if weight not in (None, 0, 1):
        raise RowError(f"{at}.weight", f"{weight!r}: a turn is learned (1) or not (0)")
    if weight == 0:
        passed["weight"] = 0
    return {
        "role": _ROLES[role.lower()],
        "content": checked_text(content, f"{at}.{content_key}", empty=True),
        **passed,
    }


def _joined_parts(parts: list[Any], field: str) -> str:
    """The text of content that is given as ``{"type": "text", "text"}`` parts."""
    for place, part in enumerate(parts):
        kind = part.get("type") if isinstance(part, Mapping) else _type(part)
        if kind != "text" or not isinstance(part.get("text"), str):
            raise RowError(f"{field}[{place}]", f"a part of type {kind!r}: a text model reads parts of type text only")
    return "".join(part["text"] for part in parts)


def _tool_calls(calls: Any, field: str) -> list[dict[str, Any]]:
    """Tool calls as chat templates take them: a list of mappings, arguments as an object rather than as its JSON."""
    read = []
    for place, call in enumerate(_list(calls, field)):
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


def unused_keys(row: Mapping[str, Any], kind: str) -> set[str]:
    """Keys of a row's messages that nothing reads; the columns have the names of the standard forms.

    Running text (kind ``text``) holds the content of the messages alone. Reasoning that is null or empty is none.
    """
    read = _READ - set(REASONING) if kind == "text" else _READ
    turns = [turn for name in DIALOGUES for turn in _turns(row.get(name))]
    return {
        key for turn in turns for key, value in turn.items() if key not in read and (key not in REASONING or value)
    }


def _turns(value: Any) -> list[Mapping[str, Any]]:
    """The messages of a dialogue, or of a list of dialogues (``ranked``); nothing where it is neither."""
    if isinstance(value, Mapping):
        return [value]
    return [turn for item in value for turn in _turns(item)] if isinstance(value, list) else []


def _template_columns(row: Mapping[str, Any], dialogue: bool) -> dict[str, Any]:
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
            raise RowError(name, f"a {'list' if kind is list else 'mapping'} was expected, found {_type(value)}")
        found[name] = value
    return found


def _hh_messages(value: str, field: str) -> list[Message]:
    """One string of ``\\n\\nHuman: …\\n\\nAssistant: …`` turns; turns of one speaker in a row are joined."""
    if not _is_hh(value):
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


def _prompt_of(value: Any, conversational: bool, field: str = "prompt") -> str | list[Message]:
    if not conversational:
        return checked_text(value, field)
    if isinstance(value, str) and not _is_hh(value):
        return user_turn(checked_text(value, field))
    messages = messages_of(value, field)
    if not any(message["content"].strip() for message in messages):
        raise RowError(field, "is empty")
    return messages


def _completion_of(value: Any, conversational: bool, field: str) -> str | list[Message]:
    """An answer: text, or the assistant's messages."""
    if not conversational:
        return checked_text(value, field)
    if isinstance(value, str):
        return assistant_turn(checked_text(value, field))
    return _answer(messages_of(value, field), field)


def _answer(messages: list[Message], field: str) -> list[Message]:
    """The messages, once they are known to be an assistant's non-empty answer."""
    if not messages or messages[0]["role"] != "assistant" or messages[-1]["role"] != "assistant":
        raise RowError(field, "is not an answer: it must begin and end with a turn of the assistant")
    if not _says(messages[-1]):
        raise RowError(field, "is empty")
    return messages


def _says(message: Message) -> bool:
    return bool(message["content"].strip() or message.get("tool_calls"))


def _pair(row: Mapping[str, Any], form: Form) -> dict[str, Any]:
    """``prompt``, ``chosen``, ``rejected`` of a preference row.

    Where chosen and rejected are whole dialogues the prompt is their longest common prefix of turns; the turns after
    it must be the assistant's on both sides, else the two answer different prompts.
    """
    conversational = form.conversational
    whole = form.columns == ("chosen", "rejected")
    if not whole and conversational and isinstance(row.get("chosen"), list):
        whole = messages_of(row["chosen"], "chosen")[0]["role"] != "assistant"
    if whole:
        chosen, rejected = messages_of(row.get("chosen"), "chosen"), messages_of(row.get("rejected"), "rejected")
        if chosen == rejected:
            raise RowError("rejected", "is the same as chosen")
        shared = 0
        while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
            shared += 1
        prompt = chosen[:shared]
        if not prompt:
            raise RowError("rejected", "shares no first turn with chosen: the two answer different prompts")
        if len(form.columns) == 3:
            prompt = _with_given_prompt(prompt, _prompt_of(row.get(form.columns[0]), True, form.columns[0]))
        chosen, rejected = _answer(chosen[shared:], "chosen"), _answer(rejected[shared:], "rejected")
    else:
        prompt = _prompt_of(row.get(form.columns[0]), conversational, form.columns[0])
        chosen = _completion_of(row.get("chosen"), conversational, "chosen")
        rejected = _completion_of(row.get("rejected"), conversational, "rejected")
        if chosen == rejected:
            raise RowError("rejected", "is the same as chosen")
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def _with_given_prompt(prompt: list[Message], given: list[Message]) -> list[Message]:
    """The dialogue's prompt, checked against the row's own prompt column; a system turn of its own is put in front."""
    if given[0] in prompt:
        return prompt
    if all(message["role"] == "system" for message in given):
        return given + prompt
    raise RowError("prompt", "does not stand in chosen and rejected")


def _ranking(row: Mapping[str, Any], form: Form) -> dict[str, Any]:
    """``prompt``, ``ranked`` (best first) and ``ranks`` (1 is best, equal numbers are ties)."""
    if form.columns != ("prompt", "ranked"):
        pair = _pair(row, form)
        return {"prompt": pair["prompt"], "ranked": [pair["chosen"], pair["rejected"]], "ranks": [1, 2]}
    prompt = _prompt_of(row.get("prompt"), form.conversational)
    answers = [
        _completion_of(answer, form.conversational, f"ranked[{i}]")
        for i, answer in enumerate(_list(row.get("ranked"), "ranked"))
    ]
    if len(answers) < 2:
        raise RowError("ranked", f"has {len(answers)} answers: at least two can be ranked")
    if any(answers.count(answer) > 1 for answer in answers):
        raise RowError("ranked", "holds the same answer twice")
    ranks = row.get("ranks")
    if ranks is None:
        ranks = list(range(1, len(answers) + 1))
    if len(_list(ranks, "ranks")) != len(answers) or not all(type(rank) is int for rank in ranks):
        raise RowError("ranks", f"{len(answers)} whole numbers were expected, one an answer")
    order = sorted(range(len(answers)), key=lambda i: ranks[i])
    return {"prompt": prompt, "ranked": [answers[i] for i in order], "ranks": [ranks[i] for i in order]}


def _label_of(value: Any) -> bool:
    """Whether an answer is good: a boolean, 1 or 0, or one of these as text."""
    words = {"true": True, "1": True, "false": False, "0": False}
    if isinstance(value, str) and value.strip().lower() in words:
        return words[value.strip().lower()]
    if isinstance(value, bool | int | float) and value in (0, 1):
        return bool(value)
    raise RowError("label", f"true or false (1 or 0) was expected, found {value!r}")


def _dialogue(row: Mapping[str, Any], form: Form) -> list[Message]:
    """The messages of a row for supervised learning: at least one answer, none of them empty."""
    field = form.columns[0]
    messages = messages_of(row.get(field), field)
    answers = [message for message in messages if message["role"] == "assistant" and message.get("weight") != 0]
    if not answers:
        raise RowError(field, "has no turn of the assistant to learn from (by its roles and weights)")
    if not all(map(_says, answers)):
        raise RowError(field, "has an empty turn of the assistant")
    return messages


def _joined(parts: Sequence[str]) -> str:
    """Parts as one running text: a blank line between two, unless one of them brings its own white space."""
    text = parts[0]
    for part in parts[1:]:
        own = text[-1:].isspace() or part[:1].isspace()
        text += part if own else "\n\n" + part
    return text


def convert(row: Mapping[str, Any], form: Form, kind: str) -> dict[str, Any]:
    """One row in the standard form of its kind (see the table above).

    Raises:
        RowError: field and reason, e.g. an empty completion, chosen equal to rejected, a wrong type.
    """
    converted = _converted(row, form, kind)
    if kind in ("preference", "ranked", "labelled") and form.conversational:
        _refuse_weights(converted)
    if kind in ("sft", "preference", "ranked", "labelled"):
        return {**converted, **_template_columns(row, form.conversational)}
    return converted


def _refuse_weights(row: Mapping[str, Any]) -> None:
    """A comparison is of whole answers; in a prompt nothing is learned anyway."""
    for message in row["prompt"]:
        message.pop("weight", None)
    answers = [(name, row[name]) for name in ("chosen", "rejected", "completion") if name in row]
    answers += [(f"ranked[{place}]", answer) for place, answer in enumerate(row.get("ranked", ()))]
    for field, answer in answers:
        if any("weight" in message for message in answer):
            raise RowError(field, "has a turn of weight 0: answers are judged as a whole")


def _converted(row: Mapping[str, Any], form: Form, kind: str) -> dict[str, Any]:
    columns = form.columns
    if kind == "preference":
        return _pair(row, form)
    if kind == "ranked":
        return _ranking(row, form)
    if kind == "labelled":
        return {
            "prompt": _prompt_of(row.get("prompt"), form.conversational),
            "completion": _completion_of(row.get("completion"), form.conversational, "completion"),
            "label": _label_of(row.get("label")),
        }
    if kind == "prompt":
        if columns == ("chosen", "rejected"):
            prompt: str | list[Message] = _pair(row, form)["prompt"]
        elif columns == ("prompt",):
            prompt = _prompt_of(row.get("prompt"), form.conversational)
        else:
            messages = messages_of(row.get(columns[0]), columns[0])
            while messages and messages[-1]["role"] == "assistant":
                messages = messages[:-1]
            prompt = _prompt_of(messages, True, columns[0])
        return {"prompt": prompt, **{key: value for key, value in row.items() if key != "prompt"}}
    if columns == ("text",):
        return {"text": checked_text(row.get("text"), "text")}
    if columns == ("prompt", "completion"):
        prompt = _prompt_of(row.get("prompt"), form.conversational)
        completion = _completion_of(row.get("completion"), form.conversational, "completion")
        if kind == "sft":
            return {"prompt": prompt, "completion": completion}
        if not form.conversational:
            return {"text": _joined([prompt, completion])}
        messages = [*prompt, *completion]
    else:
        messages = _dialogue(row, form)
    if kind == "sft":
        return {"messages": messages}
    for message in messages:
        if "tool_calls" in message or message["role"] == "tool":
            raise RowError(columns[0], "has tool calls, which running text cannot hold: use the rows for SFT")
    return {"text": _joined([message["content"] for message in messages if message["content"]])}


def to_messages(row: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """A converted row of any form as dialogue, so that datasets of different forms can stand in one mixture."""
    answer = {"chosen", "rejected", "completion"}
    lifted = {}
    for key, value in row.items():
        if key == "prompt" and isinstance(value, str):
            value = user_turn(value)
        elif kind != "prompt" and key in answer and isinstance(value, str):
            value = assistant_turn(value)
        elif kind == "ranked" and key == "ranked":
            value = [assistant_turn(v) if isinstance(v, str) else v for v in value]
        lifted[key] = value
    if kind == "sft" and "prompt" in lifted:  # only the completion is learned, as before
        before = [m | {"weight": 0} if m["role"] == "assistant" else m for m in lifted.pop("prompt")]
        return {"messages": before + lifted.pop("completion"), **lifted}
    return lifted


def content_hash(row: Mapping[str, Any]) -> str:
    """SHA-256 of the whole converted row, independent of the order of its columns; the identity of a row."""
    canonical = json.dumps(row, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()


def prompt_hash(row: Mapping[str, Any]) -> str:
    """Identity of what a row asks: rows that share it must stand on the same side of a held-out split."""
    if "prompt" in row:
        return content_hash({"prompt": row["prompt"]})
    if len(row.get("messages", ())) > 1 and row["messages"][-1]["role"] == "assistant":
        return content_hash({"prompt": row["messages"][:-1]})
    return content_hash(row)
