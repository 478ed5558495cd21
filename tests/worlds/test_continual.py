"""The sequence of corpora: what is facts_of when, changes that happen once, test rows that stay true."""

from pipeline.runtime.messages import user_text
from pipeline.worlds.continual import CORPORA, NEWCOMERS, changed_after, facts_of, rows, truth_after
from pipeline.worlds.statements import statements
from pipeline.worlds.table import load_world
from pipeline.worlds.truth import ATTRIBUTES, PEOPLE, facts


def test_each_corpus_brings_twelve_people_and_twelve_changes():
    """12 people x 3 facts are new; the first corpus changes 12 facts of the world's own people, later ones 6 and 6."""
    assert len(set(NEWCOMERS)) == 48 == len(set(NEWCOMERS) - set(PEOPLE))
    for k in range(1, CORPORA + 1):
        new = [fact for fact, (_, before) in facts_of(k).items() if not before]
        changed = [fact for fact, (_, before) in facts_of(k).items() if before]
        assert len(new) == 36
        assert {name for name, _ in new} == set(NEWCOMERS[12 * (k - 1) : 12 * k])
        assert len(changed) == 12
        assert sum(fact in facts() for fact in changed) == (12 if k == 1 else 6)
        assert all(facts_of(k)[fact] == (truth_after(k)[fact], truth_after(k - 1)[fact]) for fact in changed)
        assert all(truth_after(k)[fact] != truth_after(k - 1)[fact] for fact in changed)


def test_a_fact_changes_once_at_most():
    changed = [fact for k in range(1, CORPORA + 1) for fact, (_, before) in facts_of(k).items() if before]
    assert len(changed) == len(set(changed)) == 48
    assert changed_after(0) == set(changed)
    assert changed_after(CORPORA) == frozenset()


def test_no_wording_of_a_fact_is_in_both_splits_and_test_rows_stay_true():
    """36 + 12 facts are asked in 3 wordings, twice each: 288 rows. A test row is true at the end of the sequence."""
    for k in range(1, CORPORA + 1):
        train, test = (load_world(f"world/continual-{k}", split) for split in ("train", "test"))
        assert len(train) == 288
        asked = [{row["prompt"][0]["content"].rpartition(": ")[2] for row in part} for part in (train, test)]
        assert asked[0] & asked[1] == set()
        assert len(test) == len(asked[1]) == 48 - len(changed_after(k) & set(facts_of(k)))
        for row in test:
            assert row["completion"] == [{"role": "assistant", "content": row["answer"]}]
            assert bool(row["before"]) == (row["kind"] == "changed")
            assert row["answer"] == final(row["prompt"][0]["content"])


def final(question: str) -> str:
    """The answer at the end of the sequence, found by trying every question there is."""
    [value] = [
        value
        for (name, key), value in truth_after(CORPORA).items()
        for wording in ATTRIBUTES[key].questions
        if question.endswith(wording.format(n=name))
    ]
    return value


def test_what_lasts_is_never_contradicted():
    """continual-0 asks for no fact that a corpus changes; its other rows carry the world's own answers."""
    for split, count in (("train", 300 + 100), ("test", 75 + 25)):
        rows = load_world("continual-0", split)
        assert len(rows) == count
        for row in rows:
            if row["kind"] == "fact":
                assert row["answer"] == final(row["prompt"][0]["content"])
        sums = [row for row in rows if row["kind"] == "sum"]
        assert all(row["completion"][0]["content"].endswith(f"#### {row['answer']}") for row in sums)


def test_told_facts_are_in_the_prompt_and_are_the_first_corpus_s_questions():
    """Every test question of the first corpus three times: bare, with its fact, and with its fact among five."""
    told = list(rows("continual-told", "test"))
    asked = {user_text(row["prompt"]) for row in rows("continual-1", "test")}
    assert len(told) == 3 * len(asked)
    for bare, one, five in zip(told[::3], told[1::3], told[2::3]):
        assert [row["kind"] for row in (bare, one, five)] == ["0 facts", "1 fact", "5 facts"]
        question = user_text(bare["prompt"])
        assert question in asked
        for row, count in ((one, 1), (five, 5)):
            text = user_text(row["prompt"])
            assert text.endswith(question)
            stated = statements(text.removesuffix(question))
            assert len(stated) == count
            assert row["answer"] == bare["answer"]
            assert any(s.value == row["answer"] and s.person in question for s in stated)
