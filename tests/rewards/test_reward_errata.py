"""Where the paper's account of hallucination had to be corrected; the number is that of docs/errata.md."""

from pipeline.rewards.registry import get_reward


def test_20_a_verifier_of_0_does_not_say_which_kind_of_wrong():
    """V = 0 stands for a false claim and for an answer without any claim alike, so H = 1 - V is 1 for "I do not know";
    and without a source of truth V is undefined, which is None here and no 0. H reads the text alone: the same false
    claim counts the same whatever probability the model gave it, although the definition asks for a high one.
    """
    numeric = get_reward("numeric")
    completions = ["#### 5", "I do not know.", "#### 4", "#### 4"]
    assert numeric(prompts=["2 + 2?"] * 4, completions=completions, answer=["4", "4", "4", None]) == [
        0.0,
        0.0,
        1.0,
        None,
    ]
