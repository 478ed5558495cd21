"""The evaluation on given completions with figures by hand, its controls and marginals, and mistakes in one line."""

import pytest

from pipeline.evaluation import chains
from pipeline.evaluation.tasks.prompting import prompting
from pipeline.inference.decoding import Completion
from pipeline.runtime.errors import UserError
from tests.tiny_models import tiny_model, tiny_tokenizer

OWN = [{"prompt": "9", "completion": "1 #### a"}, {"prompt": "8", "completion": "2 #### b"}]
ROWS = [
    {"prompt": "1", "answer": "a", "kind": "x", "examples": OWN, "ideal": [0.5, 1.0], "baseline": [0.25, 0.25]},
    {"prompt": "2", "answer": "b", "kind": "x", "examples": OWN, "ideal": [0.5, 1.0], "baseline": [0.25, 0.25]},
    {"prompt": "3", "answer": "c", "kind": "y", "examples": OWN, "ideal": [1.0, 1.0], "baseline": [0.25, 0.5]},
]
TEMPLATES = {"direct": "{prompt} at once", "cot": "{prompt} in steps"}


def assess(file, **options):
    options = {"reward": "exact", "max_new_tokens": 2, "split": "train", "methods": TEMPLATES} | options
    return prompting(tiny_model(), tiny_tokenizer(), dataset=file, **options)


def test_figures_by_hand(write, monkeypatch):
    """Directly 1 of 3 is right at both numbers of shots; in steps 2, and with one example all. The ideal reader is
    right in (0.5 + 0.5 + 1) / 3 = 2/3 and in 1: the share of it is 0.5 and 1/3 directly, 1 and 1 in steps. Of kind
    x in steps without an example both, of y none."""
    asked = []

    def fake(model, tokenizer, prompts, **options):
        asked.extend(prompts)
        right = {"1", "2"} if "9" not in prompts[0] else {"1", "2", "3"}
        right = right if "steps" in prompts[0] else {"2"}
        answers = {row["prompt"]: row["answer"] for row in ROWS}
        names = [p.rpartition("; ")[2][0] for p in prompts]
        return [[Completion(f"r #### {answers[n] if n in right else 'z'}", [1] * 3, "eos")] for n in names]

    monkeypatch.setattr(chains, "sample", fake)
    result = assess(
        write(ROWS), shots=[1, 0, 1], by="kind", think_end_token="####",
        example_template="{prompt}: {completion}; ",
    )  # fmt: skip
    got = result.metrics
    assert asked[:2] == ["1 at once:", "2 at once:"]
    assert asked[3] == "9 at once: #### a; 1 at once:"  # an example of the direct method is without its reasoning
    assert asked[9] == "9 in steps: 1 #### a; 1 in steps:"
    assert [got[n] for n in ("direct@0", "direct@1", "cot@0", "cot@1")] == pytest.approx([1 / 3, 1 / 3, 2 / 3, 1])
    assert [got[f"share_of_ideal_{n}"] for n in ("direct@0", "direct@1", "cot@0", "cot@1")] == pytest.approx(
        [0.5, 1 / 3, 1, 1]
    )
    assert (got["baseline@0"], got["baseline@1"]) == pytest.approx((0.25, 1 / 3))
    assert got["cot_minus_direct@1"] == pytest.approx(2 / 3)
    assert got["cot@0_low"] < 2 / 3 < got["cot@0_high"]
    assert (got["x/cot@0"], got["y/cot@0"], got["x/direct@0"]) == (1, 0, 0.5)
    assert "x/cot@0_low" not in got  # a group's intervals are in the table
    points = result.curves["accuracy by shots"]
    assert points[0] == pytest.approx({"shots": 0, "direct": 1 / 3, "cot": 2 / 3, "ideal": 2 / 3, "baseline": 0.25})
    assert [row["group"] for row in result.tables["accuracy by shots"]].count("y") == 4


def test_the_intervals_of_a_difference_are_paired(write, monkeypatch):
    """Each method is right on another half of the rows: the difference is 0 and its interval is wide; where both are
    right on the same half it is exactly 0."""
    rows = [{"prompt": str(i % 10), "answer": "a"} for i in range(20)]

    def run(same):
        def fake(model, tokenizer, prompts, **options):
            first = same or "at once" in prompts[0]
            return [[Completion("a" if (i < 10) == first else "b", [1], "eos")] for i in range(len(prompts))]

        monkeypatch.setattr(chains, "sample", fake)
        got = assess(write(rows), shots=[0]).metrics
        return got["cot_minus_direct@0"], got["cot_minus_direct@0_high"] - got["cot_minus_direct@0_low"]

    assert run(True) == (0, 0)
    assert run(False) == (0, pytest.approx(0.9, abs=0.1))


def test_controls_by_hand(write, monkeypatch):
    """After the wrong step one answer follows it and one is the truth: follows and right 1/2 each. The filler stands
    for a chain of three tokens."""
    rows = [
        {"prompt": p, "answer": "a", "intact": " 1 = 2 ####", "corrupted": " 1 = 5 ####", "corrupted_answer": "b"}
        for p in "34"
    ]
    begun = []

    def fake(model, tokenizer, prompts, **options):
        begun.extend(prompts)
        if " 5 ####" in prompts[0]:
            return [[Completion(" a" if p[0] == "3" else " b", [1], "eos")] for p in prompts]
        if "steps" in prompts[0] and "####" not in prompts[0]:
            return [[Completion(" 1 = 2 #### a", [1] * 5, "eos")] for _ in prompts]
        return [[Completion("a", [1], "eos")] for _ in prompts]

    monkeypatch.setattr(chains, "sample", fake)
    result = assess(
        write(rows), shots=[0], think_end_token="####", filler=" e", example_template="{prompt}{completion}"
    )
    table = {row["case"]: row for row in result.tables["controls"]}
    assert (table["corrupted"]["right"], table["corrupted"]["follows"]) == (0.5, 0.5)
    assert (table["intact"]["right"], table["intact"]["follows"]) == (1, 0)
    assert "3 in steps e e e ####" in begun
    assert table["filler"]["right"] == 1
    assert result.metrics["corrupted/follows"] == 0.5


def test_no_row_is_an_example_of_another(write, monkeypatch):
    """Examples from the file that is asked: none is left; from another file all but the asked ones."""
    with pytest.raises(UserError, match="1 shots need 1 rows that nobody asks; 0 of 3 are left"):
        assess(
            write([r | {"completion": "x"} for r in ROWS]),
            shots=[1],
            examples=write([r | {"completion": "x"} for r in ROWS]),
        )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"shots": [-1]}, "shots: give one or several"),
        ({"shots": [3]}, "row 1 brings 2 of its own, and shots goes up to 3"),
        ({"methods": {"cot": "think"}}, "'think' has no {prompt} in it"),
        ({"chains": 4, "shots": [0]}, "chains and filler need a method cot, and think_end_token"),
        ({"reward": "code"}, "needs the column 'tests'"),
        ({"by": "sort"}, "not every row has the column 'sort'"),
    ],
)
def test_a_mistake_is_named_before_the_model_is_used(write, options, words):
    with pytest.raises(UserError, match=words):
        prompting(
            None, None, **{"dataset": write(ROWS), "split": "train", "reward": "exact", "max_new_tokens": 2} | options
        )
