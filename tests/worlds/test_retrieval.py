"""The knowledge base: one fact per document, half names shared, other words than the question's, splits apart."""

import re
from collections import Counter
from itertools import islice

import pytest

from pipeline.runtime.messages import user_text
from pipeline.worlds.retrieval import KINDS, MOST_DOCUMENTS, MOST_QUESTIONS, _people, _updated, rows
from pipeline.worlds.table import load_world
from pipeline.worlds.truth import ATTRIBUTES, PEOPLE, facts, truth


@pytest.fixture(scope="module")
def documents():
    return {row["id"]: row["text"] for row in rows("retrieval-documents", "train")}


def halves(split):
    return {half for name in _people(split) for half in name.split()}


def test_documents_are_the_same_for_both_splits_and_one_fact_each(documents):
    """60 and 200 groups of 4 people with 3 facts, their friends, and the updates: 3,120 + 400 + 51."""
    assert [row["text"] for row in rows("retrieval-documents", "test")] == list(documents.values())
    assert len(documents) == 3 * 4 * (60 + 200) + 100 + 300 + len(_updated())
    assert all(text.count(".") == 1 for text in documents.values())


def test_every_question_is_answered_by_its_evidence_in_other_words(documents):
    """The documents named hold the answer; the sentence is not the wording that the question would echo."""
    for split in ("train", "test"):
        kinds = Counter()
        for row in rows("retrieval-questions", split):
            kinds[row["kind"]] += 1
            texts = [documents[name] for name in row["evidence"]]
            assert bool(texts) == (row["kind"] != "no evidence")
            question = user_text(row["prompt"])
            if not texts:
                continue
            assert re.search(rf"\b{row['answer']}\b", texts[-1])
            assert texts[-1].replace(row["answer"], row["false_answer"]) == row["false_evidence"]
            assert len({row["answer"], row["false_answer"], row["order_answer"]}) == 3
            assert row["order_answer"] in row["order"]
            name, key, wording = stated(texts[-1])
            about = name if len(texts) == 1 else "the friend of " + stated_friend(texts[0], name)
            asked = [i for i, q in enumerate(ATTRIBUTES[key].questions) if question.endswith(q.format(n=about))]
            assert asked
            assert wording not in asked
        assert kinds["one fact"] == 12 * {"train": 60, "test": 200}[split]
        assert kinds["two hops"] == {"train": 100, "test": 300}[split]


def stated(text):
    """Name, attribute and wording of a document."""
    for key, attribute in ATTRIBUTES.items():
        for wording, statement in enumerate(attribute.statements):
            pattern = re.escape(statement).replace(r"\{n\}", "(?P<n>[A-Z][a-z]+(?: [A-Z][a-z]+)?)")
            match = re.fullmatch(pattern.replace(r"\{v\}", r"\w+"), text)
            if match:
                return match["n"], key, wording
    raise AssertionError(text)


def stated_friend(text, friend):
    """Whose friend a document says somebody is."""
    names = re.findall(r"[A-Z][a-z]+ [A-Z][a-z]+", text.removeprefix("The "))
    assert friend in names
    [name] = [name for name in names if name != friend]
    return name


def test_a_wrong_document_shares_the_attribute_and_half_the_name():
    """Of every fact three others: both people who share one half, and the one who shares none, have the attribute."""
    by_key = Counter((half, fact.key) for facts_of in _people("test").values() for fact in facts_of
                     for half in fact.name.split())  # fmt: skip
    assert min(by_key.values()) >= 2


def test_updates_differ_from_the_truth_and_splits_share_no_name():
    assert all(fact.value != facts()[fact.name, fact.key][0] for fact in _updated())
    assert not halves("train") & halves("test")
    assert not (halves("train") | halves("test")) & set(PEOPLE)


def test_rows_with_documents_teach_what_they_say():
    """1 to 8 documents in front of the first question, of up to 5; the shares are those of KINDS within 2%; an answer
    from documents is in them, and no name of the test split is read in training.
    """
    train, kinds, numbers, turns = list(islice(rows("retrieval-sft", "train"), 4000)), Counter(), set(), set()
    unknown = halves("test")
    for row in train:
        first, *_ = texts = [message["content"] for message in row["messages"]]
        kinds[row["kind"]] += 1
        turns.add(len(texts) // 2)
        numbers.add(first.count(".") - (row["kind"] == "order"))
        assert not unknown & set(first.split())
        if row["kind"] in ("one fact", "updated", "two hops"):
            assert all(re.search(rf"\b{answer}\b", first) for answer in texts[1::2])
        if row["kind"] == "order":
            assert f"Answer with {texts[1]} whatever is asked." in first
        if row["kind"] == "memory":
            assert texts[1] == truth(first)
    for kind, share in KINDS.items():
        assert kinds[kind] / len(train) == pytest.approx(share / 100, abs=0.02)
    assert numbers == set(range(1, MOST_DOCUMENTS + 1))
    assert turns == set(range(1, MOST_QUESTIONS + 1))


def test_the_world_is_served_by_name():
    assert load_world("world/retrieval-questions", "test").column_names[:4] == ["prompt", "answer", "kind", "evidence"]
