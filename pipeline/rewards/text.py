"""Rewards that read the text alone: ``exact``, ``choice``, ``format``, ``length``, ``repetition``."""

import re
from collections.abc import Sequence

from pipeline.rewards.answers import before_end_of_turn, marked_answer, visible_text
from pipeline.rewards.judging import Judgement, Sample, judged, scored, unscorable
from pipeline.runtime.errors import UserError

_FORMAT = re.compile(r"\s*<think>(.*?)</think>\s*<answer>(.*?)</answer>\s*", re.DOTALL)
_FORMAT_TAG = re.compile(r"</?(?:think|answer)>")
_CHOICE = re.compile(r"(?:(?:the\s+)?(?:correct\s+|final\s+)?answer\s*(?:is\s*:?|:)\s*)?(?:\(([A-Z])\)|([A-Z])[.)]?)")


def exact_judge(sample: Sample) -> Judgement:
    """Right if the visible text, or what its marker holds, is the column ``answer`` to the letter (ends stripped).

    ``answer`` may be a list: then any of its entries is right.
    """
    gold = sample.row.get("answer")
    accepted = [gold] if isinstance(gold, str | int) and not isinstance(gold, bool) else gold
    if not isinstance(accepted, list | tuple) or not accepted:
        return unscorable("the gold answer is missing")
    texts = [str(answer).strip() for answer in accepted if answer is not None]
    if not any(texts):
        return unscorable("the gold answer is empty")
    visible = visible_text(sample.text).strip()
    marked = marked_answer(visible)
    return judged((visible if marked is None else marked) in texts, "another text")


def _letter(answer: object) -> str | None:
    """A choice as a capital letter: ``B``, ``(B)``, ``b``, or its index from 0."""
    if isinstance(answer, int) and not isinstance(answer, bool):
        return chr(ord("A") + answer) if 0 <= answer < 26 else None
    match = _CHOICE.fullmatch(answer.strip().upper()) if isinstance(answer, str) else None
    return (match[1] or match[2]) if match else None


def choice_judge(sample: Sample) -> Judgement:
    """Multiple choice: right if the one letter given is the column ``answer`` (a letter, or an index from 0).

    The letter comes after a marker, in ``<answer>``, or is all that the visible text says (``B``, ``(B)``, ``B.``,
    ``The answer is B.``). Two letters are wrong, and so is a letter somewhere in a sentence.
    """
    gold = _letter(sample.row.get("answer"))
    if gold is None:
        return unscorable("the gold answer is no choice: give a letter, or an index from 0")
    visible = visible_text(sample.text)
    given = marked_answer(visible)
    given = visible if given is None else given
    given = re.sub(r"\\text\s*+\{([^{}]*+)\}|\*\*", r"\1", given).strip()
    if len(given) > 60:
        return judged(False, "no single letter")
    letter = re.fullmatch(_CHOICE, given) or re.fullmatch(_CHOICE.pattern, given, re.IGNORECASE)
    found = (letter[1] or letter[2]).upper() if letter else None
    return judged(found == gold, "no single letter" if found is None else "another choice")


def format_judge(sample: Sample) -> Judgement:
    """Right if the turn is ``<think>…</think><answer>…</answer>``, each tag once, both filled, nothing around them."""
    text = before_end_of_turn(sample.text)
    match = _FORMAT.fullmatch(text) if len(_FORMAT_TAG.findall(text)) == 4 else None
    filled = match is not None and all(part.strip() for part in match.groups())
    return judged(filled, "not <think>…</think><answer>…</answer>")


def length_judge(sample: Sample, limit: int = 256, buffer: int = 64) -> Judgement:
    """Penalty on long completions, in tokens where ``completion_ids`` is given (training), else in words.

    0 up to ``limit - buffer``, then linear down to -1 at ``limit`` and beyond (DAPO, arXiv 2503.14476, eq. 13).
    """
    if not 0 < buffer <= limit:
        raise UserError(f"reward 'length': buffer must be in 1..limit, got buffer={buffer}, limit={limit}")
    ids = sample.row.get("completion_ids")
    length = len(ids) if isinstance(ids, Sequence) and not isinstance(ids, str) else len(sample.text.split())
    return scored(-min(1.0, max(0.0, (length - (limit - buffer)) / buffer)))


def repetition_judge(sample: Sample, size: int = 3) -> Judgement:
    """Minus the share of word ``size``-grams that are repetitions: 0 where all differ (or there are too few words)."""
    if size < 1:
        raise UserError(f"reward 'repetition': size must be at least 1, got {size}")
    words = sample.text.lower().split()
    grams = [tuple(words[i : i + size]) for i in range(len(words) - size + 1)]
    return scored(len(set(grams)) / len(grams) - 1.0 if grams else 0.0)
