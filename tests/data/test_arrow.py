"""Rows as Arrow: every value as it is, and a fingerprint of the content."""

from pipeline.data.loading import read_split
from tests.data.test_loading import pairs, write

BIG = 123456789012345678901234567890


def test_values_stay_what_they_are(tmp_path):
    rows = [
        {"prompt": "a", "n": BIG, "day": "2020-01-01", "k": 1, "x": 0.5, "tests": ["t"], "o": {"b": 1, "a": [BIG]}},
        {"prompt": "b", "n": 2, "day": "01/02/2020", "k": 2, "x": 1, "tests": [], "o": {"c": None}, "mixed": 1},
        {"prompt": "c", "n": None, "day": "2020-01-01T00:00:00Z", "k": 3, "x": None, "o": None, "mixed": "1,000"},
    ]
    found = read_split(write(tmp_path / "a.jsonl", rows), "train", kind="prompt")
    assert found["n"][:] == [str(BIG), "2", None]
    assert found["day"][:] == ["2020-01-01", "01/02/2020", "2020-01-01T00:00:00Z"]
    assert found["k"][:] == [1, 2, 3]
    assert found["x"][:] == [0.5, 1.0, None]
    assert found["tests"][:] == [["t"], [], None]
    assert found["o"][:] == [{"b": 1, "a": [str(BIG)]}, {"c": None}, None]
    assert found["mixed"][:] == [None, "1", "1,000"]
    assert list(found[0]["o"]) == ["b", "a"]


def test_data_fingerprint_follows_content(tmp_path):
    path = write(tmp_path / "a.jsonl", pairs(5))
    one = read_split(path, "train", kind="sft")._fingerprint
    assert read_split(path, "train", kind="sft")._fingerprint == one
    write(tmp_path / "a.jsonl", pairs(6))
    assert read_split(path, "train", kind="sft")._fingerprint != one
