r"""The one objective behind PPO, DPO, rejection sampling and GRPO, and how far a policy is from its optimum.

    J(pi) = E_x [ E_{y ~ pi} R(x, y)  -  beta KL(pi(.|x) || pi_ref(.|x)) ]
    pi*(y|x) = pi_ref(y|x) exp(R(x, y) / beta) / Z(x),      J* = E_x beta log Z(x)
    J* - J(pi) = beta E_x KL(pi || pi*)                      the regret

(end of the paper's Part 2). Where every completion is known, all of it is exact; elsewhere it is estimated from
samples of the policy, with standard errors. ``evaluate`` is the evaluation ``objective`` of assess.py.

Shapes: ``P`` prompts, ``Y`` completions of a prompt, ``B`` batch, ``T`` time, ``V`` vocabulary. Laws are
log-probabilities in float64, (P, Y); KL and entropy are in nats a completion, J and regret in units of the reward.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from pipeline.evaluation.registry import Result, require_recorded
from pipeline.evaluation.rows import read_rows
from pipeline.evaluation.statistics import Z95, bootstrap_interval, with_interval
from pipeline.inference.decoding import sample
from pipeline.inference.likelihood import sequence_divergences
from pipeline.model.tokens import encode_prompts
from pipeline.objectives.divergences import exact_kl, log_partition, tilted_law
from pipeline.rewards.judging import score
from pipeline.rewards.resolve import resolve
from pipeline.runtime.errors import UserError
from pipeline.worlds import enumerable

FRONTIER = (0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 1.0, 2.0, 4.0)  # betas at which pi* is told, for the report's curve
TOLERANCE = 1e-5  # of the identity J* - J = beta KL(pi || pi*), in reward units


# --- exact: every completion is known --------------------------------------------------------------------------------


def exact_law(
    model: Any, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], *, batch_size: int = 1024
) -> torch.Tensor:
    """``log pi(y | x)`` of every completion of every prompt by teacher forcing, (P, Y) in float64 on the CPU.

    The next-token law at each prefix is computed once and shared by all completions that begin with it, so that the
    masses of a whole set of completions sum to 1 to the rounding of float64, whatever the model computes in.

    Args:
        model: any causal LM; used in eval mode and left as found.
        prompts: token ids of each prompt, at least one.
        completions: token ids of each completion, the eos that ends it included.
        batch_size: sequences a forward pass.
    """
    device = next(model.parameters()).device
    prefixes = list(dict.fromkeys(tuple(y[:t]) for y in completions for t in range(len(y))))
    inner = {s[:t] for s in prefixes for t in range(len(s))}
    whole = [s for s in prefixes if s not in inner]  # every prefix begins one of these
    place = {}
    for row, s in enumerate(whole):
        for t in range(len(s) + 1):
            place.setdefault(s[:t], (row, t))
    number = {s: i for i, s in enumerate(prefixes)}
    rows, steps = torch.tensor([place[s] for s in prefixes]).T
    longest = max(map(len, whole))
    padded = torch.tensor([[*s, *[0] * (longest - len(s))] for s in whole], dtype=torch.long)
    length = max(map(len, completions))
    before = torch.tensor([[number[tuple(y[: min(t, len(y) - 1)])] for t in range(length)] for y in completions])
    tokens = torch.tensor([[y[min(t, len(y) - 1)] for t in range(length)] for y in completions])
    real = torch.arange(length) < torch.tensor([[len(y)] for y in completions])
    law = []
    was_training = model.training
    model.eval()
    try:
        for x in prompts:
            ids = torch.cat([torch.tensor(x).expand(len(whole), -1), padded], 1).to(device)
            parts = []
            for part in ids.split(batch_size):  # what pads a shorter row stands on its right, where nobody sees it
                with torch.no_grad():
                    logits = model(input_ids=part, attention_mask=torch.ones_like(part), use_cache=False).logits
                parts.append(logits[:, len(x) - 1 :].double().log_softmax(-1).cpu())
            conditional = torch.cat(parts)[rows, steps]  # (prefixes, V)
            law.append((conditional[before, tokens] * real).sum(1))
    finally:
        model.train(was_training)
    return torch.stack(law)


def objective(log_law: torch.Tensor, log_reference: torch.Tensor, rewards: torch.Tensor, beta: float) -> torch.Tensor:
    """``E[R] - beta KL(pi || pi_ref)`` of each prompt, (P, Y) -> (P,)."""
    law = log_law.exp()
    return (law * rewards).sum(-1) - beta * exact_kl(law, log_reference.exp())


def regret(log_law: torch.Tensor, log_reference: torch.Tensor, rewards: torch.Tensor, beta: float) -> torch.Tensor:
    """``J* - J(pi)`` of each prompt, (P, Y) -> (P,): never below 0, and 0 at pi* alone."""
    return beta * log_partition(log_reference, rewards, beta) - objective(log_law, log_reference, rewards, beta)


def exact_figures(
    log_law: torch.Tensor, log_reference: torch.Tensor, rewards: torch.Tensor, beta: float
) -> dict[str, float]:
    """Everything that enumeration tells about a policy, as means over the prompts.

    ``reward``, ``kl``, ``objective``; ``optimum`` J*; ``regret`` in reward units and ``regret_nats``, the same
    divided by beta; ``regret_removed``, the share of pi_ref's regret that is gone (1 at pi*, 0 at pi_ref);
    ``kl_to_optimum``, found on its own; ``identity_gap``, how far ``regret = beta kl_to_optimum`` is from holding;
    ``mass``, the largest distance of a law's sum from 1.

    Raises:
        ValueError: the identity does not hold to 1e-5, so the laws are not laws over these completions.
    """
    law = log_law.exp()
    star = tilted_law(log_reference, rewards, beta)
    left = regret(log_law, log_reference, rewards, beta).mean().item()
    at_reference = regret(log_reference, log_reference, rewards, beta).mean().item()
    to_optimum = (law * (log_law - star)).sum(-1).mean().item()
    gap = abs(left - beta * to_optimum)
    if not gap <= TOLERANCE:
        raise ValueError(f"J* - J(pi) = {left} but beta KL(pi, pi*) = {beta * to_optimum}: the masses do not sum to 1")
    return {
        "reward": (law * rewards).sum(-1).mean().item(),
        "kl": exact_kl(law, log_reference.exp()).mean().item(),
        "objective": objective(log_law, log_reference, rewards, beta).mean().item(),
        "optimum": (beta * log_partition(log_reference, rewards, beta)).mean().item(),
        "regret": left,
        "regret_nats": left / beta,
        "regret_removed": 1 - left / at_reference if at_reference > 0 else math.nan,
        "kl_to_optimum": to_optimum,
        "identity_gap": gap,
        "mass": max((x.exp().sum(-1) - 1).abs().max().item() for x in (log_law, log_reference)),
    }


def prefix_law(
    log_reference: torch.Tensor,  # (P, Y)
    rewards: torch.Tensor,  # (P, Y)
    completions: Sequence[Sequence[int]],
    beta: float,
    *,
    corrected: bool,
    group: int | None = None,
) -> torch.Tensor:  # (P, Y)
    """Log of the law that a KL *inside the loss* (GRPO) tends to, instead of pi*: prefix by prefix, the last first.

    With ``Q(s, a) = E_pi[R | s, a]``: ``pi(a|s) ~ pi_ref(a|s) exp(Q(s, a) / beta)`` with TRL's importance correction
    (``use_bias_correction_kl``), ``pi(a|s) = beta pi_ref(a|s) / (c(s) - Q(s, a))`` without, c(s) from normalising.
    Neither counts the KL of later tokens, so both are pi* for completions of one token only (docs/errata.md, 9).

    Args:
        completions: token ids; together they must be every leaf of a tree in which each prefix has equally many
            next tokens.
        corrected: which of the two losses.
        group: N, where the baseline is a group's mean that includes the sample itself: beta becomes beta N/(N-1).
    """
    if group is not None:
        beta = beta * group / (group - 1)
    leaf = {tuple(ids): number for number, ids in enumerate(completions)}
    prefixes = sorted({ids[:t] for ids in leaf for t in range(len(ids))}, key=len, reverse=True)
    children: dict[tuple, list[tuple]] = {prefix: [] for prefix in prefixes}
    for node in {*prefixes, *leaf} - {()}:
        children[node[:-1]].append(node)
    value = {ids: rewards[:, number] for ids, number in leaf.items()}
    log_mass = {ids: log_reference[:, number] for ids, number in leaf.items()}
    step: dict[tuple, torch.Tensor] = {}  # log pi(a | s) of each node s + (a,)
    for depth in sorted({len(prefix) for prefix in prefixes}, reverse=True):
        level = [prefix for prefix in prefixes if len(prefix) == depth]
        if len({len(children[prefix]) for prefix in level}) != 1:
            raise ValueError("the completions are not the leaves of a tree with equally many next tokens everywhere")
        masses = torch.stack([torch.stack([log_mass[node] for node in children[s]], -1) for s in level])
        q = torch.stack([torch.stack([value[node] for node in children[s]], -1) for s in level])  # (S, P, V)
        conditional = _one_step(masses.log_softmax(-1), q, beta, corrected)
        for number, prefix in enumerate(level):
            log_mass[prefix] = masses[number].logsumexp(-1)
            value[prefix] = (conditional[number].exp() * q[number]).sum(-1)
            step |= {node: conditional[number, :, i] for i, node in enumerate(children[prefix])}
    return torch.stack([sum(step[ids[: t + 1]] for t in range(len(ids))) for ids in leaf], 1)


def _one_step(log_reference: torch.Tensor, q: torch.Tensor, beta: float, corrected: bool) -> torch.Tensor:
    """Fixed point at one prefix, (..., V) -> (..., V), in logs."""
    if corrected:
        return (log_reference + q / beta).log_softmax(-1)
    # sum_a beta pi_ref / (c - Q) falls in c from infinity at max Q to below 1 at max Q + beta: bisection in c - max Q.
    top = q.amax(-1, keepdim=True)
    low, high = torch.zeros_like(top), torch.full_like(top, beta)
    for _ in range(100):
        middle = (low + high) / 2
        too_much = (beta * log_reference.exp() / (middle + top - q)).sum(-1, keepdim=True) > 1
        low, high = torch.where(too_much, middle, low), torch.where(too_much, high, middle)
    return (math.log(beta) + log_reference - (high + top - q).log()).log_softmax(-1)


def frontier(log_reference: torch.Tensor, rewards: torch.Tensor, betas: Sequence[float]) -> list[dict[str, float]]:
    """``beta``, ``kl`` and ``reward`` of pi* for each beta, means over prompts: no policy lies above this curve."""
    points = []
    for beta in betas:
        star = tilted_law(log_reference, rewards, beta).exp()
        kl, reward = exact_kl(star, log_reference.exp()), (star * rewards).sum(-1)
        points.append({"beta": beta, "kl": kl.mean().item(), "reward": reward.mean().item()})
    return points


# --- estimated: completions are samples of the policy ----------------------------------------------------------------


def estimates(
    rewards: Sequence[Sequence[float | None]],  # of each prompt's completions; None: not scored
    sampled: Sequence[Sequence[float]],  # log pi - log pi_ref of each
    full: Sequence[Sequence[float]],  # the same over the whole vocabulary
    beta: float,
) -> dict[str, list[float]]:
    """Each prompt's mean reward, both KLs and J, with what one prompt's samples say about their own error.

    ``objective`` is ``R - beta KL`` sample by sample (with the full-vocabulary KL), so that its standard error counts
    that the two go together. ``<name>_variance`` is the squared standard error of the prompt's mean (nan for a single
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
        for name, of in values.items():
            mean = math.fsum(of) / len(of)
            found[name].append(mean)
            spread = math.fsum((value - mean) ** 2 for value in of)
            found[f"{name}_variance"].append(spread / (len(of) - 1) / len(of) if len(of) > 1 else math.nan)
    return found


def summary(found: dict[str, list[float]], *, seed: int = 0, all_prompts: bool = False) -> dict[str, float]:
    """Means over prompts, their standard errors ``<name>_se`` and 95% intervals ``_low`` and ``_high``.

    The standard error is that of the samples at these very prompts, which is what two policies on the same prompts
    differ by. The interval is that of other prompts too (bootstrap over them), unless ``all_prompts`` says that there
    are no others.
    """
    figures: dict[str, float] = {}
    for name in ("reward", "kl", "kl_sampled", "objective"):
        values, variances = found[name], found[f"{name}_variance"]
        mean, error = math.fsum(values) / len(values), math.sqrt(math.fsum(variances)) / len(values)
        interval = (mean - Z95 * error, mean + Z95 * error) if all_prompts else bootstrap_interval(values, seed=seed)
        figures |= with_interval(name, mean, interval)
        if math.isfinite(error):
            figures[f"{name}_se"] = error
    return figures


def evaluate(
    model: Any,
    tokenizer: Any,
    *,
    reference: Callable[[], Any] | None = None,
    reward: Any = None,
    beta: float | None = None,
    max_new_tokens: int | None = None,
    n: int = 8,
    optimum_samples: int = 0,
    batch_size: int = 64,
    seed: int = 0,
    allow_unsafe_code_execution: bool = False,
    **data: Any,
) -> Result:
    """``E[R] - beta KL(pi || pi_ref)`` of a policy on given prompts, from samples at temperature 1.

    ``reward``, ``kl`` (full vocabulary, nats a completion), ``kl_sampled`` and ``objective``, each with its standard
    error and interval (see ``summary``). On ``world/enumerable`` also ``exact/*`` (see ``exact_figures``): J*, regret.

    Args:
        reference: gives pi_ref; default: what the model's run record names.
        reward: what ``resolve`` takes; default: what the model was trained on, by its run record.
        beta: weight of the KL; default: by the run record.
        max_new_tokens: length of a completion; default: by the run record.
        n: samples a prompt; one gives no standard error.
        optimum_samples: on ``world/enumerable``: write as many exact samples of pi* a prompt to ``optimum.jsonl``.
        batch_size: sequences a forward pass.
        seed: of the samples.
        allow_unsafe_code_execution: see ``resolve``.
        data: which prompts, see ``rows.read_rows``.

    Raises:
        UserError: something is neither given nor recorded; nothing could be scored; another vocabulary.
    """
    require_recorded(reference=reference, reward=reward, beta=beta, max_new_tokens=max_new_tokens)
    rows, source = read_rows(kind="prompt", **data)
    enumerable_task = str(data.get("dataset", "")) == "world/enumerable"
    if optimum_samples and not enumerable_task:
        raise UserError("optimum_samples: pi* is known only on world/enumerable")
    judge = resolve(reward, allow_unsafe_code_execution=allow_unsafe_code_execution)
    judge.require_columns(rows)
    prompts = [row["prompt"] for row in rows]
    drawn = sample(model, tokenizer, prompts, n=n, max_new_tokens=max_new_tokens, batch_size=batch_size, seed=seed)
    flat = [(i, completion) for i, group in enumerate(drawn) for completion in group]
    texts, ids = [c.text for _, c in flat], [c.token_ids for _, c in flat]
    scores = score(judge, [rows[i] for i, _ in flat], texts, ids)
    if all(value is None for value in scores):
        raise UserError("the reward judged none of the completions: check its columns, or its messages above")
    encoded = encode_prompts(tokenizer, prompts)
    other = reference()
    sampled, full = sequence_divergences(
        model, other, [(encoded[i], c.token_ids) for i, c in flat], batch_size=batch_size
    )
    by_prompt = [
        [values[i : i + n] for i in range(0, len(flat), n)] for values in (scores, sampled.tolist(), full.tolist())
    ]
    metrics = summary(estimates(*by_prompt, beta), seed=seed, all_prompts=enumerable_task)
    metrics |= {"beta": beta, "prompts": len(rows), "unscored": sum(value is None for value in scores)}
    files, curves, policy = {}, {}, [_place("samples", metrics)]
    if enumerable_task:
        if len(tokenizer) != enumerable.VOCABULARY:
            raise UserError(f"world/enumerable is for a model of its {enumerable.VOCABULARY} tokens (tokenizer_name)")
        laws = [exact_law(m, encoded, enumerable.COMPLETIONS) for m in (model, other)]
        table = torch.tensor(
            [score(judge, [row] * len(enumerable.COMPLETIONS), _texts(), enumerable.COMPLETIONS) for row in rows],
            dtype=torch.float64,
        )
        exact = exact_figures(*laws, table, beta)
        metrics |= {f"exact/{name}": value for name, value in exact.items()}
        policy.append(_place("enumeration", exact))
        curves["optima"] = frontier(laws[1], table, FRONTIER)
        if optimum_samples:
            star = tilted_law(laws[1], table, beta).exp()
            files["optimum.jsonl"] = _optimum_rows(prompts, star, optimum_samples, seed)
    return Result(metrics, data=[source], files=files, curves=curves, tables={"policy": policy})


def _place(how: str, figures: dict[str, float]) -> dict[str, Any]:
    """Where the policy lies, as a row of the table ``policy``; a more exact row comes after a less exact one."""
    return {"figures by": how, **{name: figures[name] for name in ("kl", "reward", "objective")}}


def _texts() -> list[str]:
    return [enumerable.text_of(ids) for ids in enumerable.COMPLETIONS]


def _optimum_rows(prompts: Sequence[str], star: torch.Tensor, count: int, seed: int) -> list[dict[str, str]]:
    """SFT rows drawn from pi*, (P, Y) in probabilities; prompts in turn."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.multinomial(star, count, replacement=True, generator=generator).T.flatten().tolist()
    texts = _texts()
    return [{"prompt": prompts[i % len(prompts)], "completion": texts[y]} for i, y in enumerate(drawn)]
