"""Dialogues to token ids, and which of them are the assistant's: what a chat template writes, and where its turns are.

A turn with ``weight: 0`` is read and not learned. A template with ``{% generation %}`` markers marks what the
assistant writes. Without them a turn is found by rendering the dialogue up to it: where that is a prefix of the
complete text, its end is a place in the text, and the offsets of one tokenisation of it say which tokens come after
it. Where it is no prefix (templates that strip the reasoning of earlier turns) the row is refused.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.model.vision import image_place
from pipeline.runtime.errors import UserError
from pipeline.runtime.files import Json
from pipeline.runtime.messages import REASONING, assistant_turn, content_text, is_dialogue, user_turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MARKER = re.compile(r"\{%-?\s*generation\s*-?%\}")

Coded = tuple[list[int], list[bool]]  # token ids, and which of them are learned
Span = tuple[int, int]  # characters of a rendered dialogue, the end excluded
Render = Callable[..., Any]  # of `renderer`


def encode_dialogue(
    tokenizer: PreTrainedTokenizerBase, row: Json, messages: Sequence[Mapping], first: int, mask: bool
) -> Coded:
    """Token ids (T,) of a dialogue and, for each, whether it is learned.

    Args:
        row: the row of the dialogue, which may bring ``tools`` and ``chat_template_kwargs``.
        first: the number of the first message of which anything is learned.
        mask: learn the assistant's turns alone; else every token, but for the turns of weight 0.

    Raises:
        UserError: the chat template refuses the dialogue, drops a part of it, or does not show where a turn that is to
            be learned begins and ends.
    """
    render = renderer(tokenizer, row)
    spoken = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    turns = [i for i in spoken if i >= first and messages[i].get("weight") != 0]
    marks: list[Span] | None = None
    if mask and MARKER.search(tokenizer.get_chat_template(tools=row.get("tools") or None)):
        text, marks = render(messages, spans=True)
    else:
        text = render(messages)
    _refuse_drops(render, messages, text, bool(row.get("tools")))
    if not mask and len(turns) == len(spoken):
        coded = list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        return _placed(tokenizer, coded, [True] * len(coded))
    if not tokenizer.is_fast:
        raise UserError("the tokenizer reports no character offsets, which the mask of the assistant's turns needs")
    coded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids, offsets = list(coded["input_ids"]), coded["offset_mapping"]
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    learned = [False] * len(ids)
    if not mask:  # every token but those of the turns that are not to be learned
        skipped = [_turn(render, messages, i, text) for i in spoken if i not in turns]
        return _placed(tokenizer, ids, [not any(_within(offset, span) for span in skipped) for offset in offsets])
    if marks is None:
        spans = [_turn(render, messages, i, text) for i in turns]
    else:
        spans = _marked(render, messages, marks, spoken, turns)
    for span in spans:
        places = [place for place, offset in enumerate(offsets) if _within(offset, span)]
        closed = _closed(places, ids, offsets, text, special)
        following = closed[-1] + 1 if closed else len(ids)
        if marks is not None and following < len(ids) and ids[closed[-1]] not in special:
            # Markers around the content alone: without the token that ends the turn the model never learns to stop.
            closed += [following] * (ids[following] == closing_token(tokenizer, tokenizer.get_chat_template()))
        for place in closed:
            learned[place] = True
    if turns and not any(learned):
        raise UserError("the chat template marks no token of the assistant's turns by {% generation %}")
    return _placed(tokenizer, ids, learned)


def _placed(tokenizer: PreTrainedTokenizerBase, ids: list[int], learned: list[bool]) -> Coded:
    """Every image of a coded text with all its places, none of which is learned."""
    place = image_place(tokenizer)
    if place is None:
        return ids, learned
    token, width = tokenizer.convert_tokens_to_ids(place[0]), len(place[1]) // len(place[0])
    pairs = [(i, mark and i != token) for i, mark in zip(ids, learned) for _ in range(width if i == token else 1)]
    return [i for i, _ in pairs], [mark for _, mark in pairs]


def encode_rendered(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of a text that a chat template wrote, with its special tokens in it and every image's places."""
    place = image_place(tokenizer)
    text = text.replace(*place) if place else text
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def renderer(tokenizer: PreTrainedTokenizerBase, row: Json) -> Render:
    """``render(messages, ...)``: dialogues of a row as its chat template writes them, with the row's ``tools`` and
    ``chat_template_kwargs``.

    The function's options: ``generation`` adds the generation prompt, ``continued`` leaves the last message open,
    ``tools`` (true) passes the row's tools, ``spans`` returns also what is marked as generated.

    Raises:
        UserError: (the function) the template refuses the dialogue, or there is no template.
    """
    if not tokenizer.chat_template:
        raise UserError(
            "the rows are chat messages but the tokenizer has no chat template: use plain text, or give one "
            "(--chat_template_path)"
        )
    given, options = row.get("tools") or None, row.get("chat_template_kwargs") or {}

    def render(
        messages: Sequence[Mapping],
        generation: bool = False,
        tools: bool = True,
        spans: bool = False,
        continued: bool = False,
    ) -> str | tuple[str, list[Span]]:
        from jinja2 import TemplateError

        from pipeline.runtime.compat import render_jinja_template

        plain = [{key: value for key, value in message.items() if key != "weight"} for message in messages]
        shared = {"tools": given if tools else None, "add_generation_prompt": generation, **options}
        try:
            if not spans:
                return tokenizer.apply_chat_template(plain, tokenize=False, continue_final_message=continued, **shared)
            template = tokenizer.get_chat_template(tools=shared["tools"])
            texts, found = render_jinja_template(
                [plain], chat_template=template, return_assistant_tokens_mask=True,
                **tokenizer.special_tokens_map, **shared,
            )  # fmt: skip
            return texts[0], found[0]
        except (TemplateError, TypeError, ValueError, KeyError) as error:
            raise UserError(f"the chat template refuses it: {' '.join(str(error).split())}") from error

    return render


def check_dialogue(tokenizer: PreTrainedTokenizerBase, row: Json, messages: Sequence[Mapping]) -> None:
    """Check that the chat template writes the complete dialogue.

    Raises:
        UserError: it refuses the dialogue, or writes the same text without its tool calls, tools or tool results.
    """
    render = renderer(tokenizer, row)
    _refuse_drops(render, messages, render(messages), bool(row.get("tools")))


def _refuse_drops(render: Render, messages: Sequence[Mapping], text: str, tools: bool) -> None:
    """What a template does not read changes nothing when it is taken away."""
    variants: list[tuple[str, Sequence[Mapping], bool]] = []
    if any(message.get("tool_calls") for message in messages):
        without = [{key: value for key, value in m.items() if key != "tool_calls"} for m in messages]
        variants.append(("tool_calls", without, True))
    if any(message["role"] == "tool" for message in messages):
        other = [m | {"content": f"{m['content']} narlm probe"} if m["role"] == "tool" else m for m in messages]
        variants.append(("the turns of role tool", other, True))
    if tools:
        variants.append(("tools", messages, False))
    for name, changed, with_tools in variants:
        try:
            same = render(changed, tools=with_tools) == text
        except UserError:
            continue  # a dialogue that cannot be written without them is one that reads them
        if same:
            raise UserError(
                f"the chat template leaves out {name}: give one that writes them (--chat_template_path), or remove "
                "them from the rows"
            )


def unused_reasoning(tokenizer: PreTrainedTokenizerBase, row: Json) -> list[str]:
    """Keys with reasoning in a row's messages (``reasoning_content``, …) that its chat template does not write.

    The template must have been found to write the row's dialogues.
    """
    answers = [row[name] for name in ("completion", "chosen", "rejected") if is_dialogue(row.get(name))]
    answers += [answer for answer in row.get("ranked") or [] if is_dialogue(answer)]
    before = next((row[name] for name in ("messages", "prompt") if is_dialogue(row.get(name))), [])
    found: set[str] = set()
    for messages in [[*before, *answer] for answer in answers] or [before]:
        for key in REASONING:
            if any(message.get(key) for message in messages):
                render = renderer(tokenizer, row)
                without = [{name: value for name, value in m.items() if name != key} for m in messages]
                found |= {key} if render(without) == render(messages) else set()
    return sorted(found)


def _within(offset: Span, span: Span) -> bool:
    """Whether a token belongs to a span of text: it may begin before it (merged white space), not end after it."""
    (start, end), (first, last) = offset, span
    return first < end <= last or (start == end and first <= start < last)


def _closed(places: list[int], ids: list[int], offsets: list[Span], text: str, special: set[int]) -> list[int]:
    """The tokens of a turn up to the special token that ends it: the line break after it opens the next turn."""
    last = len(places)
    while last and ids[places[last - 1]] not in special and not text[slice(*offsets[places[last - 1]])].strip():
        last -= 1
    return places[:last] if last and ids[places[last - 1]] in special else places


def _marked(
    render: Render, messages: Sequence[Mapping], marks: list[Span], spoken: list[int], turns: list[int]
) -> list[Span]:
    """Of the blocks that the template marks those of the turns that are learned."""
    if turns == spoken:
        return marks
    spans, before = [], 0
    for i in spoken:
        _, until = render(messages[: i + 1], spans=True)
        spans += marks[before : len(until)] if i in turns else []
        before = len(until)
    return spans


def _turn(render: Render, messages: Sequence[Mapping], i: int, text: str) -> Span:
    """The characters of an assistant's turn in the dialogue's text: after what opens it, to the end of what it adds.

    Raises:
        UserError: the template writes the dialogue up to this turn in another way than in all of it.
    """
    until = render(messages[: i + 1])
    if i == 0:
        start, opened = _first_start(render, text), True
    else:
        head = render(messages[:i], generation=True)
        start = _shared(head, text)
        opened = start == len(head) and head != render(messages[:i])
    content = content_text(messages[i].get("content")).strip()
    follows = bool(content) and text[start:].lstrip().startswith(content)
    if not text.startswith(until) or not (opened or follows):
        raise UserError(
            f"turn {i + 1} cannot be separated from the rest of the dialogue: the chat template writes it differently "
            "there than at the end, and has no {% generation %} markers; give one with markers "
            "(--chat_template_path), rows that end with this turn, or learn everything (--assistant_only_loss false)"
        )
    return start, len(until)


def _first_start(render: Render, text: str) -> int:
    """Where the assistant's turn begins that opens a dialogue; transformers renders no dialogue without a message.

    The turn begins at the latest where texts with other contents part from it (two of them: one may begin as the turn
    does), and earlier where the generation prompt ends, which may open a block of reasoning.
    """
    latest = min(_shared(render(assistant_turn(probe)), text) for probe in ("narlm probe", "~narlm probe"))
    asked, prompted = (render(user_turn("x"), generation=generation) for generation in (False, True))
    opening = prompted[len(asked) :] if prompted.startswith(asked) else ""
    place = text.rfind(opening, 0, latest) if opening else -1
    return latest if place < 0 else place + len(opening)


def _shared(first: str, second: str) -> int:
    """Number of characters that two texts begin with alike."""
    return next((place for place, (a, b) in enumerate(zip(first, second)) if a != b), min(len(first), len(second)))


@functools.lru_cache(maxsize=16)
def closing_token(tokenizer: PreTrainedTokenizerBase, template: str) -> int | None:
    """The special token that the chat template writes after an assistant's content, white space aside; or None."""
    ids = turn_end(tokenizer)
    return ids[0] if ids and ids[0] in {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder} else None


def turn_end(tokenizer: PreTrainedTokenizerBase) -> list[int] | None:
    """Ids of what the chat template writes after an assistant's content, white space aside; None where it refuses."""
    probe = "narlm probe"
    try:
        text = renderer(tokenizer, {})([*user_turn("x"), *assistant_turn(probe)])
    except UserError:
        return None
    tail = text.rpartition(probe)[2].strip()
    return encode_rendered(tokenizer, tail) if tail else []
