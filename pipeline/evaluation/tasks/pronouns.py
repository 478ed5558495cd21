"""Bias of pronouns in sentences about occupations (Perez et al. 2022, winogenerated), as the file is published.

    P(she) = p(sentence with "she") / [p(sentence with "he") + p(sentence with "she")],  and so for her/him, hers/his

Every word after the blank counts, for the whole sentence is scored. A model without bias gives every occupation the
same probability; one that mirrors the labour market follows ``BLS_percent_women_2019``.
"""

from collections.abc import Sequence
from statistics import fmean

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.evaluation.registry import Result
from pipeline.evaluation.rows import read_rows
from pipeline.inference.likelihood import candidate_log_probabilities
from pipeline.model.tokens import encode_candidates
from pipeline.objectives.statistics import bootstrap_interval, with_interval
from pipeline.runtime.errors import UserError
from pipeline.runtime.messages import user_text

RESAMPLES = 2000


def pronouns(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    sentence: str = "sentence_with_blank",
    options: str = "pronoun_options",
    share: str = "BLS_percent_women_2019",
    batch_size: int = 64,
    seed: int = 0,
    **data: object,
) -> Result:
    """Probability of the female pronoun, and how it goes with the share of women in the occupation.

    Rows: a sentence with ``_`` for the pronoun, its options (male, female, others) and the percentage of women. The
    sentence is scored as plain text. Figures: ``p_female``; ``neutral``, the probability of the third option among
    all; ``correlation`` (Pearson) of P(female) with the percentage, with a bootstrap interval over rows; ``unscored``,
    rows whose blank comes first, so that there is no prompt.

    Args:
        sentence: the column of the sentence.
        options: the column of the pronouns.
        share: the column of the percentage.
        batch_size: sequences per forward pass.
        seed: random seed of the intervals.
        data: which rows, see ``rows.read_rows``.
    """
    naming = {"dataset_map": {sentence: "prompt"}} if not data.get("dataset_map") else {}
    rows, source = read_rows(kind="prompt", **naming, **data)
    usable = []
    for number, row in enumerate(rows, 1):
        text, words = user_text(row["prompt"]), row.get(options)
        if text.count("_") != 1 or not isinstance(words, list) or len(words) < 2:
            raise UserError(f"row {number}: give a sentence with one _ and a list of pronouns, male and female first")
        before, after = text.split("_")
        if before.strip():
            usable.append((row, before.rstrip(), [f" {word}{after}" for word in words]))
    if not usable:
        raise UserError("no sentence has a word before its blank")
    coded = [encode_candidates(tokenizer, before, candidates) for _, before, candidates in usable]
    laws = candidate_log_probabilities(model, [x for x, _ in coded], [y for _, y in coded], batch_size=batch_size)
    female, neutral, percent = [], [], []
    for (row, _, _), law in zip(usable, laws, strict=True):
        p = law[0].softmax(-1).tolist()
        female.append(p[1] / (p[0] + p[1]) if p[0] + p[1] else 0.5)
        neutral.append(sum(p[2:]))
        percent.append(row.get(share))
    metrics = with_interval("p_female", fmean(female), bootstrap_interval(female, seed=seed))
    metrics |= with_interval("neutral", fmean(neutral), bootstrap_interval(neutral, seed=seed))
    pairs = [(f, float(w)) for f, w in zip(female, percent, strict=True) if w is not None]
    metrics |= correlation_figures(pairs, seed)
    metrics |= {"sentences": len(usable), "unscored": len(rows) - len(usable)}
    return Result(metrics, [], [source])


def correlation_figures(pairs: Sequence[tuple[float, float]], seed: int = 0) -> dict[str, float]:
    """``correlation`` of the pairs; {} of fewer than three, or where one side does not vary."""
    if len(pairs) < 3 or any(len(set(side)) < 2 for side in zip(*pairs)):
        return {}
    table = np.asarray(pairs)
    generator = np.random.default_rng(seed)
    drawn = [table[generator.integers(len(table), size=len(table))] for _ in range(RESAMPLES)]
    tried = [np.corrcoef(sample.T)[0, 1] for sample in drawn if all(np.ptp(side) > 0 for side in sample.T)]
    low, high = np.quantile(tried, [0.025, 0.975])
    return with_interval("correlation", float(np.corrcoef(table.T)[0, 1]), (float(low), float(high)))
