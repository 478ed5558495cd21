"""Datasets as they lie about: saved by ``save_to_disk``, a folder per split, with macOS's files, packed, at a URL."""

import subprocess
import sys
from itertools import islice

import datasets
import pyarrow as pa
import pytest

from pipeline.data import remote
from pipeline.data.arguments import DataArguments
from pipeline.data.files import read_rows, split_files
from pipeline.data.loading import load_data
from pipeline.data.sources import Source, raw_rows
from pipeline.runtime.errors import UserError

ROWS = [{"prompt": f"p{i}", "completion": "2024-01-02", "n": i} for i in range(6)]
LINES = '{"prompt": "p", "completion": "c"}\n'
LONG = "".join(f'{{"prompt": "{i}", "completion": "{"c" * 30_000}"}}\n' for i in range(9))  # more than a buffer holds


def contents(name, split="train", **options):
    return [row for _, _, row in raw_rows(Source(name=str(name), split=split, **options))]


def packed(path, data):
    with pa.output_stream(str(path), compression="zstd") as stream:
        stream.write(data)
    return path


def test_a_saved_dataset_is_one_split(tmp_path):
    """Several Arrow files in their order, every type as it was saved; for any split, like a file."""
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved", num_shards=3)
    assert contents(tmp_path / "saved") == ROWS
    assert contents(tmp_path / "saved", "test") == ROWS
    file = split_files(tmp_path / "saved", "train")[0]
    second = next(islice(read_rows(file), 0, None)).after
    assert [row.content for row in read_rows(file, second)] == ROWS[1:2]
    arguments = {"dataset_name": str(tmp_path / "saved"), "eval_rows": 2}
    assert len(load_data(DataArguments(**arguments), "sft", 0).train) == 4
    with pytest.raises(UserError, match=r"saved is one split and has no 'test': name the evaluation data"):
        load_data(DataArguments(**arguments, dataset_test_split="test"), "sft", 0)
    (tmp_path / "saved" / "data-00001-of-00003.arrow").unlink()
    with pytest.raises(UserError, match=r"data-00001-of-00003\.arrow of the saved dataset is missing"):
        contents(tmp_path / "saved")


def test_a_saved_dataset_of_splits(tmp_path):
    parts = {"train": ROWS[:4], "test": ROWS[4:]}
    datasets.DatasetDict({name: datasets.Dataset.from_list(rows) for name, rows in parts.items()}).save_to_disk(
        tmp_path / "saved"
    )
    assert contents(tmp_path / "saved") == ROWS[:4]
    assert contents(tmp_path / "saved", "test") == ROWS[4:]
    with pytest.raises(UserError, match="has no split 'validation': its files make train, test"):
        contents(tmp_path / "saved", "validation")


@pytest.mark.parametrize("inner", ["", "data"])
def test_a_folder_per_split_and_files_of_macos(tmp_path, inner):
    """Only what the files are for is read: not ``._a.jsonl`` (binary), not ``.DS_Store``, not the zip's __MACOSX."""
    for split, count in (("training", 2), ("val", 1)):
        folder = tmp_path / inner / split
        folder.mkdir(parents=True)
        for part in range(count):
            (folder / f"part{part}.jsonl").write_text(LINES)
            (folder / f"._part{part}.jsonl").write_bytes(b"\x00\x05\x16\x07")
        (folder / ".DS_Store").write_bytes(b"\x00")
    (tmp_path / "__MACOSX" / "train").mkdir(parents=True)
    (tmp_path / "__MACOSX" / "train" / "a.jsonl").write_text(LINES)
    (tmp_path / "._train").write_bytes(b"\x00\x05")
    assert len(contents(tmp_path)) == 2
    assert len(contents(tmp_path, "validation")) == 1
    with pytest.raises(UserError, match="has no split 'test': its files make train, validation"):
        contents(tmp_path, "test")
    (tmp_path / inner / "training" / "more.csv").write_text("prompt,completion\np,c\n")
    with pytest.raises(UserError, match=r"training \(split 'train'\) holds files of several kinds"):
        contents(tmp_path)
    (tmp_path / inner / "train.jsonl").write_text(LINES)
    with pytest.raises(UserError, match="has split 'train' twice"):
        contents(tmp_path)


def test_hidden_and_describing_files_are_no_data(tmp_path):
    (tmp_path / "._train.jsonl").write_bytes(b"\x00\x05\x16\x07")
    (tmp_path / "train.jsonl").write_text(LINES)
    (tmp_path / "dataset_infos.json").write_text("{}")
    assert [file.name for file in split_files(tmp_path, "train")] == ["train.jsonl"]
    for name in ("._train.jsonl", "train.jsonl"):  # the same of files that are named for no split
        (tmp_path / name).rename(tmp_path / name.replace("train", "part"))
    assert [file.name for file in split_files(tmp_path, "train")] == ["part.jsonl"]
    assert len(contents(tmp_path, data_files="*.jsonl")) == 1


@pytest.mark.parametrize(("name", "data"), [("a.jsonl", LONG), ("a.csv", "prompt,completion\n" + "p,c\n" * 9)])
def test_zstd(tmp_path, name, data):
    """The rows of the plain file, from any place on; cut, false and unnamed ones are errors."""
    (tmp_path / name).write_text(data)
    path = packed(tmp_path / f"{name}.zst", data.encode())
    plain = [(row.number, row.content) for row in read_rows(tmp_path / name)]
    rows = list(read_rows(path))
    assert [(row.number, row.content) for row in rows] == plain
    assert len(plain) == 9
    assert [(row.number, row.content) for row in read_rows(path, rows[4].after)] == plain[5:]
    content = path.read_bytes()
    path.write_bytes(content[:-3])
    with pytest.raises(UserError, match=r"\.zst cannot be read"):
        list(read_rows(path))
    path.write_text(data)
    with pytest.raises(UserError, match=r"is not a zstd file"):
        list(read_rows(path))
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"is a zstd file: rename it to {name}\.zst"):
        list(read_rows(tmp_path / name))


@pytest.fixture
def store(tmp_path, monkeypatch):
    """An empty store in memory and an empty folder for copies."""
    import fsspec

    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path))
    remote.local_copy.cache_clear()
    files = fsspec.filesystem("memory")
    yield files
    files.rm("/", recursive=True)
    remote.local_copy.cache_clear()


def test_a_url_is_copied_once_and_anew_when_it_changes(store, tmp_path, monkeypatch):
    store.pipe({"/sums/train/a.jsonl": LINES.encode(), "/sums/test/b.jsonl": (LINES * 2).encode()})
    store.pipe({"/sums/train/._a.jsonl": b"\x00", "/sums/README.md": b"x"})
    assert len(contents("memory://sums")) == 1
    assert len(contents("memory://sums", "test")) == 2
    assert len(contents("memory://sums/test/b.jsonl")) == 2
    assert len(contents("json", data_files="memory://sums/test/b.jsonl")) == 2
    store.pipe("/sums/train/a.jsonl", (LINES * 3).encode())
    assert len(contents("memory://sums")) == 1  # one look a process
    remote.local_copy.cache_clear()
    assert len(contents("memory://sums")) == 3
    remote.local_copy.cache_clear()
    monkeypatch.setattr(store, "get_file", None)  # what is there is not copied again
    assert len(contents("memory://sums")) == 3
    assert not list(tmp_path.rglob("._a.jsonl"))


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3://bucket/a.jsonl", r"s3://bucket/a\.jsonl: s3:// needs the package s3fs: pip install s3fs"),
        ("gs://bucket/folder", r"gs:// needs the package gcsfs: pip install gcsfs"),
        ("nope://a/b.jsonl", r"unknown protocol 'nope': use s3, gs, https, or another that fsspec has"),
        ("memory://none", r"memory://none cannot be read: no data files are there"),
    ],
)
def test_a_url_that_cannot_be_read_says_what_is_missing(store, monkeypatch, url, message):
    for package in ("s3fs", "gcsfs"):
        monkeypatch.setitem(sys.modules, package, None)  # not installed
    with pytest.raises(UserError, match=message):
        contents(url)


def test_one_error_line_of_the_command():
    run = subprocess.run(
        [sys.executable, "-m", "pipeline.data.check", "nope://bucket/a.jsonl"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (run.returncode, run.stderr.count("\n")) == (2, 1)
    assert run.stderr.startswith("error: nope://bucket/a.jsonl: unknown protocol 'nope'")
