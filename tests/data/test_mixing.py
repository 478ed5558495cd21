"""Mixtures: shares, duplicates and leaks, counted by hand."""

import pytest

from pipeline.data import mixing
from pipeline.data.formats import content_hash, prompt_hash
from pipeline.data.mixing import Part
from pipeline.data.sources import Source
from pipeline.runtime.errors import UserError


def part(rows, **source):
    counts = {"rows_read": len(rows), "bad_rows": 0, "duplicates": 0, "removed_from_train": 0}
    return Part(
        Source(**{"name": "x", **source}),
        rows,
        [content_hash(row) for row in rows],
        [prompt_hash(row) for row in rows],
        "f",
        counts,
    )


def pairs(*names, answer="a"):
    return [{"prompt": name, "completion": answer} for name in names]


def prompts(parts):
    return [[row["prompt"] for row in p.rows] for p in parts]


def test_duplicates_leave_across_parts_and_the_first_stays():
    found = mixing.deduplicate([part(pairs("a", "b", "a")), part(pairs("b", "c"))])
    assert prompts(found) == [["a", "b"], ["c"]]
    assert [p.counts["duplicates"] for p in found] == [1, 1]


def test_weights_keep_the_total_and_count_repeats():
    """12 rows and 4 rows, weights 1 and 3: 16 rows in all, so 4 of the first and 12 of the second, each 3 times."""
    parts = [part(pairs(*"abcdefghijkl"), weight=1.0), part(pairs(*"wxyz"), weight=3.0)]
    first, second = mixing.weigh(parts, seed=1)
    assert len(first.rows) == len({row["prompt"] for row in first.rows}) == 4
    assert sorted(row["prompt"] for row in second.rows) == sorted("wxyz" * 3)
    assert (first.notes["repeats"], second.notes["repeats"]) == (round(4 / 12, 4), 3.0)
    assert prompts(mixing.weigh(parts, seed=1)) == prompts([first, second])
    assert prompts(mixing.weigh(parts, seed=2)) != prompts([first, second])


def test_repeats_that_do_not_come_out_even():
    """4 and 2 rows at equal weights: 3 each; the second gives both rows once and one of them again."""
    first, second = mixing.weigh([part(pairs(*"abcd"), weight=2.0), part(pairs(*"yz"), weight=2.0)], seed=0)
    assert len(first.rows) == len(second.rows) == 3
    assert {row["prompt"] for row in second.rows} == {"y", "z"}


def test_fractions_are_trl_s():
    """6 and 4 rows at 1:2: no row repeats, so the second's 4 rows are 2/3 of 6, and the first gives its first 2."""
    found = mixing.weigh([part(pairs(*"abcdef"), fraction=1.0), part(pairs(*"wxyz"), fraction=2.0)], seed=0)
    assert prompts(found) == [["a", "b"], ["w", "x", "y", "z"]]


def test_held_out_rows_share_no_prompt_with_training():
    rows = [{"prompt": f"p{i % 20}", "completion": f"c{i}"} for i in range(60)]
    training, evaluation = mixing.hold_out([part(rows[:30]), part(rows[30:])], 9, seed=3)
    held = {row["prompt"] for p in evaluation for row in p.rows}
    left = {row["prompt"] for p in training for row in p.rows}
    assert sum(len(p.rows) for p in evaluation) == 9  # three prompts of three rows
    assert len(held) == 3
    assert not held & left
    assert len(left) == 17
    again = mixing.hold_out([part(rows[:30]), part(rows[30:])], 9, seed=3)
    assert prompts(again[1]) == prompts(evaluation)
    assert prompts(mixing.hold_out([part(rows)], 9, seed=4)[1]) != prompts(mixing.hold_out([part(rows)], 9, seed=3)[1])
    assert evaluation[0].record()["held_out_by"] == "prompt"
    assert evaluation[0].source.role == "evaluation"


def test_one_prompt_for_all_is_split_by_rows():
    rows = [{"prompt": "same", "completion": f"c{i}"} for i in range(20)]
    training, evaluation = mixing.hold_out([part(rows)], 4, seed=0)
    assert (len(training[0].rows), len(evaluation[0].rows)) == (16, 4)
    assert evaluation[0].record()["held_out_by"] == "row"
    assert not set(training[0].hashes) & set(evaluation[0].hashes)


def test_leaks_leave_training():
    training = part(pairs("a", "b") + pairs("a", answer="other"))
    evaluation = part(pairs("a", "z"))
    (left,) = mixing.remove_leaks([training], [evaluation], "sft")
    assert left.rows == pairs("b") + pairs("a", answer="other")
    assert left.counts["removed_from_train"] == 1
    (left,) = mixing.remove_leaks([training], [evaluation], "prompt")  # the same prompt is the same task
    assert left.rows == pairs("b")


def test_forms_that_differ_become_dialogues():
    text = part(pairs("q"))
    dialogue = part([{"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]}])
    (one,), (two,) = mixing.same_form([text], "sft", also=[dialogue])
    assert one.rows == [{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}]
    assert one.hashes == [content_hash(one.rows[0])]
    assert two.rows == dialogue.rows
    alike, _ = mixing.same_form([text, part(pairs("r"))], "sft")
    assert alike[0].rows == text.rows
    with pytest.raises(UserError, match="different forms do not fit into one mixture"):
        mixing.same_form([text, part([{"text": "t"}])], "sft")
