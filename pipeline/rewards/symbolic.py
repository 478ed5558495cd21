"""``math`` (equal as mathematics, by math-verify in a worker that can be killed) and ``logic`` (by truth table)."""

import functools
import json
import re
from typing import NamedTuple

from pipeline.rewards.answers import gold_text, marked_answer, visible_text, without_emphasis
from pipeline.rewards.formulas import Tree, canonical, leaves, tree, variables, without_names
from pipeline.rewards.judging import Judgement, Sample, error, judged, right, timeout, unscorable, wrong
from pipeline.rewards.numeric import read_number, same_number
from pipeline.rewards.sandbox.workers import Outcome, WorkerPool, core_share
from pipeline.runtime.errors import UserError

# --- math ------------------------------------------------------------------------------------------------------------

_GAP = r"(?:\s|\\[,;: ]|\\q?quad(?![A-Za-z])|~|\\(?:text|mbox|hspace|phantom)\s*\{[^{}]*\})"
_SPLIT_NUMBER = re.compile(rf"[0-9]{_GAP}+[0-9.]|[0-9][^\x00-\x7f∞≤≥≠±∓∈∪−]|\\\}}{_GAP}*[0-9]|[0-9]{_GAP}*'")
_HEDGES = re.compile(r"\b(?:not|either)\b|\\(?:approx|sim|[lc]?dots)(?![A-Za-z])|\.\.\.|…|≈")
_RELATION = re.compile(r"[<>=≤≥≠]|\\(?:le|ge|leq|geq|lt|gt|ne|neq|in)(?![A-Za-z])")
_REGION = re.compile(r"[(\[].*,.*[)\]]|\\cup(?![A-Za-z])|∪|\\mathbb|\\emptyset", re.DOTALL)
_ASSIGNMENT = re.compile(r"\s*[A-Za-z](?:_\{?\w+\}?)?\s*=(?!=)")
_BASE_SIGN = re.compile(r"[0-9]\s*_")
_IN_BASE = re.compile(r"\s*([0-9A-Fa-f]+)\s*_\s*(?:([0-9])|\{\s*(?:\\text\s*\{)?\s*(\w+)\s*\}?\s*\})\s*")
_LN, _BARE_LOG = re.compile(r"\\ln(?![A-Za-z])"), re.compile(r"\\log(?![A-Za-z])(?!\s*_)")
_NOT_A_NUMBER = re.compile(r"\W*(?:\\(?:text|mathrm)\s*\{)?\s*(?:nan|inf)\W*", re.IGNORECASE)
_BY_ZERO = re.compile(r"[^/]*(?:/|\\frac\s*\{[^{}]*\})\s*\{?\s*0+(?:\.0*)?\s*\}?")
_RATIO = re.compile(r"[0-9})]\s*[:∶]\s*[0-9\\({-]")


def _squeezed(latex: str) -> str:
    """A canonical formula without spaces (but ``4 1`` is not 41), for comparison as text."""
    return re.sub(r"(?<![0-9])\s+|\s+(?![0-9])", "", latex)


def _statement(part: Tree) -> str:
    """What one value states, without a leading ``x =``."""
    text = part if isinstance(part, str) else part[3] if part[0] == "sequence" else " ".join(map(_statement, part[1:]))
    return _ASSIGNMENT.sub("", text, count=1)


def refusal(answer: str, gold: str) -> str | None:
    """Why ``answer`` must not even be compared with ``gold``, or None; both canonical.

    math-verify adds numbers that are side by side (``4 1`` is 5), rescales percents both ways, drops the base of a
    number and takes the last side of any equation: all of these are ways to several answers at once.
    """
    form = tree(answer)
    values, wanted = leaves(form), leaves(tree(gold))
    if any(map(_SPLIT_NUMBER.search, values)) and not any(map(_SPLIT_NUMBER.search, wanted)):
        return "numbers side by side"
    if any(map(_RATIO.search, values)) != any(map(_RATIO.search, wanted)):
        return "a ratio on one side only"
    if _HEDGES.search(answer) and not _HEDGES.search(gold):
        return "alternatives"
    if ("%" in answer) != ("%" in gold):
        return "a percent is not rescaled"
    if bool(_BASE_SIGN.search(answer)) != bool(_BASE_SIGN.search(gold)):
        return "a base on one side only"
    if len(variables(answer)) > 1 and not variables(gold):
        return "values of several variables"
    stated = _statement(form)
    if _RELATION.search(stated) and not _RELATION.search(gold) and ("=" in stated or not _REGION.search(gold)):
        return "an equation"
    return None


def _same_base(answer: str, gold: str) -> bool | None:
    """Whether two numbers are the same digits in the same base; None where not both are written with one."""
    both = [_IN_BASE.fullmatch(text) for text in (answer, gold)]
    if not all(both):
        return None
    first, second = ((m[1].lstrip("0").upper(), (m[2] or m[3]).lower()) for m in both)
    return first == second


@functools.cache
def _pool() -> WorkerPool:
    return WorkerPool("pipeline.rewards.sandbox.math_worker:compare", min(core_share(), 8))  # each holds sympy: 150 MB


@functools.lru_cache(maxsize=65536)
def _gold_outcome(gold: str, deadline: float) -> Outcome:
    return _pool().run([{"gold": json.loads(gold)}], deadline)[0]


class Pair(NamedTuple):
    """The trees of an answer and of its gold answer, as JSON."""

    answer: str
    gold: str


def _at_once(sample: Sample) -> Judgement | Pair:
    """The verdict where none of math-verify is needed, else what to compare."""
    gold = gold_text(sample.row.get("answer"))
    if gold is None:
        return unscorable("the gold answer is missing")
    answer = marked_answer(visible_text(sample.text))
    if answer is None:
        return wrong("no marker (####, \\boxed{} or <answer>) outside the thoughts")
    if not answer:
        return wrong("the marker holds nothing")
    gold_number, number = read_number(gold), read_number(answer)
    if gold_number is not None and number is not None:
        return judged(same_number(gold_number, number), "another number")
    answer, gold = without_names(canonical(without_emphasis(answer)), canonical(gold))
    if _NOT_A_NUMBER.fullmatch(gold) or _BY_ZERO.fullmatch(gold):
        return unscorable("the gold answer is not a number (nan, inf, or a division by zero)")
    if _squeezed(answer) == _squeezed(gold):
        return right()
    same = _same_base(answer, gold)
    if same is not None:
        return judged(same, "another number, or another base")
    reason = refusal(answer, gold)
    if reason:
        return wrong(reason)
    if _LN.search(answer + gold):  # beside ln, log is the natural logarithm
        answer, gold = _BARE_LOG.sub(r"\\ln", answer), _BARE_LOG.sub(r"\\ln", gold)
    pair = tree(answer), tree(gold)
    if _length(pair[0]) != _length(pair[1]):
        return wrong(f"{_length(pair[0])} values for {_length(pair[1])}")
    return Pair(*map(json.dumps, pair))


def _length(part: Tree) -> int:
    return len(part) - 1 if isinstance(part, list) and part[0] == "set" else 1


def check(deadline: float = 5.0) -> None:
    """Before any model loads: is the deadline one? Raises UserError."""
    if not 0 < deadline <= 600:
        raise UserError(f"reward 'math': deadline must be in 0..600 seconds, got {deadline}")


def math_many(samples: list[Sample], deadline: float = 5.0) -> list[Judgement]:
    """Verdicts against the column ``answer``; each comparison has ``deadline`` seconds, then its worker is killed."""
    decided = [_at_once(sample) for sample in samples]
    open_pairs = [pair for pair in decided if isinstance(pair, Pair)]
    golds = {gold: _gold_outcome(gold, deadline) for _, gold in open_pairs}
    readable = [pair for pair in dict.fromkeys(open_pairs) if golds[pair[1]] == Outcome("done", "right")]
    jobs = [{"answer": json.loads(answer), "gold": json.loads(gold)} for answer, gold in readable]
    outcomes = _pool().run(jobs, deadline)
    compared = dict(zip(readable, outcomes, strict=True))
    return [
        item if isinstance(item, Judgement) else _math_judgement(golds[item[1]], compared.get(item))
        for item in decided
    ]


def _math_judgement(gold: Outcome, outcome: Outcome | None) -> Judgement:
    if gold == Outcome("done", "unscorable"):
        return unscorable("the gold answer is no formula that can be read")
    if outcome is None:
        return error(f"the gold answer alone runs over the limit ({gold.value or gold.status})")
    if outcome.status == "timeout" or outcome.value == "limit":
        return timeout("the comparison ran over its limit")
    if outcome.status == "died":  # the gold alone did not do that
        return timeout("the comparison ended the worker")
    return judged(outcome.value == "right", "another value")


# --- logic -----------------------------------------------------------------------------------------------------------

MAX_VARIABLES = 16
MAX_LENGTH = 10_000
# Loosest first; all of one level group to the left except implication, which groups to the right.
_BINARY = ("iff", "implies", "or", "xor", "and")
_WORDS = {
    **dict.fromkeys(("<->", "<=>", "↔", "⇔", "≡", "iff"), "iff"),
    **dict.fromkeys(("\\iff", "\\leftrightarrow", "\\Leftrightarrow", "\\equiv"), "iff"),
    **dict.fromkeys(
        ("->", "=>", "→", "⇒", "implies", "\\implies", "\\to", "\\rightarrow", "\\Rightarrow", "\\supset"), "implies"
    ),
    **dict.fromkeys(("∨", "|", "||", "\\/", "or", "\\lor", "\\vee"), "or"),
    **dict.fromkeys(("⊕", "xor", "\\oplus", "\\veebar"), "xor"),
    **dict.fromkeys(("∧", "&", "&&", "/\\", "and", "\\land", "\\wedge"), "and"),
    **dict.fromkeys(("¬", "~", "!", "not", "\\neg", "\\lnot"), "not"),
    **dict.fromkeys(("⊤", "true", "\\top", "1"), "true"),
    **dict.fromkeys(("⊥", "false", "\\bot", "0"), "false"),
}  # fmt: skip
_LOGIC_TOKEN = re.compile(
    r"\s*+(?:(?P<symbol><->|<=>|->|=>|\|\||&&|\\/|/\\|\\[A-Za-z]+|[↔⇔≡→⇒∨|⊕∧&¬~!⊤⊥01])"
    r"|(?P<word>[A-Za-z_][A-Za-z_0-9]*)|(?P<bracket>[()]))"
)


class Formula(NamedTuple):
    """A formula in postfix order: names of variables, "true", "false", "not" and the binary operations."""

    postfix: tuple[tuple[str, str], ...]
    variables: frozenset[str]


def parse_formula(text: str) -> Formula:
    """Read a propositional formula. Raises ValueError on anything outside the grammar.

    The grammar: variables are words (``p``, ``rain``, ``x_1``); the constants, ``not`` and the operations are those of
    ``_WORDS``; brackets are ``( )``; ``not`` binds tightest, then and, xor, or, implies (to the right), iff.
    """
    if len(text) > MAX_LENGTH:
        raise ValueError(f"longer than {MAX_LENGTH} characters")
    text = re.sub(r"\\(?:left|right)(?![A-Za-z])|\\[,;:! ]|\$", " ", text).strip().removesuffix(".").rstrip()
    output: list[tuple[str, str]] = []
    waiting: list[str] = []
    position, value_expected = 0, True
    while position < len(text):
        match = _LOGIC_TOKEN.match(text, position)
        if match is None:
            raise ValueError(f"cannot read {text[position : position + 20]!r}")
        position = match.end()
        word = match["word"]
        kind = match["bracket"] or _WORDS.get(match["symbol"] or word.lower())
        if kind is None and match["symbol"]:
            raise ValueError(f"unknown symbol {match['symbol']!r}")
        if kind in ("(", "not") if value_expected else kind in (")", *_BINARY):
            if kind == ")":
                _unwind(waiting, output, lambda top: top != "(")
                if not waiting:
                    raise ValueError("a bracket is closed that was not opened")
                waiting.pop()
            elif kind in ("(", "not"):
                waiting.append(kind)
            else:
                _unwind(waiting, output, lambda top, kind=kind: top != "(" and _binds_first(top, kind))
                waiting.append(kind)
                value_expected = True
        elif value_expected and (kind is None or kind in ("true", "false")):
            output.append((kind, "") if kind else ("variable", word))
            value_expected = False
        else:
            raise ValueError(f"{match.group().strip()!r} does not fit where it is")
    _unwind(waiting, output, lambda top: top != "(")
    if value_expected or waiting:
        raise ValueError("the formula is incomplete")
    return Formula(tuple(output), frozenset(name for kind, name in output if kind == "variable"))


def _binds_first(top: str, kind: str) -> bool:
    if top == "not":
        return True
    difference = _BINARY.index(top) - _BINARY.index(kind)
    return difference > 0 or (difference == 0 and kind != "implies")


def _unwind(waiting: list[str], output: list[tuple[str, str]], while_true) -> None:
    while waiting and while_true(waiting[-1]):
        output.append((waiting.pop(), ""))


def truth_table(formula: Formula, variables: list[str]) -> int:
    """The column of the formula's truth table as the bits of one integer, over ``2**len(variables)`` rows.

    Bit r is the value where variable number i is bit i of r.
    """
    rows = 1 << len(variables)
    everything = (1 << rows) - 1
    columns = {}
    for index, name in enumerate(variables):
        # 0…01…1 of length 2^(i+1), repeated, is everything / (2^(2^i) + 1); shifted to the rows where bit i is 1
        columns[name] = everything // ((1 << (1 << index)) + 1) << (1 << index)
    stack: list[int] = []
    for kind, name in formula.postfix:
        if kind == "variable":
            stack.append(columns[name])
        elif kind in ("true", "false"):
            stack.append(everything if kind == "true" else 0)
        elif kind == "not":
            stack.append(everything ^ stack.pop())
        else:
            b, a = stack.pop(), stack.pop()
            stack.append(
                {
                    "and": lambda a, b: a & b,
                    "or": lambda a, b: a | b,
                    "xor": lambda a, b: a ^ b,
                    "implies": lambda a, b: everything ^ a | b,
                    "iff": lambda a, b: everything ^ a ^ b,
                }[kind](a, b)
            )
    return stack.pop()


def logic_judge(sample: Sample) -> Judgement:
    """Right if the marked formula has the truth table of the column ``answer``: equivalence, not spelling."""
    gold = sample.row.get("answer")
    if not isinstance(gold, str) or not gold.strip():
        return unscorable("the gold answer is missing")
    marked = marked_answer(gold)
    try:
        expected = parse_formula(gold if marked is None else marked)
    except ValueError as cause:
        return unscorable(f"the gold answer is no formula: {cause}")
    answer = marked_answer(visible_text(sample.text))
    if answer is None:
        return wrong("no marker (####, \\boxed{} or <answer>) outside the thoughts")
    try:
        found = parse_formula(answer)
    except ValueError as cause:
        return wrong(f"no formula: {cause}")
    variables = sorted(expected.variables | found.variables)
    if len(expected.variables) > MAX_VARIABLES:
        return unscorable(f"the gold answer has more than {MAX_VARIABLES} variables")
    if len(variables) > MAX_VARIABLES:
        return wrong(f"more than {MAX_VARIABLES} variables")
    return judged(truth_table(expected, variables) == truth_table(found, variables), "another truth table")
