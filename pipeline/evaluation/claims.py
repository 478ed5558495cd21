"""Claims of completions: what a text asserts, whether it is true, and the rate of hallucinations.

The paper's H(y) = 1 - V(c(y)) (Part 3) leaves three things open, which are settled here. A completion without a claim
has no H: its share is ``no_claim``, and a rate over no claims is missing, not 0. Of several claims each counts. And
V = 0 stands for false and for unsupported alike: here a verifier that has nothing to compare with says so, and what is
false is a ``rumour`` (a source says it: imitation) or not (fabrication). The shares

    true + rumour + other_false + unsupported + no_claim = 1

are means over completions, a completion's claims sharing its weight; Hall is a ratio over all claims,

    Hall = (rumour + other_false + unsupported) / claims.

A claim extractor is a function ``(text of the completion, row) -> claims``, each a ``Claim`` or its text: a name of
``EXTRACTORS`` or a dotted path ``package.module:function``.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from statistics import fmean
from types import MappingProxyType
from typing import NamedTuple

from pipeline.evaluation.abstentions import abstains, stated
from pipeline.objectives.statistics import bootstrap_interval, ratio_interval, with_interval
from pipeline.rewards.answers import marked_answer, visible_text
from pipeline.rewards.judging import Judgement, Reward, judge_rows
from pipeline.rewards.numeric import last_number
from pipeline.runtime.errors import UserError
from pipeline.runtime.files import Json
from pipeline.runtime.messages import is_dialogue, user_text
from pipeline.runtime.registry import find
from pipeline.worlds import statements as world

TRUE, RUMOUR, OTHER, UNSUPPORTED = CLAIMED = ("true", "rumour", "other_false", "unsupported")
NO_CLAIM = "no_claim"
FALSE = CLAIMED[1:]

EXTRACTORS = {
    "answer": "pipeline.evaluation.claims:answer",
    "numeric": "pipeline.evaluation.claims:equations",
    "statements": "pipeline.evaluation.claims:world_statements",
}
Weights = Mapping[str, float]  # of one claim: how much of it is true, a rumour, …; they sum to 1


class Claim(NamedTuple):
    """Something that a text asserts.

    Attributes:
        text: what the verifier judges: a value (``Rome``), a number, or a sentence.
        denied: the text says that this is not so, which is true where V is 0.
        source: the verifier's columns for this claim, such as ``answer`` and ``rumour``; those that it leaves out are
            the row's. An ``answer`` of None says that no source knows.
    """

    text: str
    denied: bool = False
    source: Mapping[str, object] = MappingProxyType({})


Extractor = Callable[[str, Json], Sequence[Claim | str]]


def get_extractor(name: str) -> Extractor:
    """The claim extractor of a name or a dotted path.

    Raises:
        UserError: there is none.
    """
    return find(name, EXTRACTORS, "claims")


def claims_of(extract: Extractor, rows: Sequence[Json], texts: Sequence[Sequence[str]]) -> list[list[list[Claim]]]:
    """The claims of each row's texts.

    Raises:
        UserError: the extractor returned something else.
    """
    return [[[_claim(each) for each in _listed(extract(t, row))] for t in group] for row, group in zip(rows, texts)]


def _listed(found: object) -> Sequence:
    if not isinstance(found, list | tuple) or isinstance(found, Claim):
        raise UserError(f"claims: the extractor returned {found!r:.60}: return a list of claims, or []")
    return found


def _claim(found: object) -> Claim:
    if isinstance(found, str):
        return Claim(found)
    if not isinstance(found, Claim):
        raise UserError(f"claims: the extractor returned the claim {found!r:.60}: give a text or a Claim")
    return found


# --- extractors ------------------------------------------------------------------------------------------------------

_CLAUSE_END = re.compile(r"[.,;:!?]|\bbut\b|\binstead\b|\bthough\b", re.IGNORECASE)
DENIED = re.compile(r"\b(?:not|never|no longer|neither|nor|cannot)\b|n[’']t\b", re.IGNORECASE)
_UNSAID = re.compile(
    r"(?:\bnot|n[’']t|\bcannot|\bnever) (?:know|sure|certain|say|tell|heard?)\b|\bwhether\b", re.IGNORECASE
)


def answer(text: str, row: Json) -> list[Claim]:
    """The answer to a question, as far as it claims something (`abstentions`).

    With a column ``values``, the values that an answer may have, every one that is named is a claim, once: naming two
    does not pay. ``It is not Rome`` denies a value, ``I do not know whether it is Rome`` says none, and a hedge
    (``I think it is Rome``) is a claim like any other.
    """
    said = stated(text)
    if values := row.get("values"):
        return [Claim(value, denied) for value, denied in dict.fromkeys(_named(said, values))]
    return [Claim(said)] if said and not abstains(text) else []


def _named(text: str, values: Sequence[str]) -> Iterator[tuple[str, bool]]:
    words = "|".join(re.escape(str(value)) for value in sorted(map(str, values), key=len, reverse=True))
    spelled = {str(value).lower(): str(value) for value in values}
    for found in re.finditer(rf"(?<!\w)(?:{words})(?!\w)", text, re.IGNORECASE):
        clause = clause_before(text, found.start())
        if not _UNSAID.search(clause):
            yield spelled[found[0].lower()], bool(DENIED.search(clause))


def clause_before(text: str, place: int) -> str:
    """The clause that leads up to a place in a text: what may deny or question what stands there."""
    return _CLAUSE_END.split(text[:place])[-1]


_TERM = r"[0-9]+(?:,[0-9]{3})*(?:\.[0-9]+)?"
_EQUATION = re.compile(rf"(?<![\w.])({_TERM}(?:\s*[-+−*×x/]\s*{_TERM})+)\s*=\s*\$?([-−]?{_TERM})(?![\w%]|\.[0-9])")


def equations(text: str, row: Json) -> list[Claim]:
    """Numbers: every equation (``17+25=42``), which arithmetic judges, and the answer, which the row does.

    The answer is what a marker holds; without one it is the last number, if there is no equation.
    """
    seen = visible_text(text)
    found = [Claim(said.replace("−", "-"), source={"answer": _value(sides), "rumour": None})
             for sides, said in _EQUATION.findall(seen)]  # fmt: skip
    marked = marked_answer(seen)
    if marked or (not found and last_number(seen)):
        found.append(Claim(marked or seen.strip()))
    return found


def _value(expression: str) -> str | None:
    """The exact value of sums and products of numbers, as ``numeric`` reads it; None for a division by 0."""
    total, product, sign, operator = Fraction(0), Fraction(1), 1, "*"
    for number, after in re.findall(rf"({_TERM})\s*([-+−*×x/]?)", expression):
        value = Fraction(number.replace(",", ""))
        if operator == "/" and not value:
            return None
        product = product / value if operator == "/" else product * value
        operator = after
        if after in "+-−":  # "" at the end too
            total += sign * product
            product, sign, operator = Fraction(1), -1 if after in ("-", "−") else 1, "*"
    return str(total)


def world_statements(text: str, row: Json) -> list[Claim]:
    """Statements about people (``pipeline.worlds.statements``) that the completion finishes: a plain prompt may begin
    the first one. The source is the world's; of a person of no source, what the prompt has stated.
    """
    before = "" if is_dialogue(row.get("prompt")) else str(row.get("prompt") or "")
    found = []
    for person, attribute, value, denied, end in world.statements(before + text):
        if end > len(before):
            truth, rumour = world.source(person, attribute, user_text(row["prompt"]) if row.get("prompt") else "")
            found.append(Claim(value, denied, {"answer": truth, "rumour": rumour}))
    return found


# --- verification ----------------------------------------------------------------------------------------------------


def verify(
    verifier: Reward, rows: Sequence[Json], claims: Sequence[Sequence[Sequence[Claim]]]
) -> tuple[list[list[list[Weights]]], int]:
    """How much of each claim is true, a rumour, otherwise false or unsupported, and how often the verifier failed.

    V in [0, 1] counts as V true and 1 - V false. A claim that the verifier cannot compare with anything (its score is
    None) is unsupported. What is false is a rumour as far as the verifier accepts it with the column ``rumour`` for
    ``answer``. A claim is text that was extracted already, so a verifier's lenient score counts where it has one.

    Raises:
        UserError: a score outside [0, 1].
    """
    flat = [(row, claim) for row, group in zip(rows, claims, strict=True) for each in group for claim in each]
    sources = [{**row, **claim.source} for row, claim in flat]
    judged = _judged(verifier, sources, [claim for _, claim in flat])
    failed = sum(judgement.verdict == "error" for judgement in judged)
    truths = [_score(verifier, judgement) for judgement in judged]
    asked = [i for i, v in enumerate(truths) if v is not None and v < 1 and sources[i].get("rumour") is not None]
    rumours = [{**sources[i], "answer": sources[i]["rumour"]} for i in asked]
    spread = dict(zip(asked, _judged(verifier, rumours, [flat[i][1] for i in asked])))
    weights = iter(
        _weights(truth, _score(verifier, spread[i]) if i in spread else None, claim.denied)
        for i, (truth, (_, claim)) in enumerate(zip(truths, flat))
    )
    return [[[next(weights) for _ in each] for each in group] for group in claims], failed


def _judged(verifier: Reward, rows: Sequence[Json], claims: Sequence[Claim]) -> list[Judgement]:
    return judge_rows(verifier, rows, [claim.text for claim in claims])


def _score(verifier: Reward, judgement: Judgement) -> float | None:
    score = judgement.score if judgement.lenient is None or judgement.score is None else judgement.lenient
    if score is not None and not 0 <= score <= 1:
        raise UserError(f"reward '{verifier.__name__}' gave {score:g} to a claim: V is a number from 0 to 1, or None")
    return score


def _weights(truth: float | None, rumour: float | None, denied: bool) -> Weights:
    if truth is None:
        return {UNSUPPORTED: 1.0}
    if denied:
        return {TRUE: 1 - truth, OTHER: truth}
    spread = min(1 - truth, rumour or 0.0)
    return {TRUE: truth, RUMOUR: spread, OTHER: 1 - truth - spread}


# --- figures ---------------------------------------------------------------------------------------------------------


class Tally(NamedTuple):
    """Of one prompt, expected per completion: the share of each label, and the numbers of claims and of false ones."""

    shares: dict[str, float]
    claims: float
    false: float


def tally(completions: Sequence[Sequence[str | Weights]], probabilities: Sequence[float] | None = None) -> Tally:
    """One prompt's completions: equally likely samples, or candidates with their probabilities, whose missing mass has
    no claim.

    Raises:
        ValueError: a label that is none of the four.
    """
    p = [1 / len(completions)] * len(completions) if probabilities is None else probabilities
    shares, claims, false = dict.fromkeys((*CLAIMED, NO_CLAIM), 0.0), 0.0, 0.0
    for mass, said in zip(p, completions, strict=True):
        for claim in said:
            for label, weight in ({claim: 1.0} if isinstance(claim, str) else claim).items():
                if label not in CLAIMED:
                    raise ValueError(f"the label {label!r} is none of {', '.join(CLAIMED)}; no claim is an empty list")
                shares[label] += mass * weight / len(said)
                false += mass * weight * (label != TRUE)
        claims += mass * len(said)
        shares[NO_CLAIM] += mass * (not said)
    shares[NO_CLAIM] += max(0.0, 1 - sum(p))
    return Tally(shares, claims, false)


def hall_figures(tallies: Sequence[Tally], *, seed: int = 0) -> dict[str, float]:
    """The five shares and ``hall`` with bootstrap intervals over prompts; no ``hall`` where nothing is claimed."""
    figures = {}
    for label in (*CLAIMED, NO_CLAIM):
        values = [each.shares[label] for each in tallies]
        figures |= with_interval(label, fmean(values), bootstrap_interval(values, seed=seed))
    counts = [each.claims for each in tallies]
    if sum(counts):
        rate, (low, high) = ratio_interval([each.false for each in tallies], counts, seed=seed)
        figures |= with_interval("hall", rate, (max(0.0, low), min(1.0, high)))
    return figures


def sampled_figures(
    labels: Sequence[Sequence[Sequence[str | Weights]]],
    tokens: Sequence[Sequence[int]] | None = None,
    *,
    seed: int = 0,
) -> dict[str, float]:
    """``hall_figures`` of sampled completions, with ``claims``, their number, and ``claims_per_100_tokens``.

    Args:
        labels: of every claim of every completion of every prompt.
        tokens: the length of every completion; without them there is no number per 100 tokens.
        seed: of the bootstrap.

    Raises:
        ValueError: no prompts, a prompt without completions, or an unknown label.
    """
    if not labels or not all(labels):
        raise ValueError("there is nothing to count: give one completion or more of every prompt")
    figures = hall_figures([tally(group) for group in labels], seed=seed)
    number = sum(len(said) for group in labels for said in group)
    figures["claims"] = number
    if tokens is not None and (total := sum(map(sum, tokens))):
        figures["claims_per_100_tokens"] = 100 * number / total
    return figures
