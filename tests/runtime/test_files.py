"""Files: what is local, and writes that a reader never sees half of."""

import json

import pytest

from pipeline.runtime.files import atomic, is_local, write_json, write_rows, write_text


@pytest.mark.parametrize(
    ("name", "local"),
    [
        ("org/model", False), ("gpt2", False), ("org/model-v1.5", False), ("world/people", False),
        ("runs/quickstart/sft", True), ("./sft", True), ("~/sft", True), ("/data/sft", True), ("../sft", True),
        ("rows.jsonl", True), ("data/rows.jsonl.gz", True), ("data/Rows.CSV", True), ("there", True),
    ],
)  # fmt: skip
def test_one_rule_says_what_is_local(tmp_path, monkeypatch, name, local):
    """What exists, and what cannot be a Hub id."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    assert is_local(name) is local


def test_text_json_and_rows_are_replaced_as_a_whole(tmp_path):
    path = tmp_path / "made" / "x.json"
    write_text(path, "old")
    with open(path) as before:
        write_json(path, {"ä": 1})
        assert before.read() == "old"
    assert json.loads(path.read_text(encoding="utf-8")) == {"ä": 1}
    write_rows(path, [{"a": 1}, {"b": "ü"}])
    assert path.read_text(encoding="utf-8") == '{"a": 1}\n{"b": "ü"}\n'
    assert [file.name for file in path.parent.iterdir()] == ["x.json"]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    path = tmp_path / "x.json"
    write_text(path, "old")
    with pytest.raises(TypeError):
        write_rows(path, [{"a": 1}, {"b": object()}])
    with pytest.raises(LookupError), atomic(path) as temporary:
        [temporary.write_text("half")][1]
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["x.json"]
