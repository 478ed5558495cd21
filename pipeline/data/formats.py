"""Rows in the standard forms of TRL, one at a time. Pure functions on dicts.

========== ============================================================ =============================================
kind       result                                                       accepted
========== ============================================================ =============================================
text       ``text`` (+ ``unlearned``: spans that are only read)         text; messages; prompt+completion
sft        ``messages``, or ``prompt``+``completion``, or ``text``      the same, most structured first; else chosen
preference ``prompt``+``chosen``+``rejected``                           the same; chosen+rejected, complete dialogues
prompt     ``prompt`` and every other column, for the rewards           prompt; messages; chosen+rejected dialogues
ranked     ``prompt``+``ranked`` (best first)+``ranks`` (1 is best)     prompt+ranked(+ranks); any preference pair
labelled   ``prompt``+``completion``+``label`` (true: good)             the same; true/false, 1/0, as text too
========== ============================================================ =============================================

Under which names a dataset may have these columns is `pipeline.data.schemas`. ``conversations`` (ShareGPT) is read as
``messages``, and as the ``prompt`` of a preference pair. Dialogues bring the columns ``tools`` (schemas, as a list or
as JSON) and ``chat_template_kwargs`` along. A system prompt is the first message of a dialogue; beside a text prompt
it stays a column ``system`` until the model is known (`settle_systems`).

How a dialogue is written is `pipeline.data.dialogues`. Within one dataset a prompt is either always a string or
always a dialogue; where a row has both, strings become messages.
"""

import hashlib
import json
import re
from collections.abc import Sequence

from pipeline.data.dialogues import (
    checked_answer,
    checked_list,
    checked_text,
    completion_of,
    messages_of,
    prompt_of,
    says_something,
    template_columns,
    type_name,
)
from pipeline.data.rows import RowError
from pipeline.data.schemas import Form
from pipeline.runtime.files import Json
from pipeline.runtime.messages import Message, Turn, answers_of, as_turns, begun, has_system


def convert(row: Json, form: Form, kind: str) -> Json:
    """One row in the standard form of its kind (see the table above).

    Raises:
        RowError: field (as the row calls it) and reason, e.g. an empty completion, chosen equal to rejected, a wrong
            type.
    """
    try:
        given = _joined_input(form.read(row))
        system = given.pop("system", None) if "system" in form.stored else None
        if not isinstance(system, str | None):
            raise RowError("system", f"text was expected, found {type_name(system)}")
        converted = _converted(given, form, kind)
        if system and system.strip():
            converted = _with_system(converted, system, form, kind)
        if kind in ("preference", "ranked", "labelled") and form.conversational:
            _refuse_weights(converted, kind)
        if kind in ("sft", "preference", "ranked", "labelled"):
            converted = {**converted, **template_columns(given, form.conversational)}
        return converted
    except RowError as error:
        root = re.match(r"\w*", error.field)[0]
        raise RowError(form.stored.get(root, root) + error.field[len(root) :], error.reason) from None


def _joined_input(row: Json) -> Json:
    """The row with ``input``, what its prompt is about, after the prompt as a paragraph of its own."""
    if "input" not in row or "prompt" not in row:
        return row
    about = row.pop("input")
    if about is None or about == "":
        return row
    return row | {"prompt": _joined([checked_text(row["prompt"], "prompt"), checked_text(about, "input", empty=True)])}


def _with_system(row: Json, system: str, form: Form, kind: str) -> Json:
    """A converted row with its system prompt: its first message, text before text, or (whether it becomes the one or
    the other is for the model to say, see `settle_systems`) a column beside a prompt that is text.
    """
    if kind == "text":
        if "unlearned" in row:
            raise RowError(
                "unlearned", "counts characters of the text alone, and a system prompt would come before it"
            )
        return {"text": _joined([system, row["text"]])}
    if not form.conversational:
        return row | {"system": system}
    name = "prompt" if "prompt" in row else "messages"
    if has_system(row[name]) and row[name][0]["content"].strip() != system.strip():
        raise RowError("system", f"is not the system message that {name} has; rename one of the two (dataset_map)")
    return row | {name: begun(row[name], system)}


def settle_systems(rows: Sequence[Json], kind: str, chat: bool) -> Sequence[Json]:
    """Converted rows whose column ``system``, where they have one, has become part of the prompt.

    Args:
        chat: as the system message of a dialogue, which all rows then become; else as a paragraph before the text.
    """
    if not any("system" in row and isinstance(row.get("prompt"), str) for row in rows):
        return rows
    if chat:
        return [as_turns(row, kind, mark=False) for row in rows]
    settled = []
    for row in rows:
        system = row.get("system")
        prompt = _joined([system, row["prompt"]]) if system else row["prompt"]
        settled.append({key: prompt if key == "prompt" else row[key] for key in row if key != "system"})
    return settled


def _refuse_weights(row: Json, kind: str) -> None:
    """A comparison is of complete answers; in a prompt nothing is learned anyway."""
    for message in row["prompt"]:
        message.pop("weight", None)
    for field, answer in answers_of(row, kind).items():
        if any("weight" in message for message in answer):
            raise RowError(field, "has a turn of weight 0: answers are compared as a whole")


def _converted(row: Json, form: Form, kind: str) -> Json:
    columns = form.columns
    if kind == "preference":
        return _pair(row, form)
    if kind == "ranked":
        return _ranking(row, form)
    if kind == "labelled":
        return {
            "prompt": prompt_of(row.get("prompt"), form.conversational),
            "completion": completion_of(row.get("completion"), form.conversational, "completion"),
            "label": _label_of(row.get("label")),
        }
    if kind == "prompt":
        if columns == ("chosen", "rejected"):
            prompt: str | list[Message] = _pair(row, form)["prompt"]
        elif columns == ("prompt",):
            prompt = prompt_of(row.get("prompt"), form.conversational)
        else:
            messages = messages_of(row.get(columns[0]), columns[0])
            while messages and messages[-1]["role"] == "assistant":
                messages = messages[:-1]
            prompt = prompt_of(messages, True, columns[0])
        return {"prompt": prompt, **{key: value for key, value in row.items() if key != "prompt"}}
    if columns == ("text",):
        text = checked_text(row.get("text"), "text")
        return {"text": text} | ({"unlearned": _spans(row["unlearned"], text)} if row.get("unlearned") else {})
    if columns[0] == "prompt":
        prompt = prompt_of(row.get("prompt"), form.conversational)
        prompt, completion = _answered(row, form, prompt)
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
        if not isinstance(message["content"], str):
            raise RowError(columns[0], "has places for images, which running text cannot hold: give image and text")
    return {"text": _joined([message["content"] for message in messages if message["content"]])}


def _spans(given: object, text: str) -> list[list[int]]:
    """The character spans of a text that are read and not learned."""
    spans = given if isinstance(given, list | tuple) else [None]
    for span in spans:
        whole = isinstance(span, list | tuple) and len(span) == 2 and all(type(place) is int for place in span)
        if not whole or not 0 <= span[0] < span[1] <= len(text):
            raise RowError("unlearned", f"{span!r:.40} is no span [start, end] of the text's {len(text)} characters")
    return [list(span) for span in spans]


def _answered(row: Json, form: Form, prompt: Turn) -> tuple[Turn, Turn]:
    """Prompt and the answer to learn: the completion, or the chosen one of a pair, which as a complete dialogue brings
    the prompt along.
    """
    name = form.columns[1]
    answer = row.get(name)
    if form.conversational and isinstance(answer, list):
        answer = messages_of(answer, name)
        if name == "chosen" and prompt[-1] in answer:
            end = answer.index(prompt[-1]) + 1
            prompt, answer = answer[:end], answer[end:]
    return prompt, completion_of(answer, form.conversational, name)


def _pair(row: Json, form: Form) -> Json:
    """``prompt``, ``chosen``, ``rejected`` of a preference row.

    Where chosen and rejected are complete dialogues the prompt is their longest common prefix of turns; the turns
    after it must be the assistant's on both sides, else the two answer different prompts.
    """
    conversational = form.conversational
    complete = form.columns == ("chosen", "rejected")
    if not complete and conversational and isinstance(row.get("chosen"), list):
        complete = messages_of(row["chosen"], "chosen")[0]["role"] != "assistant"
    if complete:
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
            prompt = _with_given_prompt(prompt, prompt_of(row.get(form.columns[0]), True, form.columns[0]))
        chosen, rejected = checked_answer(chosen[shared:], "chosen"), checked_answer(rejected[shared:], "rejected")
    else:
        prompt = prompt_of(row.get(form.columns[0]), conversational, form.columns[0])
        chosen = completion_of(row.get("chosen"), conversational, "chosen")
        rejected = completion_of(row.get("rejected"), conversational, "rejected")
        if chosen == rejected:
            raise RowError("rejected", "is the same as chosen")
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def _with_given_prompt(prompt: list[Message], given: list[Message]) -> list[Message]:
    """The dialogue's prompt, checked against the row's prompt column; a system turn of that column is put in front."""
    if given[0] in prompt:
        return prompt
    if all(message["role"] == "system" for message in given):
        return given + prompt
    raise RowError("prompt", "is not the beginning of chosen and rejected")


def _ranking(row: Json, form: Form) -> Json:
    """``prompt``, ``ranked`` (best first) and ``ranks`` (1 is best, equal numbers are ties)."""
    if form.columns != ("prompt", "ranked"):
        pair = _pair(row, form)
        return {"prompt": pair["prompt"], "ranked": [pair["chosen"], pair["rejected"]], "ranks": [1, 2]}
    prompt = prompt_of(row.get("prompt"), form.conversational)
    answers = [
        completion_of(answer, form.conversational, f"ranked[{i}]")
        for i, answer in enumerate(checked_list(row.get("ranked"), "ranked"))
    ]
    if len(answers) < 2:
        raise RowError("ranked", f"has {len(answers)} answers: at least two can be ranked")
    if any(answers.count(answer) > 1 for answer in answers):
        raise RowError("ranked", "holds the same answer twice")
    ranks = row.get("ranks")
    if ranks is None:
        ranks = list(range(1, len(answers) + 1))
    if len(checked_list(ranks, "ranks")) != len(answers) or not all(type(rank) is int for rank in ranks):
        raise RowError("ranks", f"{len(answers)} integers were expected, one per answer")
    order = sorted(range(len(answers)), key=lambda i: ranks[i])
    return {"prompt": prompt, "ranked": [answers[i] for i in order], "ranks": [ranks[i] for i in order]}


def _label_of(value: object) -> bool:
    """Whether an answer is good: a boolean, 1 or 0, or one of these as text."""
    words = {"true": True, "1": True, "false": False, "0": False}
    if isinstance(value, str) and value.strip().lower() in words:
        return words[value.strip().lower()]
    if isinstance(value, bool | int | float) and value in (0, 1):
        return bool(value)
    raise RowError("label", f"true or false (1 or 0) was expected, found {value!r}")


def _dialogue(row: Json, form: Form) -> list[Message]:
    """The messages of a row for supervised learning: at least one answer, none of them empty."""
    field = form.columns[0]
    messages = messages_of(row.get(field), field)
    answers = [message for message in messages if message["role"] == "assistant" and message.get("weight") != 0]
    if not answers:
        raise RowError(field, "has no turn of the assistant to learn from (by its roles and weights)")
    if not all(map(says_something, answers)):
        raise RowError(field, "has an empty turn of the assistant")
    return messages


def _joined(parts: Sequence[str]) -> str:
    """Parts as one running text: a blank line between two, unless one of them has white space there."""
    text = parts[0]
    for part in parts[1:]:
        spaced = text[-1:].isspace() or part[:1].isspace()
        text += part if spaced else "\n\n" + part
    return text


def to_messages(row: Json, kind: str) -> Json:
    """A converted row of any form as dialogue, so that datasets of different forms fit into one mixture."""
    lifted = as_turns(row, kind, mark=False)
    if kind == "sft" and "prompt" in lifted:  # only the completion is learned, as before
        before = [m | {"weight": 0} if m["role"] == "assistant" else m for m in lifted.pop("prompt")]
        return {"messages": before + lifted.pop("completion"), **lifted}
    return lifted


def content_hash(row: Json) -> str:
    """SHA-256 of the converted row, independent of the order of its columns; the identity of a row."""
    canonical = json.dumps(row, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()


def prompt_hash(row: Json) -> str:
    """Identity of what a row asks: rows that share it must be on the same side of a held-out split."""
    if "prompt" in row:
        return content_hash({name: row[name] for name in ("system", "prompt", "images") if name in row})
    if len(row.get("messages", ())) > 1 and row["messages"][-1]["role"] == "assistant":
        images = {"images": row["images"]} if "images" in row else {}
        return content_hash({"prompt": row["messages"][:-1], **images})
    return content_hash(row)
