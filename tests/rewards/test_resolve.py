"""What ``--reward`` may say, and what is recorded of it."""

import pytest

from pipeline.rewards.resolve import parts_of, record_reward, resolve, reward_spec, strict_metric, weighted_spec
from pipeline.runtime.errors import UserError


class RunOfNothing:
    """What ``record_reward`` fills."""

    def __init__(self):
        self.record, self.parents = {}, []

    def add_parent(self, name):
        self.parents.append(name)

    def note(self, key, value):
        self.record[key] = value


def test_a_folder_is_a_reward_model_unless_a_reward_has_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "numeric").mkdir()
    (tmp_path / "rm").mkdir()
    (tmp_path / "rm" / "config.json").write_text("{}")
    assert reward_spec("numeric") == "numeric"
    assert reward_spec("rm") == "reward_model(model='rm')"
    run = RunOfNothing()
    record_reward(run, resolve("exact + 0.5*reward_model(model='rm')"))
    assert run.parents == ["rm"]
    assert run.record["sandbox"] is None
    with pytest.raises(UserError, match="unknown name 'rmm'"):
        resolve("rmm")


def test_functions_of_files_in_the_current_folder(tmp_path, monkeypatch):
    """By module, by file, in a sum; a file imports its neighbours, and is loaded once."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "neighbour_of_mine.py").write_text("VALUE = 3.0")
    (tmp_path / "rewards_of_mine.py").write_text(
        "from neighbour_of_mine import VALUE\n"
        "def f(prompts, completions, **columns): return [VALUE] * len(completions)"
    )
    (tmp_path / "bad_one.py").write_text("1 / 0")
    assert resolve("rewards_of_mine.py:f")(None, ["a", "b"]) == [3.0, 3.0]
    assert resolve("rewards_of_mine:f")(None, ["a"]) == [3.0]
    assert resolve(f"format + 2*{tmp_path}/rewards_of_mine.py:f")(None, ["a"]) == [6.0]
    for spec, message in [
        ("bad_one:f", "cannot import 'bad_one:f': ZeroDivisionError: division by zero"),
        ("rewards_of_mine.py:g", r"'rewards_of_mine.py:g': there is no g in rewards_of_mine.py"),
        ("rewards_of_mine:ff", r"there is no ff in rewards_of_mine; did you mean f\?"),
        ("missing_one.py:f", "there is no file .*missing_one.py"),
        ("missing_one:f", "No module named 'missing_one'"),
        ("rewards_of_mine:VALUE", "is not callable"),
    ]:
        with pytest.raises(UserError, match=message):
            resolve(spec)


def test_weights_of_several_rewards_multiply_every_term_of_each():
    """0.5 (numeric + 0.2 format) - length is numeric/2 + format/10 - length; a weight of 0 leaves its reward out."""
    text = weighted_spec(["numeric + 0.2*format", "exact", "length(limit=9, buffer=3)"], [0.5, 0.0, -1.0])
    assert text == "0.5*numeric + 0.1*format - 1*length(limit=9, buffer=3)"
    assert [part.__name__ for part in parts_of(resolve(text))] == ["numeric", "format", "length"]
    assert resolve(weighted_spec(["format"], [-2.0]))(None, ["<think>a</think><answer>b</answer>"]) == [-2.0]
    assert weighted_spec(["numeric"]) == "numeric"


def test_which_metric_says_whether_answers_are_right():
    """A verifier beside other rewards, then a reward that is only watched, then the verifier inside a sum."""
    numeric, length, both = resolve("numeric"), resolve("length"), resolve("2*length + exact")
    assert strict_metric([numeric]) is None  # the reward itself
    assert strict_metric([length]) is None
    assert strict_metric([both]) == "reward_parts/exact"
    assert strict_metric([length, numeric], [1.0, 0.5]) == "rewards/numeric/mean"
    assert strict_metric([both, length], [1.0, 0.0]) == "rewards/length/mean"
    assert strict_metric([numeric, length], [1.0, 0.0]) is None
