"""What a model writes, judged: verified accuracy, pass@k and majority vote, mean reward, and samples to look at."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from pipeline.evaluation.registry import Result
from pipeline.evaluation.rows import read_rows
from pipeline.evaluation.statistics import (
    bootstrap_interval,
    majority_score,
    pass_at_k,
    wilson_interval,
    with_interval,
)
from pipeline.inference.decoding import Completion, check_options, sample
from pipeline.rewards.answers import marked_answer, visible_text
from pipeline.rewards.judging import Judgement, judge
from pipeline.rewards.resolve import resolve
from pipeline.runtime.errors import UserError
from pipeline.runtime.messages import Turn, user_text, user_turn


def accuracy(
    model: Any,
    tokenizer: Any,
    *,
    reward: Any,
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
    **data: Any,
) -> Result:
    """Share of held-out prompts whose completion a verifier finds right.

    Greedy (temperature 0): ``accuracy`` with Wilson's interval. Sampled: ``pass@k`` by the unbiased estimator from
    ``n`` samples a prompt, and ``majority``, the score of the most frequent answer, with bootstrap intervals over
    prompts. A verifier with a lenient score beside its strict one adds ``<name>_lenient``. What cannot be judged is
    counted in ``unscored`` and left out, never taken for a zero.

    Args:
        reward: the verifier: a registry name or what ``resolve`` takes.
        max_new_tokens: length of a completion; ``finished`` says how many ended within it.
        n: samples a prompt.
        k: for which k to give pass@k; default 1 and n.
        temperature: 0 for greedy.
        top_p: nucleus of the samples.
        by: a column; every figure is also given for each of its values, as ``<value>/<name>``.
        template: for base models: the plain text of a prompt, with ``{prompt}`` where the user's words go.
        stop: a completion is judged up to the first of these strings.
        batch_size: sequences decoded together.
        seed: of the samples.
        allow_unsafe_code_execution: see ``resolve``.
        data: which rows, see ``rows.read_rows``.
    """
    rows, source = read_rows(kind="prompt", **data)
    if by is not None and any(row.get(by) is None for row in rows):
        raise UserError(f"by: not every row has the column {by!r}; the rows have {', '.join(rows[0])}")
    if temperature == 0 and n > 1:
        raise UserError("n above 1 with temperature 0 gives the same completion n times: set a temperature")
    k = sorted(set(k or (1, n)))
    if k[0] < 1 or k[-1] > n:
        raise UserError(f"k is {k}: every k must be between 1 and n, which is {n}")
    verifier = resolve(reward, allow_unsafe_code_execution=allow_unsafe_code_execution)
    verifier.require_columns(rows)
    done = _complete(
        model, tokenizer, rows, template, stop, n=n, max_new_tokens=max_new_tokens,
        temperature=temperature, top_p=top_p, batch_size=batch_size, seed=seed,
    )  # fmt: skip
    texts = [[c.text for c in row] for row in done]
    judgements = _judge(verifier, rows, done)
    strict = [[j.score for j in group] for group in judgements]
    # A verdict without a lenient score (unscorable, timeout) says the same to both.
    lenient = [[j.score if j.lenient is None else j.lenient for j in group] for group in judgements]
    has_lenient = any(j.lenient is not None for group in judgements for j in group)
    groups = {"": range(len(rows))}
    if by is not None:
        for value in sorted({str(row[by]) for row in rows}):
            groups[f"{value}/"] = [i for i, row in enumerate(rows) if str(row[by]) == value]
    metrics = {}
    for prefix, members in groups.items():
        figures = _figures([strict[i] for i in members], [texts[i] for i in members], k, temperature == 0, seed)
        if has_lenient:
            figures |= _figures([lenient[i] for i in members], None, k, temperature == 0, seed, "_lenient")
        figures |= {
            "timeouts": sum(j.verdict == "timeout" for i in members for j in judgements[i]),
            "unscored": sum(j.score is None for i in members for j in judgements[i]),
            "prompts": len(members),
            "finished": _mean(c.finished for i in members for c in done[i]),
        }
        metrics |= {prefix + name: value for name, value in figures.items()}
    return Result(metrics, _samples(rows, texts, done, strict), [source])


def reward(
    model: Any,
    tokenizer: Any,
    *,
    reward: Any,
    max_new_tokens: int,
    n: int = 1,
    temperature: float = 1.0,
    top_p: float = 1.0,
    template: str | None = None,
    batch_size: int = 256,
    seed: int = 0,
    allow_unsafe_code_execution: bool = False,
    **data: Any,
) -> Result:
    """Mean reward E[R(x, y)] of samples y ~ pi(. | x) on held-out prompts, with a bootstrap interval over prompts.

    Args:
        reward: what ``resolve`` takes, a learned reward too.
        max_new_tokens: length of a completion.
        n: samples a prompt.
        temperature: 1 samples the policy itself.
        top_p: nucleus of the samples.
        template: as in ``accuracy``.
        batch_size: sequences decoded together.
        seed: of the samples.
        allow_unsafe_code_execution: see ``resolve``.
        data: which rows, see ``rows.read_rows``.
    """
    rows, source = read_rows(kind="prompt", **data)
    given = resolve(reward, allow_unsafe_code_execution=allow_unsafe_code_execution)
    given.require_columns(rows)
    done = _complete(
        model, tokenizer, rows, template, n=n, max_new_tokens=max_new_tokens,
        temperature=temperature, top_p=top_p, batch_size=batch_size, seed=seed,
    )  # fmt: skip
    texts = [[c.text for c in row] for row in done]
    scores = [[j.score for j in group] for group in _judge(given, rows, done)]
    means = [sum(kept) / len(kept) for row in scores if (kept := [s for s in row if s is not None])]
    if not means:
        raise UserError("the reward judged none of the completions: check its columns, or its messages above")
    metrics = {
        **with_interval("reward", sum(means) / len(means), bootstrap_interval(means, seed=seed)),
        "prompts": len(rows),
        "unscored": sum(s is None for row in scores for s in row),
        "finished": _mean(c.finished for row in done for c in row),
        "tokens_per_completion": _mean(len(c.token_ids) for row in done for c in row),
    }
    return Result(metrics, _samples(rows, texts, done, scores), [source])


def samples(
    model: Any,
    tokenizer: Any,
    *,
    prompts: Sequence[Turn] | None = None,
    dataset: str | None = None,
    max_new_tokens: int,
    n: int = 1,
    temperature: float = 0.0,
    top_p: float = 1.0,
    template: str | None = None,
    stop: Sequence[str] = (),
    chat: bool = True,
    batch_size: int = 256,
    seed: int = 0,
    **data: Any,
) -> Result:
    """Completions of given prompts to look at; the report shows the same prompts after every stage side by side.

    Args:
        prompts: strings or message lists; or name a dataset instead.
        dataset: see ``rows.read_rows``, as for its further options.
        max_new_tokens: length of a completion.
        n: samples a prompt.
        temperature: 0 for greedy.
        top_p: nucleus of the samples.
        template: as in ``accuracy``.
        stop: a completion is shown up to the first of these strings.
        chat: a string among ``prompts`` is what a user says (where the tokenizer has a chat template), not plain text.
        batch_size: sequences decoded together.
        seed: of the samples.
        data: which rows of the dataset.
    """
    if (prompts is None) == (dataset is None):
        raise UserError("give either prompts or a dataset")
    check_options(n, max_new_tokens, temperature, top_p, 0, batch_size)
    sources = []
    if dataset is not None:
        rows, source = read_rows(dataset, kind="prompt", **data)
        sources.append(source)
    else:
        as_chat = chat and getattr(tokenizer, "chat_template", None)
        rows = [{"prompt": user_turn(p) if as_chat and isinstance(p, str) else p} for p in prompts]
    done = _complete(
        model, tokenizer, rows, template, stop, n=n, max_new_tokens=max_new_tokens,
        temperature=temperature, top_p=top_p, batch_size=batch_size, seed=seed,
    )  # fmt: skip
    texts = [[c.text for c in row] for row in done]
    metrics = {
        "finished": _mean(c.finished for row in done for c in row),
        "tokens_per_completion": _mean(len(c.token_ids) for row in done for c in row),
    }
    return Result(metrics, _samples(rows, texts, done, None), sources)


def _complete(
    model: Any,
    tokenizer: Any,
    rows: Sequence[dict[str, Any]],
    template: str | None,
    stop: Sequence[str] = (),
    **options: Any,
) -> list[list[Completion]]:
    """The completions of each row's prompt, put into the template and cut at the stop strings."""
    prompts: list[Turn] = [row["prompt"] for row in rows]
    if template is not None:
        if "{prompt}" not in template:
            raise UserError(f"template {template!r} has no {{prompt}} in it")
        prompts = [template.replace("{prompt}", user_text(prompt)) for prompt in prompts]
    return [[_until(c, stop) for c in group] for group in sample(model, tokenizer, prompts, **options)]


def _until(completion: Completion, stop: Sequence[str]) -> Completion:
    """The completion up to the first of the stop strings, which ends it; leading white space is not searched."""
    text = completion.text
    start = len(text) - len(text.lstrip())
    places = [place for word in stop if (place := text.find(word, start)) >= 0]
    return replace(completion, text=text[: min(places)], finished=True) if places else completion


def _judge(reward: Any, rows: Sequence[dict[str, Any]], done: Sequence[Sequence[Completion]]) -> list[list[Judgement]]:
    """One judgement per prompt and sample."""
    flat = [(row, completion) for row, group in zip(rows, done, strict=True) for completion in group]
    texts, ids = [c.text for _, c in flat], [c.token_ids for _, c in flat]
    judgements = iter(judge(reward, [row for row, _ in flat], texts, ids))
    return [[next(judgements) for _ in group] for group in done]


def _figures(
    scores: Sequence[Sequence[float | None]],
    texts: Sequence[Sequence[str]] | None,
    k: Sequence[int],
    greedy: bool,
    seed: int,
    suffix: str = "",
) -> dict[str, float]:
    """Accuracy or pass@k and majority of some prompts, with intervals; prompts that were never judged are left out."""
    judged = [[s for s in row if s is not None] for row in scores]
    figures: dict[str, float] = {}
    if greedy:
        values = [row[0] for row in judged if row]
        if values:
            low_high = wilson_interval(sum(values), len(values))
            figures |= with_interval(f"accuracy{suffix}", sum(values) / len(values), low_high)
        return figures
    for each in k:
        values = [pass_at_k(len(row), sum(s >= 1 for s in row), each) for row in judged if len(row) >= each]
        if values:
            low_high = bootstrap_interval(values, seed=seed)
            figures |= with_interval(f"pass@{each}{suffix}", sum(values) / len(values), low_high)
    if texts is not None and k[-1] > 1:
        values = [
            majority_score([_vote(t) for t in group], [s or 0.0 for s in row])
            for group, row, kept in zip(texts, scores, judged, strict=True)
            if kept
        ]
        if values:
            figures |= with_interval("majority", sum(values) / len(values), bootstrap_interval(values, seed=seed))
    return figures


def _vote(text: str) -> str | None:
    """What a completion votes for: its marked answer, else all that a reader sees of it."""
    seen = visible_text(text)
    return marked_answer(seen) or seen.strip() or None


def _samples(
    rows: Sequence[dict[str, Any]],
    texts: Sequence[Sequence[str]],
    done: Sequence[Sequence[Completion]],
    scores: Sequence[Sequence[float | None]] | None,
) -> list[dict[str, Any]]:
    found = []
    for i, row in enumerate(rows):
        entry = {
            "prompt": row["prompt"],
            "completions": list(texts[i]),
            "finished": [c.finished for c in done[i]],
            **{name: row[name] for name in ("answer", "kind") if row.get(name) is not None},
        }
        if scores is not None:
            entry["scores"] = list(scores[i])
        found.append(entry)
    return found


def _mean(values: Iterable[float]) -> float:
    values = [float(value) for value in values]
    return sum(values) / len(values)
