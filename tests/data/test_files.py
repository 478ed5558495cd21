"""Local files, row by row: nothing is guessed, every row knows its number, and reading goes on from any row."""

import csv
import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.data import files
from pipeline.data.files import read_rows, split_files
from pipeline.data.rows import RowError
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
        (b'{"a":' * 101 + b"1" + b"}" * 101, "nested too deeply (more than 100 levels)"),
        (b'{"a": 1, "a": 2}', "comes twice in one object"),
        (b'{"a": 1} {"a": 2}', "more text after the object, at column 9"),
        (b'{"a": "b\x00"}', "a NUL character"),
    ],
)
def test_a_bad_line_is_one_bad_row(tmp_path, line, reason):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n' + line + b'\n{"a": 3}\n')
    rows = list(read_rows(path))
    assert [rows[0].content, rows[2].content] == [{"a": 1}, {"a": 3}]
    assert isinstance(rows[1].content, RowError)
    assert reason in rows[1].content.reason


def test_a_bad_line_that_ends_the_file_may_be_a_cut_one(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\r\n{"a": "tw')
    rows = contents(path)
    assert rows[0] == {"a": 1}
    assert rows[1].reason.endswith("; the file ends in this row: is it cut?")


@pytest.mark.parametrize("text", ['[\n{"a": 1}\n]\n', '[{"a": 1}]'])
def test_a_list_in_a_jsonl_file_is_told_its_name(tmp_path, text):
    (tmp_path / "a.jsonl").write_text(text)
    assert contents(tmp_path / "a.jsonl")[0].reason.endswith("; a list of objects is read from a file named .json")


def test_numbers_and_levels_that_json_can_write_are_kept(tmp_path):
    """100 levels are within the limit; NaN and Infinity are no JSON, but what Python and its libraries write."""
    path = tmp_path / "a.jsonl"
    path.write_text('{"a":' * 100 + "1" + "}" * 100 + '\n{"score": NaN, "best": Infinity}\n')
    first, second = contents(path)
    for _ in range(100):
        first = first["a"]
    assert first == 1
    assert str(second) == "{'score': nan, 'best': inf}"


@pytest.mark.parametrize("name", ["a.json", "a.json.gz"])
def test_json_file_is_a_list_or_lines(tmp_path, name):
    def rows_of(text):
        data = text.encode()
        (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
        return contents(tmp_path / name)

    rows = rows_of('\ufeff[\n{"a": 1},\n"no",\n{"a": 2}, {"a": "\\ud800"}, {"a": 1, "a": 2}, {"a": 3}\n]\n')
    assert [rows[0], rows[2], rows[5]] == [{"a": 1}, {"a": 2}, {"a": 3}]
    assert rows[1].reason == "a JSON object was expected, found str"
    assert "half a surrogate pair" in rows[3].reason
    assert str(rows[4]) == "a: comes twice in one object"
    assert rows_of('{"a": 1}\n{"a": 2}\n') == [{"a": 1}, {"a": 2}]
    assert rows_of("[ ]") == rows_of("") == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"a": 1},', "row 2: not valid JSON"),
        ('[{"a": 1}', "row 1: no comma or closing bracket after it: not a JSON list, or a cut one"),
        ('[{"a": 1},\n{"a": 2},\n]', "row 2: a comma after the last row"),
        ('[{"a": 1},\n{"a": "tw', "row 2: not valid JSON: Unterminated string starting at at column 7 of line 2"),
        ('[{"a": 1}, {"a":' + "[" * 100_000, "row 2: JSON nested too deeply"),
        ('[{"a": 1}]\n[{"a": 2}]', "more text after its list"),
        ('{\n  "train": [{"a": 1}]\n}\n', "spreads an object over several lines"),
    ],
)
def test_json_that_is_no_list_says_where(tmp_path, text, message):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=r"a\.json") as error:
        contents(tmp_path / "a.json")
    assert message in str(error.value)


def test_csv_cells_stay_text(tmp_path):
    path = tmp_path / "a.csv"
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows(
            [["q", "a"], ["007", "1e5"], ["two\nlines", 'x"y'], [""], ["a", "b", "c"], ["d", ""]]
        )
    rows = contents(path)
    assert [*rows[:2], rows[4]] == [{"q": "007", "a": "1e5"}, {"q": "two\nlines", "a": 'x"y'}, {"q": "d", "a": ""}]
    assert rows[2].reason == "cells: 1, columns in the header: 2 (the row begins at line 5)"
    assert rows[3].reason == "cells: 3, columns in the header: 2 (the row begins at line 6)"


def test_a_csv_row_that_is_no_utf8_is_one_bad_row(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b"q,a\n1,caf\xe9\n2,b\x00\n3,caf\xc3\xa9\n")
    rows = contents(path)
    assert str(rows[0]).startswith("a: not UTF-8 text; if the file is in Windows-1252 or Latin-1, save it as UTF-8")
    assert str(rows[1]) == "a: a NUL character, which no text file has"
    assert rows[2] == {"q": "3", "a": "café"}


@pytest.mark.parametrize(
    ("data", "rows"),
    [
        ("q,a\n1,b;c\n", [{"q": "1", "a": "b;c"}]),
        ("q;a\n1;b,c\n", [{"q": "1", "a": "b,c"}]),
        ("q\ta\r\n1\tb\r\n", [{"q": "1", "a": "b"}]),
        ("q,a\r1,b\r2,c", [{"q": "1", "a": "b"}, {"q": "2", "a": "c"}]),
        ('\ufeffq, a\n\n1,"b""c"\n', [{"q": "1", "a": 'b"c'}]),
        ('text\n5" wide\n', [{"text": '5" wide'}]),
        ("q,a\n1," + "x" * 200_000, [{"q": "1", "a": "x" * 200_000}]),
        ("q,a\n", []),
        ("", []),
    ],
)
def test_csv_of_other_programs(tmp_path, data, rows):
    """Separators as Excel writes them in Europe, tabs, all three line ends, a byte order mark, cells of any length."""
    (tmp_path / "a.csv").write_bytes(data.encode())
    assert contents(tmp_path / "a.csv") == rows


@pytest.mark.parametrize(
    ("rest", "message"),
    [
        ('3,"5 inches\n4,b\n5,c\n', "row 2, which begins at line 4: a quote opens a cell and is never closed"),
        ('3,"5 inches\n4,"b"\n5,c\n', "row 2, which begins at line 4: text after the closing quote of a cell"),
        ('3,"say \\"no\\""\n', "row 2, which begins at line 4: text after the closing quote of a cell"),
    ],
)
def test_an_unclosed_quote_swallows_no_row(tmp_path, rest, message):
    """Line 1 is the header, row 1 takes lines 2 and 3: the quote opens in row 2, at line 4."""
    path = tmp_path / "a.csv"
    path.write_text('q,a\n1,"two\nlines"\n' + rest)
    with pytest.raises(UserError, match=r"a\.csv, ") as error:
        contents(path)
    assert message in str(error.value)


def test_csv_headers_that_name_no_columns(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("q,a,q\n1,2,3\n")
    with pytest.raises(UserError, match=r"a\.csv has 2 columns of the name 'q': rename"):
        contents(path)
    path.write_text('q,"a\n1,2\n')
    with pytest.raises(UserError, match=r"a\.csv, the header, which begins at line 1: a quote opens"):
        contents(path)


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "txt"])
def test_gzip_that_is_none_or_cut_is_an_error(tmp_path, kind):
    rows = [{"text": f"row {i} {i * 7919 % 10007}"} for i in range(3000)]
    texts = {
        "jsonl": "\n".join(map(json.dumps, rows)),
        "json": json.dumps(rows),
        "csv": "text\n" + "\n".join(row["text"] for row in rows),
        "txt": "\n".join(row["text"] for row in rows),
    }
    data = gzip.compress(texts[kind].encode())
    path = tmp_path / f"a.{kind}.gz"
    path.write_bytes(data)
    assert len(contents(path)) >= 6
    damaged = data[:2000] + bytes(100) + data[2100:]
    for wrong in (data[: len(data) // 2], data[:5], damaged, data + b"more"):
        path.write_bytes(wrong)
        with pytest.raises(UserError, match=r"a\.\w+\.gz is a cut or damaged gzip file"):
            contents(path)
    for wrong in (b'{"text": "a"}\n', b""):
        path.write_bytes(wrong)
        with pytest.raises(UserError, match=r"a\.\w+\.gz is not a gzip file"):
            contents(path)


@pytest.mark.parametrize("kind", ["jsonl", "csv", "txt", "parquet", "jsonl.gz"])
def test_a_pointer_of_git_lfs_is_no_data(tmp_path, kind):
    """A clone without LFS leaves them in place of large files; as text they would be learned."""
    (tmp_path / f"a.{kind}").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 12\n")
    with pytest.raises(UserError, match=r"is a pointer of Git LFS, not the data: run `git lfs pull`"):
        contents(tmp_path / f"a.{kind}")


def test_a_gzip_file_without_its_suffix_is_named(tmp_path):
    (tmp_path / "a.txt").write_bytes(gzip.compress(b"text"))
    with pytest.raises(UserError, match=r"a\.txt is a gzip file: rename it to a\.txt\.gz"):
        contents(tmp_path / "a.txt")


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "txt"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32"])
def test_other_unicode_is_named(tmp_path, kind, encoding):
    (tmp_path / f"a.{kind}").write_bytes('{"text": "a"}\n'.encode(encoding))
    with pytest.raises(UserError, match=r"is in UTF-16 or UTF-32, or is not a text file: save it as UTF-8"):
        contents(tmp_path / f"a.{kind}")


def test_parquet_that_is_none_or_damaged(tmp_path):
    """The footer is at the end, so a cut file has none; bytes between the pages are noticed at their rows."""
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [f"row {i}" * 20 for i in range(4000)]}), path, row_group_size=1000)
    data = path.read_bytes()
    middle = data[: len(data) // 2] + b"\xff" * 3000 + data[len(data) // 2 + 3000 :]
    for wrong in (data[:-100], b"text\na\n", b"", middle):
        path.write_bytes(wrong)
        with pytest.raises(UserError, match=r"a\.parquet is not a parquet file, or is cut or damaged"):
            contents(path)
    pq.write_table(pa.table([pa.array([1]), pa.array([2])], names=["text", "text"]), path)
    with pytest.raises(UserError, match=r"a\.parquet has 2 columns of the name 'text'"):
        contents(path)
    text = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.array([0, 1], pa.int32()).buffers()[1], pa.py_buffer(b"\xe9")]
    )
    pq.write_table(pa.table({"text": text}), path)
    with pytest.raises(UserError, match="is cut or damaged after row 0: 'utf-8' codec"):
        contents(path)


def test_a_line_that_is_no_text_takes_no_lines_before_it(tmp_path):
    """Lines 1 and 2 are a passage of their own, line 3 is a bad row, line 4 begins the next passage."""
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\ntwo\ncaf\xe9\nfour\n")
    rows = list(read_rows(path))
    assert [(row.number, row.content) for row in (rows[0], rows[2])] == [
        (1, {"text": "one\ntwo"}),
        (4, {"text": "four"}),
    ]
    assert rows[1].number == 3
    assert "not UTF-8 text at byte 3" in rows[1].content.reason
    assert [row.after for row in read_rows(path, rows[0].after)] == [row.after for row in rows[1:]]


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
    (tmp_path / "more.jsonl.xz").write_text("x")
    with pytest.raises(UserError, match=r"more\.jsonl\.xz is compressed in a way that is not read: unpack it"):
        split_files(tmp_path, "train")
    (tmp_path / "more.jsonl.xz").rename(tmp_path / "feather.arrow")
    with pytest.raises(UserError, match=r"feather\.arrow is not an Arrow file of datasets, or is cut or damaged"):
        list(read_rows(tmp_path / "feather.arrow"))
    (tmp_path / "notes.md").write_text("x")
    with pytest.raises(UserError, match="is not a data file"):
        split_files(tmp_path / "notes.md", "train")
