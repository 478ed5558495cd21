"""What a verdict is, what a judge sees, and how a reward is called.

A judge takes one :class:`Sample` and returns one :class:`Judgement`. The verdicts and their scores:

=============  ===========  =========================================================================
verdict        score        meaning
=============  ===========  =========================================================================
``right``      1.0          the completion is right
``wrong``      0.0          the completion is wrong
``timeout``    0.0          the completion ran over its own limit: it is wrong, else hanging would pay
``scored``     any number   a graded reward (length, repetition, a reward model, a weighted sum)
``unscorable`` None         the row has no usable gold answer
``error``      None         the judge itself failed
=============  ===========  =========================================================================
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from pipeline.runtime.files import Json
from pipeline.runtime.messages import Turn, as_answer, text_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

VERDICTS = ("right", "wrong", "timeout", "scored", "unscorable", "error")


class Judgement(NamedTuple):
    """One verdict. ``lenient`` is a second, forgiving score where a verifier has one; ``reason`` is for people;
    ``parts`` are the scores of the rewards that a sum is made of, by name.
    """

    verdict: str
    score: float | None
    lenient: float | None = None
    reason: str = ""
    parts: Mapping[str, float | None] | None = None


class Sample(NamedTuple):
    """What a judge sees of one row: the prompt as given, the completion as given and as text, the other columns."""

    prompt: Turn | None
    completion: Turn
    text: str
    row: Json


class Reward(Protocol):
    """What every stage and evaluation may expect of a reward of the registry (its attributes: see the registry)."""

    __name__: str
    columns: tuple[str, ...]
    verifies: bool
    sandbox: str | None
    strict_metric: str | None

    def __call__(self, prompts: list | None, completions: list, **columns: Any) -> list[float | None]:
        """One score per completion, as TRL calls a reward."""

    def judge(self, prompts: list | None, completions: list, **columns: Any) -> list[Judgement]:
        """One judgement per completion."""

    def require_columns(self, rows: Iterable[Json]) -> None:
        """Refuse rows of which none has a column it cannot do without."""

    def no_scores(self) -> str | None:
        """Why no completion has had a score so far."""


def right(**extra) -> Judgement:
    """Score 1, verdict ``right``."""
    return Judgement("right", 1.0, **extra)


def wrong(reason: str = "", **extra) -> Judgement:
    """Score 0, verdict ``wrong``."""
    return Judgement("wrong", 0.0, reason=reason, **extra)


def timeout(reason: str) -> Judgement:
    """Score 0: the completion ran over its own limit, and hanging must not pay."""
    return Judgement("timeout", 0.0, reason=reason)


def scored(score: float) -> Judgement:
    """A graded score that is neither right nor wrong."""
    return Judgement("scored", score)


def unscorable(reason: str) -> Judgement:
    """No score: the row has no gold answer to compare with."""
    return Judgement("unscorable", None, reason=reason)


def error(reason: str) -> Judgement:
    """No score: the judge itself failed."""
    return Judgement("error", None, reason=reason)


def judged(is_right: bool, reason: str = "") -> Judgement:
    """``right`` or ``wrong``."""
    return right() if is_right else wrong(reason)


def call_arguments(
    rows: Sequence[Json],
    completions: Sequence[Turn],
    token_ids: Sequence[list[int]] | None = None,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
) -> Json:
    """What a reward is called with for one completion per row, in the form that TRL's trainers give it.

    Completions are messages where the prompt is a dialogue, else text; every column of the rows is a list with one
    entry per completion (None where a row lacks it), and so is ``completion_ids``.

    Args:
        rows: the columns of each completion, ``prompt`` among them where there is one.
        completions: text, or messages as they are.
        token_ids: the tokens of each completion, the end of its turn included.
        tokenizer: makes the tokens of the text where ``token_ids`` is not given; without either the column
            ``completion_ids`` is the rows', if they have one.
    """
    names = dict.fromkeys(name for row in rows for name in row if name not in ("prompt", "completion"))
    columns = {name: [row.get(name) for row in rows] for name in names}
    if token_ids is None and tokenizer is not None:
        from pipeline.model.tokens import encode_completion

        token_ids = [
            encode_completion(tokenizer, row.get("prompt"), text_of(y))
            for row, y in zip(rows, completions, strict=True)
        ]
    if token_ids is not None:
        columns["completion_ids"] = [list(ids) for ids in token_ids]
    has_prompts = any(row.get("prompt") is not None for row in rows)
    return {
        "prompts": [row.get("prompt") for row in rows] if has_prompts else None,
        "completions": [as_answer(row.get("prompt"), y) for row, y in zip(rows, completions, strict=True)],
        **columns,
    }


def score(
    reward: Reward,
    rows: Sequence[Json],
    completions: Sequence[Turn],
    token_ids: Sequence[list[int]] | None = None,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
) -> list[float | None]:
    """Scores of one completion per row: the one way to call a reward outside TRL's trainers (see `call_arguments`)."""
    return reward(**call_arguments(rows, completions, token_ids, tokenizer)) if rows else []


def judge_rows(
    reward: Reward,
    rows: Sequence[Json],
    completions: Sequence[Turn],
    token_ids: Sequence[list[int]] | None = None,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
) -> list[Judgement]:
    """As ``score``, with the verdicts and the parts of a sum beside the scores; a plain function has neither."""
    if not rows:
        return []
    arguments = call_arguments(rows, completions, token_ids, tokenizer)
    if hasattr(reward, "judge"):
        return reward.judge(**arguments)
    return [error("it returned None") if value is None else scored(value) for value in reward(**arguments)]


def part_means(judgements: Iterable[Judgement]) -> dict[str, float]:
    """``reward_parts/<name>``: the mean score of every part of a sum, over the completions that have one; {} for one
    reward alone. The run record of every stage and evaluation has these figures.
    """
    return mean_parts(judgement.parts for judgement in judgements)


def mean_parts(parts: Iterable[Mapping[str, float | None] | None]) -> dict[str, float]:
    """As ``part_means``, of the parts alone."""
    scores: dict[str, list[float]] = {}
    for by_name in parts:
        for name, value in (by_name or {}).items():
            if value is not None:
                scores.setdefault(name, []).append(value)
    return {f"reward_parts/{name}": sum(values) / len(values) for name, values in scores.items()}
