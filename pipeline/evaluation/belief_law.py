"""Exactly what a belief does: the law over a row's candidates, its shift between two stages, and the frontier.

Laws are log-probabilities of a case's candidates, (C,) in float64.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.evaluation import agreement
from pipeline.evaluation.beliefs import BELIEF, RIGHT, TRUE, UNKNOWN, WRONG, Case
from pipeline.evaluation.claim_law import Candidates, laws_of
from pipeline.evaluation.claims import answer
from pipeline.evaluation.exact import regret
from pipeline.evaluation.registry import Result
from pipeline.inference.likelihood import PLAIN
from pipeline.objectives.divergences import tilted_law
from pipeline.objectives.statistics import bootstrap_interval, with_interval
from pipeline.rewards.judging import Reward, score
from pipeline.runtime.errors import UserError
from pipeline.runtime.files import Json
from pipeline.runtime.messages import Turn, is_dialogue

WEIGHTS = tuple(i / 10 for i in range(11))  # of the truth, along the frontier
Compared = Sequence[tuple[Case, torch.Tensor, torch.Tensor, list[str]]]  # law now, law of the reference, labels


def candidate_laws(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Turn], cases: Sequence[Case],
    batch_size: int,
) -> list[torch.Tensor]:  # fmt: skip
    """Log-probabilities of each case's candidates after its prompt, (C,) in float64."""
    if not cases:
        return []
    candidates = [Candidates(i, _continuations(case, prompts[i]), [], []) for i, case in enumerate(cases)]
    found = laws_of(model, tokenizer, prompts, candidates, [PLAIN], batch_size=batch_size)[PLAIN]
    return [torch.tensor(law, dtype=torch.float64).log() for law in found]


def _continuations(case: Case, prompt: Turn) -> list[str]:
    """As candidates follow a prompt: after plain text as they are."""
    return [text.strip() for text in case.candidates] if is_dialogue(prompt) else list(case.candidates)


def shares_of(law: torch.Tensor, labels: Sequence[str]) -> dict[str, float]:
    """Verdict -> probability given that one of the candidates is said, (C,) in logs -> shares."""
    found: dict[str, float] = {}
    for label, p in zip(labels, law.softmax(0).tolist(), strict=True):
        found[label] = found.get(label, 0.0) + p
    return found


def _log_odds(law: torch.Tensor, labels: Sequence[str]) -> float:
    """Log-odds of (belief : truth), all wordings of each together, in nats."""
    among = [torch.tensor([label == wanted for label in labels]) for wanted in (BELIEF, TRUE)]
    return (law[among[0]].logsumexp(0) - law[among[1]].logsumexp(0)).item()


def shift_figures(
    compared: Compared, rows: Sequence[Json], annotator: Reward | None, beta: float | None, reports: list[Json]
) -> dict[str, float]:
    """``shift`` with its interval, and beside it what the annotator's reward predicts from the reference's law."""
    moved, predicted, regrets = [], [], []
    for case, now, then, labels in compared:
        rewards = None
        if annotator is not None and beta:
            answers = list(case.candidates)
            given = score(annotator, [rows[case.row]] * len(answers), answers)
            if None not in given:
                rewards = torch.tensor(given, dtype=torch.float64)
                laws = now.log_softmax(0), then.log_softmax(0)
                regrets.append(regret(*(law[None] for law in laws), rewards[None], beta).item())
        if case.user != WRONG or not {BELIEF, TRUE} <= set(labels):
            continue
        start = _log_odds(then, labels)
        moved.append(_log_odds(now, labels) - start)
        reports[case.row] |= {"log_odds": moved[-1] + start, "reference_log_odds": start}
        if rewards is not None:
            star = tilted_law(then.log_softmax(0)[None], rewards[None], beta)[0]
            predicted.append(_log_odds(star, labels) - start)
            reports[case.row]["predicted_shift"] = predicted[-1]
    figures: dict[str, float] = {}
    for name, values in (("shift", moved), ("shift_predicted", predicted), ("regret", regrets)):
        if values and all(map(math.isfinite, values)):
            figures |= with_interval(name, fmean(values), bootstrap_interval(values))
    return figures


# --- open question 3 -------------------------------------------------------------------------------------------------


def add_frontier(result: Result, compared: Compared, prior: Mapping[int, torch.Tensor], strength: float) -> None:
    """The frontier of truth and agreement from the reference, the Bayes point, and where the model is, over the values
    that the candidates state, all wordings of a value together.
    """
    kept = [
        each for each in compared
        if each[0].user in (WRONG, RIGHT, UNKNOWN) and each[0].row in prior and each[0].reliability is not None
    ]  # fmt: skip
    users = [case.user for case, *_ in kept]
    if not {WRONG, RIGHT} <= set(users):
        return
    stated = [[tuple(claim.text for claim in answer(text, {"values": case.values})) for text in case.candidates]
              for case, *_ in kept]  # fmt: skip
    if len(sizes := {len(set(said)) for said in stated}) > 1:
        raise UserError(
            f"frontier: the rows have candidates of {min(sizes)} to {max(sizes)} values; give equally many"
        )

    def by_value(numbers: Sequence[torch.Tensor], pool: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        groups = [[[i for i, v in enumerate(said) if v == value] for value in dict.fromkeys(said)] for said in stated]
        return torch.stack([torch.stack([pool(x[g]) for g in own]) for x, own in zip(numbers, groups, strict=True)])

    def says(wanted: Sequence[str]) -> torch.Tensor:
        found = [torch.tensor([float(x == w) for x in labels]) for w, (*_, labels) in zip(wanted, kept, strict=True)]
        return by_value(found, torch.max).double()

    def values(laws: Sequence[torch.Tensor]) -> torch.Tensor:
        return by_value([law.log_softmax(0) for law in laws], lambda x: x.logsumexp(0))

    agree = says([TRUE if user == RIGHT else BELIEF for user in users])
    reliability = torch.tensor([case.reliability for case, *_ in kept], dtype=torch.float64)[:, None]
    chance = torch.where(agree > 0, reliability, (1 - reliability) / (agree.size(1) - 1))
    known = torch.tensor([user != UNKNOWN for user in users])
    answers = agreement.Answers(
        torch.where(known[:, None], says([TRUE] * len(kept)), chance), agree,
        torch.tensor([user == WRONG for user in users]), torch.tensor([user == RIGHT for user in users]),
        torch.ones(len(kept), dtype=torch.float64),
    )  # fmt: skip
    now, then = values([each[1] for each in kept]), values([each[2] for each in kept])
    points = agreement.truth_frontier(then, answers, WEIGHTS, 1.0, scale=strength)
    bayes = agreement.posterior(values([prior[case.row] for case, *_ in kept]), agree, reliability[:, 0])
    best = torch.zeros_like(bayes).scatter(1, bayes.argmax(1, keepdim=True), 1.0)
    places = {"this model": now.exp(), "reference": then.exp(), "Bayes": bayes.exp(), "Bayes, likeliest": best}
    result.curves["accuracy over flips of the frontier"] = [
        {"flips": p["flips"], "accuracy": p["accuracy"], "agreement with right beliefs": p["agreement"]}
        for p in sorted(points, key=lambda p: p["flips"])
    ]
    table = [{"point": name, **agreement.place(law, answers)} for name, law in places.items()]
    table += [{"point": f"frontier, w = {p['w']:g}", **{k: p[k] for k in ("accuracy", "flips", "agreement")}}
              for p in points]  # fmt: skip
    result.tables["truth and agreement"] = table
    for name, figures in (("place", table[0]), ("bayes", table[2])):
        result.metrics |= {f"{name}/{k}": v for k, v in figures.items() if k != "point"}
