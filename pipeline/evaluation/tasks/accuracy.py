"""Accuracy by a verifier: the share of right completions, pass@k and majority vote."""

from collections.abc import Sequence
from statistics import fmean

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.evaluation.completions import complete, judge_completions, sample_rows
from pipeline.evaluation.registry import Result
from pipeline.evaluation.rows import read_rows
from pipeline.evaluation.verified import verified_figures
from pipeline.rewards.answers import marked_answer, visible_text
from pipeline.rewards.resolve import resolve
from pipeline.runtime.errors import UserError
from pipeline.runtime.files import Json


def accuracy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    reward: str | Sequence[str],
    max_new_tokens: int,
    n: int = 1,
    k: Sequence[int] | None = None,
    temperature: float = 0.0,
    top_p: float = 1.0,
    by: str | None = None,
    template: str | None = None,
    stop: Sequence[str] = (),
    batch_size: int = 256,
    seed: int = 0,
    allow_unsafe_code_execution: bool = False,
    **data: object,
) -> Result:
    """Share of held-out prompts whose completion a verifier finds right.

    Greedy (temperature 0): ``accuracy`` with Wilson's interval. Sampled: ``pass@k`` by the unbiased estimator from
    ``n`` samples per prompt, and ``majority``, the score of the most frequent answer, with bootstrap intervals over
    prompts. A verifier with a lenient score beside its strict one adds ``<name>_lenient``. What cannot be judged is
    counted in ``unscored`` and left out, never taken for a zero.

    Args:
        reward: the verifier: a registry name or what ``resolve`` takes.
        max_new_tokens: longest completion in tokens; ``finished`` is the share that ended within it.
        n: samples per prompt.
        k: for which k to give pass@k; default 1 and n.
        temperature: 0 for greedy.
        top_p: nucleus of the samples.
        by: a column; every figure is also given for each of its values, as ``<value>/<name>``.
        template: for base models: the plain text of a prompt, with ``{prompt}`` where the user's words go.
        stop: a completion is judged up to the first of these strings.
        batch_size: sequences decoded together.
        seed: random seed of the samples and intervals.
        allow_unsafe_code_execution: see ``resolve``.
        data: which rows, see ``rows.read_rows``.
    """
    rows, source = read_rows(kind="prompt", images=True, **data)
    groups = groups_by(rows, by)
    k = sampled_k(n, k, temperature)
    verifier = resolve(reward, rows=rows, allow_unsafe_code_execution=allow_unsafe_code_execution)
    drawn = complete(
        model, tokenizer, rows, template=template, stop=stop, n=n, max_new_tokens=max_new_tokens,
        temperature=temperature, top_p=top_p, batch_size=batch_size, seed=seed,
    )  # fmt: skip
    judgements = judge_completions(verifier, rows, drawn)
    votes = [[_vote(c.text) for c in group] for group in drawn] if k and k[-1] > 1 else None
    metrics = {}
    for prefix, members in groups.items():
        judged, voted = ([part[i] for i in members] if part else None for part in (judgements, votes))
        figures = verified_figures(judged, k=k, votes=voted, seed=seed)
        figures |= {"prompts": len(members), "finished": fmean(c.finished for i in members for c in drawn[i])}
        metrics |= {prefix + name: value for name, value in figures.items()}
    scores = [[j.score for j in group] for group in judgements]
    return Result(metrics, sample_rows(rows, drawn, scores), [source])


def groups_by(rows: Sequence[Json], by: str | None) -> dict[str, Sequence[int]]:
    """Prefix of the figures' names -> row numbers: all rows under "", and those of each value of the column ``by``.

    Raises:
        UserError: a row has no such column.
    """
    groups: dict[str, Sequence[int]] = {"": range(len(rows))}
    if by is None:
        return groups
    if any(row.get(by) is None for row in rows):
        raise UserError(f"by: not every row has the column {by!r}; the rows have {', '.join(rows[0])}")
    for value in sorted({str(row[by]) for row in rows}):
        groups[f"{value}/"] = [i for i, row in enumerate(rows) if str(row[by]) == value]
    return groups


def sampled_k(n: int, k: Sequence[int] | None, temperature: float) -> list[int] | None:
    """For which k pass@k is given, ascending; None for greedy decoding, which has an accuracy instead.

    Raises:
        UserError: several greedy samples, or a k outside 1..n.
    """
    if temperature == 0 and n > 1:
        raise UserError("n above 1 with temperature 0 gives the same completion n times: set a temperature")
    k = sorted(set(k or (1, n)))
    if k[0] < 1 or k[-1] > n:
        raise UserError(f"k is {k}: every k must be between 1 and n, which is {n}")
    return k if temperature else None


def _vote(text: str) -> str | None:
    """What a completion votes for: its marked answer, else all that a reader sees of it."""
    seen = visible_text(text)
    return marked_answer(seen) or seen.strip() or None
