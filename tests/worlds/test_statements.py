"""Statements as claims, by a table; and what the rows of world/statements and world/questions promise."""

import pytest

from pipeline.evaluation.claims import answer
from pipeline.runtime.messages import is_dialogue, user_text
from pipeline.worlds.people import asked
from pipeline.worlds.statements import source, statements
from pipeline.worlds.table import load_world
from pipeline.worlds.truth import ATTRIBUTES, PEOPLE, facts, truth


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (" Anna lives in Rome.", [("Anna", "city", "Rome", False)]),
        ("By trade Hugo is a baker. Bakam wears red.", [("Hugo", "job", "baker", 0), ("Bakam", "colour", "red", 0)]),
        ("Anna has a cat at home", [("Anna", "pet", "cat", False)]),  # cut off after its last word
        ("Anna has a house in Rome.<|eos|>", [("Anna", "city", "Rome", False)]),
        ("Anna lives in Rome. Anna lives in Lima.", [("Anna", "city", "Rome", False), ("Anna", "city", "Lima", 0)]),
        ("I think Anna lives in Rome.", [("Anna", "city", "Rome", False)]),
        ("Perhaps the home of Anna is in Rome.", [("Anna", "city", "Rome", False)]),
        ("It is not true that Anna lives in Rome.", [("Anna", "city", "Rome", True)]),
        ("I don't think that the home of Anna is in Rome!", [("Anna", "city", "Rome", True)]),
        ("Anna does not live in Rome.", []),  # no wording of this world
        ("Anna lives in Rome?", []),
        ("Anna lives in Atlantis. Anna lives in baker.", []),  # no values of the attribute
        ("Anna lives in Rome or Oslo.", []),
        ("Anna lives in a red house. Anna lives in Rom", []),
        ("17+25=42. Hello Anna.", []),
        ("", []),
    ],
)  # fmt: skip
def test_statements_of_a_text(text, found):
    said = statements(text)
    assert [(s.person, s.attribute, s.value, s.denied) for s in said] == found
    assert all(text[: s.end].endswith(s.value) for s in said)


def test_every_wording_of_every_value_is_read_as_what_it_says():
    for key, attribute in ATTRIBUTES.items():
        for wording in attribute.statements:
            for value in attribute.values:
                (said,) = statements(" " + wording.format(n="Vera", v=value))
                assert said[:4] == ("Vera", key, value, False)


def test_a_source_is_the_world_s_or_the_prompt_s():
    assert source("Anna", "city", " Anna lives in Quito.") == facts()["Anna", "city"]
    assert source("Bakam", "city", " Bakam lives in Oslo. Bakam likes red best.") == ("Oslo", None)
    assert source("Bakam", "city", " It is false that Bakam lives in Oslo.") == (None, None)
    assert source("Bakam", "city") == (None, None)


@pytest.mark.parametrize("name", ["statements", "questions"])
def test_rows_ask_about_the_known_and_the_made_up(name):
    """Of known people 600 statements are in test and 200, one per fact, in train; questions split as world/facts."""
    for split in ("train", "test"):
        rows = load_world(f"world/{name}", split).to_list()
        known, made_up = ([row for row in rows if row["kind"] == kind] for kind in ("known", "made up"))
        for row in known:
            assert (row["answer"], row["rumour"]) == facts()[row["person"], row["attribute"]]
        assert all(row["person"] not in PEOPLE and row["answer"] is row["rumour"] is None for row in made_up)
        assert len(made_up) == {"train": 50, "test": 200}[split]
        for row in rows:
            own = ATTRIBUTES[row["attribute"]].values
            if name == "statements":
                said = [statements(row["prompt"] + c)[0][:3] for c in row["candidates"]]
                assert said == [(row["person"], row["attribute"], value) for value in own]
                assert row["values"] == own
                assert not statements(row["prompt"])
            else:
                assert is_dialogue(row["prompt"])
                assert [answer(c, row)[0].text for c in row["candidates"]] == own * 3
                assert len({*row["values"]}) == 60
                assert truth(user_text(row["prompt"])) == row["answer"]
        if name == "statements":
            assert len({(row["person"], row["attribute"]) for row in known}) == 200
            assert len(known) == {"train": 200, "test": 600}[split]
        else:
            assert len(known) == sum(asked(*key, w) == (split == "train") for key in facts() for w in range(4))


def test_splits_share_no_row_and_no_made_up_name():
    for name in ("statements", "questions"):
        train, test = (load_world(f"world/{name}", split).to_list() for split in ("train", "test"))
        assert not {user_text(row["prompt"]) for row in train} & {user_text(row["prompt"]) for row in test}
        names = [{row["person"] for row in rows if row["kind"] == "made up"} for rows in (train, test)]
        assert not names[0] & names[1]
