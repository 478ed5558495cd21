"""What a chain of thought does to an answer: its marginal over chains, filler in its place, a corrupted step."""

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.inference.decoding import Completion, sample
from pipeline.inference.likelihood import candidate_log_probabilities
from pipeline.inference.prompting import answer_after, with_beginning
from pipeline.inference.stopping import Stops, stop_token_ids
from pipeline.model.tokens import encode_candidates, encode_prompts
from pipeline.objectives.statistics import bootstrap_interval, majority_score, wilson_interval, with_interval
from pipeline.rewards.judging import Reward, judge_rows
from pipeline.runtime.errors import UserError
from pipeline.runtime.files import Json
from pipeline.runtime.messages import Turn, is_dialogue

DIRECT, COT, FILLER = "direct", "cot", "filler"
Law = dict[str, float]  # answer -> probability; what is missing to 1 is on other answers


class Sampling(NamedTuple):
    """The model, and how its completions end and are read."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    max_new_tokens: int
    stop: tuple[str, ...]
    batch_size: int
    think_end_token: str | None

    def draw(
        self, prompts: Sequence[Turn], n: int = 1, temperature: float = 0.0, seed: int = 0
    ) -> list[list[Completion]]:
        """``n`` completions of each prompt."""
        return sample(
            self.model, self.tokenizer, prompts, n=n, temperature=temperature, seed=seed, batch_size=self.batch_size,
            max_new_tokens=self.max_new_tokens, stops=Stops(strings=self.stop),
        )  # fmt: skip

    def greedy(self, prompts: Sequence[Turn]) -> list[Completion]:
        """The likeliest completion of each prompt, token by token."""
        return [group[0] for group in self.draw(prompts)]

    def split(self, completion: Completion) -> tuple[str, str] | None:
        """The chain with the token that ends it, and the answer; None where it never ended."""
        chain, end, answer = completion.text.rpartition(str(self.think_end_token))
        return (chain + end, answer) if end and answer.strip() else None


class Asked(NamedTuple):
    """How one method asked every row, and the greedy completions."""

    prompts: list[Turn]
    completions: list[Completion]


class Marginals(NamedTuple):
    """Figures of the distributions over answers, and the same per prompt."""

    metrics: dict[str, float]
    rows: list[Json]


def marginals(
    sampling: Sampling,
    rows: Sequence[Json],
    asked: Mapping[str, Asked],
    verifier: Reward,
    chains: int,
    most: int,
    seed: int,
) -> Marginals:
    """p(a | P, x) by marginalising chains, beside the majority vote over the same chains and the direct answer.

    The marginal is the mean over the chains r of p(a | r, P, x), by teacher forcing over all answers that any chain or
    the direct prompt gave; what is left to 1 is one further value. ``tv_direct`` is the total variation between it and
    the distribution under the direct prompt (after its marker, where the greedy answer has one), ``tv_votes`` to the
    shares of the sampled answers, ``tv_halves`` between the marginals of every other chain: what sampling alone does.
    Bootstrap intervals over prompts. A chain that never ends gives its weight to the further value; a prompt of which
    none ends is left out.

    Raises:
        UserError: fewer than two chains.
    """
    if chains < 2:
        raise UserError(f"chains is {chains}: give 2 or more")
    places = [i * len(rows) // min(most, len(rows)) for i in range(min(most, len(rows)))]
    prompts = [asked[COT].prompts[i] for i in places]
    drawn = sampling.draw(prompts, n=chains, temperature=1.0, seed=seed)
    parted = [[sampling.split(one) for one in group] for group in drawn]
    plain = [asked[DIRECT].completions[i] if DIRECT in asked else None for i in places]
    leads = [(sampling.split(one) or ("", one.text)) if one else ("", "") for one in plain]
    said = [[p[1] for p in group if p] + [lead[1]] for group, lead in zip(parted, leads, strict=True)]
    answers = [[f" {a}" for a in dict.fromkeys(a.strip() for a in each) if a] for each in said]
    unique = [list(dict.fromkeys(part[0] for part in group if part)) for group in parted]
    begins = [with_beginning(p, chain) for p, group in zip(prompts, unique) for chain in group]
    found = iter(answer_laws(sampling, begins, [a for a, group in zip(answers, unique) for _ in group]))
    laws = [{chain: next(found) for chain in group} for group in unique]
    direct: list[Law | None] = [None] * len(places)
    if DIRECT in asked:
        own = [asked[DIRECT].prompts[i] for i in places]
        direct = list(
            answer_laws(
                sampling, [with_beginning(p, lead[0]) if lead[0] else p for p, lead in zip(own, leads)], answers
            )
        )
    table = []
    for i, place in enumerate(places):
        if laws[i]:
            scores = judge_rows(verifier, [rows[place]] * len(answers[i]), answers[i])
            right = {a: j.score or 0.0 for a, j in zip(answers[i], scores)}
            table.append({"row": place + 1, **_compared(parted[i], laws[i], direct[i], right)})
    if not table:
        return Marginals({"chains/prompts": 0}, [])
    metrics: dict[str, float] = {"chains/prompts": len(table), "chains/per_prompt": chains}
    for name in [name for name in table[0] if name not in ("row", "different chains")]:
        values = [float(line[name]) for line in table]
        figure = with_interval(name.replace(" ", "_"), fmean(values), bootstrap_interval(values, seed=seed))
        metrics |= {f"chains/{part}": value for part, value in figure.items()}
    return Marginals(metrics, table)


def _compared(
    parted: Sequence[tuple[str, str] | None], laws: Mapping[str, Law], direct: Law | None, right: Mapping[str, float]
) -> Json:
    """Of one prompt: the marginal over its chains, the votes, and the direct distribution.

    Args:
        parted: chain and answer of each sample.
        laws: of each chain the distribution over answers.
        direct: that under the direct prompt.
        right: the score of every answer.
    """
    each = [laws[part[0]] if part else {} for part in parted]
    marginal, votes = _mean(each), Counter(f" {part[1].strip()}" for part in parted if part)
    line: Json = {
        "marginal right": right[max(marginal, key=lambda a: marginal[a])],
        "majority right": majority_score(list(votes.elements()), [right[a] for a in votes.elements()]),
        "p right marginal": sum(right[a] * p for a, p in marginal.items()),
        "tv votes": total_variation(marginal, {a: count / len(parted) for a, count in votes.items()}),
        "tv halves": total_variation(_mean(each[::2]), _mean(each[1::2])),
        "chains ended": fmean(part is not None for part in parted),
        "different chains": len(laws),
    }
    if direct is not None:
        line |= {
            "direct right": right[max(direct, key=lambda a: direct[a])],
            "p right direct": sum(right[a] * p for a, p in direct.items()),
            "tv direct": total_variation(marginal, direct),
        }
    return line


def answer_laws(sampling: Sampling, prompts: Sequence[Turn], answers: Sequence[Sequence[str]]) -> list[Law]:
    """The probability of each answer after each prompt, ended by an end token or by what a stop string begins with.

    Both ways of ending are added up: `` 10`` is not a beginning of `` 109``.
    """
    model, tokenizer = sampling.model, sampling.tokenizer
    ends = sorted(stop_token_ids(model, tokenizer, chat=any(map(is_dialogue, prompts))))
    heads, candidates, owners = [], [], []
    for prompt, texts in zip(prompts, answers, strict=True):
        every = [f"{text}{end}" for text in texts for end in ("", *sampling.stop)]
        if not texts:
            heads.append(encode_prompts(tokenizer, [prompt])[0])
            candidates.append([])
            owners.append([])
            continue
        head, ids = encode_candidates(tokenizer, prompt, every)
        heads.append(head)
        rows, owner = [], []
        for place, one in enumerate(ids):
            text = texts[place // (1 + len(sampling.stop))]
            bare = place % (1 + len(sampling.stop)) == 0
            if bare and one[-1] in ends:
                one = one[:-1]
            for row in [[*one, end] for end in ends] if bare else [one]:
                if row not in rows:
                    rows.append(row)
                    owner.append(text)
        candidates.append(rows)
        owners.append(owner)
    filled = [i for i, group in enumerate(candidates) if group]
    found = iter(
        candidate_log_probabilities(
            model, [heads[i] for i in filled], [candidates[i] for i in filled], batch_size=sampling.batch_size
        )
    )
    laws: list[Law] = []
    for owner in owners:
        law: Law = {}
        for text, p in zip(owner, next(found)[0].exp().tolist()) if owner else ():
            law[text] = law.get(text, 0.0) + p
        laws.append(law)
    return laws


def total_variation(p: Law, q: Law) -> float:
    """Half the summed difference of two distributions over answers, with all that is missing to 1 as one value."""
    different = sum(abs(p.get(a, 0.0) - q.get(a, 0.0)) for a in {*p, *q})
    return (different + abs(sum(p.values()) - sum(q.values()))) / 2


def _mean(laws: Sequence[Law]) -> Law:
    total: Law = {}
    for law in laws:
        for answer, p in law.items():
            total[answer] = total.get(answer, 0.0) + p / len(laws)
    return total


def controls(
    sampling: Sampling, rows: Sequence[Json], asked: Mapping[str, Asked], verifier: Reward, filler: str | None
) -> list[Json]:
    """What becomes of the answer with something else in place of the chain: one line per case.

    ``right`` and ``follows`` are shares with Wilson's intervals.

    - filler: after as many filler tokens as the greedy chain has, and the token that ends a chain;
    - intact, corrupted: after the row's own beginnings of a worked answer, up to a true or a wrong step. ``follows``
      is the share that gives ``corrupted_answer``.
    """
    end, table = str(sampling.think_end_token), []
    if filler:
        which = asked.get(FILLER, asked[COT])
        chains = [sampling.split(one) for one in asked[COT].completions]
        places = [i for i, parted in enumerate(chains) if parted]
        starts = [
            with_beginning(which.prompts[i], _filler(sampling, filler, chains[i][0]) + f" {end}") for i in places
        ]
        if places:
            texts = _continued(sampling, starts, [end] * len(places))
            scores = _scores(verifier, [rows[i] for i in places], texts)
            table.append({"case": "filler", "n": len(places), **_share("right", scores)})
    places = [i for i, row in enumerate(rows) if row.get("corrupted") is not None]
    for case in ("intact", "corrupted") if places else ():
        chosen = [rows[i] for i in places]
        starts = [with_beginning(asked[COT].prompts[i], rows[i][case]) for i in places]
        ended = [end if row[case].rstrip().endswith(end) else "" for row in chosen]
        texts = _continued(sampling, starts, ended)
        wrong = [{**row, "answer": row["corrupted_answer"]} for row in chosen]
        shares = {"right": _scores(verifier, chosen, texts), "follows": _scores(verifier, wrong, texts)}
        figures = [_share(name, scores) for name, scores in shares.items()]
        table.append({"case": case, "n": len(places), **figures[0], **figures[1]})
    return table


def _filler(sampling: Sampling, filler: str, chain: str) -> str:
    """The filler repeated to as many tokens as a chain has without the token that ends it."""

    def length(text: str) -> int:
        return len(sampling.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    unit = length(filler * 9) - length(filler * 8)
    wanted = length(chain.removesuffix(str(sampling.think_end_token)).rstrip())
    return filler * max(1, round(wanted / max(1, unit)))


def _continued(sampling: Sampling, prompts: Sequence[Turn], ended: Sequence[str]) -> list[str]:
    """The answers of the greedy continuations; ``ended`` is the end of the chain where the prompt has it already."""
    texts = []
    for one, end in zip(sampling.greedy(prompts), ended, strict=True):
        has = str(sampling.think_end_token) in one.text
        texts.append(answer_after(sampling.tokenizer, one, sampling.think_end_token) if has or not end else one.text)
    return texts


def _scores(verifier: Reward, rows: Sequence[Json], texts: Sequence[str]) -> list[float]:
    return [judgement.score or 0.0 for judgement in judge_rows(verifier, rows, texts)]


def _share(name: str, scores: Sequence[float]) -> dict[str, float]:
    return with_interval(name, fmean(scores), wilson_interval(sum(scores), len(scores)))
