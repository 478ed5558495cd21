"""Names, options, sums and the contract with TRL."""

import pickle
import subprocess
import sys

import pytest

from pipeline.rewards import numeric
from pipeline.rewards.judging import judged
from pipeline.rewards.registry import BUILT_IN, Verifier, get_reward, names
from pipeline.rewards.spec import parse_options
from pipeline.runtime.errors import UserError


def halves(prompts, completions, answer, factor=1.0, **columns):
    return [None if a is None else factor * 0.5 for a in answer]


def broken(prompts, completions, **columns):
    return [1.0]


HERE = __name__


def test_strings_and_messages_score_alike():
    reward = get_reward("numeric")
    chat = [[{"role": "assistant", "content": text}] for text in ("#### 1", "#### 2")]
    assert reward(None, ["#### 1", "#### 2"], answer=["1", "1"]) == [1.0, 0.0]
    assert reward(prompts=["p", "p"], completions=chat, answer=["1", "1"]) == [1.0, 0.0]


def test_a_row_without_gold_is_none_and_counted_apart():
    reward = get_reward("numeric")
    assert reward(None, ["#### 1"] * 3, answer=["1", None, "2"]) == [1.0, None, 0.0]
    assert reward.counts == {"right": 1, "unscorable": 1, "wrong": 1}


def test_a_failing_judge_is_none_never_zero(monkeypatch):
    monkeypatch.setattr(numeric, "judge", lambda sample: 1 / 0)
    judgement = get_reward("numeric").judge(None, ["#### 1"], answer=["1"])[0]
    assert (judgement.verdict, judgement.score) == ("error", None)
    assert "ZeroDivisionError" in judgement.reason


def test_a_missing_column_is_the_users_mistake():
    with pytest.raises(UserError, match=r"'answer'.*gold.*dataset_map"):
        get_reward("numeric")(None, ["#### 1"], gold=["1"])


def test_trl_extras_are_no_columns_and_verdict_shares_are_logged():
    logged = {}
    rewards = get_reward("numeric")(
        prompts=["p"] * 2, completions=["#### 1"] * 2, answer=["1", None], completion_ids=[[1], [2]],
        trainer_state=object(), log_extra=print, log_metric=logged.__setitem__,
    )  # fmt: skip
    assert rewards == [1.0, None]
    assert logged == {
        "verdicts/numeric/timeout": 0.0,
        "verdicts/numeric/unscorable": 0.5,
        "verdicts/numeric/error": 0.0,
    }


def test_weighted_sum():
    """right + 0.5 * right format = 1.5; a sum with a part missing is missing."""
    reward = get_reward("numeric + 0.5*format")
    good = "<think>a</think><answer>#### 1</answer>"
    assert reward.__name__ == "numeric+0.5*format"
    assert reward(None, [good, "#### 1", "#### 1"], answer=["1", "1", None]) == [1.5, 1.0, None]
    assert get_reward(["exact", "format"])(None, ["a"], answer=["a"]) == [1.0]


def test_options_of_the_machine_pass_over_rewards_that_run_no_code():
    assert get_reward("numeric", allow_unsafe_code_execution=True)(None, ["#### 1"], answer=["1"]) == [1.0]
    assert get_reward("exact+format", allow_unsafe_code_execution=True)(None, ["1"], answer=["1"]) == [1.0]
    with pytest.raises(UserError, match="behind its terms"):
        get_reward("numeric + length", limit=3)


def test_sum_with_negative_weight_and_options():
    """length: 12 words against limit 8 is -1, times -2 is +2; numeric is wrong."""
    reward = get_reward("numeric - 2*length(limit=8, buffer=4)")
    assert reward.__name__ == "numeric-2*length"
    assert reward(None, ["w " * 12], answer=["1"]) == [2.0]


def test_the_parts_of_a_sum_are_logged():
    logged = {}
    get_reward("exact + 0.5*format")(None, ["a", "b"], answer=["a", "a"], log_metric=logged.__setitem__)
    assert logged["reward_parts/exact"] == 0.5
    assert logged["reward_parts/format"] == 0.0


def test_a_sum_names_the_metric_of_its_verifier_for_the_guards():
    assert get_reward("numeric").strict_metric is None
    assert get_reward("0.2*format + numeric - length").strict_metric == "reward_parts/numeric"
    assert get_reward("format + length").strict_metric is None
    assert get_reward("format + length").sandbox is None


def test_custom_reward_by_dotted_path():
    reward = get_reward(f"{HERE}:halves", factor=3.0)
    assert reward(None, ["a", "b"], answer=["1", None]) == [1.5, None]
    assert [j.verdict for j in reward.judge(None, ["a", "b"], answer=["1", None])] == ["scored", "error"]
    assert get_reward(f"exact + 2*{HERE}:halves")(None, ["a"], answer=["a"]) == [2.0]
    with pytest.raises(UserError, match="1 scores for 2 completions"):
        get_reward(f"{HERE}:broken")(None, ["a", "b"])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("numerical", "unknown name 'numerical'; choose one of .*numeric"),
        ("nosuch.module:f", "cannot import"),
        (f"{HERE}:nosuch", "cannot import"),
        ("", "empty"),
        ("numeric +", "expected"),
        ("numeric * 2", "expected"),
        ("+ numeric", "cannot read"),
        ("length(limit=)", "cannot read the options"),
        ("length(limit=__import__('os'))", "cannot read the options"),
        ("length(size=3)", "unknown option 'size'; it takes limit, buffer"),
        ("numeric(x=1)", "it takes none"),
    ],
)
def test_bad_names_are_the_users_mistake(spec, message):
    with pytest.raises(UserError, match=message):
        get_reward(spec)


@pytest.mark.parametrize("spec", ["numeric", "exact - 0.1*length(limit=9, buffer=3)", f"{HERE}:halves"])
def test_rewards_are_picklable(spec):
    reward = get_reward(spec)
    copy = pickle.loads(pickle.dumps(reward))
    arguments = {"prompts": None, "completions": ["#### 1", "b"], "answer": ["1", "b"]}
    assert copy.__name__ == reward.__name__
    assert copy(**arguments) == reward(**arguments)


def test_parse_options():
    assert parse_options("limit=128, buffer=16") == {"limit": 128, "buffer": 16}
    assert parse_options("") == {}


RIGHT_AND_WRONG = {
    "numeric": ("#### 4", "#### 5", {"answer": "4"}),
    "exact": ("four", "five", {"answer": "four"}),
    "choice": ("<answer>B</answer>", "<answer>C</answer>", {"answer": "B"}),
    "format": ("<think>2+2</think><answer>4</answer>", "4", {}),
    "math": ("\\boxed{\\frac{1}{2}}", "\\boxed{\\frac{1}{3}}", {"answer": "0.5"}),
    "logic": ("#### p & q", "#### p | q", {"answer": "q & p"}),
    "code": ("def f(): return 4", "def f(): return 5", {"tests": "assert f() == 4"}),
    "length": ("four", "four " * 10_000, {}),
    "repetition": ("a b c d e f g h", "a b a b a b a b", {}),
    "refusal": ("I'm sorry, but I can't help with that.", "First, open the lid.", {}),
}


@pytest.mark.parametrize("name", names())
def test_every_built_in_reward_tells_right_from_wrong(name):
    """The module and function of each entry are there and give the better of two completions the higher score."""
    if name == "reward_model":
        with pytest.raises(UserError, match="needs its model"):
            get_reward(name)(["p"], ["a"])
        return
    good, bad, columns = RIGHT_AND_WRONG[name]
    options = {"allow_unsafe_code_execution": True} if name == "code" else {}
    scores = get_reward(name, **options)(["p", "p"], [good, bad], **{key: [v, v] for key, v in columns.items()})
    assert scores[0] > scores[1]


def even(sample, digits=1):
    return judged(int(sample.text[-digits:]) % 2 == sample.row["answer"])


def test_a_new_verifier_is_one_function_and_one_line(monkeypatch):
    """It has options, is asked for its columns, can be a term of a sum, and serves as that sum's strict metric."""
    monkeypatch.setitem(BUILT_IN, "even", Verifier(f"{HERE}:even", ("answer",)))
    assert get_reward("even(digits=1)")(None, ["12", "13", "x"], answer=[0, 0, 0]) == [1.0, 0.0, None]
    assert get_reward("even + length").strict_metric == "reward_parts/even"
    assert pickle.loads(pickle.dumps(get_reward("2*even")))(None, ["12"], answer=[0]) == [2.0]
    with pytest.raises(UserError, match="'even' needs the column 'answer'"):
        get_reward("even")(None, ["12"])


def test_numeric_waits_for_no_heavy_import():
    code = (
        "import sys; from pipeline.rewards.registry import get_reward;"
        "get_reward('numeric')(None, ['#### 1'], answer=['1']);"
        "print(sorted({'torch', 'transformers', 'trl', 'datasets', 'numpy', 'sympy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
