"""Completions of held-out prompts: draw them, call a verifier or reward on them, list them for the report."""

from collections.abc import Sequence
from statistics import fmean

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.data.images import opened, shown
from pipeline.inference.decoding import Completion, sample
from pipeline.inference.stopping import Stops
from pipeline.model.vision import with_images
from pipeline.rewards.judging import Judgement, Reward, judge_rows
from pipeline.runtime.errors import UserError
from pipeline.runtime.files import Json
from pipeline.runtime.messages import Turn, user_text

Drawn = Sequence[Sequence[Completion]]  # the completions of each row


def complete(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Json],
    *,
    template: str | None,
    stop: Sequence[str] = (),
    **sampling: object,
) -> list[list[Completion]]:
    """The completions of each row's prompt.

    Args:
        rows: rows with a ``prompt``.
        template: see ``prompts_of``.
        stop: a completion ends at the first of these strings.
        sampling: options of ``inference.decoding.sample``.

    Raises:
        UserError: the template has no place for the prompt, or an option is out of range.
    """
    return sample(model, tokenizer, prompts_of(rows, template), stops=Stops(strings=tuple(stop)), **sampling)


def prompts_of(rows: Sequence[Json], template: str | None) -> list[Turn]:
    """What a model reads of each row: the prompt as it is, or a template with ``{prompt}`` where the user's words go.

    Raises:
        UserError: the template has no place for the prompt.
    """
    if template is None:
        return [seen_prompt(row) for row in rows]
    if "{prompt}" not in template:
        raise UserError(f"template {template!r} has no {{prompt}} in it")
    return [template.replace("{prompt}", user_text(row["prompt"])) for row in rows]


def seen_prompt(row: Json) -> Turn:
    """The prompt of a row, with its images in their places where it has any."""
    images = row.get("images")
    return with_images(row["prompt"], opened(images)) if images else row["prompt"]


def judge_completions(reward: Reward, rows: Sequence[Json], drawn: Drawn) -> list[list[Judgement]]:
    """One judgement per prompt and completion."""
    flat = [(row, completion) for row, group in zip(rows, drawn, strict=True) for completion in group]
    texts, ids = [c.text for _, c in flat], [c.token_ids for _, c in flat]
    judgements = iter(judge_rows(reward, [row for row, _ in flat], texts, ids))
    return [[next(judgements) for _ in group] for group in drawn]


def length_figures(drawn: Drawn) -> dict[str, float]:
    """``finished``, the share of completions that ended within the limit, and their mean ``tokens_per_completion``."""
    return {
        "finished": fmean(c.finished for group in drawn for c in group),
        "tokens_per_completion": fmean(len(c.token_ids) for group in drawn for c in group),
    }


def sample_rows(
    rows: Sequence[Json], drawn: Drawn, scores: Sequence[Sequence[float | None]] | None = None
) -> list[Json]:
    """What ``samples.jsonl`` has of each prompt: the completions, whether each ended, and the scores if there are."""
    found = []
    for i, row in enumerate(rows):
        entry = {
            "prompt": row["prompt"],
            "completions": [c.text for c in drawn[i]],
            "finished": [c.finished for c in drawn[i]],
            **{name: row[name] for name in ("answer", "kind") if row.get(name) is not None},
        }
        if row.get("images"):
            entry["images"] = shown(row["images"])
        if scores is not None:
            entry["scores"] = list(scores[i])
        found.append(entry)
    return found
