"""RAFT rows: exact shares, passages that are the oracles' or nobody's, and the same rows for the same seed."""

import pytest

from pipeline.data.raft import Grounded, grounded, raft_rows
from pipeline.data.rows import RowError
from pipeline.runtime.errors import UserError
from pipeline.runtime.messages import assistant_turn, user_turn

ROWS = [Grounded(user_turn(f"Who is {i}?"), f"name {i}", [f"text {i}"]) for i in range(10)]


def passages_of(row):
    return row["prompt"][0]["content"].split("|")[:-1]


def write(prompt, texts):
    return user_turn("|".join([*texts, prompt[0]["content"]]))


@pytest.mark.parametrize(("share", "held"), [(0.0, 0), (0.24, 2), (0.75, 8), (1.0, 10)])
def test_the_share_of_rows_with_their_oracle_is_exact(share, held):
    """round(0.24 * 10) = 2 and round(7.5) = 8 (to even); every row has four passages, all of them different."""
    made = raft_rows(ROWS, write, distractors=3, oracle_share=share, seed=1)
    assert sum(row["oracle"] for row in made) == held
    for number, row in enumerate(made):
        passages = passages_of(row)
        assert len(set(passages)) == len(passages) == 4
        assert (f"text {number}" in passages) == row["oracle"]
        assert row["completion"] == assistant_turn(f"name {number}")
    assert made == raft_rows(ROWS, write, distractors=3, oracle_share=share, seed=1)
    if 0 < share < 1:
        assert made != raft_rows(ROWS, write, distractors=3, oracle_share=share, seed=2)


def test_the_oracle_stands_in_every_place():
    """Else its place would be learned instead of its content."""
    places = {passages_of(r).index(f"text {i}") for s in range(9) for i, r in enumerate(raft_rows(
        ROWS, write, distractors=3, oracle_share=1.0, seed=s))}  # fmt: skip
    assert places == {0, 1, 2, 3}


def test_distractors_come_from_the_search_and_an_answer_may_say_that_nothing_is_known():
    """The first candidates that are no oracle; where they are too few, the other rows' documents."""
    candidates = [[f"text {i}", "near", "far"] for i in range(10)]
    options = {"oracle_share": 0.5, "seed": 1, "no_oracle_answer": "unknown", "candidates": candidates}
    for number, row in enumerate(raft_rows(ROWS, write, distractors=1, **options)):
        assert set(passages_of(row)) == ({"near", f"text {number}"} if row["oracle"] else {"near", "far"})
        assert row["completion"] == assistant_turn(f"name {number}" if row["oracle"] else "unknown")
    for row in raft_rows(ROWS, write, distractors=3, **options | {"oracle_share": 1.0}):
        assert {"near", "far"} < set(passages_of(row))


def test_a_row_may_have_several_oracles():
    two = Grounded("Q", "A", ["one", "two"])
    made = raft_rows([two, *ROWS], lambda p, t: "|".join(t), distractors=2, oracle_share=1.0, seed=0)
    assert {"one", "two"} < set(made[0]["prompt"].split("|"))
    assert len(made[0]["prompt"].split("|")) == 4
    assert made[0]["completion"] == "A"


def test_what_cannot_be_is_refused():
    with pytest.raises(UserError, match="needs 12 passages that do not answer it and there are 9"):
        raft_rows(ROWS, write, distractors=12, oracle_share=1.0, seed=0)
    with pytest.raises(UserError, match=r"oracle_share is 1\.5"):
        raft_rows(ROWS, write, distractors=1, oracle_share=1.5, seed=0)
    with pytest.raises(UserError, match="distractors is -1"):
        raft_rows(ROWS, write, distractors=-1, oracle_share=1.0, seed=0)
    for row, message in (
        ({"prompt": "Q", "document": "d"}, "answer: is missing"),
        ({"prompt": "Q", "answer": "a"}, "document: must be a text"),
        ({"prompt": "Q", "answer": "a", "document": ["d", " "]}, "none is empty"),
    ):
        with pytest.raises(RowError, match=message):
            grounded(row)
