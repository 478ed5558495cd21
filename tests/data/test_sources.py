"""Named datasets: the entries of a mixture, their files, and what identifies their content."""

import hashlib

import datasets
import pytest

from pipeline.data.arguments import DataArguments
from pipeline.data.sources import eval_sources, parse_mixture, source_fingerprint, sources_of
from pipeline.runtime import files as fingerprints
from pipeline.runtime.errors import UserError
from tests.data.test_loading import load, pairs, write


def fingerprints_of(arguments):
    named = sources_of(arguments)
    named += eval_sources(arguments, named)
    return [{"split": source.split, "fingerprint": source_fingerprint(source)} for source in named]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([{"path": "a", "wieght": 1}], "entry 1: unknown key 'wieght'; did you mean weight?"),
        ([{"path": "a", "zzz": 1}], "the known keys are path, name"),
        ([{"split": "train"}], "path is missing"),
        ([{"name": "rows.jsonl"}], "name, 'rows.jsonl', is the configuration of a Hub dataset: did you mean path"),
        (["a"], "a mapping with path"),
        ([{"path": 3}], "path must be text"),
        ([{"path": "a", "columns": "prompt"}], "columns must be a list"),
        ([{"path": "a", "weight": 0}], "weight must be a number above 0, found 0"),
        ([{"path": "a", "weight": "2"}], "found '2'"),
        ([{"path": "a", "weight": True}], "found True"),
        ([{"path": "a", "weight": float("nan")}], "found nan"),
        ([{"path": "a", "weight": 1}, {"path": "b"}], "weight must be on every entry"),
        ([{"path": "a", "weight": 1, "fraction": 1}], "not both"),
        ([{"path": "a", "dataset_map": "q"}], "'q' is not old=new"),
    ],
)
def test_a_wrong_entry_is_named(entries, message):
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        parse_mixture(entries)


def test_entries_are_trl_s_with_a_map_of_their_own():
    one, two = parse_mixture(
        [{"path": "a", "name": "main", "split": "train[:5]", "columns": ["q"]}, {"path": "b", "dataset_map": "x=y"}],
        "q=prompt",
    )
    assert (one.name, one.config, one.split, one.columns, one.dataset_map) == (
        "a",
        "main",
        "train[:5]",
        ("q",),
        {"q": "prompt"},
    )
    assert (two.split, two.split_name, two.dataset_map) == ("train", "train", {"x": "y"})


def test_data_files_of_an_entry(tmp_path):
    for name in ("a.jsonl", "b.jsonl", "c.csv"):
        (tmp_path / name).write_text("{}")

    def names(**entry):
        return [file.name for file in parse_mixture([{"path": str(tmp_path), **entry}])[0].files()]

    assert names(data_files="b.jsonl") == ["b.jsonl"]
    assert names(data_files=["c.csv", "a.jsonl"]) == ["c.csv", "a.jsonl"]
    assert names(data_files="*.jsonl") == ["a.jsonl", "b.jsonl"]
    assert names(data_files={"train": "a.jsonl", "test": "b.jsonl"}, split="test") == ["b.jsonl"]
    assert [f.name for f in parse_mixture([{"path": "json", "data_files": str(tmp_path / "a.jsonl")}])[0].files()] == [
        "a.jsonl"
    ]
    with pytest.raises(UserError, match=r"data_files 'z\*' matches no file"):
        names(data_files="z*")
    with pytest.raises(UserError, match="data_files has no split 'train'"):
        names(data_files={"test": "b.jsonl"})


def test_fingerprints_need_no_rows_and_see_changes(tmp_path):
    write(tmp_path / "train.jsonl", pairs(3))
    write(tmp_path / "test.jsonl", [{"not": "checked here"}])
    arguments = DataArguments(dataset_name=str(tmp_path), dataset_test_split="test")
    before = fingerprints_of(arguments)
    assert [(s["split"], len(s["fingerprint"])) for s in before] == [("train", 64), ("test", 64)]
    assert fingerprints_of(arguments) == before
    write(tmp_path / "test.jsonl", [{"not": "the same"}])
    after = fingerprints_of(arguments)
    assert after[0] == before[0]
    assert after[1] != before[1]
    (world,) = fingerprints_of(DataArguments(dataset_name="world/sft"))
    assert world["fingerprint"].startswith("world-")
    assert world["fingerprint"].endswith("/sft/train")
    commit = "0123456789abcdef0123456789abcdef01234567"
    hub = DataArguments(dataset_name="nobody/nothing", dataset_revision=commit)
    assert fingerprints_of(hub)[0]["fingerprint"] == commit
    hub.dataset_revision = None
    assert fingerprints_of(hub)[0]["fingerprint"] is None


def test_fingerprint_of_files_is_of_their_bytes(tmp_path, monkeypatch):
    one, two = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    one.write_bytes(b"abc")
    two.write_bytes(b"abd")
    assert fingerprints.files_sha256([one]) == hashlib.sha256(b"abc").hexdigest()
    both = fingerprints.files_sha256([one, two])
    two.write_bytes(b"abe")
    assert fingerprints.files_sha256([one, two]) != both
    monkeypatch.setattr(fingerprints, "WHOLE_FILE_LIMIT", 2)
    monkeypatch.setattr(fingerprints, "SAMPLE_BYTES", 1)  # size 3, then its first, middle and last byte
    assert fingerprints.files_sha256([one]) == hashlib.sha256(b"3" + b"a" + b"b" + b"c").hexdigest()


def test_hub_dataset_by_id_config_and_revision(monkeypatch):
    asked = {}

    def load_dataset(path, **options):
        asked.update(options, path=path)
        return datasets.Dataset.from_list([{"question": f"q{i}", "answer": "a"} for i in range(4)])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    data = load(
        "prompt",
        dataset_name="openai/gsm8k",
        dataset_config="main",
        dataset_revision="abc",
        dataset_map="question=prompt",
        eval_rows=1,
    )
    assert {key: asked[key] for key in ("path", "name", "revision", "split")} == {
        "path": "openai/gsm8k",
        "name": "main",
        "revision": "abc",
        "split": "train",
    }
    assert data.train.column_names == ["prompt", "answer"]
    assert len(data.train) == 3
