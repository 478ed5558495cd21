"""Which rows are judged, how they are named in the record, and mistakes in the list of evaluations."""

import json

import pytest

from pipeline.evaluation.registry import Result, check_entries, defaults_for, get_evaluation, run_entry
from pipeline.evaluation.rows import read_rows
from pipeline.runtime.errors import UserError


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "test.jsonl"
    rows = [{"prompt": f"q {i}", "answer": str(i), "kind": "odd" if i % 2 else "even"} for i in range(10)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_where_and_limit_choose_rows_spread_over_the_split(file):
    rows, record = read_rows(file, kind="prompt", where={"kind": "odd"}, limit=2)
    assert [row["answer"] for row in rows] == ["1", "5"]  # of 1 3 5 7 9: places 0 and 2
    assert (record["rows"], record["where"], record["limit"]) == (2, {"kind": "odd"}, 2)
    assert record["role"] == "evaluation"
    assert (record["name"], record["split"]) == (file, "test")
    assert len(record["fingerprint"]) == 64


def test_extra_columns_survive_the_conversion_to_a_standard_form(tmp_path):
    path = tmp_path / "pairs.jsonl"
    row = {"prompt": "p", "chosen": "c", "rejected": "r", "margin": 1.5, "other": 2}
    path.write_text(json.dumps(row) + "\n")
    [got], _ = read_rows(str(path), kind="preference", dataset_map="margin=truth", columns=("truth", "absent"))
    assert got == {"prompt": "p", "chosen": "c", "rejected": "r", "truth": 1.5}


def test_extra_columns_stay_beside_bad_rows_and_slices(tmp_path):
    """Of the four rows of the slice the second is bad; rows 1 and 3 are odd."""
    path = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"p {i}", "chosen": "c", "rejected": "c" if i == 2 else "r", "n": i} for i in range(1, 7)]
    path.write_text("".join(json.dumps(row | {"kind": "odd" if row["n"] % 2 else "even"}) + "\n" for row in rows))
    options = {"kind": "preference", "skip_bad_rows": True, "columns": ("n",), "where": {"kind": "odd"}}
    got, record = read_rows(str(path), "test[:4]", **options)
    assert [(row["n"], row["kind"]) for row in got] == [(1, "odd"), (3, "odd")]
    assert record["bad_rows"] == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"where": {"kind": "none"}}, "no row is left"),
        ({"where": {"sort": "odd"}}, "where names the column 'sort'"),
        ({"limit": 0}, "limit is 0"),
    ],
)
def test_rows_that_cannot_be_had(file, options, words):
    with pytest.raises(UserError, match=words):
        read_rows(file, kind="prompt", **options)


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ([], "the list is empty"),
        (["loss"], "entry 1 is 'loss'"),
        ([{"type": "los", "dataset": "d"}], "type: unknown name 'los'; .* did you mean loss"),
        ([{"type": "loss"}], "evaluation loss: the option dataset is missing"),
        ([{"type": "loss", "dataset": "d", "splt": "test"}], "unknown option 'splt'; did you mean split"),
        ([{"type": "loss", "dataset": "d", "kind": "sft"}], "unknown option 'kind'"),
        ([{"type": "loss", "dataset": "d"}, {"type": "loss", "dataset": "e"}], "duplicate name 'loss'"),
        ([{"name": "a/b", "type": "loss", "dataset": "d"}], "has the name 'a/b'"),
        ([{"type": "nowhere.at_all:f"}], "cannot import"),
        ([{"type": "accuracy", "dataset": "d", "reward": "exact"}], "max_new_tokens is missing"),
    ],
)
def test_mistakes_in_the_list_are_told_before_a_model_is_loaded(entries, words):
    with pytest.raises(UserError, match=words):
        check_entries(entries)


def test_samples_may_do_without_a_dataset():
    check_entries([{"type": "samples", "prompts": ["a"], "max_new_tokens": 3}])


def own_evaluation(model, tokenizer, *, power: int, seed: int = 0) -> Result:
    """An evaluation of a user's own, named by its dotted path in the tests below."""
    if power < 0:
        raise UserError("power is negative")
    return Result({"value": model**power + seed})


def test_an_evaluation_of_ones_own_by_dotted_path():
    entry = {"name": "mine", "type": f"{__name__}:own_evaluation", "power": 3}
    check_entries([entry])
    assert get_evaluation(entry["type"]) is own_evaluation
    # Defaults reach it only where it takes them.
    assert run_entry(2, None, entry, seed=1, batch_size=7).metrics == {"value": 9}
    assert run_entry(2, None, entry | {"seed": 5}, seed=1).metrics == {"value": 13}
    with pytest.raises(UserError, match="evaluation mine: power is negative"):
        run_entry(2, None, entry | {"power": -1})


def test_a_recorded_value_fills_only_an_option_that_is_left_open():
    """reward, beta and max_new_tokens of objective are None by default; those of accuracy are the YAML's to give."""
    defaults, recorded = {"seed": 1}, {"reward": "numeric", "beta": 0.1, "max_new_tokens": 8}
    assert defaults_for({"type": "objective"}, defaults, recorded) == defaults | recorded
    open_options = {"reward": "numeric", "max_new_tokens": 8}
    assert defaults_for({"type": "best_of_n"}, defaults, recorded) == defaults | open_options
    assert defaults_for({"type": "accuracy"}, defaults, recorded) == defaults
