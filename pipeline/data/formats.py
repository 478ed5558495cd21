"""From the columns a dataset happens to have to TRL's standard forms, one row at a time. Pure functions on dicts.

========== ============================================================ =============================================
kind       result                                                       accepted
========== ============================================================ =============================================
text       ``text``                                                     text; messages; prompt+completion
sft        ``messages``, or ``prompt``+``completion``, or ``text``      the same, most structured first
preference ``prompt``+``chosen``+``rejected``                           the same; chosen+rejected, complete dialogues
prompt     ``prompt`` and every other column, for the rewards           prompt; messages; chosen+rejected dialogues
ranked     ``prompt``+``ranked`` (best first)+``ranks`` (1 is best)     prompt+ranked(+ranks); any preference pair
labelled   ``prompt``+``completion``+``label`` (true: good)             the same; true/false, 1/0, as text too
========== ============================================================ =============================================

``conversations`` (ShareGPT) is read as ``messages``, and as the ``prompt`` of a preference pair. Dialogues bring the
columns ``tools`` (schemas, as a list or as JSON) and ``chat_template_kwargs`` along.

How a dialogue is written is `pipeline.data.dialogues`. Within one dataset a prompt is either always a string or
always a dialogue; where a row has both, strings become messages.
"""

import hashlib
import json
from collections.abc import Collection, Sequence
from typing import NamedTuple

from pipeline.data.columns import check_map, listed, rename
from pipeline.data.dialogues import (
    checked_answer,
    checked_list,
    checked_text,
    completion_of,
    is_hh,
    messages_of,
    prompt_of,
    says_something,
    template_columns,
)
from pipeline.data.rows import RowError
from pipeline.data.sources import RawRow, Source
from pipeline.runtime.errors import UserError, nearest
from pipeline.runtime.files import Json
from pipeline.runtime.messages import Message, assistant_turn, user_turn

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
    "preference": "prompt+chosen+rejected, or chosen+rejected that are complete dialogues",
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


class Form(NamedTuple):
    """The form of one dataset: the columns it is read from, and whether prompts and answers are dialogues."""

    columns: tuple[str, ...]
    conversational: bool


def find_form(source: Source, kind: str, first: Sequence[RawRow]) -> Form:
    """The form of a dataset by its first readable rows; UserError where a named column is missing or none fits."""
    rows = [row for _, _, row in first if not isinstance(row, RowError)]
    if not rows:
        place, number, error = next(iter(first))
        raise UserError(f"{place}, row {number}: {error}")
    columns = list(dict.fromkeys(key for row in rows for key in row))
    for name in source.columns or ():
        if name not in columns:
            raise UserError(f"{source.label} has no column {name!r} (columns); it has {', '.join(columns)}")
    kept = [c for c in columns if source.columns is None or c in source.columns]
    check_map(source.dataset_map, kept, source.label)
    return detect([prepare(row, source) for row in rows], kind, source.label, set(source.dataset_map.values()))


def prepare(row: Json, source: Source) -> Json:
    """A raw row after the entry's ``columns`` and ``dataset_map``."""
    if source.columns is not None:
        row = {key: row[key] for key in source.columns if key in row}
    return rename(row, source.dataset_map)


def detect(rows: Sequence[Json], kind: str, where: str, mapped: Collection[str] = ()) -> Form:
    """The form of a dataset, from its first rows (columns already renamed).

    Columns that the user named in ``--dataset_map`` decide before the order of ``FORMS``.

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
            f"{where} has no columns for {kind} data: it needs {_WANTED[kind]}; it has {listed(columns)}"
            f"{_map_hint(columns, kind)}"
        )
    form = fitting[0]
    sample = next((row for row in rows if all(row.get(name) is not None for name in form)), None)
    if sample is None:
        raise UserError(f"{where}: the first {len(rows)} rows leave {' or '.join(form)} empty")
    if form == ("chosen", "rejected") and isinstance(sample["chosen"], str) and not is_hh(sample["chosen"]):
        raise UserError(
            f"{where} has chosen and rejected texts but no prompt: add a prompt column (dataset_map), or give "
            f"complete dialogues; it has {listed(columns)}"
        )
    dialogue = any(not isinstance(sample[name], str) for name in form if name not in ("text", "ranked", "label"))
    if "ranked" in form:
        dialogue = dialogue or any(not isinstance(c, str) for c in checked_list(sample["ranked"], "ranked"))
    return Form(form, dialogue or form[0] in ("messages", "conversations") or form == ("chosen", "rejected"))


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


def convert(row: Json, form: Form, kind: str) -> Json:
    """One row in the standard form of its kind (see the table above).

    Raises:
        RowError: field and reason, e.g. an empty completion, chosen equal to rejected, a wrong type.
    """
    converted = _converted(row, form, kind)
    if kind in ("preference", "ranked", "labelled") and form.conversational:
        _refuse_weights(converted)
    if kind in ("sft", "preference", "ranked", "labelled"):
        return {**converted, **template_columns(row, form.conversational)}
    return converted


def _refuse_weights(row: Json) -> None:
    """A comparison is of complete answers; in a prompt nothing is learned anyway."""
    for message in row["prompt"]:
        message.pop("weight", None)
    answers = [(name, row[name]) for name in ("chosen", "rejected", "completion") if name in row]
    answers += [(f"ranked[{place}]", answer) for place, answer in enumerate(row.get("ranked", ()))]
    for field, answer in answers:
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
        return {"text": checked_text(row.get("text"), "text")}
    if columns == ("prompt", "completion"):
        prompt = prompt_of(row.get("prompt"), form.conversational)
        completion = completion_of(row.get("completion"), form.conversational, "completion")
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


def content_hash(row: Json) -> str:
    """SHA-256 of the converted row, independent of the order of its columns; the identity of a row."""
    canonical = json.dumps(row, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()


def prompt_hash(row: Json) -> str:
    """Identity of what a row asks: rows that share it must be on the same side of a held-out split."""
    if "prompt" in row:
        return content_hash({"prompt": row["prompt"]})
    if len(row.get("messages", ())) > 1 and row["messages"][-1]["role"] == "assistant":
        return content_hash({"prompt": row["messages"][:-1]})
    return content_hash(row)
