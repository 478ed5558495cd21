"""``numeric``: is the marked answer the gold number? Exact, without tolerance, in linear time, without ``eval``.

The policy, row by row, is the table in docs/rewards.md. The strict score reads only the last explicit marker
(:mod:`pipeline.rewards.answers`); the lenient one, reported beside it, may take the last number of a completion that
has no marker at all.
"""

import re
from fractions import Fraction
from typing import NamedTuple

from pipeline.rewards.answers import gold_text, marked_answer, visible_text, without_emphasis
from pipeline.rewards.judging import Judgement, Sample, right, unscorable, wrong

# Python refuses to turn longer digit strings into integers (and back), since that takes quadratic time.
_DIGITS_LIMIT = 4300

_INTEGER = r"(?:[1-9][0-9]{0,2}(?:,[0-9]{3})++(?![0-9])|[0-9]++)"
_DECIMAL = rf"(?:{_INTEGER}(?:\.[0-9]++)?|\.[0-9]++)"
_TIMES_TEN = r"(?:[eE]|\s*+(?:\\times|\\cdot|×|x|\*)\s*+10\s*+\^\s*+)"
_EXPONENT = rf"(?:{_TIMES_TEN}(?:([+−-]?[0-9]++)|\{{\s*+([+−-]?[0-9]++)\s*+\}}))?+"
_NUMBER = re.compile(
    rf"\\[dt]?frac\s*+\{{\s*+(?P<top>[+−-]?{_DECIMAL})\s*+\}}\s*+\{{\s*+(?P<bottom>[+−-]?{_DECIMAL})\s*+\}}"
    rf"|\\[dt]?frac\s*+(?P<top1>[0-9])\s*+(?P<bottom1>[0-9])"
    rf"|(?P<over>{_DECIMAL})\s*+/\s*+(?P<under>[+−-]?{_DECIMAL})(?!\s*+/)"
    rf"|(?P<decimal>{_DECIMAL}){_EXPONENT}"
)
_CURRENCY = r"(?:(?:US|CA|AU|NZ|HK)?\$|[€£¥₹₩₽₺₫₦₱]|(?:USD|EUR|GBP|JPY|INR|CNY|CHF|CAD|AUD|Rs\.?)(?=[\s+−0-9.-]))"
_LEAD = re.compile(rf"[\s$]*+(?:{_CURRENCY})?+\s*+([+−-]?+){_CURRENCY}?+(?![+−-])")
_MATH_WRAPPER = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mathsf|mbox)\s*+\{([^{}]*+)\}")
_MATH_SPACE = re.compile(r"\\[,;:! ]|\\quad(?![A-Za-z])|(?<=[0-9])~")
_MATH_EDGE = re.compile(r"\\[()\[\]]")
_DEGREE = re.compile(r"\^\s*+\{?\s*+\\circ\s*+\}?|\\degree(?![A-Za-z])|°")
_UNIT_WORD = re.compile(r"[A-Za-zµμΩ°]++(?:['’-][A-Za-z]++)*+(?:\^\{?[23]\}?|[²³])?")
_AREA_UNIT = re.compile(r"(?:mm|cm|dm|m|km|in|ft|yd|mi)[23]")
_LETTER_UNITS = frozenset("mgshlLJNWVACFcp°")
# Words after a number that change its value, negate it or offer another one: these are no units.
_VALUE_WORDS = """
    or and not nor to no never but if else unless maybe perhaps versus vs is isn isnt isn't be than then plus minus
    times over by mod modulo divided multiplied squared cubed factorial power root log ln exp sqrt sin cos tan pi
    inf infinity nan zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen
    sixteen seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred hundreds
    thousand thousands million millions billion billions trillion trillions dozen dozens mil mln bn bln tn lakh crore
    half halves third thirds quarter quarters fourth fourths fifth fifths sixth eighth tenth tenths hundredths
    thousandths st nd rd th ish wrong incorrect false alternatively otherwise either neither except
"""
_NOT_UNITS = frozenset(_VALUE_WORDS.split())


class Decimal10(NamedTuple):
    """The exact value ``sign * int(digits) * 10**exponent``; no zeros at either end of ``digits``, zero has none."""

    sign: int
    digits: str
    exponent: int

    def integer(self) -> int:
        return self.sign * int(self.digits or "0") * 10**self.exponent

    def small(self) -> bool:
        return len(self.digits) + abs(self.exponent) <= _DIGITS_LIMIT


class Number(NamedTuple):
    """An exact rational: ``over / under``."""

    over: Decimal10
    under: Decimal10


_ONE = Decimal10(1, "1", 0)


def _decimal(sign: str, literal: str, exponent: str = "0") -> Decimal10 | None:
    """The value of ``literal`` (digits, thousands commas, one point) times ten to ``exponent``."""
    negative = sign in ("-", "−")
    if literal[0] in "+-−":
        negative ^= literal[0] != "+"
        literal = literal[1:]
    whole, _, part = literal.replace(",", "").partition(".")
    digits = (whole + part).lstrip("0")
    if not digits:
        return Decimal10(1, "", 0)
    power = exponent.lstrip("+-−").lstrip("0") or "0"
    if len(power) > 18:
        return None  # no number that anybody writes, and adding to it would not be linear
    shift = -int(power) if exponent[0] in "-−" else int(power)
    bare = digits.rstrip("0")
    return Decimal10(-1 if negative else 1, bare, shift - len(part) + len(digits) - len(bare))


def _is_unit(text: str) -> bool:
    """Whether what follows a number is nothing, a percent sign, a currency, or up to five words of a unit."""
    text = text.strip(" \t\r\n$")
    if not text or text == "%" or re.fullmatch(r"[€£¥₹₩₽₺₫₦₱¢]", text):
        return True
    if len(text) > 100:
        return False
    words = [word for word in re.split(r"\s+|/|·", text) if word]
    return len(words) <= 5 and all(_is_unit_word(word) for word in words) and not text.startswith("/")


def _is_unit_word(word: str) -> bool:
    if _AREA_UNIT.fullmatch(word):
        return True
    if not _UNIT_WORD.fullmatch(word) or word.lower() in _NOT_UNITS:
        return False
    letters = re.match(r"[^\^²³]*", word).group()
    return len(letters) > 1 or letters in _LETTER_UNITS


def _without_dress(text: str) -> str:
    """The text without LaTeX spacing and text wrappers, bold, math delimiters, and one trailing full stop."""
    text = without_emphasis(text).replace("{,}", ",").replace(",\\!", ",").replace("\\$", "$").replace("\\%", "%")
    text = _MATH_WRAPPER.sub(r" \1 ", text)
    text = _MATH_EDGE.sub(" ", _MATH_SPACE.sub(" ", text))
    text = _DEGREE.sub(" ° ", text).replace("**", " ").replace("__", " ")
    text = text.strip(" \t\r\n$\u00a0")
    return text[:-1].rstrip(" \t\r\n$") if text.endswith(".") else text


def _number_of(match: re.Match, sign: str) -> Number | None:
    if match["decimal"] is not None:
        exponent = (
            match[match.lastindex] if match.lastindex and match.lastindex > _NUMBER.groupindex["decimal"] else "0"
        )
        value = _decimal(sign, match["decimal"], exponent)
        return None if value is None else Number(value, _ONE)
    top = match["top"] or match["top1"] or match["over"]
    bottom = match["bottom"] or match["bottom1"] or match["under"]
    over, under = _decimal(sign, top), _decimal("", bottom)
    return Number(over, under) if under.digits else None


def read_number(text: str) -> Number | None:
    """The one number that ``text`` holds, or None: a list, alternatives, an equation, other digits are no number."""
    text = _without_dress(text)
    lead = _LEAD.match(text)
    match = _NUMBER.match(text, lead.end()) if lead else None
    if match is None or not _is_unit(text[match.end() :]):
        return None
    return _number_of(match, lead.group(1))


def same_number(a: Number, b: Number) -> bool:
    """Exact equality. Fractions with parts past Python's digit limit are equal only if written with the same parts."""
    if a.under == b.under:
        return a.over == b.over
    if a.over.digits == "" or b.over.digits == "":
        return a.over == b.over
    if not all(part.small() for part in (*a, *b)):
        return a == b
    left, right_ = (Fraction(x.over.sign * int(x.over.digits), x.under.sign * int(x.under.digits)) for x in (a, b))
    shift = (a.over.exponent - a.under.exponent) - (b.over.exponent - b.under.exponent)
    return left * 10**shift == right_ if shift >= 0 else left == right_ * 10**-shift


# A number in running text: not glued to letters, digits or points on either side.
_LOOSE = re.compile(
    rf"(?<![\w.,])(?<![\w][−-])[−-]?+{_DECIMAL}(?:\s?/\s?[0-9]++|[eE][+−-]?[0-9]++)?+(?![\w]|[.,/][0-9])"
)


def last_number(text: str) -> Number | None:
    """The last number in running text, for the lenient score."""
    last = None
    for match in _LOOSE.finditer(text):
        last = match
    return read_number(last.group()) if last else None


def judge(sample: Sample) -> Judgement:
    """Strict verdict on ``sample.text`` against the column ``answer``; ``lenient`` beside it."""
    gold = gold_text(sample.row.get("answer"))
    expected = read_number(gold) if gold else None
    if expected is None:
        return unscorable("the gold answer is missing" if gold is None else "the gold answer is not one number")
    text = visible_text(sample.text)
    marked = marked_answer(text)
    found = last_number(text) if marked is None else read_number(marked)
    same = found is not None and same_number(found, expected)
    lenient = 1.0 if same else 0.0
    if marked is None:
        return wrong("no marker (####, \\boxed{} or <answer>) outside the thoughts", lenient=lenient)
    if same:
        return right(lenient=lenient)
    return wrong("another number" if found is not None else "the marker does not hold one number", lenient=lenient)
