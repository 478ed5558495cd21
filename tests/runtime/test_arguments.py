"""YAML and flags: strict, typed, and read without heavy imports."""

from dataclasses import dataclass, field
from typing import Literal

import pytest

from pipeline.runtime.arguments import coerce, parse, read_given
from pipeline.runtime.errors import UserError


@dataclass
class Example:
    """A few fields of every kind."""

    beta: float = 0.1
    steps: int = 10
    mode: Literal["fast", "slow"] = "fast"
    names: list[str] | None = None
    shuffle: bool = True
    extra: dict | None = None
    dtype: str = field(default="float32", metadata={"choices": ["float32", "bfloat16"]})

    def __post_init__(self):
        if self.steps < 0:
            raise ValueError("steps must not be negative")


def test_a_flag_beats_yaml_and_yaml_beats_the_default(tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text("beta: 0.5\nsteps: 20\n")
    (parsed,) = parse(["--config", str(config), "--steps", "30"], Example)
    assert (parsed.beta, parsed.steps, parsed.mode) == (0.5, 30, "fast")


@pytest.mark.parametrize("form", [["--config", "{}"], ["--config={}"]])
def test_both_ways_to_name_the_config(tmp_path, form):
    config = tmp_path / "c.yaml"
    config.write_text("learning: 1\n")
    with pytest.raises(UserError, match=r"learning: unknown key"):
        parse([word.format(config) for word in form], Example)


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("betta: 1", r"betta: unknown key; did you mean beta\?"),
        ("beta: high", r"beta: expected a number, got 'high'"),
        ("steps: 1.5", r"steps: expected a whole number, got 1.5"),
        ("steps: true", r"steps: expected a whole number, got True"),
        ("mode: medium", r"mode: 'medium' is not one of fast, slow"),
        ("dtype: float8", r"dtype: 'float8' is not one of float32, bfloat16"),
        ("shuffle: 'no'", r"shuffle: expected true or false, got 'no'"),
        ("names: one", r"names: expected a list, got 'one'"),
        ("extra: [1]", r"extra: expected a mapping"),
        ("- a\n- b", r"must hold `key: value` lines, found a list"),
        ("a: [", r"is not valid YAML"),
    ],
)
def test_a_bad_yaml_value_is_named_with_its_file_and_key(tmp_path, yaml, message):
    config = tmp_path / "c.yaml"
    config.write_text(yaml)
    with pytest.raises(UserError, match=message) as caught:
        parse(["--config", str(config)], Example)
    assert str(config) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--betta", "1"], r"--betta: unknown flag; did you mean --beta\?"),
        (["--bet", "1"], r"--bet: unknown flag"),  # no guessing at abbreviations
        (["--beta", "high"], r"--beta: invalid"),
        (["--mode", "medium"], r"--mode: invalid choice"),
        (["stray"], r"'stray': an argument without a flag"),
        (["--config"], r"--config: the path of a YAML file must follow"),
        (["--config", "nowhere.yaml"], r"--config: there is no file nowhere.yaml"),
        (["--steps", "-1"], r"Example: steps must not be negative"),
    ],
)
def test_a_bad_flag_is_one_line(argv, message):
    with pytest.raises(UserError, match=message) as caught:
        parse(argv, Example)
    assert "\n" not in str(caught.value)


def test_yaml_numbers_that_yaml_reads_as_text():
    """YAML 1.1 reads ``1e-3`` (no dot) as a string; the field's type decides."""
    assert coerce("1e-3", float, "x") == 1e-3
    assert coerce("1e3", int, "x") == 1000
    assert coerce(2, float, "x") == 2.0
    assert isinstance(coerce(2, float, "x"), float)


def test_an_integer_keeps_all_its_digits():
    assert coerce(2**60 + 1, int, "x") == 2**60 + 1


def test_a_mapping_stays_a_mapping_where_text_is_allowed_too():
    assert coerce({"num_cycles": 1}, dict | str | None, "x") == {"num_cycles": 1}
    assert coerce(None, dict | str | None, "x") is None


def test_given_reads_flags_and_yaml_alike(tmp_path):
    """``--beta 0.5`` is ``beta: 0.5``, ``--flag`` is true, ``--no_flag`` false, several words are a list."""
    config = tmp_path / "c.yaml"
    config.write_text("beta: 0.5\nnames: [a, b]\nshuffle: false\n")
    flags = ["--beta", "0.5", "--names", "a", "b", "--no_shuffle"]
    assert read_given(["--config", str(config)]) == read_given(flags)
    assert read_given(["--use_peft", "--steps=3"]) == {"use_peft": True, "steps": 3}
    assert read_given(["--config", str(config), "--beta", "1.0"])["beta"] == 1.0


def test_help_all_lists_every_field(capsys):
    with pytest.raises(SystemExit) as caught:
        parse(["--help_all"], Example)
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    assert [name for name in Example.__dataclass_fields__ if f"--{name}" not in printed] == []
