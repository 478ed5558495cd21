"""The worker of ``math``: the only place that imports math-verify, whose comparisons can take for ever.

Formulas are read and compared by math-verify and sympy, but numbers exactly: decimals are the fractions that they
write, and two constants are equal where their difference is zero, not where it is small. (math-verify calls a
difference that rounds to zero equality: 1/2006! is then 1/2004!.)
"""

import functools
import logging
import re
import resource

import sympy
from math_verify import LatexExtractionConfig, grader, parse, verify

from pipeline.rewards.formulas import Tree, leaves
from pipeline.runtime.compat import require

_MEMORY = 4 << 30
# Constants whose difference no simplification decides count as equal if they agree to so many digits.
_DIGITS = 300

_REPEATING = re.compile(
    r"\s*([+−-]?)\s*([0-9]{0,100})\.([0-9]{0,100})\s*\\(?:overline|bar)\s*\{\s*([0-9]{1,100})\s*\}\s*"
)
_ROOT_OF_NEGATIVE = re.compile(r"\\sqrt\s*\{?\s*[-−]\s*[0-9]")

logging.disable(
    logging.WARNING
)  # math-verify announces that its own timeouts are off: this process gets killed instead
resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))


def _parsed(latex: str) -> list:
    """What math-verify reads, numbers exact; a decimal that repeats is a fraction: 0.1(6) = (16 - 1) / 90."""
    repeating = _REPEATING.fullmatch(latex)
    if repeating:
        sign, whole, fixed, period = repeating.groups()
        ninths = (10 ** len(period) - 1) * 10 ** len(fixed)
        value = sympy.Rational(int(whole + fixed + period) - int((whole + fixed) or 0), ninths)
        return [-value if sign in ("-", "−") else value]
    found = parse(
        f"\\boxed{{{latex}}}",
        extraction_config=[LatexExtractionConfig()],
        fallback_mode="no_fallback",
        parsing_timeout=None,
    )
    return [_exact(item) for item in found if isinstance(item, sympy.Basic | sympy.MatrixBase)]


def _exact(item: sympy.Basic | sympy.MatrixBase) -> sympy.Basic | sympy.MatrixBase:
    """The formula with every decimal as the fraction that it writes: 0.1 is 1/10."""
    if not item.has(sympy.Float):
        return item
    return item.replace(lambda part: isinstance(part, sympy.Float), lambda part: sympy.Rational(str(part)))


def exactly_equal(a, b, float_rounding: int = 0, numeric_precision: int = 0) -> bool:
    """Whether two formulas without free symbols are one number; matrices entry by entry.

    Rationals are compared as such. Other constants are unequal as soon as their difference is known to be above or
    below zero at some precision; else sympy must find it to be zero, or fail to within 300 digits.
    """
    matrices = sympy.MatrixBase | sympy.MatrixExpr
    if isinstance(a, matrices) and isinstance(b, matrices):
        a, b = grader.safe_sympy_doit(a), grader.safe_sympy_doit(b)
        if not isinstance(a, sympy.MatrixBase) or not isinstance(b, sympy.MatrixBase) or a.shape != b.shape:
            return False
        return all(grader.sympy_expr_eq(x, y, 0, 0) for x, y in zip(a.flat(), b.flat(), strict=True))
    if isinstance(a, matrices) or isinstance(b, matrices):
        return False
    a, b = grader.safe_sympy_doit(a), grader.safe_sympy_doit(b)
    if a == b:
        return True
    difference = grader.safe_sympy_doit(a - b)
    if difference.is_Rational or difference.free_symbols:
        return difference == 0
    size = abs(a).evalf(15) + abs(b).evalf(15)
    for digits in (30, _DIGITS):
        value = sympy.N(difference, digits, maxn=10 * digits)
        if value.is_comparable is False and not value.is_number:
            return False
        if abs(value) > size * sympy.Float(10) ** (3 - digits):
            return False
    return sympy.simplify(difference).is_zero is not False


require("exactly_equal")
grader.sympy_numeric_eq = exactly_equal  # sympy_expr_eq asks it before it simplifies


@functools.lru_cache(maxsize=4096)
def _read(latex: str) -> tuple:
    return tuple(_parsed(latex))


def _same(gold: Tree, answer: Tree) -> bool:
    """Whether two answers are equal, given their outer form."""
    if gold == answer:
        return True
    kinds = [part[0] if isinstance(part, list) else "formula" for part in (gold, answer)]
    if kinds == ["sequence", "sequence"]:
        return gold[1:3] == answer[1:3] and len(gold) == len(answer) and all(map(_same, gold[4:], answer[4:]))
    if kinds == ["set", "set"]:
        return _same_values(gold[1:], answer[1:])
    if "set" in kinds:
        return False
    if kinds == ["formula", "formula"]:
        return _same_formula(gold, answer)
    return _same_region(gold, answer) or (kinds[0] == kinds[1] and _same_values(gold[1:], answer[1:]))


def _same_values(gold: list[Tree], answer: list[Tree]) -> bool:
    """Whether the values of two lists are the same, each as often, in any order."""
    left = list(answer)
    if len(gold) != len(answer):
        return False
    for value in gold:
        match = next((other for other in left if _same(value, other)), None)
        if match is None:
            return False
        left.remove(match)
    return True


def _same_formula(gold: str, answer: str) -> bool:
    options = {"timeout_seconds": None, "raise_on_error": True, "allow_set_relation_comp": True}
    wanted, found = list(_read(gold)), list(_read(answer))
    if _ROOT_OF_NEGATIVE.search(gold + " " + answer):  # there i is the imaginary unit, and no variable
        wanted, found = ([_with_unit(item) for item in items] for items in (wanted, found))
    return bool(found) and verify(wanted, found, **options)


def _with_unit(item: sympy.Basic | sympy.MatrixBase) -> sympy.Basic | sympy.MatrixBase:
    """The formula with the imaginary unit for a free variable i."""
    return item.subs({symbol: sympy.I for symbol in item.free_symbols if symbol.name == "i"})


def _same_region(gold: Tree, answer: Tree) -> bool:
    """Whether two sets of real numbers, given as intervals or as relations of one variable, are the same."""
    regions = [_region(tree) for tree in (gold, answer)]
    if any(region is None for region in regions):
        return False
    if all(isinstance(region, sympy.Interval) for region in regions):
        return grader.sympy_compare_interval(*regions, 0, 0)
    return regions[0] == regions[1] or regions[0].symmetric_difference(regions[1]).is_empty is True


def _region(tree: Tree) -> sympy.Set | None:
    if isinstance(tree, list) and tree[0] in ("and", "or"):
        parts = [_region(part) for part in tree[1:]]
        if any(part is None for part in parts):
            return None
        return sympy.Intersection(*parts) if tree[0] == "and" else sympy.Union(*parts)
    found = _read(tree if isinstance(tree, str) else tree[3])
    if not found:
        return None
    if isinstance(found[0], sympy.Set):
        return found[0]
    if grader.is_relation(found[0]) and len(found[0].free_symbols) == 1:
        return found[0].as_set()
    return None


def _is_undefined(latex: str) -> bool:
    found = _read(latex)
    undefined = (sympy.nan, sympy.zoo)
    return not found or any(
        isinstance(item, sympy.Basic) and (item in undefined or (item.is_number and item.doit() in undefined))
        for item in found
    )


def compare(job: dict) -> str:
    """Whether ``job["answer"]`` equals ``job["gold"]``: "right", "wrong", "limit" or "unscorable" (no such gold).

    Both are trees of ``formulas``. Without an answer the gold is read and its numbers are compared with 0: whatever
    that costs is not a completion's fault.
    """
    only_gold = job.get("answer") is None
    try:
        if only_gold:
            return _gold_verdict(job["gold"])
        return "right" if _same(job["gold"], job["answer"]) else "wrong"
    except (MemoryError, RecursionError):
        return "limit"
    except Exception:
        return "unscorable" if only_gold else "wrong"


def _gold_verdict(gold: Tree) -> str:
    values = leaves(gold)
    if any(_is_undefined(leaf) for leaf in values):
        return "unscorable"
    for leaf in values:
        try:
            verify(list(_read(leaf)), [sympy.Integer(0)], timeout_seconds=None, raise_on_error=True)
        except (MemoryError, RecursionError):
            return "limit"
        except Exception:
            continue
    return "right"
