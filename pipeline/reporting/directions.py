"""Which way a figure is better: the one table that the report's arrows, colours and verdicts come from."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import hypot

from pipeline.runtime.files import Json

UP, DOWN, NEITHER = "up", "down", ""
WORDS = {UP: "higher is better", DOWN: "lower is better", NEITHER: "neither way is better by itself"}
ARROWS = {UP: "↑", DOWN: "↓", NEITHER: ""}

# By the last part of a figure's name, without what is added to it (`_lenient`, `@k`, `eval_`, `held_out_`, `exact_`).
# A KL has no direction: it is the price of a reward, and the objective counts both.
BETTER = {
    UP: (
        "accuracy", "pass", "majority", "share_of_bayes", "auc", "finished",
        "reward", "true_reward", "margin", "margins", "objective", "advantage", "true_reward_advantage",
        "rlhf_reward", "scores", "accuracies", "mean_token_accuracy", "eos_rate", "explained_variance",
        "chosen_log_likelihood_gain", "regret_removed", "score",
        "average", "plasticity", "backward_transfer", "forward_transfer", "true", "agree_right", "truthfulness",
    ),
    DOWN: (
        "loss", "perplexity", "ece", "timeouts", "unscored", "regret", "regret_nats", "kl_to_optimum", "forgetting",
        "identity_gap", "mass", "clipped_ratio", "frac_reward_zero_std", "rejection", "no_acceptable_share",
        "unscored_share", "hall", "rumour", "other_false", "unsupported", "confident_false", "kl_to_ideal",
        "attack_success", "attack_partial", "over_refusal", "over_partial", "spread_sd", "flips", "agree_wrong",
    ),
    NEITHER: (
        "kl", "kl_sampled", "beta", "prompts", "pairs", "tokens", "answers", "candidates", "equal_n",
        "tokens_per_completion", "bayes_accuracy", "optimum", "length_correlation", "reference_reward",
        "reference_true_reward", "best_of_n_reward", "best_of_n_true_reward", "best_of_n_kl", "entropy",
        "reward_se", "kl_se", "kl_sampled_se", "objective_se", "mean_length", "max_length", "chosen", "rejected",
        "no_claim", "claims", "claims_per_100_tokens", "value_entropy", "refusal", "partial_refusal", "compliance",
    ),
}  # fmt: skip
_DIRECTION = {name: direction for direction, names in BETTER.items() for name in names}


def direction(name: str, claims: Sequence[Json] = ()) -> str | None:
    """``UP``, ``DOWN`` or ``NEITHER`` of a figure's complete name; None for one that the table does not know.

    An evaluation of a user's own may have any names: nothing is claimed of those. What was expected of a figure comes
    first: an accuracy that should stay below chance is a control, and lower is better. A bound on a KL says nothing.

    Args:
        claims: the expectations of a run record.
    """
    found = UP if "reward_parts/" in name else _known(name)  # what a part of a reward is called is the user's
    for claim in claims:
        if claim.get("metric") == name and (sign := re.search(r"[<>]", str(claim.get("claim", "")))):
            return found if found == NEITHER else UP if sign[0] == ">" else DOWN
    return found


def _known(name: str) -> str | None:
    """What the table says of a name."""
    last = name.rpartition("/")[2]
    last = re.sub(r"^(first_|last_)?(eval_|held_out_|exact_)?", "", last)
    last = re.sub(r"(_lenient)?(@\d+)?(_lenient)?$", "", last)
    return _DIRECTION.get(last)


@dataclass(frozen=True)
class Difference:
    """How far a figure is from what it was before, with a 95% interval.

    Attributes:
        kind: "gain" or "loss" where the interval leaves 0 out and a direction is known, "same" where it holds 0,
            "moved" where no direction is known.
    """

    value: float
    low: float
    high: float
    kind: str


def difference(
    name: str, now: Mapping[str, float] | Json, before: Mapping[str, float] | Json, claims: Sequence[Json] = ()
) -> Difference | None:
    """The change of a figure between two evaluations; None where either has no figure or no interval.

    The two intervals are combined as independent ones: both are over the same prompts, so that the true interval is
    mostly narrower, and a gain or loss that is shown is one. ``claims`` are those of ``direction``.
    """
    value, old = now.get(name), before.get(name)
    ends = [side.get(f"{name}_{end}") for side in (now, before) for end in ("low", "high")]
    if value is None or old is None or any(end is None for end in ends):
        return None
    low, high, old_low, old_high = ends
    change = value - old
    least, most = change - hypot(value - low, old_high - old), change + hypot(high - value, old - old_low)
    kind = "same"
    if change and (least > 0 or most < 0):
        better = direction(name, claims)
        kind = "moved" if not better else "gain" if (change > 0) == (better == UP) else "loss"
    return Difference(change, least, most, kind)
