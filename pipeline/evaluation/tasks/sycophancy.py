r"""Sycophancy (the paper's Part 4, section 2): what a user's belief does to answers, measured and predicted.

    log [pi*(b|x) / pi*(t|x)] - log [pi_ref(b|x) / pi_ref(t|x)] = [R(x, b) - R(x, t)] / beta

for a wrong belief b and the truth t: alignment moves their log-odds by the difference of the annotators' reward over
beta, (a - 2.5 kappa) / beta for agreeableness a and knowledge kappa (``pipeline.worlds.sycophancy``). Rows of our own
format, of sycophancy-eval and of model-written questions (``evaluation/beliefs.py``). Two estimators: sampled answers,
and exactly over the ``candidates`` of a row, given that one of them is said.
"""

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.evaluation.belief_figures import Asked, Pushed, Shares, belief_figures, push_back_figures
from pipeline.evaluation.belief_law import add_frontier, candidate_laws, shares_of, shift_figures
from pipeline.evaluation.beliefs import BELIEF, OPINION, UNKNOWN, UNSCORED, Case, apologises, cases_of, verdict
from pipeline.evaluation.completions import complete
from pipeline.evaluation.registry import Result
from pipeline.evaluation.rows import read_rows
from pipeline.objectives.statistics import bootstrap_interval, with_interval
from pipeline.rewards.judging import Reward, score
from pipeline.rewards.resolve import resolve
from pipeline.runtime.errors import UserError
from pipeline.runtime.files import Json
from pipeline.runtime.messages import Turn, assistant_turn, is_dialogue, user_turn


def sycophancy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    reference: Callable[[], PreTrainedModel] | None = None,
    annotator: str | None = None,
    beta: float | None = None,
    frontier: float | None = None,
    scorer: str | None = None,
    max_new_tokens: int = 32,
    n: int = 1,
    temperature: float = 0.0,
    stop: Sequence[str] = (),
    template: str | None = None,
    batch_size: int = 256,
    seed: int = 0,
    **data: object,
) -> Result:
    """Agreement with wrong and right beliefs, accuracy, answers changed under push-back, and the shift of log-odds.

    ``belief_figures`` and ``push_back_figures`` of sampled answers, and as ``exact_*`` over candidates, where
    ``candidate_mass`` is the probability of all of them. ``first_option``: how often the option listed first is chosen
    (1 over their number without position bias). With a reference ``shift``: by how many nats the log-odds of (belief :
    truth) moved on wrong beliefs, per prompt in ``samples.jsonl``; with annotator and beta ``shift_predicted`` and the
    ``regret`` over the candidates.

    Args:
        reference: loads the stage to compare with; default: pi_ref of the model's run record.
        annotator: the reward that predicts the shift, as ``resolve`` takes it.
        beta: of its KL; default: from the run record.
        frontier: rewards over beta in nats: draws the frontier of truth and agreement from the reference.
        scorer: a reward for rows without a verdict (feedback, mimicry), which are else only counted.
        max_new_tokens: longest answer in tokens.
        n: sampled answers per prompt; 0 for the exact estimator alone.
        temperature: of the samples; 0 for greedy.
        stop: an answer ends before the first of these strings.
        template: for base models: the plain text of a prompt, with ``{prompt}`` where the user's words go.
        batch_size: sequences per batch.
        seed: of samples, shuffled options and intervals.
        data: which rows, see ``rows.read_rows``.
    """
    if n < 0 or (n > 1 and not temperature):
        raise UserError(f"n is {n} at temperature {temperature:g}: give 0, 1, or a temperature above 0")
    rows, source = read_rows(kind="prompt", **data)
    cases = cases_of(rows, seed)
    predicts, scores = (resolve(spec) if spec else None for spec in (annotator, scorer))
    if not n and not any(case.candidates for case in cases):
        raise UserError("n is 0 and no row has candidates: give a column of complete answers, or n: 1")
    sampling = {
        "n": n, "temperature": temperature, "max_new_tokens": max_new_tokens, "stop": stop, "template": template,
        "batch_size": batch_size, "seed": seed,
    }  # fmt: skip
    result = Result({"rows": len(rows)}, data=[source])
    reports: list[Json] = [{"prompt": case.prompt, "user": case.user} for case in cases]
    if n:
        result.metrics |= _sampled(Sampled(model, tokenizer, sampling), cases, rows, scores, reports)
    if exact := [case for case in cases if case.candidates]:
        _exact(result, model, tokenizer, reference, exact, rows, predicts, beta, frontier, reports, batch_size)
    result.samples = reports
    return result


# --- sampled ---------------------------------------------------------------------------------------------------------


class Sampled(NamedTuple):
    """A model with the options by which its answers are drawn."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    options: Mapping[str, object]

    def texts(self, prompts: Sequence[Turn]) -> list[list[str]]:
        """The answers to each prompt."""
        if not prompts:
            return []
        drawn = complete(self.model, self.tokenizer, [{"prompt": x} for x in prompts], **self.options)
        return [[completion.text for completion in group] for group in drawn]


def _sampled(
    draw: Sampled, cases: Sequence[Case], rows: Sequence[Json], scorer: Reward | None, reports: list[Json]
) -> dict[str, float]:
    """Figures of sampled answers; what was said goes into ``reports``."""
    said = draw.texts([case.prompt for case in cases])
    alone = _alone(cases, draw)
    for case, texts in zip(cases, said, strict=True):
        reports[case.row] |= {"completions": texts, "verdicts": [verdict(text, case) for text in texts]}
        if case.row in alone:
            reports[case.row] |= {"alone": alone[case.row]}
    asked = [
        Asked(case.user, _knowable(case), _shares(texts, case),
              _shares(alone[case.row], case) if case.row in alone else None)
        for case, texts in zip(cases, said, strict=True) if case.user != UNSCORED and not case.challenge
    ]  # fmt: skip
    pushed = [(case, texts) for case, texts in zip(cases, said, strict=True) if case.challenge]
    figures = belief_figures(asked) | push_back_figures(_pushed(pushed, draw, reports))
    letters = [case for case in cases if case.letters and case.user == OPINION]
    firsts = [reports[case.row]["completions"] for case in letters]
    if letters:
        picked = [verdict(t, c._replace(belief=c.values[:1])) == BELIEF for c, ts in zip(letters, firsts) for t in ts]
        figures |= with_interval("first_option", fmean(picked), bootstrap_interval(picked))
    return figures | _unscored(cases, rows, said, scorer)


def _alone(cases: Sequence[Case], draw: Sampled) -> dict[int, list[str]]:
    """Answers without the belief, by row; a question that several rows ask is asked once."""
    asked = [case for case in cases if case.question is not None]
    distinct = {repr(case.question): case.question for case in asked}
    found = dict(zip(distinct, draw.texts(list(distinct.values())), strict=True))
    return {case.row: found[repr(case.question)] for case in asked}


def _knowable(case: Case) -> bool:
    return bool(case.truth) and case.user != UNKNOWN


def _shares(texts: Sequence[str], case: Case) -> Shares:
    said = [verdict(text, case) for text in texts]
    return {label: said.count(label) / len(said) for label in set(said)}


def _pushed(pushed: Sequence[tuple[Case, list[str]]], draw: Sampled, reports: list[Json]) -> list[Pushed]:
    """Every first answer, challenged: what the model says then, up to the last thing the user says."""
    turns = [(case, text, case.prompt, text) for case, texts in pushed for text in texts]
    admitted = [0.0] * len(turns)
    single = Sampled(draw.model, draw.tokenizer, {**draw.options, "n": 1})
    for step in range(max((len(case.challenge) for case, _ in pushed), default=0)):
        going = [i for i, (case, *_) in enumerate(turns) if step < len(case.challenge)]
        prompts = [_answered(turns[i][2], turns[i][3], turns[i][0].challenge[step]) for i in going]
        for i, prompt, (text,) in zip(going, prompts, single.texts(prompts), strict=True):
            turns[i] = (*turns[i][:2], prompt, text)
            admitted[i] = max(admitted[i], float(apologises(text)))
    for case, _, _, text in turns:
        reports[case.row].setdefault("after push-back", []).append(text)
    return [
        Pushed({verdict(first, case): 1.0}, {verdict(last, case): 1.0}, apology)
        for (case, first, _, last), apology in zip(turns, admitted, strict=True)
    ]


def _answered(prompt: Turn, answer: str, challenge: str) -> Turn:
    if is_dialogue(prompt):
        return [*prompt, *assistant_turn(answer), *user_turn(challenge)]
    return f"{prompt} {answer.strip()}\n\n{challenge}"


def _unscored(
    cases: Sequence[Case], rows: Sequence[Json], said: Sequence[Sequence[str]], scorer: Reward | None
) -> dict[str, float]:
    """How many rows have no verdict; with a scorer the mean score of each kind of them."""
    figures: dict[str, float] = {}
    for part in sorted({case.part for case in cases if case.user == UNSCORED}):
        members = [case for case in cases if case.user == UNSCORED and case.part == part]
        figures[f"rows_{part}"] = len(members)
        if scorer is not None:
            flat = [(rows[case.row], text) for case in members for text in said[case.row]]
            found = [x for x in score(scorer, [row for row, _ in flat], [text for _, text in flat]) if x is not None]
            if found:
                figures |= with_interval(part, fmean(found), bootstrap_interval(found))
    return figures


# --- exact -----------------------------------------------------------------------------------------------------------


def _exact(
    result: Result,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    reference: Callable[[], PreTrainedModel] | None,
    cases: Sequence[Case],
    rows: Sequence[Json],
    annotator: Reward | None,
    beta: float | None,
    frontier: float | None,
    reports: list[Json],
    batch_size: int,
) -> None:
    """Add the figures over candidates, the shift from the reference and the frontier to a result."""

    def laws(which: PreTrainedModel, prompts: Sequence[Turn], among: Sequence[Case]) -> list[torch.Tensor]:
        return candidate_laws(which, tokenizer, prompts, among, batch_size)

    asked = [case for case in cases if not case.challenge]
    with_user = laws(model, [case.prompt for case in asked], asked)
    also = [case for case in asked if case.question is not None]
    alone = dict(zip((case.row for case in also), laws(model, [case.question for case in also], also), strict=True))
    labels = {case.row: [verdict(text, case) for text in case.candidates] for case in cases}
    figures = belief_figures(
        [
            Asked(case.user, _knowable(case), shares_of(law, labels[case.row]),
                  shares_of(alone[case.row], labels[case.row]) if case.row in alone else None)
            for case, law in zip(asked, with_user, strict=True)
        ]
    )  # fmt: skip
    pushed = [case for case in cases if case.challenge and case.first is not None]
    after = laws(model, [_answered(case.prompt, case.first, case.challenge[0]) for case in pushed], pushed)
    found = push_back_figures(
        [
            Pushed({verdict(case.first, case): 1.0}, shares_of(law, labels[case.row]))
            for case, law in zip(pushed, after, strict=True)
        ]
    )  # first answers are given here, so how many are right says nothing
    figures |= {name: value for name, value in found.items() if not name.startswith(("first_right", "truthfulness"))}
    letters = [law.softmax(0)[0].item() for case, law in zip(asked, with_user) if case.letters]
    if letters:
        figures |= with_interval("first_option", fmean(letters), bootstrap_interval(letters))
    result.metrics |= {f"exact_{name}": value for name, value in figures.items() if not name.startswith("rows")}
    if asked:
        result.metrics["candidate_mass"] = fmean(law.exp().sum().item() for law in with_user)
    for case, law in zip(asked, with_user, strict=True):
        reports[case.row]["exact"] = {k: round(v, 4) for k, v in shares_of(law, labels[case.row]).items()}
    if reference is None or not asked:
        return
    other = reference()
    before = with_user if other is model else laws(other, [case.prompt for case in asked], asked)
    prior = alone if other is model else {}
    if frontier is not None and other is not model:
        prior = dict(zip((c.row for c in also), laws(other, [c.question for c in also], also), strict=True))
    compared = [(case, now, then, labels[case.row]) for case, now, then in zip(asked, with_user, before, strict=True)]
    result.metrics |= shift_figures(compared, rows, annotator, beta, reports)
    if frontier is not None:
        add_frontier(result, compared, prior, frontier)
