"""What a stage gets: the right rows in exact types, nothing leaked, every source accounted for."""

import hashlib
import json
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.data import check, loading
from pipeline.data.arguments import DataArguments
from pipeline.data.columns import parse_map
from pipeline.data.loading import load_data, read_split
from pipeline.data.sources import Source
from pipeline.runtime.comparison import changed_inputs
from pipeline.runtime.errors import UserError


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def pairs(count, start=0):
    return [{"prompt": f"p{i}", "completion": f"c{i}"} for i in range(start, start + count)]


def load(kind="sft", seed=0, **arguments):
    return load_data(DataArguments(**arguments), kind, seed)


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet"])
def test_every_kind_of_file_gives_the_same_rows(tmp_path, kind):
    rows, path = pairs(5), tmp_path / f"train.{kind}"
    if kind == "jsonl":
        write(path, rows)
    elif kind == "json":
        path.write_text(json.dumps(rows))
    elif kind == "csv":
        path.write_text("prompt,completion\n" + "".join(f"{r['prompt']},{r['completion']}\n" for r in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    assert read_split(str(path), "train", kind="sft").to_list() == rows
    assert read_split(str(tmp_path), "train", kind="sft").to_list() == rows


def test_slices(tmp_path):
    path = write(tmp_path / "a.jsonl", pairs(10))

    def places(split):
        return [int(row["prompt"][1:]) for row in read_split(path, split, kind="sft")]

    assert places("train[:3]") == [0, 1, 2]
    assert places("train[7:]") == [7, 8, 9]
    assert places("train[20%:40%]") == [2, 3]
    assert places("train[-2:]") == [8, 9]
    for bad in ("train[1]", "train[:5]+test", "train[a:b]"):
        with pytest.raises(UserError, match="is not a name, or a name with one slice"):
            places(bad)


def test_held_out_rows_are_seeded_disjoint_and_recorded(tmp_path):
    path = write(tmp_path / "a.jsonl", pairs(200))
    data = load(dataset_name=path)
    train, held = set(data.train["prompt"]), set(data.evaluation["prompt"])
    assert (len(train), len(held)) == (180, 20)  # a tenth
    assert not train & held
    assert set(load(dataset_name=path).evaluation["prompt"]) == held
    assert set(load(dataset_name=path, seed=1).evaluation["prompt"]) != held
    assert len(load(dataset_name=path, eval_rows=7).evaluation) == 7
    assert load(dataset_name=path, eval_rows=0).evaluation is None
    digest = hashlib.sha256((tmp_path / "a.jsonl").read_bytes()).hexdigest()
    base = {"name": path, "split": "train", "fingerprint": digest, "files": [path], "bad_rows": 0, "duplicates": 0}
    base["read_as"] = "prompt + completion"
    assert data.sources == [
        {**base, "role": "train", "rows": 180, "rows_read": 200, "removed_from_train": 0},
        {
            **base,
            "role": "evaluation",
            "rows": 20,
            "rows_read": 20,
            "removed_from_train": 0,
            "held_out_of": "train",
            "held_out_by": "prompt",
            "seed": 0,
        },
    ]


def test_a_file_whose_bytes_cannot_be_read_is_named(tmp_path):
    """No permission, a broken disk: here a link to memory that has no page at 0, which not even root can read."""
    (tmp_path / "a.jsonl").symlink_to("/proc/self/mem")
    for read in (
        lambda: load(dataset_name=str(tmp_path / "a.jsonl")),
        lambda: check.main([str(tmp_path / "a.jsonl")]),
    ):
        with pytest.raises(UserError, match=r"a\.jsonl cannot be read: Input/output error"):
            read()


def test_named_evaluation_duplicates_and_leaks(tmp_path, capsys):
    """Of training rows 0..9 and 0, 1 again: two duplicates leave, then 8 and 9, which stand in the test split."""
    write(tmp_path / "train.jsonl", pairs(10) + pairs(2))
    write(tmp_path / "test.jsonl", pairs(3, start=8))
    data = load(dataset_name=str(tmp_path), dataset_test_split="test")
    assert data.train.to_list() == pairs(8)
    assert data.evaluation.to_list() == pairs(3, start=8)
    counts = {key: data.sources[0][key] for key in ("rows_read", "duplicates", "removed_from_train", "rows")}
    assert counts == {"rows_read": 12, "duplicates": 2, "removed_from_train": 2, "rows": 8}
    said = "training leaves out 2 exact duplicates and 2 that are also in the evaluation data, of 12 rows"
    assert capsys.readouterr().err == f"{tmp_path}: {said}\n"
    kept = load(dataset_name=str(tmp_path), dataset_test_split="test", deduplicate=False)
    assert len(kept.train) == 10
    other = load(dataset_name=str(tmp_path / "train.jsonl"), eval_dataset_name=str(tmp_path / "test.jsonl"))
    assert other.train.to_list() == data.train.to_list()
    with pytest.raises(UserError, match="no training row is left of 3: 0 bad, 0 duplicates, 3 are in"):
        load(dataset_name=str(tmp_path / "test.jsonl"), eval_dataset_name=str(tmp_path / "test.jsonl"))


def test_a_test_split_is_used_only_when_it_is_named(tmp_path):
    write(tmp_path / "train.jsonl", pairs(20))
    write(tmp_path / "test.jsonl", pairs(5, start=100))
    data = load(dataset_name=str(tmp_path))
    assert len(data.train) + len(data.evaluation) == 20
    assert data.sources[1]["held_out_of"] == "train"


def test_mixture_has_no_leak_and_no_double(tmp_path):
    one = write(tmp_path / "one.jsonl", pairs(60))
    two = write(tmp_path / "two.jsonl", [{"q": row["prompt"], "a": row["completion"]} for row in pairs(40, start=50)])
    mixture = [{"path": one, "weight": 1}, {"path": two, "weight": 3, "dataset_map": "q=prompt,a=completion"}]
    data = load(datasets=mixture, eval_rows=10)
    train = [row["prompt"] for row in data.train]
    held = list(data.evaluation["prompt"])
    assert len(held) == len(set(held)) == 10
    assert not set(train) & set(held)
    assert data.sources[1]["duplicates"] == 10  # prompts 50 to 59 stand in both files
    assert len(train) == pytest.approx(80, abs=1)  # 90 different rows less 10 held out
    assert data.sources[1]["rows"] == pytest.approx(60, abs=1)  # three quarters of 80
    assert data.sources[1]["repeats"] > 1
    assert [row["prompt"] for row in load(datasets=mixture, eval_rows=10).train] == train


def test_bad_rows_stop_or_are_counted(tmp_path, capsys):
    path = write(tmp_path / "a.jsonl", [*pairs(4), {"prompt": "p", "completion": ""}, *pairs(4, start=4)])
    with pytest.raises(
        UserError, match=r"a.jsonl, row 5: completion: is empty \(fix the row, or pass --skip_bad_rows"
    ):
        load(dataset_name=path)
    data = load(dataset_name=path, skip_bad_rows=True, eval_rows=0)
    assert data.train.to_list() == pairs(8)
    assert (data.sources[0]["bad_rows"], data.sources[0]["rows_read"]) == (1, 9)
    assert data.sources[0]["first_bad_rows"] == [f"{path}, row 5: completion: is empty"]
    assert capsys.readouterr().err.count("\n") == 1
    assert len(read_split(path, "train", kind="sft", skip_bad_rows=True)) == 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "no data: give --dataset_name"),
        ({"dataset_name": "./none.jsonl"}, "'./none.jsonl' does not exist"),
        ({"dataset_name": "nobody/nothing"}, "nobody/nothing, split 'train', cannot be loaded: it is no local file"),
        ({"dataset_name": "world/atlantis"}, "world/atlantis"),
        ({"dataset_name": "world/sft", "dataset_train_split": "dev"}, "no split 'dev'"),
        ({"dataset_name": "{empty}"}, "is empty: there are no rows in split 'train'"),
        ({"dataset_name": "{good}", "dataset_test_split": "test"}, "is one split and has no 'test'"),
        ({"dataset_name": "{good}", "dataset_map": "question=prompt"}, "no column 'question' to rename"),
        ({"dataset_name": "{good}", "eval_rows": 3}, "3 different rows cannot spare 3 for evaluation"),
        ({"dataset_name": "{good}", "eval_rows": -1}, "eval_rows -1 is negative"),
        ({"dataset_name": "{good}", "datasets": [{"path": "{good}"}]}, "not both"),
        ({"datasets": [{"path": "{good}", "columns": ["prompt", "answer"]}]}, "no column 'answer'"),
        ({"dataset_name": "{good}", "dataset_streaming": True}, "dataset_streaming is for pretraining text"),
    ],
)
def test_mistakes_are_named(tmp_path, arguments, message):
    (tmp_path / "empty.jsonl").write_text("\n")
    names = {"{empty}": str(tmp_path / "empty.jsonl"), "{good}": write(tmp_path / "good.jsonl", pairs(3))}
    text = json.dumps(arguments)
    for name, path in names.items():
        text = text.replace(name, path)
    with pytest.raises(UserError, match=message) as error:
        load(**json.loads(text))
    assert "\n" not in str(error.value)


def test_a_finished_run_sees_that_its_files_changed(tmp_path):
    """A folder's train split alone is this run's data: its other files may change."""
    write(tmp_path / "train.jsonl", pairs(30))
    write(tmp_path / "test.jsonl", pairs(3))
    record = {"data": load(dataset_name=str(tmp_path)).sources}
    assert changed_inputs(record, {}) == []
    write(tmp_path / "test.jsonl", pairs(4))
    assert changed_inputs(record, {}) == []
    write(tmp_path / "train.jsonl", pairs(31))
    assert set(changed_inputs(record, {})) == {f"the data in {tmp_path} has changed"}


def test_embedded_world_is_loaded_by_name():
    found = read_split("world/prompts", "test[:5]", kind="prompt")
    assert len(found) == 5
    assert {"prompt", "answer"} <= set(found.column_names)


def test_loading_does_not_import_torch(tmp_path):
    path = write(tmp_path / "a.jsonl", pairs(10))
    code = (
        "import sys; from pipeline.data.arguments import DataArguments; heavy = {'torch', 'transformers', 'datasets'};"
        "assert not heavy & set(sys.modules); from pipeline.data.loading import load_data;"
        f"load_data(DataArguments(dataset_name={path!r}), 'sft', 0);"
        "assert not {'torch', 'transformers', 'trl'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize(
    ("name", "kind", "renames", "rows", "bad"),
    [
        ("gsm8k/train.jsonl", "sft", "", 7473, 0),
        ("gsm8k/train.jsonl", "text", "question=prompt,answer=completion", 7473, 0),
        ("gsm8k/test_first_half.jsonl", "prompt", "", 660, 0),
        ("hh_rlhf", "preference", "", 1796, 4),
        ("preference", "preference", "", 300, 0),
        ("humaneval", "prompt", "", 100, 0),
        ("mbpp", "prompt", "text=prompt", 700, 0),
        ("math", "prompt", "", 1500, 0),
        ("math", "sft", "", 1500, 0),
        ("hh_rlhf", "sft", "", 1796, 4),
        ("truthfulqa/mc_task.json", "prompt", "question=prompt", 400, 0),
        ("sycophancy", "prompt", "", 2000, 0),
        ("halueval/general_data.jsonl", "sft", "user_query=prompt,chatgpt_response=completion", 1500, 0),
        ("continual/agnews_train.jsonl", "sft", "sentence=prompt,label=completion", 1000, 0),
    ],
)
def test_real_data(real_data, name, kind, renames, rows, bad):
    part = loading.read_source(
        Source(name=str(real_data(name)), dataset_map=parse_map(renames)), kind, skip_bad_rows=True
    )
    assert (len(part.rows), part.counts["bad_rows"]) == (rows, bad)


def test_real_pairs_are_split_at_their_last_answer(real_data):
    found = read_split(str(real_data("hh_rlhf/harmless_base.jsonl")), "train[:80]", kind="preference")
    assert {row["prompt"][-1]["role"] for row in found} == {"user"}
    assert {row[side][0]["role"] for row in found for side in ("chosen", "rejected")} == {"assistant"}
    assert all(row["chosen"] != row["rejected"] for row in found)


def test_real_text_is_all_there(real_data):
    path = real_data("tinyshakespeare/input.txt")
    found = read_split(str(path), "train", kind="text")
    assert "\n\n".join(found["text"]) == path.read_text().strip("\n")
