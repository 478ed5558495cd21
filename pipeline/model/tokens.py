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

How the assistant's turns of a dialogue are found is in `pipeline.model.dialogue_tokens`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.model.dialogue_tokens import Coded, closing_token, encode_dialogue, encode_rendered, renderer
from pipeline.runtime.errors import UserError
from pipeline.runtime.files import Json
from pipeline.runtime.messages import Turn, as_answer, is_dialogue

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100  # the label of a token that is not learned


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
        return encode_dialogue(tokenizer, row, row["messages"], 0, learned.assistant_only is not False)
    if row.get("prompt") is None or row.get("completion") is None:
        raise UserError(f"a row for the loss needs text, messages, or prompt + completion; it has {', '.join(row)}")
    if not is_dialogue(row["prompt"]):
        prompt, completion = encode_answer(tokenizer, row["prompt"], row["completion"])
        return prompt + completion, [learned.completion_only is False] * len(prompt) + [True] * len(completion)
    messages = [*row["prompt"], *row["completion"]]
    if learned.completion_only is False:
        return encode_dialogue(tokenizer, row, messages, 0, bool(learned.assistant_only))
    if learned.assistant_only is not False:
        return encode_dialogue(tokenizer, row, messages, len(row["prompt"]), True)
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
        before = encode_rendered(tokenizer, text)
    else:
        before = encode_text(tokenizer, prompt)
    both = encode_exchange(tokenizer, prompt, answer, row)
    shared = _shared(before, both)
    return both[:shared], both[shared:]


def encode_exchange(
    tokenizer: PreTrainedTokenizerBase, prompt: Turn, answer: Turn, row: Json | None = None
) -> list[int]:
    """Ids of prompt and answer as RewardTrainer reads them: the chat template's text, or plain text and one EOS."""
    if is_dialogue(prompt):
        messages = [*prompt, *as_answer(prompt, answer)]
        return encode_rendered(tokenizer, renderer(tokenizer, row or {})(messages))
    return encode_text(tokenizer, ended(tokenizer, prompt + answer))


def encode_completion(tokenizer: PreTrainedTokenizerBase, prompt: Turn | None, text: str) -> list[int]:
    """Ids of a completion that is known as text only, as if it had been sampled: with the token that ends it.

    That is the template's end of turn where the prompt is a dialogue and the template has one, else the EOS.
    """
    ids = list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    chat = is_dialogue(prompt) and tokenizer.chat_template
    end = closing_token(tokenizer, tokenizer.get_chat_template()) if chat else None
    return [*ids, tokenizer.eos_token_id if end is None else end]


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Turn], tools: Sequence[Callable] | None = None
) -> list[list[int]]:
    """Ids of each prompt, ready to be continued: one BOS at most, no EOS; of messages the generation prompt too.

    A final message of the assistant is continued. ``tools`` are what the model may call, as its template lists them.

    Raises:
        UserError: a prompt has no token to start from, or the chat template refuses it.
    """
    encoded = []
    for number, prompt in enumerate(prompts):
        if is_dialogue(prompt):
            begun = bool(prompt) and prompt[-1]["role"] == "assistant"
            text = renderer(tokenizer, {"tools": tools})(prompt, generation=not begun, continued=begun)
            ids = encode_rendered(tokenizer, text)
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


def encode_candidates(
    tokenizer: PreTrainedTokenizerBase, prompt: Turn, candidates: Sequence[str]
) -> tuple[list[int], list[list[int]]]:
    """Ids of a prompt and of each candidate that may follow it, for the probabilities of the candidates given it.

    Prompt and candidate are tokenised as one text, as a model has read it, and cut where the candidates and the prompt
    alone diverge: if a token spans the end of the prompt, it belongs to every candidate. After a user's turn a
    candidate is a complete answer and ends with the token that ends the turn; after plain text, or in a turn of the
    assistant that has begun, it is what comes next and may go on.

    Raises:
        UserError: a candidate that adds nothing to the prompt, or one that its first token swallows.
    """
    before = encode_prompts(tokenizer, [prompt])[0]
    if not is_dialogue(prompt):
        both = encode_prompts(tokenizer, [prompt + candidate for candidate in candidates])
    elif prompt[-1]["role"] == "assistant":
        begun = prompt[-1]
        both = encode_prompts(
            tokenizer, [[*prompt[:-1], {**begun, "content": begun["content"] + c}] for c in candidates]
        )
    else:
        end = closing_token(tokenizer, tokenizer.get_chat_template())
        both = [_up_to(encode_exchange(tokenizer, prompt, c), end, len(before)) for c in candidates]
    shared = min(len(before), *(_shared(before, ids) for ids in both))
    if not shared:
        raise UserError(f"the prompt {prompt!r:.80} and a candidate are one token: there is nothing to start from")
    for candidate, ids in zip(candidates, both):
        if len(ids) == shared or not candidate:
            raise UserError(f"the candidate {candidate!r} adds no token to the prompt: give it some text")
    return before[:shared], [ids[shared:] for ids in both]


def _up_to(ids: list[int], end: int | None, start: int) -> list[int]:
    """The ids up to the first ``end`` from ``start`` on, with it: a template may write a line break after it."""
    return ids[: ids.index(end, start) + 1] if end in ids[start:] else ids


def _shared(first: Sequence[int], second: Sequence[int]) -> int:
    """How many ids two rows begin with in common."""
    return next((i for i, (a, b) in enumerate(zip(first, second)) if a != b), min(len(first), len(second)))


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


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of a plain text with one BOS at most and no second EOS."""
    bos, eos = tokenizer.bos_token, tokenizer.eos_token
    special = not (bos and text.startswith(bos))
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
