r"""The one objective behind PPO, DPO, rejection sampling and GRPO, and how far a policy is from its optimum.

    J(pi) = E_x [ E_{y ~ pi} R(x, y)  -  beta KL(pi(.|x) || pi_ref(.|x)) ]

estimated from samples of the policy, with standard errors; on ``world/enumerable``, where every completion is known,
also exactly (``pipeline.evaluation.exact``). KL is in nats per completion, J in units of the reward.
"""

import math
from collections.abc import Callable, Sequence
from statistics import fmean

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.evaluation.completions import Drawn
from pipeline.evaluation.exact import exact_figures, exact_law, frontier
from pipeline.evaluation.registry import Result, require_recorded
from pipeline.evaluation.rows import read_rows
from pipeline.inference.decoding import sample
from pipeline.inference.likelihood import pairs_of, sequence_divergences
from pipeline.model.tokens import encode_prompts
from pipeline.objectives.divergences import tilted_law
from pipeline.objectives.statistics import Z95, bootstrap_interval, with_interval
from pipeline.rewards.judging import Reward, score
from pipeline.rewards.resolve import resolve
from pipeline.runtime.errors import UserError
from pipeline.runtime.files import Json
from pipeline.worlds import enumerable

FRONTIER = (0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 1.0, 2.0, 4.0)  # betas of the curve of optima


def objective(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    reference: Callable[[], PreTrainedModel] | None = None,
    reward: str | Sequence[str] | None = None,
    reward_weights: Sequence[float] | None = None,
    beta: float | None = None,
    max_new_tokens: int | None = None,
    n: int = 8,
    optimum_samples: int = 0,
    batch_size: int = 64,
    seed: int = 0,
    allow_unsafe_code_execution: bool = False,
    **data: object,
) -> Result:
    """``E[R] - beta KL(pi || pi_ref)`` of a policy on given prompts, from samples at temperature 1.

    ``reward``, ``kl`` (full vocabulary, nats per completion), ``kl_sampled`` and ``objective``, each with its standard
    error and interval (see ``summary``). On ``world/enumerable`` also ``exact/*`` (see ``exact_figures``): J*, regret.
    The table ``policy`` has its KL, reward and J; the curve ``optima`` those of pi* for many beta, where known.

    Args:
        reference: loads pi_ref; default: the one in the model's run record.
        reward: what ``resolve`` takes; default: the one in the model's run record, with its weights.
        reward_weights: of several rewards, one each.
        beta: weight of the KL; default: from the run record.
        max_new_tokens: longest completion in tokens; default: from the run record.
        n: samples per prompt; one gives no standard error.
        optimum_samples: on ``world/enumerable``: exact samples of pi* per prompt, written to ``optimum.jsonl``.
        batch_size: sequences per forward pass.
        seed: random seed of the samples.
        allow_unsafe_code_execution: see ``resolve``.
        data: which prompts, see ``rows.read_rows``.

    Raises:
        UserError: something is neither given nor recorded; nothing could be scored; another vocabulary.
    """
    require_recorded(reference=reference, reward=reward, beta=beta, max_new_tokens=max_new_tokens)
    rows, source = read_rows(kind="prompt", **data)
    enumerated = str(data.get("dataset", "")) == "world/enumerable"
    if optimum_samples and not enumerated:
        raise UserError("optimum_samples: pi* is known only on world/enumerable")
    scorer = resolve(reward, reward_weights, rows=rows, allow_unsafe_code_execution=allow_unsafe_code_execution)
    if enumerated and len(tokenizer) != enumerable.VOCABULARY:
        raise UserError(f"world/enumerable is for a model of its {enumerable.VOCABULARY} tokens (tokenizer_name)")
    prompts = [row["prompt"] for row in rows]
    drawn = sample(model, tokenizer, prompts, n=n, max_new_tokens=max_new_tokens, batch_size=batch_size, seed=seed)
    scores = scored(scorer, rows, drawn)
    encoded, pi_ref = encode_prompts(tokenizer, prompts), reference()
    kls = sequence_divergences(model, pi_ref, pairs_of(encoded, drawn), batch_size=batch_size)
    by_prompt = [[values[i : i + n] for i in range(0, len(values), n)] for values in (k.tolist() for k in kls)]
    metrics = summary(estimates(scores, *by_prompt, beta), seed=seed, all_prompts=enumerated)
    metrics |= {"beta": beta, "prompts": len(rows), "unscored": sum(group.count(None) for group in scores)}
    result = Result(metrics, data=[source], tables={"policy": [_place("samples", metrics)]})
    if enumerated:
        star = add_exact(result, model, pi_ref, encoded, rows, scorer, beta)
        if optimum_samples:
            result.files["optimum.jsonl"] = _optimum_rows(prompts, star, optimum_samples, seed)
    return result


def scored(reward: Reward, rows: Sequence[Json], drawn: Drawn) -> list[list[float | None]]:
    """Scores of the completions of each row.

    Raises:
        UserError: none of them has one.
    """
    flat = [(row, completion) for row, group in zip(rows, drawn, strict=True) for completion in group]
    scores = score(reward, [row for row, _ in flat], [c.text for _, c in flat], [c.token_ids for _, c in flat])
    if all(value is None for value in scores):
        raise UserError("the reward scored none of the completions: check its columns, or its messages above")
    remaining = iter(scores)
    return [[next(remaining) for _ in group] for group in drawn]


def add_exact(
    result: Result,
    model: PreTrainedModel,
    reference: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    rows: Sequence[Json],
    reward: Reward,
    beta: float,
) -> torch.Tensor:  # (P, Y)
    """Add to a result what enumeration gives: ``exact/*``, the policy's exact place and the curve of optima.

    Args:
        prompts: token ids of each row's prompt.

    Returns:
        pi* of every completion, as probabilities.
    """
    completions, texts = enumerable.COMPLETIONS, _texts()
    log_law, log_reference = (exact_law(each, prompts, completions) for each in (model, reference))
    scores = [score(reward, [row] * len(completions), texts, completions) for row in rows]
    rewards = torch.tensor(scores, dtype=torch.float64)
    figures = exact_figures(log_law, log_reference, rewards, beta)
    result.metrics |= {f"exact/{name}": value for name, value in figures.items()}
    result.tables["policy"].append(_place("enumeration", figures))
    result.curves["optima"] = frontier(log_reference, rewards, FRONTIER)
    return tilted_law(log_reference, rewards, beta).exp()


def _place(how: str, figures: dict[str, float]) -> dict[str, str | float]:
    """Where the policy lies, as a row of the table ``policy``; a more exact row comes after a less exact one."""
    return {"figures by": how, **{name: figures[name] for name in ("kl", "reward", "objective")}}


def estimates(
    rewards: Sequence[Sequence[float | None]],  # of each prompt's completions; None: not scored
    sampled: Sequence[Sequence[float]],  # log pi - log pi_ref of each
    full: Sequence[Sequence[float]],  # the same over the whole vocabulary
    beta: float,
) -> dict[str, list[float]]:
    """Each prompt's mean reward, both KLs and J, with the squared standard error of each.

    ``objective`` is ``R - beta KL`` sample by sample (with the full-vocabulary KL), so that its error includes their
    covariance. ``<name>_variance`` is the squared standard error of the prompt's mean (nan for a single
    sample). Prompts of which nothing was scored are left out.
    """
    found: dict[str, list[float]] = {name: [] for name in ("reward", "kl_sampled", "kl", "objective")}
    found |= {f"{name}_variance": [] for name in list(found)}
    for scores, first, second in zip(rewards, sampled, full, strict=True):
        known = [i for i, score in enumerate(scores) if score is not None]
        if not known:
            continue
        values = {
            "reward": [scores[i] for i in known],
            "kl_sampled": list(first),
            "kl": list(second),
            "objective": [scores[i] - beta * second[i] for i in known],
        }
        for name, samples in values.items():
            count, mean = len(samples), fmean(samples)
            found[name].append(mean)
            spread = math.fsum((value - mean) ** 2 for value in samples)
            found[f"{name}_variance"].append(spread / (count - 1) / count if count > 1 else math.nan)
    return found


def summary(found: dict[str, list[float]], *, seed: int = 0, all_prompts: bool = False) -> dict[str, float]:
    """Means over prompts, their standard errors ``<name>_se`` and 95% intervals ``_low`` and ``_high``.

    The standard error is of the samples at these prompts: the one for two policies compared on the same prompts. The
    interval is over other prompts too (bootstrap over prompts), unless these are ``all_prompts`` there are.
    """
    figures: dict[str, float] = {}
    for name in ("reward", "kl", "kl_sampled", "objective"):
        values, variances = found[name], found[f"{name}_variance"]
        mean, error = fmean(values), math.sqrt(math.fsum(variances)) / len(values)
        interval = (mean - Z95 * error, mean + Z95 * error) if all_prompts else bootstrap_interval(values, seed=seed)
        figures |= with_interval(name, mean, interval)
        if math.isfinite(error):
            figures[f"{name}_se"] = error
    return figures


def _texts() -> list[str]:
    return [enumerable.text_of(ids) for ids in enumerable.COMPLETIONS]


def _optimum_rows(prompts: Sequence[str], star: torch.Tensor, count: int, seed: int) -> list[dict[str, str]]:
    """SFT rows drawn from pi*, (P, Y) in probabilities; prompts in turn."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.multinomial(star, count, replacement=True, generator=generator).T.flatten().tolist()
    texts = _texts()
    return [{"prompt": prompts[i % len(prompts)], "completion": texts[y]} for i, y in enumerate(drawn)]
