"""Rows to token ids, and which of them are learned: the one place that decides the loss mask.

Training, `pipeline.data.check`, evaluation, the model card and the line that a stage prints all come here.

=================== ============================================== =========================================
row                 learned                                        all of it, when asked
=================== ============================================== =========================================
text                every token                                    the same
prompt, completion  the completion (and the EOS after it)          ``completion_only_loss: false``
messages            the assistant's turns: content and the token   ``assistant_only_loss: false``
                    with which the template ends the turn
both of messages    the assistant's turns of the completion        either
=================== ============================================== =========================================

A turn with ``weight: 0`` is read and not learned. A template with ``{% generation %}`` markers marks what the
assistant writes. Without them a turn is found by rendering the dialogue up to it: where that is a prefix of the
whole text, its end is a place in the text, and the offsets of one tokenisation of it say which tokens come after it.
Where it is no prefix (templates that strip what was thought in earlier turns) the row is refused.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.runtime.errors import UserError
from pipeline.runtime.files import Json
from pipeline.runtime.messages import (
    REASONING,
    Turn,
    as_answer,
    assistant_turn,
    content_text,
    is_dialogue,
    user_turn,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100  # the label of a token that is not learned
MARKER = re.compile(r"\{%-?\s*generation\s*-?%\}")

Coded = tuple[list[int], list[bool]]  # token ids, and which of them are learned
Span = tuple[int, int]  # characters of a rendered dialogue, the end excluded
Render = Callable[..., Any]  # of `renderer`


@dataclass(frozen=True)
class Learned:
    """What of a row is learned, as TRL's flags say it; None where the flag was not given.

    Attributes:
        assistant_only: of a dialogue the assistant's turns (the default), or with False all of it.
        completion_only: of prompt and completion the completion (the default), or with False both.
    """

    assistant_only: bool | None = None
    completion_only: bool | None = None

    def of(self, row: Json) -> str:
        """What is learned of rows with these columns, in words."""
        if "completion_mask" in row:
            return "the completions"
        if "messages" in row:
            return "every token" if self.assistant_only is False else "the assistant's turns"
        if "prompt" not in row:
            return "every token"
        if self.completion_only is False:
            return "the assistant's turns" if self.assistant_only and is_dialogue(row["prompt"]) else "every token"
        return "the completions"


ANSWERS = Learned()


def encode_row(tokenizer: PreTrainedTokenizerBase, row: Json, learned: Learned = ANSWERS) -> Coded:
    """Token ids (T,) of a converted row and, for each, whether it is learned.

    Args:
        row: ``text``; ``messages``; ``prompt`` + ``completion``; or ``input_ids`` + ``completion_mask``. A dialogue
            may bring ``tools`` and ``chat_template_kwargs``, as in TRL.
        learned: what is learned of it.

    Raises:
        UserError: the row has none of these; the chat template refuses the dialogue, drops a part of it, or does not
            show where a turn that is to be learned begins and ends.
    """
    if row.get("input_ids") is not None:
        return list(row["input_ids"]), [bool(mark) for mark in row["completion_mask"]]
    if row.get("text") is not None:
        ids = encode_text(tokenizer, ended(tokenizer, row["text"]))
        return ids, [True] * len(ids)
    if row.get("messages") is not None:
        return _encode_chat(tokenizer, row, row["messages"], 0, learned.assistant_only is not False)
    if row.get("prompt") is None or row.get("completion") is None:
        raise UserError(f"a row for the loss needs text, messages, or prompt + completion; it has {', '.join(row)}")
    if not is_dialogue(row["prompt"]):
        prompt, completion = encode_answer(tokenizer, row["prompt"], row["completion"])
        return prompt + completion, [learned.completion_only is False] * len(prompt) + [True] * len(completion)
    messages = [*row["prompt"], *row["completion"]]
    if learned.completion_only is False:
        return _encode_chat(tokenizer, row, messages, 0, bool(learned.assistant_only))
    if learned.assistant_only is not False:
        return _encode_chat(tokenizer, row, messages, len(row["prompt"]), True)
    prompt, completion = encode_answer(tokenizer, row["prompt"], row["completion"], row)
    return prompt + completion, [False] * len(prompt) + [True] * len(completion)


def encode_answer(
    tokenizer: PreTrainedTokenizerBase, prompt: Turn, answer: Turn, row: Json | None = None
) -> tuple[list[int], list[int]]:
    """Prompt ids and completion ids as TRL's trainers cut them: where prompt and prompt + answer diverge.

    Plain text ends with one EOS; a chat answer ends as the template ends it.
    """
    if is_dialogue(prompt):
        text = renderer(tokenizer, row or {})(prompt, generation=True)
        before = encode_text(tokenizer, text, rendered=True)
    else:
        before = encode_text(tokenizer, prompt)
    both = encode_exchange(tokenizer, prompt, answer, row)
    shared = 0
    while shared < min(len(before), len(both)) and before[shared] == both[shared]:
        shared += 1
    return both[:shared], both[shared:]


def encode_exchange(
    tokenizer: PreTrainedTokenizerBase, prompt: Turn, answer: Turn, row: Json | None = None
) -> list[int]:
    """Ids of prompt and answer as RewardTrainer reads them: the chat template's text, or plain text and one EOS."""
    if is_dialogue(prompt):
        messages = [*prompt, *as_answer(prompt, answer)]
        return encode_text(tokenizer, renderer(tokenizer, row or {})(messages), rendered=True)
    return encode_text(tokenizer, ended(tokenizer, prompt + answer))


def encode_prompts(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Turn]) -> list[list[int]]:
    """Ids of each prompt, ready to be continued: one BOS at most, no EOS; of messages the generation prompt too.

    A final message of the assistant is continued.

    Raises:
        UserError: a prompt has no token to start from, or the chat template refuses it.
    """
    encoded = []
    for number, prompt in enumerate(prompts):
        if is_dialogue(prompt):
            begun = bool(prompt) and prompt[-1]["role"] == "assistant"
            text = renderer(tokenizer, {})(prompt, generation=not begun, continued=begun)
            ids = encode_text(tokenizer, text, rendered=True)
        else:
            ids = encode_text(tokenizer, prompt)
            if len(ids) > 1 and ids[-1] == tokenizer.eos_token_id and not prompt.endswith(tokenizer.eos_token):
                del ids[-1]  # a tokenizer that ends every text with EOS: there would be nothing to continue
            if not ids and tokenizer.bos_token_id is not None:
                ids = [tokenizer.bos_token_id]
        if not ids:
            raise UserError(
                f"prompt {number} is empty and the tokenizer has no bos token to start from: remove the row"
            )
        encoded.append(ids)
    return encoded


def encode_documents(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Documents as pretraining reads them: ``[bos] tokens eos``, with the BOS also where the tokenizer adds none.

    Raises:
        UserError: the tokenizer has no eos token, so documents could not end.
    """
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    if eos is None:
        raise UserError("the tokenizer has no eos token: documents could not be separated, nor would the model stop")
    head = [] if bos is None else [bos]
    encoded = tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
    return [head + ids + [eos] for ids in encoded]


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str, *, rendered: bool = False) -> list[int]:
    """Ids of a text with one BOS at most and no second EOS.

    Args:
        rendered: the text is a chat template's, which writes its special tokens itself.
    """
    bos, eos = tokenizer.bos_token, tokenizer.eos_token
    special = not rendered and not (bos and text.startswith(bos))
    ids = list(tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])
    if special and eos and text.endswith(eos) and ids[-2:] == [tokenizer.eos_token_id] * 2:
        del ids[-1]  # a tokenizer that ends every text with EOS
    return ids


def ended(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """The text with the EOS that ends a document or a completion."""
    eos = tokenizer.eos_token or ""
    return text if text.endswith(eos) else text + eos


def share(coded: Sequence[Coded], what: str) -> str:
    """``65% of the tokens: the assistant's turns``."""
    learned = sum(sum(marks) for _, marks in coded)
    return f"{learned / max(1, sum(len(ids) for ids, _ in coded)):.0%} of the tokens: {what}"


# ---------------------------------------------------------------------- dialogues


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


def _encode_chat(
    tokenizer: PreTrainedTokenizerBase, row: Json, messages: Sequence[Mapping], first: int, mask: bool
) -> Coded:
    """A dialogue; of its turns from ``first`` on the assistant's are learned, without ``mask`` every token."""
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
        ids = encode_text(tokenizer, text, rendered=True)
        return ids, [True] * len(ids)
    if not tokenizer.is_fast:
        raise UserError("the tokenizer reports no character offsets, which the mask of the assistant's turns needs")
    coded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids, offsets = list(coded["input_ids"]), coded["offset_mapping"]
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    learned = [False] * len(ids)
    if not mask:  # every token but those of the turns that are not to be learned
        skipped = [_turn(render, messages, i, text) for i in spoken if i not in turns]
        return ids, [not any(_within(offset, span) for span in skipped) for offset in offsets]
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
    return ids, learned


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
    return encode_text(tokenizer, tail, rendered=True) if tail else []
