"""Whether a model that sees looks: its accuracy with its images, with others, with none, and what needs no looking."""

import random
from collections import Counter
from collections.abc import Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.data.images import opened
from pipeline.evaluation.completions import complete, judge_completions, sample_rows
from pipeline.evaluation.registry import Result
from pipeline.evaluation.rows import read_rows
from pipeline.evaluation.tasks.accuracy import groups_by
from pipeline.evaluation.verified import accuracy_figures
from pipeline.objectives.statistics import wilson_interval, with_interval
from pipeline.rewards.resolve import resolve
from pipeline.runtime.errors import UserError
from pipeline.runtime.files import Json
from pipeline.runtime.messages import user_text


def looking(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    reward: str | Sequence[str],
    max_new_tokens: int,
    baseline_split: str | None = None,
    pixels: bool = False,
    by: str | None = None,
    batch_size: int = 256,
    seed: int = 0,
    **data: object,
) -> Result:
    """Accuracy of greedy answers to questions about images, beside what is had without looking.

    ``accuracy`` is of the rows as they are; ``shuffled`` of the same questions with the images of other rows (a fixed
    draw), ``blank`` with grey ones: a model that looks falls to chance. From ``baseline_split``, rows of the same
    dataset: ``majority`` (the most frequent answer), ``question_only`` (the most frequent answer to these very words,
    else to all) and, with ``pixels``, logistic regression on the pixels and the question.

    Args:
        reward: the verifier, which reads the column ``answer``.
        max_new_tokens: longest answer in tokens.
        baseline_split: rows to take the baselines from, e.g. ``train[:2000]``; without it there are none.
        pixels: also the logistic regression; needs scikit-learn.
        by: a column; every figure is also given for each of its values.
        batch_size: sequences decoded together.
        seed: of the draw of other images.
        data: which rows, see ``rows.read_rows``.

    Raises:
        UserError: rows without images or answers, or no scikit-learn.
    """
    rows, source = read_rows(kind="prompt", images=True, **data)
    if not all(row.get("images") and row.get("answer") is not None for row in rows):
        raise UserError("looking: every row needs image (or images) and answer")
    groups = groups_by(rows, by)
    verifier = resolve(reward)
    verifier.require_columns(rows)
    verdicts: dict[str, list[float | None]] = {}
    if baseline_split is not None:
        known, _ = read_rows(kind="prompt", images=True, **{**data, "split": baseline_split, "limit": None})
        for name, answers in baselines(known, rows, pixels=pixels).items():
            verdicts[name] = [float(answer == row["answer"]) for answer, row in zip(answers, rows)]
    drawn = {}
    for name, shown in (("accuracy", rows), ("shuffled", shuffled(rows, seed)), ("blank", blank(rows))):
        drawn[name] = complete(
            model, tokenizer, shown, template=None, max_new_tokens=max_new_tokens, temperature=0.0,
            batch_size=batch_size, seed=seed,
        )  # fmt: skip
        judged = judge_completions(verifier, rows, drawn[name])
        verdicts[name] = [group[0].score for group in judged]
    metrics: dict[str, float] = {}
    for prefix, members in groups.items():
        for name, scores in verdicts.items():
            figures = accuracy_figures([[scores[i]] for i in members])
            metrics |= {prefix + key.replace("accuracy", name, 1): value for key, value in figures.items()}
        metrics[f"{prefix}prompts"] = len(members)
    scores = [[score] for score in verdicts["accuracy"]]
    return Result(metrics, sample_rows(rows, drawn["accuracy"], scores), [source])


def objects(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_new_tokens: int = 3,
    by: str | None = None,
    batch_size: int = 256,
    **data: object,
) -> Result:
    """Hallucination about objects in POPE's form (Li et al. 2023, arXiv:2305.10355): is there a …, yes or no?

    ``accuracy`` with Wilson's interval, ``yes_rate``, and of yes as the positive answer ``precision``, ``recall`` and
    ``f1``. An answer that begins with neither word is no yes and never right; ``neither`` is the share of those.

    Args:
        max_new_tokens: longest answer in tokens.
        by: a column; accuracy and yes_rate are also given for each of its values.
        batch_size: sequences decoded together.
        data: which rows, see ``rows.read_rows``; their ``answer`` is yes or no.

    Raises:
        UserError: a row whose answer is something else.
    """
    rows, source = read_rows(kind="prompt", images=True, **data)
    if any(row.get("answer") not in ("yes", "no") for row in rows):
        raise UserError("objects: the column answer must be yes or no in every row")
    groups = groups_by(rows, by)
    drawn = complete(
        model, tokenizer, rows, template=None, max_new_tokens=max_new_tokens, temperature=0.0, batch_size=batch_size
    )
    said = [said_yes(group[0].text) for group in drawn]
    true = [row["answer"] == "yes" for row in rows]
    metrics: dict[str, float] = {}
    for prefix, members in groups.items():
        figures = yes_figures([said[i] for i in members], [true[i] for i in members])
        if prefix:  # of one kind of question only one answer is right: no precision, recall or F1
            figures = {name: value for name, value in figures.items() if name.startswith(("accuracy", "yes_rate"))}
        metrics |= {prefix + name: value for name, value in figures.items()}
    scores = [[float(yes is right)] for yes, right in zip(said, true)]
    return Result(metrics, sample_rows(rows, drawn, scores), [source])


def said_yes(text: str) -> bool | None:
    """Whether an answer begins with yes or with no; None for neither."""
    word = text.strip().lower().split()[:1]
    return {"yes": True, "no": False}.get(word[0].strip(".,!:;") if word else "")


def yes_figures(said: Sequence[bool | None], true: Sequence[bool]) -> dict[str, float]:
    """accuracy with its interval, yes_rate, precision, recall, f1 (0 where nothing is counted) and neither."""
    n, pairs = len(true), list(zip(said, true, strict=True))
    right = sum(yes is truth for yes, truth in pairs)
    hits, yes = sum(yes is True and truth for yes, truth in pairs), sum(yes is True for yes in said)
    precision, recall = hits / max(1, yes), hits / max(1, sum(true))
    return {
        **with_interval("accuracy", right / n, wilson_interval(right, n)),
        "yes_rate": yes / n,
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / (precision + recall) if hits else 0.0,
        "neither": sum(yes is None for yes in said) / n,
    }


# ---------------------------------------------------------------------- what needs no looking


def shuffled(rows: Sequence[Json], seed: int) -> list[Json]:
    """The rows with each other's images: a fixed draw in which none keeps its own."""
    order = list(range(len(rows)))
    random.Random(f"shuffled {seed}").shuffle(order)
    other = {order[i]: order[i - 1] for i in range(len(order))}  # a cycle
    return [row | {"images": rows[other[i]]["images"]} for i, row in enumerate(rows)]


def blank(rows: Sequence[Json]) -> list[Json]:
    """The rows with grey images of the same sizes."""
    from PIL import Image

    return [
        row | {"images": [Image.new("RGB", image.size, (128, 128, 128)) for image in opened(row["images"])]}
        for row in rows
    ]


def baselines(known: Sequence[Json], rows: Sequence[Json], *, pixels: bool) -> dict[str, list[str]]:
    """The answers of ``majority``, ``question_only`` and ``pixels`` to the rows, from other rows with answers."""
    total = Counter(row["answer"] for row in known)
    words: dict[str, Counter[str]] = {}
    for row in known:
        words.setdefault(user_text(row["prompt"]), Counter())[row["answer"]] += 1
    usual = total.most_common(1)[0][0]
    asked = (words.get(user_text(row["prompt"]), total) for row in rows)
    found = {"majority": [usual] * len(rows), "question_only": [one.most_common(1)[0][0] for one in asked]}
    return found | ({"pixels": _logistic(known, rows)} if pixels else {})


def _logistic(known: Sequence[Json], rows: Sequence[Json]) -> list[str]:
    import numpy as np

    try:
        from sklearn.feature_extraction.text import CountVectorizer
        from sklearn.linear_model import LogisticRegression
    except ImportError:
        raise UserError("pixels: logistic regression comes with scikit-learn: pip install 'narlm[vision]'") from None
    size = opened(known[0]["images"])[0].size
    count = CountVectorizer().fit(user_text(row["prompt"]) for row in known)

    def features(part: Sequence[Json]) -> "np.ndarray":
        seen = [np.asarray(opened(row["images"])[0].resize(size), dtype=np.float32).ravel() / 255 for row in part]
        return np.hstack([np.stack(seen), count.transform(user_text(row["prompt"]) for row in part).toarray()])

    model = LogisticRegression(C=0.1, max_iter=200).fit(features(known), [row["answer"] for row in known])
    return model.predict(features(rows)).tolist()
