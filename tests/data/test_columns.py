"""Columns under other names, by hand."""

import pytest

from pipeline.data.columns import check_map, parse_map, rename
from pipeline.runtime.errors import UserError


def test_dataset_map():
    assert parse_map("a=b, c=d") == {"a": "b", "c": "d"}
    assert parse_map("") == parse_map(None) == {}
    assert rename({"a": 1, "x": 2}, {"a": "b"}) == {"b": 1, "x": 2}
    check_map({"a": "b", "b": "a"}, ["a", "b"], "f")  # two may change places
    with pytest.raises(UserError, match="dataset_map: a: the new name of a column must be text, found None"):
        parse_map({"a": None})
    for bad, message in (
        ("a", "'a' is not old=new"),
        ("a=", "not old=new"),
        ("a=c,b=c", "one name"),
        ("a=b,a=c", "two names"),
    ):
        with pytest.raises(UserError, match=message):
            parse_map(bad)
    with pytest.raises(UserError, match=r"no column 'qestion' to rename.*did you mean question"):
        check_map({"qestion": "prompt"}, ["question"], "f")
    with pytest.raises(UserError, match="already has a column 'prompt'"):
        check_map({"question": "prompt"}, ["question", "prompt"], "f")
