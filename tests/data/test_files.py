"""Local files, row by row: nothing is guessed, every row knows its number, and reading goes on from any row."""

import csv
import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.data import files
from pipeline.data.files import RowError, read_rows, split_files
from pipeline.runtime.errors import UserError


def contents(path):
    return [row.content for row in read_rows(path)]


def test_jsonl_keeps_dates_long_integers_and_missing_fields(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(
        '\ufeff{"d": "2020-01-01", "n": 123456789012345678901234567890}\n\n{"d": "2020-01-02T03:04:05Z"}\n', "utf-8"
    )
    assert contents(path) == [
        {"d": "2020-01-01", "n": 123456789012345678901234567890},
        {"d": "2020-01-02T03:04:05Z"},
    ]
    assert [row.number for row in read_rows(path)] == [1, 3]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"a": 1', "not valid JSON: "),
        (b"[1]", "a JSON object was expected, found list"),
        (b'{"a": "\xff"}', "not UTF-8 text at byte 7"),
        (b'{"a": "\\ud800"}', "half a surrogate pair"),
        (b'{"a": ' + b"1" * 5000 + b"}", "an integer of 5000 digits"),
        (b'{"a":' * 100_000, "nested too deeply"),
    ],
)
def test_a_bad_line_is_one_bad_row(tmp_path, line, reason):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n' + line + b'\n{"a": 3}\n')
    rows = list(read_rows(path))
    assert [rows[0].content, rows[2].content] == [{"a": 1}, {"a": 3}]
    assert isinstance(rows[1].content, RowError)
    assert reason in rows[1].content.reason


def test_json_file_is_a_list_or_lines(tmp_path):
    (tmp_path / "list.json").write_text('[\n{"a": 1},\n"no",\n{"a": 2}\n]')
    (tmp_path / "lines.json").write_text('{"a": 1}\n{"a": 2}\n')
    rows = [row.content for row in read_rows(tmp_path / "list.json")]
    assert [rows[0], rows[2]] == [{"a": 1}, {"a": 2}]
    assert rows[1].reason == "a JSON object was expected, found str"
    assert contents(tmp_path / "lines.json") == [{"a": 1}, {"a": 2}]
    (tmp_path / "broken.json").write_text('[{"a": 1},')
    with pytest.raises(UserError, match=r"broken\.json is not valid JSON"):
        list(read_rows(tmp_path / "broken.json"))


def test_csv_cells_stay_text(tmp_path):
    path = tmp_path / "a.csv"
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([["q", "a"], ["007", "1e5"], ["two\nlines", "x"], ["short"], ["a", "b", "c"]])
    rows = contents(path)
    assert rows[:3] == [{"q": "007", "a": "1e5"}, {"q": "two\nlines", "a": "x"}, {"q": "short"}]
    assert rows[3].reason == "1 more cells than the header names"


def test_text_is_cut_between_paragraphs_and_nothing_is_lost(tmp_path):
    """Passages of 10 characters: "aaaa\\n\\nbbbbbb" has 13 when its paragraph ends, so it is one; a paragraph without
    an end is cut at the line that reaches 20."""
    path = tmp_path / "a.txt"
    path.write_text("\n\naaaa\n\nbbbbbb\n\n\ncccc\n" + "dddddd\n" * 4)
    saved, files.PASSAGE_CHARACTERS = files.PASSAGE_CHARACTERS, 10
    try:
        rows = [(row.number, row.content["text"]) for row in read_rows(path)]
    finally:
        files.PASSAGE_CHARACTERS = saved
    assert rows == [(3, "aaaa\n\nbbbbbb"), (8, "cccc\ndddddd\ndddddd\ndddddd"), (12, "dddddd")]


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "json", "csv", "parquet", "txt"])
def test_reading_goes_on_after_any_row(tmp_path, kind):
    rows = [{"text": f"row {i} " + "é" * i} for i in range(7)]
    path = tmp_path / f"a.{kind}"
    if kind.startswith("jsonl"):
        data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
        path.write_bytes(gzip.compress(data) if kind.endswith("gz") else data)
    elif kind == "json":
        path.write_text(json.dumps(rows))
    elif kind == "csv":
        path.write_text("text\n" + "\n".join(row["text"] for row in rows))
    elif kind == "txt":
        path.write_text("\n\n".join(row["text"] * 1000 for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=3)
    whole = list(read_rows(path))
    assert len(whole) == 7
    if kind != "txt":
        assert [row.content for row in whole] == rows
    for place in range(7):
        assert list(read_rows(path, whole[place].after)) == whole[place + 1 :]


def test_files_of_a_split(tmp_path):
    for name in ("train-00001.jsonl", "train-00000.jsonl", "test_half.jsonl", "README.md", "SOURCE"):
        (tmp_path / name).write_text("{}")
    assert [f.name for f in split_files(tmp_path, "train")] == ["train-00000.jsonl", "train-00001.jsonl"]
    assert [f.name for f in split_files(tmp_path, "test")] == ["test_half.jsonl"]
    with pytest.raises(UserError, match="has no split 'validation': its files make train, test"):
        split_files(tmp_path, "validation")
    assert split_files(tmp_path / "test_half.jsonl", "anything") == [tmp_path / "test_half.jsonl"]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "valid.csv").write_text("a\n1\n")
    assert [f.name for f in split_files(tmp_path, "validation")] == ["valid.csv"]


def test_files_that_make_no_split(tmp_path):
    with pytest.raises(UserError, match="holds no data files"):
        split_files(tmp_path, "train")
    (tmp_path / "a.jsonl").write_text("{}")
    (tmp_path / "b.jsonl").write_text("{}")
    assert [f.name for f in split_files(tmp_path, "train")] == ["a.jsonl", "b.jsonl"]
    with pytest.raises(UserError, match=r"no files named test\.\*: name one of its files \(a.jsonl, b.jsonl\)"):
        split_files(tmp_path, "test")
    (tmp_path / "labels.json").write_text("[]")
    with pytest.raises(UserError, match="no files named train"):
        split_files(tmp_path, "train")
    with pytest.raises(UserError, match="does not exist"):
        split_files(tmp_path / "none", "train")
    (tmp_path / "notes.md").write_text("x")
    with pytest.raises(UserError, match="is not a data file"):
        split_files(tmp_path / "notes.md", "train")
