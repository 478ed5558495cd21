"""Functions by name: tables of ours and paths of the user's."""

import subprocess

import pytest

from pipeline.runtime.errors import UserError, did_you_mean, nearest
from pipeline.runtime.registry import find

TABLE = {"join": "os.path:join", "dumps": "json:dumps"}


def test_a_name_of_the_table_and_a_path_give_a_function():
    assert find("join", TABLE, "type")("a", "b") == "a/b"
    assert find("subprocess:run", TABLE, "type") is subprocess.run


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "jion",
            "type: unknown name 'jion'; choose one of dumps, join, or package.module:function; did you mean join?",
        ),
        ("os.path:jion", "type: cannot import 'os.path:jion': there is no jion in os.path; did you mean join?"),
        ("nowhere:f", "type: cannot import 'nowhere:f': No module named 'nowhere'"),
        ("sys:path", "type: 'sys:path' is not callable"),
    ],
)
def test_a_name_that_is_none_says_what_there_is(name, message):
    with pytest.raises(UserError) as caught:
        find(name, TABLE, "type")
    assert str(caught.value).startswith(message)


def test_every_name_of_our_tables_is_a_function():
    from pipeline.evaluation.registry import EVALUATIONS
    from pipeline.rewards.registry import BUILT_IN

    paths = [*EVALUATIONS.values(), *(verifier.function for verifier in BUILT_IN.values())]
    assert len(paths) >= 18
    for path in paths:
        assert callable(find(path, {}, "test"))


def test_did_you_mean_names_the_nearest_or_what_else_to_do():
    assert nearest("betta", ["beta", "seed"]) == "beta"
    assert nearest("x", ["beta", "seed"]) is None
    assert did_you_mean("betta", ["beta"], "known are beta") == "; did you mean beta?"
    assert did_you_mean("x", ["beta"], "known are beta") == "; known are beta"
    assert did_you_mean("x", ["beta"]) == ""
