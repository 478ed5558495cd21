"""Answers that claim nothing: whoever says that they do not know is not wrong."""

import re

from pipeline.rewards.answers import marked_answer, visible_text

_ABSTENTION = re.compile(
    r"\W*(?:sorry\W+)?(?:unknown|not (?:stated|known|sure)|no idea"
    r"|i (?:do not|don[’']t|cannot|can[’']t|could not) (?:know|say|tell|answer|find)"
    r"|i(?: am|[’']m) not (?:sure|certain|aware)"
    r"|there is no (?:information|answer)|it is (?:un|not )known)\b",
    re.IGNORECASE,
)


def stated(completion: str) -> str:
    """The answer of a completion: what its marker holds, else all that is visible."""
    seen = visible_text(completion)
    marked = marked_answer(seen)
    return (seen if marked is None else marked).strip()


def abstains(completion: str) -> bool:
    """Whether a completion's answer begins with words that say that there is none: ``Unknown``, ``I'm not sure``."""
    return bool(_ABSTENTION.match(stated(completion)))
