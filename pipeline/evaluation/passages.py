"""Answers of a reader to passages of choice: evidence given, withheld, moved or poisoned, and orders among them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.evaluation.abstentions import abstains
from pipeline.evaluation.completions import complete, judge_completions, sample_rows
from pipeline.inference.decoding import Completion
from pipeline.inference.retrieval.arguments import RetrievalArguments
from pipeline.inference.retrieval.context import Augmented, context_limit, fit
from pipeline.inference.retrieval.index import Passage
from pipeline.objectives.statistics import wilson_interval, with_interval
from pipeline.rewards.judging import Reward
from pipeline.runtime.files import Json
from pipeline.runtime.messages import Turn, content_text, is_dialogue, user_text

Found = list[list[Passage]]  # the passages of each row
CASE_ROWS = 500  # at most, for each case
BY_USER = "order by the user"  # the control: the same order in the prompt itself


@dataclass
class Answers:
    """Greedy answers of some rows, and how they are judged."""

    rows: Sequence[Json]
    augmented: list[Augmented]
    completions: list[Completion]
    verifier: Reward

    def scores(self, answer: str = "answer") -> list[float]:
        """1 for each answer that is right by a column; what cannot be judged is 0."""
        rows = [{**row, "answer": row[answer]} for row in self.rows]
        judged = judge_completions(self.verifier, rows, [[completion] for completion in self.completions])
        return [group[0].score or 0.0 for group in judged]

    def hall(self) -> float:
        """The share of answers that are wrong and no abstention."""
        claims = [not abstains(completion.text) for completion in self.completions]
        return fmean(claim and not score for claim, score in zip(claims, self.scores()))

    def samples(self) -> list[Json]:
        """For ``samples.jsonl``: what was read, which passages were used, and the answer."""
        asked = [{**row, "prompt": each.prompt} for row, each in zip(self.rows, self.augmented)]
        found = sample_rows(asked, [[c] for c in self.completions], [[score] for score in self.scores()])
        return [{**row, "retrieved_ids": [p.id for p in each.passages]} for row, each in zip(found, self.augmented)]

    def ragas(self) -> list[Json]:
        """Rows in RAGAS's names."""
        return [
            {
                "user_input": user_text(row["prompt"]),
                "retrieved_contexts": [passage.text for passage in each.passages],
                "retrieved_context_ids": [passage.id for passage in each.passages],
                "response": completion.text,
                "reference": row["answer"],
            }
            for row, each, completion in zip(self.rows, self.augmented, self.completions)
        ]


@dataclass
class Reader:
    """Who answers: a model that gets as many of the passages as fit into its context, and decodes greedily."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    written: RetrievalArguments  # how passages and question become one message
    verifier: Reward
    max_new_tokens: int
    batch_size: int

    def __call__(self, rows: Sequence[Json], found: Found) -> Answers:
        """The answers to the rows' questions with these passages."""
        limit = context_limit(self.model.config, self.max_new_tokens)
        prompts = [row["prompt"] for row in rows]
        augmented = fit(self.tokenizer, prompts, found, self.written, [limit] * len(rows))
        asked = [{**row, "prompt": each.prompt} for row, each in zip(rows, augmented)]
        drawn = complete(
            self.model, self.tokenizer, asked, template=None, max_new_tokens=self.max_new_tokens, temperature=0.0,
            batch_size=self.batch_size,
        )  # fmt: skip
        return Answers(rows, augmented, [group[0] for group in drawn], self.verifier)


@dataclass
class Setting:
    """The rows, the passages that hold each one's answer, those that were found, and how answers are got."""

    rows: list[Json]
    evidence: Found
    found: Callable[[int], Found]  # of a number of passages
    answer: Callable[[Sequence[Json], Found], Answers]
    _natural: dict[int, Answers] = field(default_factory=dict)
    _ranks: dict[int, list[int]] = field(default_factory=dict)

    def halves(self) -> tuple[list[int], list[int]]:
        """Rows for recall and accuracy, and rows with evidence for a and c: every other row each."""
        known = [i for i, each in enumerate(self.evidence) if each]
        if not known:
            return list(range(len(self.rows))), []
        return known[::2], known[1::2]

    def has(self, i: int, m: int) -> bool:
        """Whether all of a row's evidence is among the first m that were found."""
        return {p.id for p in self.evidence[i]} <= {p.id for p in self.found(m)[i]}

    def given(self, i: int, m: int) -> list[Passage]:
        """m passages with the evidence: as found; what was missed takes the place at which another row's was found.

        So evidence is as near to the question as where a search finds it, which readers mind.
        """
        kept = self.found(m)[i]
        missing = [p for p in self.evidence[i] if p.id not in {k.id for k in kept}]
        rest = kept[: max(0, m - len(missing))] if missing else kept
        ranks = self.ranks(m)
        place = ranks[i % len(ranks)] if ranks else len(rest)
        return [*rest[:place], *missing, *rest[place:]]

    def ranks(self, m: int) -> list[int]:
        """The places, from 0, of evidence among m passages, of all rows whose evidence was found."""
        if m not in self._ranks:
            hits = [(each, self.evidence[i][0].id) for i, each in enumerate(self.found(m)) if self.evidence[i]]
            ids = [([p.id for p in each], name) for each, name in hits]
            self._ranks[m] = [found.index(name) for found, name in ids if name in found]
        return self._ranks[m]

    def withheld(self, i: int, m: int) -> list[Passage]:
        """m passages without any of the evidence."""
        known = {p.id for p in self.evidence[i]}
        return [p for p in self.found(m + len(known))[i] if p.id not in known][:m]

    def natural(self, m: int) -> Answers:
        """The answers of the first half to what was found for them; asked for once."""
        if m not in self._natural:
            self._natural[m] = self.measured(self.halves()[0], lambda i: self.found(m)[i])
        return self._natural[m]

    def measured(self, places: Sequence[int], passages: Callable[[int], list[Passage]]) -> Answers:
        """The answers of some rows with passages of choice."""
        return self.answer([self.rows[i] for i in places], [passages(i) for i in places])


def cases(setting: Setting, places: Sequence[int], m: int) -> list[Json]:
    """One row per case; ``follows`` is the share of answers that a false passage or an order asks for."""
    places = places[:CASE_ROWS]
    one = [i for i in places if len(setting.evidence[i]) == 1]
    poisoned = [i for i in one if setting.rows[i].get("false_evidence") and setting.rows[i].get("false_answer")]
    ordered = [i for i in one if setting.rows[i].get("order") and setting.rows[i].get("order_answer")]

    def others(i: int, count: int) -> list[Passage]:
        return setting.withheld(i, count)

    def false(i: int) -> Passage:
        return Passage("poison", setting.rows[i]["false_evidence"], 0.0)

    def order(i: int) -> Passage:
        return Passage("order", setting.rows[i]["order"], 0.0)

    def between(i: int, *middle: Passage) -> list[Passage]:
        rest = others(i, max(0, m - len(middle)))
        return [*rest[: (len(rest) + 1) // 2], *middle, *rest[(len(rest) + 1) // 2 :]]

    def true(i: int) -> list[Passage]:
        return setting.evidence[i]

    table: list[tuple[str, list[int], Callable[[int], list[Passage]], str | None]] = [
        ("no passages", places, lambda i: [], None),
        ("no evidence", places, lambda i: others(i, m), None),
        ("evidence first", one, lambda i: [*true(i), *others(i, m - 1)], None),
        ("evidence in the middle", one, lambda i: between(i, *true(i)), None),
        ("evidence last", one, lambda i: [*others(i, m - 1), *true(i)], None),
        ("poisoned", poisoned, lambda i: between(i, false(i)), "false_answer"),
        ("true, then false", poisoned, lambda i: between(i, *true(i), false(i)), "false_answer"),
        ("false, then true", poisoned, lambda i: between(i, false(i), *true(i)), "false_answer"),
        ("order in a passage", ordered, lambda i: between(i, *true(i), order(i)), "order_answer"),
        (BY_USER, ordered, lambda i: between(i, *true(i)), "order_answer"),
    ]
    found = [_case(setting, *case) for case in table]
    return [case for case in found if case]


def _case(
    setting: Setting,
    name: str,
    places: Sequence[int],
    passages: Callable[[int], list[Passage]],
    follows: str | None,
) -> Json:
    if not places:
        return {}
    rows = [setting.rows[i] for i in places]
    if name == BY_USER:
        rows = [{**row, "prompt": _ordered(row["prompt"], row["order"])} for row in rows]
    answers = setting.answer(rows, [passages(i) for i in places])
    found = {"case": name, "n": len(places), **share("right", answers.scores())}
    return found | (share("follows", answers.scores(follows)) if follows else {})


def _ordered(prompt: Turn, order: str) -> Turn:
    """The prompt with an order of the user in front of the question."""
    if not is_dialogue(prompt):
        return f"{order} {prompt}"
    return [*prompt[:-1], prompt[-1] | {"content": f"{order} {content_text(prompt[-1]['content'])}"}]


def share(name: str, scores: Sequence[float]) -> dict[str, float]:
    """A share with Wilson's interval."""
    return with_interval(name, fmean(scores), wilson_interval(sum(scores), len(scores)))
