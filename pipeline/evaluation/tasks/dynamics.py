"""What an error in the context does to what follows (Part 3): does it come again, is it corrected, does it matter?

A row is a context without and with an error w, which asks for the same thing again. Whether w *should* come again is
for the data to say: every figure has beside it the ideal of who knows the data's distribution, 0 or 1, where one does.

    rho = (P(w again | injected) - P(w | clean)) / (1 - P(w | clean))

P is exact, by teacher forcing over the row's candidates, and sampled. Over steps, the clean and the perturbed context
are continued with common random numbers: two copies of one Markov chain, coupled. A pair has merged by step k if from
there on both say the same. Beside it, along the clean continuation, KL_k of the next-token distributions, whose sum
over the steps is the KL of the continuations, and how far the hidden states are apart, by layer.

Rows: ``prompt``, the context; ``injected``, the same with the error, or else ``wrong``, what is said after the prompt
(of a chat: what the assistant answers), ``right``, what is said there without the error, and ``question``, what asks
for it again; ``value``, the error as it would come again; ``answer``, the truth; ``values``, what an answer may be
(default: these two); ``candidates``, continuations of both contexts for the exact estimator; ``family`` and ``ideal``,
the rho of who knows the data (0 or 1; or none).

Figures of each family, as ``<family>/<name>``: ``rho``, ``again``, ``again_clean``, ``truth``, ``truth_clean`` and
``hall`` after the injection, all by samples and as ``exact_<name>``; ``ideal_rho``; ``merged``, the share of coupled
pairs that have merged ``hold`` tokens before the limit or by an end, and ``merged_independent``, the same of pairs
with different random numbers; ``kl_first``, KL_0, and ``kl_suffix``, the sum over the steps.
"""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.evaluation.claim_law import Candidates, candidates_of, laws_of, tallies_of
from pipeline.evaluation.claims import (
    RUMOUR,
    TRUE,
    Extractor,
    Tally,
    claims_of,
    get_extractor,
    hall_figures,
    tally,
    verify,
)
from pipeline.evaluation.completions import Drawn
from pipeline.evaluation.propagation import merging_step, propagation_figures, share_merged
from pipeline.evaluation.registry import Result
from pipeline.evaluation.rows import read_rows
from pipeline.inference.decoding import Completion, sample
from pipeline.inference.filters import check_options
from pipeline.inference.likelihood import Divergence, Sampler, context_divergences
from pipeline.inference.stopping import cut_at
from pipeline.model.tokens import encode_prompts
from pipeline.objectives.statistics import bootstrap_interval, with_interval
from pipeline.rewards.judging import Reward
from pipeline.rewards.resolve import resolve
from pipeline.runtime.errors import UserError
from pipeline.runtime.files import Json
from pipeline.runtime.messages import Turn, assistant_turn, is_dialogue, user_turn

DRAWN_LAYERS = 4  # lines of a chart of hidden states; the table has every layer
Sides = tuple[Mapping[int, Tally], Mapping[int, Tally]]  # by row: what follows the clean context, and the injected one


class Asked(NamedTuple):
    """The rows with their two contexts, and what tells the claims of the answers apart."""

    rows: list[Json]
    contexts: list[tuple[Turn, Turn]]
    candidates: list[Candidates]
    extract: Extractor
    verifier: Reward

    @property
    def families(self) -> dict[str, list[int]]:
        """The numbers of each family's rows."""
        names = dict.fromkeys(row["family"] for row in self.rows)
        return {family: [i for i, row in enumerate(self.rows) if row["family"] == family] for family in names}


class Rollout(NamedTuple):
    """The continuations of both contexts of every row with the same random numbers, and their divergences along the
    first clean one.
    """

    clean: Drawn
    injected: Drawn
    divergences: Sequence[Divergence]


def dynamics(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_new_tokens: int,
    claims: str = "answer",
    reward: str | Sequence[str] = "exact",
    n: int = 2,
    temperature: float = 1.0,
    hold: int = 8,
    stop: Sequence[str] = (),
    batch_size: int = 64,
    seed: int = 0,
    allow_unsafe_code_execution: bool = False,
    **data: object,
) -> Result:
    """rho with its interval for every family of errors, by samples and exactly; merging, KL and hidden states by step.

    Args:
        max_new_tokens: length of the continuations in tokens.
        claims: what finds the claims of a continuation, see ``hallucination``.
        reward: the verifier of truth and error.
        n: coupled pairs per row; 0 for the exact estimator alone.
        temperature: of everything that is drawn, and of the exact probabilities; above 0.
        hold: tokens before the limit that two continuations must share at least, to count as merged.
        stop: what is judged ends before the first of these strings; the continuations do not.
        batch_size: sequences per forward pass.
        seed: random seed of the continuations and intervals.
        allow_unsafe_code_execution: see ``resolve``.
        data: which rows, see ``rows.read_rows``.
    """
    check_options(max_new_tokens=max_new_tokens, batch_size=batch_size, temperature=temperature)
    if n < 0 or not temperature or not 0 < hold <= max_new_tokens:
        raise UserError(
            f"n is {n}, temperature {temperature}, hold {hold}: give n 0 or more, a temperature above 0 and a hold "
            f"from 1 to max_new_tokens, {max_new_tokens}"
        )
    asked, source = _asked(data, claims, reward, allow_unsafe_code_execution)
    if not n and not asked.candidates:
        raise UserError(
            "n is 0 and no row has candidates: give a column of texts that may follow the contexts, or n: 1"
        )
    estimated: dict[str, Sides] = {}
    if asked.candidates:
        estimated["exact_"] = _exact(model, tokenizer, asked, temperature, batch_size)
    result = Result({"prompts": len(asked.rows)}, data=[source])
    if n:
        options = {"n": n, "max_new_tokens": max_new_tokens, "temperature": temperature, "batch_size": batch_size}
        rollout = _roll_out(model, tokenizer, asked, seed, options)
        estimated[""] = tuple(_judged(asked, drawn, stop) for drawn in (rollout.clean, rollout.injected))
        result.samples = _samples(asked, rollout)
        _add_dynamics(result, asked.families, rollout, max_new_tokens, hold, seed)
    _add_propagation(result, asked, estimated, seed)
    return result


# --- rows ------------------------------------------------------------------------------------------------------------


def _asked(data: Mapping[str, object], claims: str, reward: str | Sequence[str], unsafe: bool) -> tuple[Asked, Json]:
    """The rows with their contexts and labelled candidates, and the rows' entry for the run record."""
    given, source = read_rows(kind="prompt", **data)
    rows = [_checked(row, number) for number, row in enumerate(given, 1)]
    contexts = [_contexts(row, number) for number, row in enumerate(rows, 1)]
    extract, verifier = get_extractor(claims), resolve(reward, rows=rows, allow_unsafe_code_execution=unsafe)
    return Asked(rows, contexts, candidates_of(rows, extract, verifier), extract, verifier), source


def _checked(row: Json, number: int) -> Json:
    """The row with all that the evaluation reads: the error is to the verifier what a rumour is."""
    for name in ("value", "answer"):
        if not isinstance(row.get(name), str) or not row[name]:
            raise UserError(
                f"row {number} has no {name}: it is the {'error' if name == 'value' else 'truth'}, as text"
            )
    if row["value"] == row["answer"]:
        raise UserError(f"row {number}: value and answer are both {row['value']!r}: an error is something else")
    family = "errors" if row.get("family") is None else str(row["family"])
    return {"values": [row["answer"], row["value"]]} | row | {"rumour": row["value"], "family": family}


def _contexts(row: Json, number: int) -> tuple[Turn, Turn]:
    """The context without the error and with it.

    Raises:
        UserError: the row has no error, or the two are the same.
    """
    prompt, injected, wrong = row["prompt"], row.get("injected"), row.get("wrong")
    if (injected is None) == (wrong is None):
        raise UserError(
            f"row {number}: give either injected, the context with the error, or wrong, what is said wrongly"
        )
    if injected is not None:
        if is_dialogue(prompt) and isinstance(injected, str):  # as_chat has made a turn of the prompt
            injected = [*prompt[:-1], *user_turn(injected)]
        if is_dialogue(prompt) != is_dialogue(injected) or prompt == injected:
            raise UserError(f"row {number}: prompt and injected are not two forms of one context")
        return prompt, injected
    right, question = row.get("right") or "", row.get("question") or ""
    if is_dialogue(prompt) and not right:
        raise UserError(f"row {number}: in a chat right is needed too, the assistant's answer without the error")
    return _answered(prompt, right, question), _answered(prompt, wrong, question)


def _answered(prompt: Turn, said: str, question: str) -> Turn:
    """The prompt, ``said`` after it (in a chat as the assistant's turn), then the question."""
    if not is_dialogue(prompt):
        return prompt + said + question
    return [*prompt, *assistant_turn(said), *(user_turn(question) if question else ())]


# --- measuring -------------------------------------------------------------------------------------------------------


def _exact(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, asked: Asked, temperature: float, batch_size: int
) -> Sides:
    """What follows both contexts, by the probabilities of the candidates."""
    sampler, sides = Sampler(temperature), []
    for side in zip(*asked.contexts):
        law = laws_of(model, tokenizer, side, asked.candidates, [sampler], batch_size=batch_size)[sampler]
        tallies = tallies_of(asked.candidates, law)
        sides.append({each.row: found for each, found in zip(asked.candidates, tallies, strict=True)})
    return sides[0], sides[1]


def _roll_out(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, asked: Asked, seed: int, options: Json
) -> Rollout:
    """Both contexts of a row have its seed: step k of a pair is drawn by the same uniform number."""
    seeds = [1_000_003 * (seed + 1) + i for i in range(len(asked.rows))]
    sides = [list(side) for side in zip(*asked.contexts)]
    clean, injected = (sample(model, tokenizer, side, seed=seeds, **options) for side in sides)
    encoded = [encode_prompts(tokenizer, side) for side in sides]
    said = [group[0].token_ids for group in clean]
    apart = context_divergences(model, *encoded, said, batch_size=options["batch_size"])
    return Rollout(clean, injected, apart)


def _judged(asked: Asked, drawn: Drawn, stop: Sequence[str]) -> dict[int, Tally]:
    texts = [[_upto(completion, stop) for completion in group] for group in drawn]
    labels, _ = verify(asked.verifier, asked.rows, claims_of(asked.extract, asked.rows, texts))
    return {i: tally(group) for i, group in enumerate(labels)}


def _upto(completion: Completion, stop: Sequence[str]) -> str:
    cut = cut_at(completion.text, stop)
    return completion.text if cut is None else cut


# --- figures ---------------------------------------------------------------------------------------------------------


def _add_propagation(result: Result, asked: Asked, estimated: Mapping[str, Sides], seed: int) -> None:
    """Figures and the table of every family."""
    table = []
    for family, members in asked.families.items():
        figures = _figures(members, estimated, seed)
        ideals = {asked.rows[i].get("ideal") for i in members}
        if len(ideals) == 1 and None not in ideals:
            figures["ideal_rho"] = float(ideals.pop())
        result.metrics |= {f"{family}/{name}": value for name, value in figures.items()}
        kind = "exact_" if "exact_again" in figures else ""  # the exact figures where there are some
        names = ("rho", "rho_low", "rho_high", "again", "again_clean", "truth", "truth_clean")
        table.append(
            {
                "family": family,
                "estimator": "exact" if kind else "sampled",
                "ideal rho": figures.get("ideal_rho"),
                **{name.replace("_", " "): figures.get(f"{kind}{name}") for name in names},
            }
        )
    result.tables["propagation"] = table


def _figures(members: Sequence[int], estimated: Mapping[str, Sides], seed: int) -> dict[str, float]:
    """rho, the truth and what is false, of one family by each estimator."""
    figures: dict[str, float] = {}
    for prefix, (clean, injected) in estimated.items():
        having = [i for i in members if i in clean]
        if not having:
            continue
        again = [[side[i].shares[RUMOUR] for i in having] for side in (injected, clean)]
        figures |= propagation_figures(*again, prefix=prefix, seed=seed)
        for name, side in (("truth", injected), ("truth_clean", clean)):
            values = [side[i].shares[TRUE] for i in having]
            figures |= with_interval(f"{prefix}{name}", fmean(values), bootstrap_interval(values, seed=seed))
        hall = hall_figures([injected[i] for i in having], seed=seed)
        figures |= {f"{prefix}{name}": value for name, value in hall.items() if name.startswith("hall")}
    return figures


def _add_dynamics(
    result: Result, families: Mapping[str, Sequence[int]], rollout: Rollout, limit: int, hold: int, seed: int
) -> None:
    """Merging, KL and hidden states by step, into the figures, curves and tables."""
    merging: dict[str, list[float]] = {}
    kls: dict[str, list[float]] = {}
    layers: list[Json] = []
    for family, members in families.items():
        for name, pairs in _pairs(rollout, members).items():
            steps = [[merging_step(a.token_ids, b.token_ids) for a, b in group] for group in pairs]
            lasts = [[limit if a.finish_reason == "eos" else limit - hold for a, _ in group] for group in pairs]
            curve = share_merged(steps, lasts, limit - hold)
            result.metrics |= {f"{family}/{key}": v for key, v in with_interval(name, *curve[-1]).items()}
            merging[family if name == "merged" else f"{family}, independent"] = [share for share, _ in curve]
        found = [rollout.divergences[i] for i in members]
        for name, values in (
            ("kl_first", [each.kl[0].item() for each in found]),
            ("kl_suffix", [each.kl.double().sum().item() for each in found]),
        ):
            figure = with_interval(name, fmean(values), bootstrap_interval(values, seed=seed))
            result.metrics |= {f"{family}/{key}": value for key, value in figure.items()}
        kls[family] = _by_step([each.kl for each in found], limit)
        hidden = [_by_step([each.hidden[layer] for each in found], limit) for layer in range(len(found[0].hidden))]
        shown = sorted({round(i * (len(hidden) - 1) / (DRAWN_LAYERS - 1)) for i in range(DRAWN_LAYERS)})
        result.curves[f"hidden states apart by step, {family}"] = _points({f"layer {i}": hidden[i] for i in shown})
        layers += [
            {"family": family, "layer": layer, "step 0": by_step[0], "mean": fmean(by_step), "last step": by_step[-1]}
            for layer, by_step in enumerate(hidden)
        ]
    result.curves["pairs merged by step"] = _points(merging)
    result.curves["KL by step"] = _points(kls)
    result.tables["hidden states apart by layer"] = layers


def _pairs(rollout: Rollout, members: Sequence[int]) -> dict[str, list[list[tuple[Completion, Completion]]]]:
    """The coupled pairs of each row, and where a row has several, each with the next one's: other random numbers."""
    coupled = [list(zip(rollout.clean[i], rollout.injected[i], strict=True)) for i in members]
    if len(coupled[0]) < 2:
        return {"merged": coupled}
    apart = [[(a, group[j - 1][1]) for j, (a, _) in enumerate(group)] for group in coupled]
    return {"merged": coupled, "merged_independent": apart}


def _by_step(values: Sequence[Sequence[float]], limit: int) -> list[float]:
    """The mean of each step over the continuations that have it, as long as half of them do."""
    means = []
    for k in range(limit):
        there = [float(each[k]) for each in values if len(each) > k]
        if 2 * len(there) < len(values):
            break
        means.append(fmean(there))
    return means


def _points(lines: dict[str, list[float]]) -> list[Json]:
    longest = max(map(len, lines.values()))
    return [{"step": k} | {name: line[k] for name, line in lines.items() if k < len(line)} for k in range(longest)]


def _samples(asked: Asked, rollout: Rollout) -> list[Json]:
    return [
        {
            "prompt": injected,
            "completions": [c.text for c in rollout.injected[i]],
            "finished": [c.finished for c in rollout.injected[i]],
            "without_the_error": [c.text for c in rollout.clean[i]],
            **{name: asked.rows[i][name] for name in ("answer", "value", "family")},
        }
        for i, (_, injected) in enumerate(asked.contexts)
    ]
