"""How a reward is written: ``"numeric + 0.2*format - 0.1*repetition(size=4)"`` is a weighted sum of three terms."""

import ast
import re
from typing import Any

from pipeline.runtime.errors import UserError

Options = dict[str, Any]  # of a reward, by name; values are Python literals
# A name, package.module:function, or the path of a Python file and a function of it.
_NAME = r"[\w./~-]*\.py:\w+|[A-Za-z_][\w.]*(?::\w*)?"
_TERM = re.compile(rf"\s*(?:(?P<weight>[0-9.]+(?:[eE][+-]?[0-9]+)?)\s*\*\s*)?(?P<name>{_NAME})\s*")


def terms_of(text: str) -> list[tuple[float, str, Options]]:
    """``"numeric - 0.5*length(limit=9)"`` as ``[(1.0, "numeric", {}), (-0.5, "length", {"limit": 9})]``.

    Raises:
        UserError: it cannot be read as a sum of terms.
    """
    terms, position, sign = [], 0, 1.0
    if text.lstrip().startswith("-"):
        position, sign = text.index("-") + 1, -1.0
    while position < len(text):
        match = _TERM.match(text, position)
        if match is None:
            raise UserError(
                f"reward: cannot read '{text[position:].strip()}' in '{text}'; write it like 'math + 0.2*format'"
            )
        position, options = match.end(), {}
        if text[position : position + 1] == "(":
            options, position = _options(text, position)
        terms.append((sign * float(match["weight"] or 1), match["name"], options))
        rest = text[position:].lstrip()
        position = len(text) - len(rest)
        if rest:
            if rest[0] not in "+-" or not rest[1:].strip():
                raise UserError(f"reward: expected '+' or '-' and a term at '{rest}' in '{text}'")
            sign, position = (1.0 if rest[0] == "+" else -1.0), position + 1
    return terms


def _options(text: str, start: int) -> tuple[Options, int]:
    """Options in the parentheses that open at ``start``, and where they end."""
    for end in (match.end() for match in re.finditer(r"\)", text[start:])):
        try:
            call = ast.parse("f" + text[start : start + end], mode="eval").body
            if isinstance(call, ast.Call) and not call.args:
                return {word.arg: ast.literal_eval(word.value) for word in call.keywords}, start + end
        except (SyntaxError, ValueError):
            continue
    raise UserError(f"reward: cannot read the options in '{text}'; write them like 'length(limit=128)'")


def parse_options(text: str) -> Options:
    """Options of the command line: ``"limit=128, buffer=16"`` with Python literals as values."""
    return _options(f"({text})", 0)[0] if text.strip() else {}


def weighed(spec: str, weight: float) -> str:
    """The sum that ``spec`` is, written out with every term multiplied by ``weight``."""
    written = []
    for factor, name, options in terms_of(spec):
        call = f"({', '.join(f'{key}={value!r}' for key, value in options.items())})" if options else ""
        total = weight * factor
        written.append(f"{'' if total == 1 else f'{total:.12g}*'}{name}{call}")
    return " + ".join(written).replace("+ -", "- ")
