"""Preference accuracy of a policy's implicit reward, against the best that the pairs allow."""

from collections.abc import Callable

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.data.images import opened
from pipeline.evaluation.registry import Result
from pipeline.evaluation.rows import read_rows
from pipeline.inference.likelihood import answer_log_likelihoods
from pipeline.model.tokens import encode_answer
from pipeline.model.vision import pixels_of
from pipeline.objectives.statistics import preference_figures
from pipeline.runtime.errors import UserError


def preference(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    reference: Callable[[], PreTrainedModel] | None = None,
    batch_size: int = 16,
    **data: object,
) -> Result:
    """Share of held-out pairs whose chosen answer has the higher implicit reward log pi(y|x) - log pi_ref(y|x).

    A tie counts a half, so the reference itself has 0.5. beta scales the reward and does not change the order. Where
    the rows carry the true rewards the pairs were drawn from (``reward_chosen``, ``reward_rejected``), the accuracy of
    the true reward on the same pairs is the Bayes accuracy, and ``share_of_bayes`` is the share of it that is reached.

    Args:
        reference: gives pi_ref; it is called, and the model loaded, after the policy is scored.
        batch_size: sequences per forward pass.
        data: which rows, see ``rows.read_rows``.

    Raises:
        UserError: no reference is given.
    """
    if reference is None:
        raise UserError("an implicit reward needs its reference: name it with reference_model_name_or_path")
    rows, source = read_rows(kind="preference", images=True, columns=("reward_chosen", "reward_rejected"), **data)
    pairs = [encode_answer(tokenizer, row["prompt"], row[side]) for row in rows for side in ("chosen", "rejected")]
    pixels = None
    if any(row.get("images") for row in rows):
        seen = [pixels_of(tokenizer, opened(row["images"])) if row.get("images") else None for row in rows]
        pixels = [own for own in seen for _ in range(2)]
    policy = answer_log_likelihoods(model, pairs, batch_size=batch_size, pixels=pixels)
    other = reference()
    base = policy if other is model else answer_log_likelihoods(other, pairs, batch_size=batch_size, pixels=pixels)
    gained = np.array(policy) - np.array(base)
    margins = gained[::2] - gained[1::2]
    true = None
    if all(row.get("reward_chosen") is not None and row.get("reward_rejected") is not None for row in rows):
        true = [row["reward_chosen"] - row["reward_rejected"] for row in rows]
    metrics = {
        **preference_figures(margins.tolist(), true),
        "margin": float(margins.mean()),
        "chosen_log_likelihood_gain": float(gained[::2].mean()),
        "pairs": len(rows),
    }
    return Result(metrics, data=[source])
