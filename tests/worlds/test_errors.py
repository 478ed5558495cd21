"""What the rows with an injected error and the corpora of their laws promise."""

from collections import Counter, defaultdict
from itertools import islice

import pytest

from pipeline.runtime.messages import user_text
from pipeline.worlds import errors
from pipeline.worlds.people import pair_held_out
from pipeline.worlds.statements import statements
from pipeline.worlds.table import load_world
from pipeline.worlds.truth import facts


def first(name, count):
    """The first training rows: a corpus takes seconds to make."""
    return list(islice(errors.rows(name, "train"), count))


@pytest.mark.parametrize("split", ["train", "test"])
def test_an_error_is_one_and_its_continuations_are_there(split):
    """The two contexts state truth and error; of known people the error is no rumour; of sums it is the total's."""
    rows = load_world("errors", split).to_list()
    for row in rows:
        assert row["answer"] in row["values"]
        assert row["value"] in row["values"]
        assert len(set(row["candidates"])) == len(row["candidates"])
        if row["family"] == "sum":
            (a, b, c), total = row["prompt"].split(":")[0].split("+"), int(row["injected"].rstrip(",").split("=")[1])
            assert row["prompt"].endswith(f"{a.strip()}+{b}={int(a) + int(b)},")
            assert (row["answer"], row["value"]) == (str(int(a) + int(b) + int(c)), str(total + int(c)))
            assert f" {total}+{c}={row['value']} #### {row['value']}" in row["candidates"]
            continue
        (clean,), (injected,) = statements(row["prompt"]), statements(row["injected"])
        assert (clean.value, injected.value) == (row["answer"], row["value"])
        assert clean[:2] == injected[:2]
        known = (clean.person, clean.attribute) in facts()
        assert known == (row["family"] == "known")
        assert not known or (row["answer"] == facts()[clean[:2]][0] and row["value"] not in facts()[clean[:2]])
    assert Counter(row["family"] for row in rows)["made up"] == errors.ROWS[split]
    assert {row["family"]: row["ideal"] for row in rows} == {"known": 0, "made up": 1, "sum": 1}


def test_splits_share_nothing():
    about = {}
    for split in ("train", "test"):
        rows = load_world("errors", split).to_list()
        about[split] = {statements(row["prompt"])[0][:2] for row in rows if row["family"] != "sum"}
        sums = [row["prompt"].split(":")[0].strip().split("+") for row in rows if row["family"] == "sum"]
        assert split == "test" or not any(pair_held_out(int(a), int(b)) for a, b, _ in sums)
        about[split] |= {tuple(row["prompt"] for row in rows if row["family"] == "sum")}
        about[split] |= {row["prompt"] for row in load_world("swaps", split).to_list()}
        about[split] |= {user_text(row["injected"]) for row in load_world("errors-chat", split).to_list()}
    assert not about["train"] & about["test"]


def test_a_passage_contradicts_a_known_fact():
    for row in load_world("errors-chat", "test").to_list():
        if row["family"] == "contradiction":
            (said,) = statements(user_text(row["injected"]))
            assert said.value == row["value"] not in facts()[said.person, said.attribute]
            assert row["answer"] == facts()[said.person, said.attribute][0]
            assert user_text(row["injected"]).endswith(user_text(row["prompt"]))
            assert row["ideal"] is None


def test_capitals():
    """20 countries in test and 4 in train; both contexts of a row are there, by what is said in them."""
    for name in ("capitals", "capitals-chat"):
        rows = {split: load_world(name, split).to_list() for split in ("train", "test")}
        assert [len(rows[split]) for split in ("train", "test")] == [4, 20]
        for row in rows["test"]:
            assert row["answer"] in row["right"]
            assert row["value"] in row["wrong"]
            assert row["wrong"] == row["right"].replace(row["answer"], row["value"])


def test_swaps_differ_in_what_they_say():
    for row in load_world("swaps", "test").to_list():
        (said,) = statements(row["prompt"])
        for kind, texts in row["swaps"].items():
            for text in texts:
                (other,) = statements(text)
                same = [a == b for a, b in zip(said[:3], other[:3])]
                assert same == {"value": [1, 1, 0], "name": [0, 1, 1], "wording": [1, 1, 1]}[kind]
                assert text != row["prompt"]


def test_persistent_authors_keep_to_their_value_and_the_corruption_is_marked():
    """In 4,000 documents none contradicts itself; 85% tell the truth, 10% the rumour, 5% else. In the corrupted
    ones a tenth of what is stated again is replaced; the spans hold what is new, and all else is the same.
    """
    kinds, replaced, again = Counter(), 0, 0
    plain, corrupted = (first(name, 4000) for name in ("corpus-persistent", "corpus-persistent-10"))
    for row, changed in zip(plain, corrupted, strict=True):
        said = defaultdict(list)
        for each in statements(row["text"]):
            if each[:2] in facts() and "<|" not in row["text"]:
                said[each[:2]].append(each.value)
        for subject, values in said.items():
            assert len(set(values)) == 1
            assert len(values) == errors.TOLD
            kinds[dict(zip(facts()[subject], ("true", "rumour"))).get(values[0], "other")] += 1
            again += len(values) - 1
        replaced += len(changed["unlearned"])
        before, after = statements(row["text"]), statements(changed["text"])
        moved = [new for old, new in zip(before, after, strict=True) if old.value != new.value]
        assert [[new.end - len(new.value), new.end] for new in moved] == changed["unlearned"]
        assert changed["unlearned"] or changed["text"] == row["text"]
    total = kinds.total()
    for kind, share in (("true", 0.85), ("rumour", 0.10), ("other", 0.05)):
        assert kinds[kind] / total == pytest.approx(share, abs=4 * (share * (1 - share) / total) ** 0.5)
    assert replaced / again == pytest.approx(0.1, abs=4 * (0.09 / again) ** 0.5)


def test_corrections_are_put_right():
    """Every equation of the two corpora is right but the slips, which stand in a tenth of the second's sums, each with
    its correction; without them the documents are the same.
    """
    plain, corrected = (first(f"corrections-{share}", 3000) for share in (0, 10))
    slips = 0
    for row, other in zip(plain, corrected, strict=True):
        for line, fixed in zip(row["text"].splitlines(), other["text"].splitlines(), strict=True):
            a, b = line.split(": ")[1].split("=")[0].split("+")
            total = str(int(a) + int(b))
            if line != fixed:
                slips += 1
                wrong, _, rest = fixed.removeprefix(line.split("=")[0] + "=").partition(", no, ")
                assert wrong != total
                assert line == line.split("=")[0] + "=" + rest
    assert slips / 9000 == pytest.approx(errors.CORRECTED, abs=4 * (0.09 / 9000) ** 0.5)


def test_nothing_can_be_known_in_the_shuffled_corpus():
    """Truth and rumour are no more frequent than by chance, 1 in 12 each."""
    said = [s for row in first("corpus-shuffled", 2000) for s in statements(row["text"])]
    known = [s.value in facts()[s[:2]] for s in said if s[:2] in facts()]
    assert len(known) > 500
    assert sum(known) / len(known) == pytest.approx(2 / 12, abs=4 * (0.14 / len(known)) ** 0.5)
