"""Where the answer is in a completion: outside its thoughts, before the end of its turn, behind a marker.

Everything here takes time linear in the text: completions are hostile.
"""

import re

# The first of these ends the turn; what a model writes after it (often a conversation with itself) does not count.
END_OF_TURN = re.compile(
    r"<\|(?:eos|end|im_end|eot_id|eom_id|endoftext|end_of_text|end_of_turn|END_OF_TURN_TOKEN|return|user|pad)\|>"
    r"|</s>|<eos>|<end_of_turn>|<turn\|>|<｜end▁of▁sentence｜>"
)
_THINK = re.compile(r"<(/?)think>", re.IGNORECASE)
_HASHES = re.compile(r"(?<!#)####(?!#)")
_ANSWER = re.compile(r"<answer>((?:(?!</?answer>).)*+)</answer>", re.IGNORECASE | re.DOTALL)
_ANSWER_END = re.compile(r"</answer>", re.IGNORECASE)
_EMPHASIS = re.compile(r"\s*(\*{1,3}|_{1,3}|`{1,3})(?=\S)([^*_`]++)(?<=\S)\1\s*")
_BRACES = re.compile(r"\\boxed\s*+\{|\\.|[{}]", re.DOTALL)


def before_end_of_turn(text: str) -> str:
    """The text up to the first end-of-turn token."""
    end = END_OF_TURN.search(text)
    return text[: end.start()] if end else text


def outside_thoughts(text: str) -> str:
    """The text without ``<think>…</think>``.

    An unclosed ``<think>`` runs to the end. A ``</think>`` without an opening one ends a thought that began before:
    in the prompt (templates that open it there), or in the thought just before it (thoughts within thoughts).
    """
    kept: list[str] = []
    position, thinking = 0, False
    for tag in _THINK.finditer(text):
        opening = not tag.group(1)
        if opening and not thinking:
            kept.append(text[position : tag.start()])
        elif not opening:
            position = tag.end()  # without a thought before it this drops the stretch: it was a thought too
        thinking = opening
    if not thinking:
        kept.append(text[position:])
    return " ".join(kept)


def visible_text(text: str) -> str:
    """What a reader sees of the completion: one turn, without thoughts."""
    return outside_thoughts(before_end_of_turn(text))


def _boxes(text: str) -> tuple[list[tuple[int, int, int]], int]:
    """Closed ``\\boxed{…}`` as (start, start of content, end) in order of their ends, and the last unclosed start."""
    closed: list[tuple[int, int, int]] = []
    open_braces: list[tuple[int, int] | None] = []
    for token in _BRACES.finditer(text):
        symbol = token.group()
        if symbol == "{":
            open_braces.append(None)
        elif symbol == "}":
            opened = open_braces.pop() if open_braces else None
            if opened is not None:
                closed.append((*opened, token.end()))
        elif symbol.startswith("\\boxed") and symbol.endswith("{"):
            open_braces.append((token.start(), token.end()))
    unclosed = [opened[0] for opened in open_braces if opened is not None]
    return closed, max(unclosed, default=-1)


def _outermost(boxes: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """Boxes that are in no other box, in the order of the text."""
    outer: list[tuple[int, int, int]] = []
    for box in sorted(boxes):
        if not outer or box[0] >= outer[-1][2]:
            outer.append(box)
    return outer


def _unboxed(content: str) -> str:
    """The content with every ``\\boxed{x}`` in it replaced by `` x ``: ``#### \\boxed{5}`` holds 5."""
    boxes, _ = _boxes(content)
    if not boxes:
        return content
    pieces, cuts = [], sorted(cut for start, inner, end in boxes for cut in ((start, inner), (end - 1, end)))
    position = 0
    for start, end in cuts:
        pieces.append(content[position:start])
        position = end
    pieces.append(content[position:])
    return " ".join(pieces)


def marked_answer(text: str) -> str | None:
    """Content of the last explicit marker: ``#### …`` to the end of its line, ``\\boxed{…}``, ``<answer>…</answer>``.

    Pass it :func:`visible_text`. A box inside a ``####`` line or inside another box belongs to that marker; a marker
    inside ``<answer>`` says what the answer is. A box that is never closed is a marker that holds nothing.
    ``</answer>`` ends a line. Returns None where there is no marker.
    """
    tags = [(tag.start(), tag[1]) for tag in _ANSWER.finditer(text)]
    text = _ANSWER_END.sub("\n" + " " * 8, text)  # as long as it was: positions stay
    closed, unclosed_start = _boxes(text)
    boxes = _outermost(closed)
    markers = [(start, text[inner : end - 1]) for start, inner, end in boxes[-1:]]
    if unclosed_start >= 0:
        markers.append((unclosed_start, ""))

    index = 0
    hash_start = -1
    for match in _HASHES.finditer(text):
        while index < len(boxes) and boxes[index][2] <= match.start():
            index += 1
        if index == len(boxes) or match.start() < boxes[index][0]:
            hash_start = match.start()
    if hash_start >= 0:
        line_end = text.find("\n", hash_start)
        for start, _, end in boxes:
            if line_end >= 0 and max(start, hash_start) < line_end < end:
                line_end = text.find("\n", end)
        content = text[hash_start + 4 : line_end if line_end >= 0 else len(text)]
        line_end = line_end if line_end >= 0 else len(text)
        markers = [marker for marker in markers if not hash_start < marker[0] < line_end]
        markers.append((hash_start, content))
    markers += [(start, content) for start, content in tags if not _is_marked(content)]
    return _unboxed(max(markers)[1]).strip() if markers else None


def _is_marked(text: str) -> bool:
    return "\\boxed" in text or _HASHES.search(text) is not None


def without_emphasis(text: str) -> str:
    """The text without Markdown's stars, underscores or backticks around all of it: ``**25**``, ``*25*``."""
    stop = "." if text.rstrip().endswith(".") else ""
    match = _EMPHASIS.fullmatch(text.rstrip().removesuffix(".") if stop else text)
    return match[2].strip() + stop if match else text


def gold_text(gold: object) -> str | None:
    """Text of a gold answer: what its marker holds (GSM8K's ``#### 72``, MATH's solutions), else all of it.

    Numbers are written out; None, booleans and empty text are no gold answer.
    """
    if gold is None or isinstance(gold, bool):
        return None
    text = gold if isinstance(gold, str) else repr(gold) if isinstance(gold, int | float) else None
    if text is None:
        return None
    marked = marked_answer(text)
    return (text if marked is None else marked).strip() or None
