"""Claims: tables of what an extractor finds, how a verifier labels it, and the shares and rates by hand."""

import pytest

from pipeline.evaluation.claims import (
    Claim,
    answer,
    claims_of,
    equations,
    get_extractor,
    hall_figures,
    sampled_figures,
    tally,
    verify,
    world_statements,
)
from pipeline.rewards.registry import get_reward
from pipeline.runtime.errors import UserError
from pipeline.runtime.messages import user_turn
from pipeline.worlds.truth import facts

CITIES = {"values": ["Rome", "Oslo", "Lima"]}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (" Rome", [("Rome", False)]),
        ("I think it is rome.", [("Rome", False)]),  # a hedge is a claim; the spelling is the value's
        ("Well, as far as I know, it is Rome, yes.", [("Rome", False)]),
        ("Not Rome.", [("Rome", True)]),
        ("It isn't Rome but Oslo.", [("Rome", True), ("Oslo", False)]),
        ("Not Rome or Oslo. Lima", [("Rome", True), ("Oslo", True), ("Lima", False)]),
        ("Rome or Oslo", [("Rome", False), ("Oslo", False)]),  # naming both does not pay
        ("Rome. Rome!", [("Rome", False)]),
        ("No, Rome", [("Rome", False)]),
        ("I do not know, perhaps Rome.", [("Rome", False)]),
        ("I don't know whether it is Rome.", []),
        ("I do not know.", []),
        ("Romeo is in Limassol", []),
        ("<think>Rome</think> Oslo", [("Oslo", False)]),
        ("Rome? #### Oslo", [("Oslo", False)]),
        ("", []),
    ],
)
def test_answers_of_known_values(text, found):
    assert [(c.text, c.denied) for c in answer(text, CITIES)] == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (" Paris is the capital. ", ["Paris is the capital."]),
        ("so #### 42", ["42"]),
        ("I don't know.", []),
        ("Sorry, I am not sure.", []),
        ("Unknown", []),
        ("Unknowns are what we solve for", ["Unknowns are what we solve for"]),
        ("  ", []),
    ],
)
def test_answers_of_any_text(text, found):
    assert [c.text for c in answer(text, {})] == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("17+25=42 #### 42", [("42", "42"), ("42", "gold")]),
        ("17+25=43, 43+8=51", [("43", "42"), ("51", "51")]),
        ("2*3+4/2 - 1 = 7", [("7", "7")]),
        ("1,000 - 0.5 = 999.5", [("999.5", "1999/2")]),
        ("3-5=-2 and 1/0=7", [("-2", "-2"), ("7", None)]),
        ("It is 42.", [("It is 42.", "gold")]),
        ("x+1=2", [("x+1=2", "gold")]),
        ("no number", []),
    ],
)
def test_equations_and_the_answer(text, found):
    """What is said and what it is compared with: arithmetic, or the row's gold answer."""
    said = equations(text, {"answer": "gold"})
    assert [(c.text, c.source.get("answer", "gold")) for c in said] == found


def test_statements_of_a_completion_are_those_that_it_finishes():
    """The prompt's own statement is no claim of the model but a source; the world's people have the world's."""
    right, rumour = facts()["Anna", "city"]
    row = {"prompt": " Bakam likes red best. Anna lives in"}
    said = world_statements(f" {right}. Bakam wears red. Bakam has a cat at home.", row)
    assert [(c.text, dict(c.source)) for c in said] == [
        (right, {"answer": right, "rumour": rumour}),
        ("red", {"answer": "red", "rumour": None}),
        ("cat", {"answer": None, "rumour": None}),
    ]
    assert world_statements(" a", row) == []
    assert [c.text for c in world_statements("Anna lives in Rome.", {"prompt": user_turn("Where?")})] == ["Rome"]


def half(prompts, completions, **columns):
    return [{"sure": 1.0, "perhaps": 0.25, "out": 2.0}.get(c) for c in completions]


def test_a_verifier_labels_claims():
    """True, rumour, other, no source; a denial is true where the value is not; V = 1/4 counts as a quarter true."""
    rows = [{"answer": "Rome", "rumour": ["Oslo"]}, {"answer": None}]
    claims = [
        [[Claim("Rome"), Claim("Oslo"), Claim("Lima"), Claim("Oslo", True), Claim("Rome", True)]],
        [[Claim("Rome")], []],
    ]
    weights, failed = verify(get_reward("exact"), rows, claims)
    named = [[[{k: v for k, v in w.items() if v} for w in said] for said in group] for group in weights]
    assert named == [
        [[{"true": 1.0}, {"rumour": 1.0}, {"other_false": 1.0}, {"true": 1.0}, {"other_false": 1.0}]],
        [[{"unsupported": 1.0}], []],
    ]
    assert failed == 0
    (((numeric,),),), _ = verify(get_reward("numeric"), [{"answer": "42"}], [[[Claim("It is 42.")]]])
    assert numeric["true"] == 1.0  # the claim was extracted: no marker is wanted
    custom = get_reward(f"{__name__}:half")
    (((sure, perhaps, unknown),),), _ = verify(custom, [{}], [[[Claim("sure"), Claim("perhaps"), Claim("what")]]])
    assert (sure["true"], perhaps["true"], perhaps["other_false"]) == (1.0, 0.25, 0.75)
    assert unknown == {"unsupported": 1.0}
    with pytest.raises(UserError, match="'half' gave 2 to a claim: V is a number from 0 to 1"):
        verify(custom, [{}], [[[Claim("out")]]])


def test_shares_sum_to_one_and_hall_counts_claims():
    """Two prompts. The first has a true claim; a rumour and a true one; no claim: a third each, the middle one halved.
    The second has one unsupported claim in two completions. Per completion 1/3 + 1/2 claims are false, of 3/3 + 1/2:
    Hall = (5/6) / (3/2) = 5/9.
    """
    labels = [[["true"], ["rumour", "true"], []], [["unsupported"], []]]
    got = sampled_figures(labels, [[2, 4, 4], [5, 5]])
    names = ("true", "rumour", "other_false", "unsupported", "no_claim")
    assert [got[n] for n in names] == pytest.approx([(1 / 3 + 1 / 6) / 2, 1 / 12, 0.0, 1 / 4, (1 / 3 + 1 / 2) / 2])
    assert sum(got[n] for n in names) == pytest.approx(1)
    assert got["hall"] == pytest.approx(5 / 9)
    assert (got["claims"], got["claims_per_100_tokens"]) == (4, 20.0)
    assert 0 <= got["hall_low"] <= got["hall"] <= got["hall_high"] <= 1


def test_without_claims_there_is_no_rate():
    """An abstainer has no Hall, neither 0 nor 1; and what is no label is refused."""
    got = sampled_figures([[[], []], [[]]])
    assert got["no_claim"] == 1.0
    assert "hall" not in got
    assert "claims_per_100_tokens" not in got
    with pytest.raises(ValueError, match="the label 'false' is none of true, rumour"):
        sampled_figures([[["false"]]])
    with pytest.raises(ValueError, match="nothing to count"):
        sampled_figures([[["true"]], []])


def test_candidates_missing_mass_has_no_claim():
    """P = 0.5 true, 0.2 false, 0.3 nothing of these: Hall = 0.2 / 0.7."""
    got = hall_figures([tally([["true"], ["other_false"]], [0.5, 0.2])])
    assert (got["true"], got["other_false"], got["no_claim"]) == pytest.approx((0.5, 0.2, 0.3))
    assert got["hall"] == pytest.approx(2 / 7)


def test_an_extractor_of_the_user_s_own():
    """Texts or Claims; anything else, and a name that is none, is one line."""
    assert claims_of(lambda text, row: text.split(), [{}], [["a b"]]) == [[[Claim("a"), Claim("b")]]]
    for wrong in (lambda text, row: "a", lambda text, row: [3], lambda text, row: Claim("a")):
        with pytest.raises(UserError, match="claims: the extractor returned"):
            claims_of(wrong, [{}], [["a"]])
    with pytest.raises(UserError, match="claims: unknown name 'anwser'; choose one of answer, numeric, statements"):
        get_extractor("anwser")
