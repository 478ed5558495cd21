"""What the judgements of a verifier come to: accuracy or pass@k and majority vote, each with its interval."""

from collections.abc import Hashable, Sequence
from statistics import fmean

from pipeline.objectives.statistics import (
    bootstrap_interval,
    majority_score,
    pass_at_k,
    wilson_interval,
    with_interval,
)
from pipeline.rewards.judging import Judgement

Scores = Sequence[Sequence[float | None]]  # of each prompt's completions; None: not judged


def verified_figures(
    judgements: Sequence[Sequence[Judgement]],
    *,
    k: Sequence[int] | None = None,
    votes: Sequence[Sequence[Hashable | None]] | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """Strict figures, the same with ``_lenient`` where the verifier has a lenient score, ``timeouts``, ``unscored``.

    Prompts whose completions were never judged are left out of the figures and counted in ``unscored``.

    Args:
        judgements: of each prompt's completions.
        k: for which k to give pass@k; None for the accuracy of each prompt's single completion.
        votes: what each completion votes for, for ``majority``.
        seed: of the bootstrap.
    """

    def figures_of(scores: Scores, suffix: str) -> dict[str, float]:
        return accuracy_figures(scores, suffix) if k is None else pass_at_k_figures(scores, k, seed, suffix)

    strict = [[j.score for j in group] for group in judgements]
    figures = figures_of(strict, "")
    if votes is not None:
        figures |= majority_figures(strict, votes, seed)
    if any(j.lenient is not None for group in judgements for j in group):
        # A verdict without a lenient score (unscorable, timeout) counts the same in both.
        figures |= figures_of(
            [[j.score if j.lenient is None else j.lenient for j in g] for g in judgements], "_lenient"
        )
    return figures | {
        "timeouts": sum(j.verdict == "timeout" for group in judgements for j in group),
        "unscored": sum(score is None for group in strict for score in group),
    }


def accuracy_figures(scores: Scores, suffix: str = "") -> dict[str, float]:
    """``accuracy`` of one completion per prompt with Wilson's interval; {} where none was judged."""
    known = [known[0] for known in _known(scores)]
    if not known:
        return {}
    return with_interval(f"accuracy{suffix}", fmean(known), wilson_interval(sum(known), len(known)))


def pass_at_k_figures(scores: Scores, k: Sequence[int], seed: int = 0, suffix: str = "") -> dict[str, float]:
    """``pass@k`` for every k with a bootstrap interval over prompts; a prompt counts where k scores are known."""
    figures: dict[str, float] = {}
    for each in k:
        values = [pass_at_k(len(row), sum(s >= 1 for s in row), each) for row in _known(scores) if len(row) >= each]
        figures |= _with_bootstrap(f"pass@{each}{suffix}", values, seed)
    return figures


def majority_figures(scores: Scores, votes: Sequence[Sequence[Hashable | None]], seed: int = 0) -> dict[str, float]:
    """``majority``, the score of the most frequent answer, with a bootstrap interval over prompts."""
    pairs = [(row, group) for row, group in zip(scores, votes, strict=True) if any(s is not None for s in row)]
    return _with_bootstrap("majority", [majority_score(group, [s or 0.0 for s in row]) for row, group in pairs], seed)


def _known(scores: Scores) -> list[list[float]]:
    """The known scores of each prompt that has one."""
    return [known for row in scores if (known := [s for s in row if s is not None])]


def _with_bootstrap(name: str, values: Sequence[float], seed: int) -> dict[str, float]:
    if not values:
        return {}
    return with_interval(name, fmean(values), bootstrap_interval(values, seed=seed))
