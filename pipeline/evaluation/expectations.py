"""Expectations of a run, written as comparisons of its metrics, and whether they hold.

    corpus/loss < trigram/loss
    preference/share_of_bayes >= 0.9
    sums/pass@1 >= before + 0.25

The left side is a metric; the right one a number, another metric, or ``before`` (the same metric in the baseline run),
plus or minus a number.
"""

import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.runtime.errors import UserError
from pipeline.runtime.files import path_sha256
from pipeline.runtime.formatting import number
from pipeline.runtime.record import Run
from pipeline.runtime.run_json import read_record

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_CLAIM = re.compile(
    rf"\s*(?P<metric>.+?)\s+(?P<sign>>=|<=|==|>|<)\s+(?P<term>.+?)(?:\s+(?P<plus>[+-])\s+(?P<shift>{_NUMBER}))?\s*"
)
_COMPARE = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt, "==": operator.eq}

Checked = dict[str, Any]  # a claim as the run record has it


@dataclass(frozen=True)
class Claim:
    """``metric sign term + shift``; ``term`` is a number, the name of a metric, or ``before``."""

    text: str
    metric: str
    sign: str
    term: float | str
    shift: float


def parse_claims(texts: Sequence[str], *, has_baseline: bool) -> list[Claim]:
    """Read the comparisons.

    Raises:
        UserError: one cannot be read, or has ``before`` where there is no baseline.
    """
    claims = []
    for text in texts:
        match = _CLAIM.fullmatch(str(text))
        if match is None:
            raise UserError(
                f"expect: cannot read {text!r}; write it like 'sums/pass@1 >= before + 0.25' (with spaces)"
            )
        term: float | str = match["term"]
        if re.fullmatch(_NUMBER, term):
            term = float(term)
        if term == "before" and not has_baseline:
            raise UserError(f"expect: {text!r} compares with an earlier run: name it with baseline")
        shift = float(match["shift"] or 0) * (-1 if match["plus"] == "-" else 1)
        claims.append(Claim(str(text).strip(), match["metric"], match["sign"], term, shift))
    return claims


def check_claims(
    claims: Sequence[Claim], metrics: Mapping[str, float | None], before: Mapping[str, float | None]
) -> list[Checked]:
    """For the run record: ``{"claim", "metric", "value", "bound", "met"}``.

    ``met`` is None, with a ``reason``, where a metric is missing: the claim is neither met nor broken.
    """
    checked = []
    for claim in claims:
        value = metrics.get(claim.metric)
        term: float | None
        if isinstance(claim.term, float):
            term, named = claim.term, ""
        else:
            source, named = (before, claim.metric) if claim.term == "before" else (metrics, claim.term)
            term = source.get(named)
        entry: Checked = {
            "claim": claim.text,
            "metric": claim.metric,
            "value": value,
            "bound": None,
            "met": None,
        }
        if value is None:
            entry["reason"] = f"there is no metric {claim.metric}"
        elif term is None:
            entry["reason"] = f"there is no metric {named}{' in the baseline' if claim.term == 'before' else ''}"
        else:
            entry["bound"] = term + claim.shift
            entry["met"] = bool(_COMPARE[claim.sign](value, entry["bound"]))
        checked.append(entry)
    return checked


def describe(claim: Checked) -> str:
    """One line for the terminal about an expectation."""
    if claim["met"] is None:
        return f"  not checked: {claim['claim']} ({claim['reason']})"
    verdict = "as expected" if claim["met"] else "NOT AS EXPECTED"
    return f"  {verdict}: {claim['claim']} ({number(claim['value'])} against {number(claim['bound'])})"


def baseline_metrics(run: Run, folder: str | None) -> dict[str, float | None]:
    """Metrics of the run that ``before`` refers to; it becomes part of this run's inputs.

    Raises:
        UserError: the folder holds no finished assessment.
    """
    if folder is None:
        return {}
    recorded, record = Path(folder, "run.json"), read_record(Path(folder))
    if record is None or record["stage"] != "assess" or record["status"] != "completed":
        raise UserError(f"baseline: {folder} holds no finished assessment; run that one first")
    run.add_data([{"name": str(recorded), "role": "baseline", "fingerprint": path_sha256(recorded)}])
    return record["metrics"]
