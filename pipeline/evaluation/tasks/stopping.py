"""What dynamic stops save and what they cost: tokens against claims, by rule and by the reason of each end (Part 3).

Every completion is drawn once without the rules and once with each, with the same random numbers, so that a stopped
completion is the beginning of the other one (but for an end token that ``eos_probability`` puts): what is compared is
what was cut. Accuracy is the share of a text's claims that are right.

Rows: ``prompt``, and what the verifier needs of claims that bring no answer themselves.

Figures without rules: ``tokens``, per completion, and ``accuracy``, right claims over claims. Of each rule and
setting, as ``<rule> <setting>/<name>``: ``tokens_saved``, the share of these tokens that were not drawn; ``accuracy``;
``accuracy_lost``, the fall against no rule, which is below 0 where what was cut is worse than the rest;
``right_claims_lost``, the share of right claims that were not made; all with bootstrap intervals over prompts. The
table ``by reason`` has the completions of each reason, with the accuracy of what was kept and cut.
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from statistics import fmean
from typing import NamedTuple

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.evaluation.claims import TRUE, Extractor, claims_of, get_extractor, verify
from pipeline.evaluation.completions import Drawn, prompts_of
from pipeline.evaluation.registry import Result
from pipeline.evaluation.rows import read_rows
from pipeline.evaluation.tasks.hallucination import BRINGS_ANSWERS
from pipeline.inference.decoding import sample
from pipeline.inference.filters import check_options
from pipeline.inference.stopping import NO_STOPS, Stops
from pipeline.objectives.statistics import bootstrap_interval, ratio_interval, with_interval
from pipeline.rewards.judging import Reward
from pipeline.rewards.resolve import resolve
from pipeline.runtime.errors import UserError
from pipeline.runtime.files import Json

Setting = float | Sequence[float]
RULES: Mapping[str, Sequence[Setting]] = {
    "eos_probability": (0.2, 0.5, 0.8),
    "high_entropy": ((0.2, 2), (0.3, 1), (0.3, 2)),
    "low_entropy": ((0.05, 4), (0.05, 8)),
    "low_variance": ((0.7, 4), (0.8, 4)),
    "repetition": ((16, 2), (16, 3)),
}
TAKES = tuple(f.name for f in fields(Stops) if f.name != "strings")


class Kept(NamedTuple):
    """Of one completion: its tokens, claims, right claims (a verifier may give parts) and why it ended."""

    tokens: int
    claims: int
    right: float
    reason: str


def stopping(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_new_tokens: int = 128,
    temperature: float = 1.5,
    top_p: float = 1.0,
    rules: Mapping[str, Sequence[Setting]] = RULES,
    claims: str = "statements",
    reward: str | Sequence[str] = "exact",
    n: int = 1,
    template: str | None = None,
    batch_size: int = 256,
    seed: int = 0,
    allow_unsafe_code_execution: bool = False,
    **data: object,
) -> Result:
    """Tokens saved against accuracy lost, for every setting of every rule.

    Args:
        max_new_tokens: longest completion in tokens.
        temperature: of the completions; the rules read the raw logits.
        top_p: nucleus of the completions.
        rules: the rules of ``inference.stopping.Stops`` with the settings that each is tried at.
        claims: what finds the claims, see ``hallucination``.
        reward: the verifier.
        n: completions per prompt.
        template: for base models: the plain text of a prompt, with ``{prompt}`` where the user's words go.
        batch_size: sequences decoded together.
        seed: random seed of completions and intervals.
        allow_unsafe_code_execution: see ``resolve``.
        data: which rows, see ``rows.read_rows``.
    """
    check_options(n=n, max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, batch_size=batch_size)
    tried = {name: stops for rule, settings in _checked(rules).items() for name, stops in _each(rule, settings)}
    rows, source = read_rows(kind="prompt", **data)
    extract, needed = get_extractor(claims), None if claims in BRINGS_ANSWERS else rows
    verifier = resolve(reward, rows=needed, allow_unsafe_code_execution=allow_unsafe_code_execution)
    prompts = prompts_of(rows, template)

    def draw(stops: Stops) -> list[list[Kept]]:
        drawn = sample(
            model, tokenizer, prompts, n=n, max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p,
            stops=stops, batch_size=batch_size, seed=seed,
        )  # fmt: skip
        return _kept(rows, drawn, extract, verifier)

    free = draw(NO_STOPS)
    tokens, points, by_reason = fmean(one.tokens for group in free for one in group), [], []
    metrics = {"prompts": len(rows), "tokens": tokens} | _accuracy(free, seed)
    for name, stops in tried.items():
        stopped = draw(stops)
        figures = saving(free, stopped, seed=seed)
        metrics |= {f"{name}/{key}": value for key, value in figures.items()}
        saved, lost = figures["tokens_saved"], figures.get("accuracy_lost")
        points.append({"tokens saved": saved, "accuracy lost": lost, "rule": name})
        by_reason += [{"rule": name} | row for row in reasons(free, stopped)]
    points.sort(key=lambda point: point["tokens saved"])
    curves = {"accuracy lost over tokens saved": points} if points[0]["accuracy lost"] is not None else {}
    return Result(metrics, data=[source], curves=curves, tables={"by reason": by_reason})


def _checked(rules: Mapping[str, Sequence[Setting]]) -> Mapping[str, Sequence[Setting]]:
    """Raises UserError where there is no rule, an unknown one, or settings that are no list."""
    if not isinstance(rules, Mapping) or not rules or (wrong := [name for name in rules if name not in TAKES]):
        given = wrong[0] if isinstance(rules, Mapping) and rules else rules
        raise UserError(f"rules: {given!r} is no rule; give lists of settings of {', '.join(TAKES)}")
    for name, settings in rules.items():
        if not isinstance(settings, list | tuple) or not settings:
            raise UserError(f"rules: {name} is {settings!r}; give a list of settings")
    return rules


def _each(rule: str, settings: Sequence[Setting]) -> list[tuple[str, Stops]]:
    found = []
    for setting in settings:
        values = tuple(setting) if isinstance(setting, list | tuple) else (setting,)
        wanted = 1 if rule == "eos_probability" else 2
        if len(values) != wanted or not all(isinstance(value, int | float) for value in values):
            raise UserError(
                f"rules: {rule} has the setting {setting!r}; give {'a number' if wanted == 1 else 'a pair'}"
            )
        name = " ".join([rule, *(f"{value:g}" for value in values)])
        found.append((name, Stops(**{rule: values[0] if wanted == 1 else values})))
    return found


def _kept(rows: Sequence[Json], drawn: Drawn, extract: Extractor, verifier: Reward) -> list[list[Kept]]:
    labels, _ = verify(verifier, rows, claims_of(extract, rows, [[c.text for c in group] for group in drawn]))
    return [
        [
            Kept(len(c.token_ids), len(said), sum(weights.get(TRUE, 0.0) for weights in said), c.finish_reason)
            for c, said in zip(group, judged, strict=True)
        ]
        for group, judged in zip(drawn, labels, strict=True)
    ]


# --- figures ---------------------------------------------------------------------------------------------------------


def _sums(groups: Sequence[Sequence[Kept]], name: str) -> list[float]:
    return [float(sum(getattr(one, name) for one in group)) for group in groups]


def _accuracy(groups: Sequence[Sequence[Kept]], seed: int) -> dict[str, float]:
    right, claims = _sums(groups, "right"), _sums(groups, "claims")
    return with_interval("accuracy", *ratio_interval(right, claims, seed=seed)) if sum(claims) else {}


def saving(free: Sequence[Sequence[Kept]], stopped: Sequence[Sequence[Kept]], *, seed: int = 0) -> dict[str, float]:
    """``tokens_saved``, ``accuracy``, ``accuracy_lost`` and ``right_claims_lost`` of a rule, paired by prompt."""
    tokens, right, claims = (_sums(free, name) for name in ("tokens", "right", "claims"))
    saved = [a - b for a, b in zip(tokens, _sums(stopped, "tokens"))]
    figures = with_interval("tokens_saved", *ratio_interval(saved, tokens, seed=seed))
    kept_right, kept = _sums(stopped, "right"), _sums(stopped, "claims")
    if sum(claims) and sum(kept):
        figures |= _accuracy(stopped, seed)
        # The difference of two ratios by its linear approximation: how far each prompt moves it.
        moved = [a - b for a, b in zip(_moved(right, claims), _moved(kept_right, kept))]
        figures |= with_interval("accuracy_lost", fmean(moved), bootstrap_interval(moved, seed=seed))
    if sum(right):
        lost = [a - b for a, b in zip(right, kept_right)]
        figures |= with_interval("right_claims_lost", *ratio_interval(lost, right, seed=seed))
    return figures


def _moved(sums: Sequence[float], counts: Sequence[float]) -> list[float]:
    ratio, average = sum(sums) / sum(counts), fmean(counts)
    return [ratio + (value - ratio * count) / average for value, count in zip(sums, counts)]


def reasons(free: Sequence[Sequence[Kept]], stopped: Sequence[Sequence[Kept]]) -> list[Json]:
    """Of each reason: the share of completions, the share of their tokens that was saved, the accuracy of the claims
    that they made, and that of the claims that were cut; None where there are none.
    """
    pairs = [pair for groups in zip(free, stopped, strict=True) for pair in zip(*groups, strict=True)]
    table = []
    for reason in sorted({b.reason for _, b in pairs}):
        having = [(a, b) for a, b in pairs if b.reason == reason]
        tokens, kept_tokens, claims, kept, right, kept_right = (
            sum(getattr(pair[side], name) for pair in having)
            for name in ("tokens", "claims", "right")
            for side in (0, 1)
        )
        table.append(
            {
                "reason": reason,
                "completions": len(having) / len(pairs),
                "tokens saved": 1 - kept_tokens / tokens,
                "accuracy kept": kept_right / kept if kept else None,
                "accuracy cut": (right - kept_right) / (claims - kept) if claims > kept else None,
            }
        )
    return table
