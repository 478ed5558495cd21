"""YAML and flags: strict, typed, and read without heavy imports."""

from dataclasses import dataclass, field
from typing import Literal

import pytest

from pipeline.runtime.arguments import parse, typed
from pipeline.runtime.coercion import coerce
from pipeline.runtime.errors import UserError
from pipeline.runtime.given import read_given


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
        ("steps: 1.5", r"steps: expected a whole number, got '1.5'"),
        ("steps: true", r"steps: expected a whole number, got 'true'"),
        ("mode: medium", r"mode: 'medium' is not one of fast, slow"),
        ("dtype: float8", r"dtype: 'float8' is not one of float32, bfloat16"),
        ("shuffle: maybe", r"shuffle: expected true or false, got 'maybe'"),
        ("names: {a: 1}", r"names: expected a list, got {'a': 1}"),
        ("extra: [1]", r"extra: expected one value, got 1"),
        ("extra: one", r"extra: expected a mapping, got 'one'"),
        ("beta: 1\nbeta: 2", r"duplicate key beta"),
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
        (["--beta", "high"], r"--beta: expected a number, got 'high'"),
        (["--beta", "1", "2"], r"--beta: expected one value, got 1 2"),
        (["--beta"], r"--beta: a value must follow"),
        (["--mode", "medium"], r"--mode: 'medium' is not one of fast, slow"),
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
    """``--beta 0.5`` is ``beta: 0.5``, ``--flag`` is true, ``--no_flag`` false, several words are a list; all is text
    until a field says what it is."""
    config = tmp_path / "c.yaml"
    config.write_text("beta: 0.5\nnames: [a, b]\nshuffle: false\n")
    flags = ["--beta", "0.5", "--names", "a", "b", "--no_shuffle"]
    assert read_given(["--config", str(config)]) == read_given(flags)
    assert typed(["--config", str(config)], Example) == {"beta": 0.5, "names": ["a", "b"], "shuffle": False}
    assert read_given(["--use_peft", "--steps=3"]) == {"use_peft": True, "steps": "3"}
    assert read_given(["--config", str(config), "--beta", "1.0"])["beta"] == "1.0"


@dataclass
class Texts:
    """Fields whose values may look like something else."""

    output_dir: str = ""
    model: str | None = None
    strategy: str = "no"
    seed: int = 42
    rate: float | None = None
    limit: int | None = None
    words: list[str] | None = None
    wide: int | str | None = None
    anything: list[dict] | None = None


@pytest.mark.parametrize(
    "word", ["007", "2026_11_30", "2026-11-30", "3.10", "1:30", "1e5", "no", "true", "0x10", "1_000"]
)
@pytest.mark.parametrize("way", ["flag", "=", "yaml"])
def test_text_stays_text_whatever_it_looks_like(word, way, tmp_path):
    """YAML 1.1 would read 7, 20261130, a date, 3.1, 90 seconds, 100000.0, False, True, 16 and 1000."""
    config = tmp_path / "c.yaml"
    config.write_text(f"output_dir: {word}\nmodel: {word}\nwords: [{word}, a]\n")
    argv = {
        "flag": ["--output_dir", word, "--model", word, "--words", word, "a"],
        "=": [f"--output_dir={word}", f"--model={word}", "--words", word, "a"],
        "yaml": ["--config", str(config)],
    }[way]
    (parsed,) = parse(argv, Texts)
    assert (parsed.output_dir, parsed.model, parsed.words) == (word, word, [word, "a"])


def test_the_field_decides_what_a_word_is(tmp_path):
    """A leading zero is no octal, ``no`` is a word for text, null and none are nothing where there may be nothing."""
    config = tmp_path / "c.yaml"
    config.write_text("strategy: no\nseed: 0042\nrate: 1e-5\nlimit: null\nwords: all-linear\nwide: 8\n")
    (parsed,) = parse(["--config", str(config)], Texts)
    assert (parsed.strategy, parsed.seed, parsed.rate, parsed.limit) == ("no", 42, 1e-5, None)
    assert (parsed.words, parsed.wide) == (["all-linear"], 8)
    assert parse(["--seed", "0042", "--limit", "none", "--model", "none"], Texts)[0] == Texts(seed=42, model="none")


def test_what_is_nested_is_typed_by_yaml(tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text("anything:\n- {path: a, weight: 1e-1, rows: 10, day: 2026-11-30, ok: true, code: 007}\n")
    (parsed,) = parse(["--config", str(config)], Texts)
    assert parsed.anything == [
        {"path": "a", "weight": 0.1, "rows": 10, "day": "2026-11-30", "ok": True, "code": "007"}
    ]


@pytest.mark.parametrize(
    ("foreign", "here"),
    [("lr", "--learning_rate"), ("torch_dtype", "--dtype"), ("cutoff_len", "--max_length"),
     ("batch_size", "--per_device_train_batch_size"), ("kl_coef", "--beta"), ("overwrite_output_dir", "--force"),
     ("epochs", "--num_train_epochs"), ("evaluation_strategy", "--eval_strategy")],
)  # fmt: skip
def test_a_foreign_name_is_translated(foreign, here):
    from trl import DPOConfig

    from pipeline.model.policy import ModelArguments
    from pipeline.runtime.arguments import StageArguments

    with pytest.raises(UserError, match=rf"--{foreign}: unknown flag; the field is called {here}$"):
        parse([f"--{foreign}", "1", "--output_dir", "x"], StageArguments, ModelArguments, DPOConfig)


def test_every_translation_is_a_field_of_a_stage():
    """A name that no stage has would send its user astray."""
    from trl import DPOConfig, GRPOConfig

    from pipeline.data.arguments import DataArguments
    from pipeline.grpo import GRPOArguments
    from pipeline.model.policy import ModelArguments
    from pipeline.pretrain import PretrainArguments
    from pipeline.runtime.arguments import FORMER_NAMES

    classes = (DPOConfig, GRPOConfig, DataArguments, GRPOArguments, ModelArguments, PretrainArguments)
    known = {name for cls in classes for name in cls.__dataclass_fields__}
    assert {name.split(" ")[0] for name in FORMER_NAMES.values()} - known == set()


@pytest.mark.parametrize("gone", ["max_prompt_length", "rpo_alpha"])
def test_a_dropped_field_says_what_to_do(gone):
    with pytest.raises(UserError, match=rf"--{gone}: unknown flag; TRL removed it: .*(max_length|loss_weights)"):
        parse([f"--{gone}", "1"], Example)


def test_help_all_lists_every_field(capsys):
    with pytest.raises(SystemExit) as caught:
        parse(["--help_all"], Example)
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    assert [name for name in Example.__dataclass_fields__ if f"--{name}" not in printed] == []
