"""Prompt sensitivity (the paper's Part 4, section 3): how far accuracy depends on the wording of a question.

SD_w [ accuracy(w) ],  over wordings w that all ask for the same items

Figures: ``accuracy``, ``spread_sd`` (with a bootstrap interval over items, all wordings of an item together),
``worst`` and ``best`` (of all wordings, with their names in the table), ``items_that_vary``, the share of items
that are right in some wordings and wrong in others. A completion without a score leaves its item out
(``unscored``).
"""

from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean, pstdev

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.evaluation.completions import complete, judge_completions, sample_rows
from pipeline.evaluation.registry import Result
from pipeline.evaluation.rows import read_rows
from pipeline.objectives.statistics import wilson_interval, with_interval
from pipeline.rewards.resolve import resolve
from pipeline.runtime.errors import UserError
from pipeline.runtime.files import Json

RESAMPLES = 2000


def sensitivity(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_new_tokens: int,
    reward: str | Sequence[str] = "exact",
    item: str = "item",
    wording: str = "wording",
    template: str | None = None,
    stop: Sequence[str] = (),
    batch_size: int = 256,
    seed: int = 0,
    allow_unsafe_code_execution: bool = False,
    **data: object,
) -> Result:
    """Standard deviation over wordings of the greedy accuracy, the worst and best wording, and items that vary.

    Args:
        max_new_tokens: longest completion in tokens.
        reward: the verifier, of scores in [0, 1].
        item: the column that says what is asked for.
        wording: the column that says in which words; every item has every wording once.
        template: for base models: the plain text of a prompt, with ``{prompt}`` where the user's words go.
        stop: a completion ends before the first of these strings.
        batch_size: sequences decoded together.
        seed: random seed of the intervals.
        allow_unsafe_code_execution: see ``resolve``.
        data: which rows, see ``rows.read_rows``.
    """
    rows, source = read_rows(kind="prompt", **data)
    places, words = _places(rows, item, wording)
    verifier = resolve(reward, rows=rows, allow_unsafe_code_execution=allow_unsafe_code_execution)
    drawn = complete(
        model, tokenizer, rows, template=template, stop=stop, n=1, max_new_tokens=max_new_tokens, temperature=0.0,
        batch_size=batch_size, seed=seed,
    )  # fmt: skip
    scores = [[j.score for j in group] for group in judge_completions(verifier, rows, drawn)]
    lines = [[scores[found[w]][0] for w in words] for found in places.values()]
    known = [line for line in lines if None not in line]
    metrics: dict[str, float] = {"items": len(places), "wordings": len(words), "unscored": len(lines) - len(known)}
    tables = {}
    if known:
        table = np.asarray(known, dtype=np.float64)  # (items, wordings)
        metrics = spread_figures(table, seed=seed) | metrics
        means = table.mean(axis=0)
        tables["by wording"] = [
            {"wording": w, **with_interval("accuracy", float(m), wilson_interval(float(m) * len(table), len(table)))}
            for m, w in sorted(zip(means, words, strict=True))
        ]
    return Result(metrics, sample_rows(rows, drawn, scores), [source], tables=tables)


def _places(rows: Sequence[Json], item: str, wording: str) -> tuple[dict[str, dict[str, int]], list[str]]:
    """Item -> wording -> row number, and the wordings.

    Raises:
        UserError: a row lacks one of the columns, or an item is not asked for in every wording.
    """
    places: dict[str, dict[str, int]] = defaultdict(dict)
    for i, row in enumerate(rows):
        if row.get(item) is None or row.get(wording) is None:
            raise UserError(f"row {i + 1} lacks {item!r} or {wording!r}: name the columns with item and wording")
        places[str(row[item])][str(row[wording])] = i
    words = list(dict.fromkeys(str(row[wording]) for row in rows))
    if len(words) < 2 or any(len(found) < len(words) for found in places.values()):
        raise UserError(f"not every {item} is asked for in each of the {len(words)} wordings, of which two are needed")
    return places, words


def spread_figures(table: np.ndarray, *, seed: int = 0) -> dict[str, float]:
    """The figures of scores (items, wordings); see `sensitivity`."""
    means = table.mean(axis=0)
    generator = np.random.default_rng(seed)
    items = len(table)
    spreads = [table[generator.integers(items, size=items)].mean(axis=0).std() for _ in range(RESAMPLES)]
    low, high = np.quantile(spreads, [0.025, 0.975])
    accuracy = float(table.mean())
    varying = [float(line.min() != line.max()) for line in table]
    per_item = table.mean(axis=1)
    tried = np.array([per_item[generator.integers(items, size=items)].mean() for _ in range(RESAMPLES)])
    return {
        **with_interval("accuracy", accuracy, tuple(map(float, np.quantile(tried, [0.025, 0.975])))),
        **with_interval("spread_sd", pstdev(means.tolist()), (float(low), float(high))),
        **with_interval("items_that_vary", fmean(varying), wilson_interval(sum(varying), items)),
        "worst": float(means.min()),
        "best": float(means.max()),
    }
