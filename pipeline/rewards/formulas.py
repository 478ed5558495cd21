r"""How a mathematical answer is written: one value, a list of values, a tuple, an interval, or a relation.

`tree` reads only this outer form; what the values are is left to a computer algebra system (``math_worker``). Nodes
are plain data, so that they can be sent to a worker: a string is one formula; else a list whose first entry says what
the rest are:

=======================================  =============================================================
``["set", a, b, …]``                     values without an order: ``1,2``, ``\{1,2\}``, ``x=1, x=2``, ``\pm 7``
``["sequence", "(", ")", raw, a, b, …]`` values in an order, a point or an interval: ``(1,2)``, ``[0,1)``
``["and", a, b, …]``, ``["or", a, b …]`` relations of which all or any hold: ``x < 1 \text{ or } x > 2``
=======================================  =============================================================
"""

import itertools
import re

Tree = str | list["Tree"]

_LAYOUT = re.compile(
    r"\\(?:left|right|displaystyle|bigl?|bigr|Bigl?|Bigr)(?![A-Za-z])|(?<!\\)\\[,;:! ]|\\q?quad(?![A-Za-z])|\\?\$"
)
_THOUSANDS = re.compile(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))|\{,\}|,\\!")
_WORD = r"\\(?:text|mbox|textrm|mathrm|textit)\s*+\{{\s*+,?\s*+(?:{0})\s*+\}}|(?<![A-Za-z\\])(?:{0})(?![A-Za-z])"
_OR = re.compile(rf"{_WORD.format('or')}|\\(?:lor|vee)(?![A-Za-z])")
_AND = re.compile(rf"{_WORD.format('and')}|\\(?:land|wedge)(?![A-Za-z])")
_DIGIT_PAIR = re.compile(r"\\[dt]?frac\s*([0-9])\s*([0-9])")
_DIGIT_BASE = re.compile(r"\\log\s*_\s*([0-9])")
_EMPTY = re.compile(r"\\varnothing(?![A-Za-z])|∅|^\s*\\\{\s*\\\}\s*$")
_MEMBER = re.compile(r"^\s*[A-Za-z](?:_\{?\w+\}?)?\s*(?:\\in(?![A-Za-z])|∈)")
_BUILDER = re.compile(r"^\s*\\\{\s*[A-Za-z]\s*(?:\\mid(?![A-Za-z])|\\?\||:)(.*)\\\}\s*$", re.DOTALL)
_NAME = r"[A-Za-z](?:_\{?\w++\}?)?+"
_ASSIGNED = re.compile(r"^\s*([A-Za-z](?:_\{?\w+\}?)?)\s*=(?!=)")
_POINT = re.compile(rf"(^|[,;])\s*+\(\s*+({_NAME}(?:\s*+,\s*+{_NAME})++)\s*+\)\s*+=\s*+(?=\()")
_INEQUALITY = re.compile(r"[<>≤≥≠]|\\(?:le|ge|leq|geq|leqslant|geqslant|lt|gt|ne|neq)(?![A-Za-z])")
_SIGNS = re.compile(r"\\(?:pm|mp)(?![A-Za-z])|±|∓")
_BRACKETS = re.compile(r"\\[{}]|[()\[\]{}]|\\[A-Za-z]+|\\.|,|;", re.DOTALL)
_OPENING, _CLOSING = ("(", "[", "{", "\\{"), (")", "]", "}", "\\}")
_MOST_SIGNS = 4
_MOST_CHARACTERS = 4000  # of a formula whose form is read; a longer one is one value, whatever it holds
_DEEPEST = 4


def canonical(latex: str) -> str:
    """The formula without layout, with one name for the empty set, and without ``x \\in`` before a set."""
    text = _LAYOUT.sub(" ", _THOUSANDS.sub("", latex)).replace("−", "-")
    text = _DIGIT_BASE.sub(r"\\log_{\1}", _DIGIT_PAIR.sub(r"\\frac{\1}{\2}", text))
    text = _EMPTY.sub(r"\\emptyset ", text).replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")
    return _MEMBER.sub("", text).strip().removesuffix(".").strip()


def tree(latex: str) -> Tree:
    """The outer form of a formula that went through ``canonical``; see the module's docstring."""
    if len(latex) > _MOST_CHARACTERS:
        return latex
    builder = _BUILDER.match(latex)
    text = builder[1] if builder else latex
    braces = _enclosed(text, "\\{", "\\}")
    inner = braces if braces is not None else text
    parts, word = _split(inner)
    if len(parts) > 1 and all(_INEQUALITY.search(part) for part in parts):
        return [word or "and", *parts]
    if braces is None and len(parts) > 1 and not all(parts):
        return text  # a comma with nothing on one side: no list
    values = [value for part in _without_variable(parts) for value in _both_signs(part)]
    items = [_item(value) for value in values]
    return items[0] if len(items) == 1 else ["set", *items]


def leaves(form: Tree) -> list[str]:
    """The single formulas of an outer form."""
    if isinstance(form, str):
        return [form]
    return [leaf for part in form[4 if form[0] == "sequence" else 1 :] for leaf in leaves(part)]


def without_names(answer: str, gold: str) -> tuple[str, str]:
    """Both without a leading ``(x, y) =`` before their points, where the names say nothing about the order.

    That is where both name the same variables, or one names them and has them in the order of the alphabet.
    """
    names = [{re.sub(r"\s", "", match[2]) for match in _POINT.finditer(text)} for text in (answer, gold)]
    found = names[0] | names[1]
    if len(found) != 1:
        return answer, gold
    listed = found.pop().split(",")
    if names[0] != names[1] and listed != sorted(set(listed)):
        return answer, gold
    first, second = (_POINT.sub(r"\1", text).strip() for text in (answer, gold))
    return first, second


def variables(latex: str) -> set[str]:
    """The variables that a list of solutions assigns values to."""
    parts = _split(latex)[0] if len(latex) <= _MOST_CHARACTERS else []
    return {match[1] for part in parts if (match := _ASSIGNED.match(part))}


def _item(text: str, depth: int = 0) -> Tree:
    """One value: a formula, or a sequence in brackets."""
    for opening in ("(", "["):
        for closing in (")", "]"):
            inner = _enclosed(text, opening, closing)
            parts = _split(inner, words=False)[0] if inner is not None else []
            if len(parts) > 1 and all(parts) and depth < _DEEPEST:
                return ["sequence", opening, closing, text.strip(), *(_item(part, depth + 1) for part in parts)]
    return text.strip()


def _enclosed(text: str, opening: str, closing: str) -> str | None:
    """What the text holds between one pair of brackets that encloses all of it, or None."""
    text = text.strip()
    if len(text) < len(opening) + len(closing) or not (text.startswith(opening) and text.endswith(closing)):
        return None
    depth = 0
    for match in _BRACKETS.finditer(text):
        depth += (match.group() in _OPENING) - (match.group() in _CLOSING)
        if depth == 0 and match.group() in _CLOSING:
            return text[len(opening) : -len(closing)] if match.end() == len(text) else None
    return None


def _split(text: str, words: bool = True) -> tuple[list[str], str]:
    """The parts between commas (and the words "and", "or") outside all brackets, and the word that parts them."""
    word = ""
    if words:
        word = "or" if _outside(text, _OR) else "and" if _outside(text, _AND) else ""
        for pattern in (_OR, _AND):
            for start, end in reversed(_outside(text, pattern)):
                text = text[:start] + "," + text[end:]
        text = re.sub(r",\s*,", ",", text)
    parts, start, depth = [], 0, 0
    for match in _BRACKETS.finditer(text):
        token = match.group()
        depth += (token in _OPENING) - (token in _CLOSING)
        if token in (",", ";") and depth == 0:
            parts.append(text[start : match.start()].strip())
            start = match.end()
    return [*parts, text[start:].strip()], word


def _outside(text: str, pattern: re.Pattern) -> list[tuple[int, int]]:
    """Where a pattern is found outside all brackets."""
    found = [match.span() for match in pattern.finditer(text)]
    if not found:
        return []
    depths, depth, position = [], 0, 0
    for match in _BRACKETS.finditer(text):
        depths += [depth] * (match.start() - position)
        position = match.start()
        depth += (match.group() in _OPENING) - (match.group() in _CLOSING)
    depths += [depth] * (len(text) - position)
    return [span for span in found if depths[span[0]] == 0]


def _without_variable(parts: list[str]) -> list[str]:
    """``x=1, x=2`` and ``x = 1, 2`` as ``1, 2``: the name of one variable adds nothing to a list of its values."""
    names = [match and match[1] for match in map(_ASSIGNED.match, parts)]
    one_name = len(parts) > 1 and names[0] and set(names) <= {names[0], None}
    if one_name or (len(parts) == 1 and _SIGNS.search(parts[0])):
        return [_ASSIGNED.sub("", part, count=1) for part in parts]
    return parts


def _both_signs(text: str) -> list[str]:
    """``3 \\pm a`` as ``3 + a`` and ``3 - a``; every sign is free unless ``\\mp`` ties them."""
    places = list(_SIGNS.finditer(text))
    if not places or len(places) > _MOST_SIGNS:
        return [text]
    below = [match.group() in ("\\mp", "∓") for match in places]
    choices = [(s,) * len(places) for s in (1, -1)] if any(below) else itertools.product((1, -1), repeat=len(places))
    written = []
    for choice in choices:
        pieces, position = [], 0
        for match, sign, turned in zip(places, choice, below):
            positive = (sign > 0) != turned
            first = not text[: match.start()].strip() or text[: match.start()].rstrip()[-1] in "([{,="
            pieces += [text[position : match.start()], ("" if first else "+") if positive else "-"]
            position = match.end()
        written.append("".join(pieces) + text[position:])
    return written
