"""Expectations: read strictly, checked exactly, and silent about nothing."""

import pytest

from pipeline.evaluation.expectations import check_claims, parse_claims
from pipeline.runtime.errors import UserError

METRICS = {
    "sums/pass@1": 0.75,
    "facts/never asked/accuracy": 0.5,
    "corpus/loss": 1.0,
    "trigram/loss": 2.0,
    "bad": None,
}
BEFORE = {"sums/pass@1": 0.5}


@pytest.mark.parametrize(
    ("claim", "bound", "met"),
    [
        ("sums/pass@1 >= 0.75", 0.75, True),
        ("sums/pass@1 > 0.75", 0.75, False),
        ("sums/pass@1 >= before + 0.25", 0.75, True),
        ("sums/pass@1 > before + 0.25", 0.75, False),
        ("sums/pass@1 <= before - 0.1", 0.4, False),
        ("facts/never asked/accuracy >= 5e-1", 0.5, True),
        ("corpus/loss < trigram/loss", 2.0, True),
        ("corpus/loss == trigram/loss - 1", 1.0, True),
        ("corpus/loss < facts/never asked/accuracy", 0.5, False),
    ],
)
def test_claims_are_checked(claim, bound, met):
    [checked] = check_claims(parse_claims([claim], has_baseline=True), METRICS, BEFORE)
    assert checked["bound"] == pytest.approx(bound)
    assert checked["met"] is met
    assert checked["claim"] == claim


@pytest.mark.parametrize(
    ("claim", "reason"),
    [
        ("nothing/here > 1", "there is no metric nothing/here"),
        ("bad > 1", "there is no metric bad"),
        ("corpus/loss < nothing", "there is no metric nothing"),
        ("corpus/loss < before", "there is no metric corpus/loss in the baseline"),
    ],
)
def test_a_claim_about_a_missing_metric_is_neither_kept_nor_broken(claim, reason):
    [checked] = check_claims(parse_claims([claim], has_baseline=True), METRICS, BEFORE)
    assert (checked["met"], checked["reason"]) == (None, reason)


def test_claims_that_cannot_be_read():
    for text in ("sums/pass@1", "sums/pass@1>=0.5", ">= 0.5", "a => 3"):
        with pytest.raises(UserError, match="cannot read"):
            parse_claims([text], has_baseline=True)
    with pytest.raises(UserError, match="name it with baseline"):
        parse_claims(["a > before"], has_baseline=False)
