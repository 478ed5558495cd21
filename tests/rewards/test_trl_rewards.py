"""``trl:NAME``: the same numbers as TRL's function, for text and for messages; its mistakes in one line."""

import json
import pickle

import pytest
import trl.rewards

from pipeline.rewards import trl_rewards
from pipeline.rewards.__main__ import main
from pipeline.rewards.registry import get_reward
from pipeline.rewards.resolve import resolve
from pipeline.runtime.errors import UserError
from tests.stages.conftest import write_rows

TEXTS = [
    "<think>one half</think> The answer is $\\frac{1}{2}$",
    "\\boxed{0.5}",
    "<think>no end \\boxed{\\frac{1}{2}}",
    "<think>a</think>\\boxed{3}",
    "nothing nothing nothing nothing",
]
COLUMNS = {
    "solution": ["$\\frac{1}{2}$", "$\\frac{1}{2}$", "$\\frac{1}{2}$", "$\\frac{1}{2}$", "no formula"],
    "completion_ids": [[1, 2, 3], [4, 4, 4, 4], [5, 6, 5, 6, 5, 6], [7] * 9, [8, 9]],
}
OPTIONS = {  # what those that need options are tried with
    "cosine_scaled": {"max_len": 6},
    "soft_overlong_punishment": {"max_completion_len": 6, "soft_punish_cache": 4},
    "repetition_penalty": {"ngram_size": 2},
    "reasoning_accuracy": {"reasoning_delimiters": ["</think>", "end"]},
}


def test_every_reward_of_trl_has_a_name():
    assert trl_rewards.names() == {
        "accuracy": "accuracy_reward",
        "reasoning_accuracy": "reasoning_accuracy_reward",
        "think_format": "think_format_reward",
        "cosine_scaled": "get_cosine_scaled_reward",
        "repetition_penalty": "get_repetition_penalty_reward",
        "soft_overlong_punishment": "get_soft_overlong_punishment",
    }


@pytest.mark.parametrize("name", sorted(trl_rewards.names()))
@pytest.mark.parametrize("chat", [True, False])
def test_the_numbers_are_those_of_trls_function(name, chat):
    """Called on messages, as TRL asks for; ours also takes text. By its name in TRL, and pickled, it is the same."""
    full, options = trl_rewards.names()[name], OPTIONS.get(name, {})
    messages = [[{"role": "assistant", "content": text}] for text in TEXTS]
    direct = getattr(trl.rewards, full)
    if full.startswith("get_"):
        expected = direct(**options)(prompts=None, completions=messages, **COLUMNS)
    else:
        expected = direct(prompts=None, completions=messages, **COLUMNS, **options)
    written = ", ".join(f"{key}={value!r}" for key, value in options.items())
    spec = f"trl:{name}({written})" if written else f"trl:{name}"
    reward = get_reward(spec)
    assert reward(["p"] * 5, messages if chat else TEXTS, **COLUMNS) == expected
    assert len(set(expected)) > 1
    assert get_reward(spec.replace(name, full))(None, messages, **COLUMNS) == expected
    assert pickle.loads(pickle.dumps(reward))(None, TEXTS, **COLUMNS) == expected


def test_verdicts_of_trls_verifier():
    """Right and wrong, so that a sum with it has a strict metric; a gold answer that is no formula is unscorable."""
    reward = get_reward("trl:accuracy")
    verdicts = [j.verdict for j in reward.judge(None, TEXTS, **COLUMNS)]
    assert verdicts == ["right", "right", "right", "wrong", "unscorable"]
    assert get_reward("trl:accuracy + 0.1*format").strict_metric == "reward_parts/accuracy"
    assert get_reward("trl:think_format").verifies is False


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("trl:", "'trl:' names no reward; TRL has trl:accuracy, trl:cosine_scaled, trl:reasoning_accuracy"),
        ("trl:acuracy", r"unknown name 'trl:acuracy'; TRL has .*; did you mean trl:accuracy\?"),
        (
            "trl:soft_overlong_punishment",
            r"needs options: write it as .*\(max_completion_len=…, soft_punish_cache=…\)",
        ),
        ("trl:repetition_penalty(size=3)", "unknown option 'size'; it takes ngram_size, max_penalty"),
        ("trl:repetition_penalty(max_penalty=2.0)", "max_penalty 2.0 should not be positive"),
        ("numeric + trl:acuracy", "unknown name 'trl:acuracy'"),
        ("think_format_reward", "unknown name 'think_format_reward'; TRL's is called trl:think_format here"),
        ("acuracy", "trl:NAME for TRL's, package.module:function"),
    ],
)
def test_mistakes_are_one_line(spec, message):
    with pytest.raises(UserError, match=message) as caught:
        get_reward(spec)
    assert "\n" not in str(caught.value)


def test_a_missing_package_is_named(monkeypatch):
    """Before any model is loaded, in the words of TRL."""
    import trl.rewards.accuracy_rewards as module

    monkeypatch.setattr(module, "is_math_verify_available", lambda: False)
    for name in ("accuracy", "reasoning_accuracy", "cosine_scaled(max_len=3)"):
        with pytest.raises(UserError, match="Please install the `math_verify` package"):
            get_reward(f"trl:{name}")
    get_reward("trl:think_format")


def test_columns_that_are_not_there():
    """The gold answers, before anything is sampled; the tokens, which only a file may lack."""
    with pytest.raises(UserError, match=r"needs the column 'solution'; the data has: answer; .*gold=solution"):
        get_reward("trl:accuracy").require_columns([{"prompt": "p", "answer": "1"}])
    with pytest.raises(UserError, match="needs the column 'solution'"):
        get_reward("trl:accuracy")(None, ["1"], answer=["1"])
    get_reward("trl:repetition_penalty").require_columns([{"prompt": "p"}])
    with pytest.raises(UserError, match="counts tokens: give the rows a column completion_ids, or --tokenizer_name"):
        get_reward("trl:repetition_penalty")(None, ["a b"])


def test_several_on_the_command_line(tmp_path, capsys):
    """2 accuracy - 0.5 repetition, and a format that is only watched: the sum, and each part in every row.

    Of the rows above: accuracy 1, 1, 1, 0 and none; bigrams repeated in none, 2 of 3, 3 of 5, 7 of 8 and none.
    """
    rows = [
        {"completion": text, "completion_ids": ids, "solution": gold}
        for text, ids, gold in zip(TEXTS, COLUMNS["completion_ids"], COLUMNS["solution"])
    ]
    file, out = write_rows(tmp_path / "rows.jsonl", rows), tmp_path / "out.jsonl"
    command = ["--reward", "trl:accuracy", "trl:repetition_penalty(ngram_size=2)", "trl:think_format"]
    command += ["--file", str(file), "--out", str(out), "--reward_weights"]
    main([*command, "2", "0.5", "0"])
    scored = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["score"] for row in scored] == pytest.approx([2, 2 - 1 / 3, 2 - 3 / 10, -7 / 16, None])
    assert scored[1]["reward_parts"] == pytest.approx(
        {"accuracy": 1.0, "repetition_penalty": -2 / 3, "think_format": 0.0}
    )
    printed = capsys.readouterr().out
    assert "reward_parts/accuracy: 0.7500" in printed
    assert "reward_parts/think_format: 0.4000" in printed
    with pytest.raises(UserError, match=r"reward_weights: 2 given for 3 rewards .*: give one for each"):
        main([*command, "1", "0.5"])


def test_several_rewards_are_one_sum():
    """A reward of weight 0 is in the parts and may be missing; two of one name are told apart; all zero is refused."""
    long = resolve(["length(limit=2, buffer=1)", "length(limit=4, buffer=1)"], [1.0, 3.0])
    judgement = long.judge(None, ["a b c"])[0]
    assert judgement.parts == {"length": -1.0, "length_2": 0.0}
    assert judgement.score == -1.0
    watched = resolve(["numeric", "exact + 0.5*format"], [0.0, 2.0])
    found = watched.judge(None, ["x"], answer=["x"])[0]
    assert found.score == 2.0
    assert found.parts == {"numeric": None, "exact+0.5*format": 1.0, "exact": 1.0, "format": 0.0}
    assert resolve(["exact"], [1.0]).__name__ == "exact"
    with pytest.raises(UserError, match="reward_weights: all are 0"):
        resolve(["exact", "format"], [0, 0])
