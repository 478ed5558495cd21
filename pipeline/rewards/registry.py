"""One registry of rewards: the same callable serves GRPO, PPO, RSFT, preference mining, evaluation and the CLI.

``get_reward("numeric")`` gives TRL's callable ``fn(prompts, completions, **columns) -> list[float | None]``; a name
may be a dotted path ``package.module:function`` to a user's function, and a weighted sum is written out:
``"numeric + 0.2*format - 0.1*repetition(size=4)"``. A new built-in reward is one file and one line of ``BUILT_IN``.
"""

import inspect
import math
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from pipeline.rewards import trl_rewards
from pipeline.rewards.judging import Judgement, Reward, Sample, error, judged, scored, unscorable
from pipeline.rewards.spec import Options, terms_of
from pipeline.runtime.errors import UserError, did_you_mean
from pipeline.runtime.files import Json
from pipeline.runtime.messages import GIVEN_AS_TEXT, Turn, text_of, user_text
from pipeline.runtime.registry import import_function, require_known


@dataclass(frozen=True)
class Verifier:
    """A built-in reward: where it is, and what is known of it before its module is imported.

    Attributes:
        function: ``module:function`` that takes a ``Sample`` (with ``batch`` a list of them) and the reward's options,
            and returns a ``Judgement`` (a list of them).
        columns: columns of the data that it cannot do without.
        verifies: whether it says if an answer is really right; a hacked sum is noticed by such a term.
        batch: whether the function takes all completions at once.
        check: ``module:function`` that is called with the options before any model is loaded and raises UserError
            where they cannot work.
        runs_code: whether completions are run; ``check`` then takes ``allow_unsafe_code_execution`` and returns what
            they run in.
    """

    function: str
    columns: tuple[str, ...] = ()
    verifies: bool = True
    batch: bool = False
    check: str | None = None
    runs_code: bool = False


_ROOM = "pipeline.rewards"
# A module is imported when its reward is asked for: numeric must not wait for torch.
BUILT_IN = {
    "numeric": Verifier(f"{_ROOM}.numeric:judge", ("answer",)),
    "exact": Verifier(f"{_ROOM}.text:exact_judge", ("answer",)),
    "choice": Verifier(f"{_ROOM}.text:choice_judge", ("answer",)),
    "math": Verifier(f"{_ROOM}.symbolic:math_many", ("answer",), batch=True, check=f"{_ROOM}.symbolic:check"),
    "logic": Verifier(f"{_ROOM}.symbolic:logic_judge", ("answer",)),
    "code": Verifier(f"{_ROOM}.code:judge_many", ("tests",), batch=True, check=f"{_ROOM}.code:check", runs_code=True),
    "format": Verifier(f"{_ROOM}.text:format_judge", verifies=False),
    "length": Verifier(f"{_ROOM}.text:length_judge", verifies=False),
    "repetition": Verifier(f"{_ROOM}.text:repetition_judge", verifies=False),
    "refusal": Verifier(f"{_ROOM}.refusal:judge", verifies=False),
    "reward_model": Verifier(f"{_ROOM}.learned:judge", verifies=False, batch=True, check=f"{_ROOM}.learned:check"),
}
# What TRL hands to a reward beside the columns of the data.
_NOT_COLUMNS = frozenset({"trainer_state", "log_extra", "log_metric", "environments"})


def names() -> list[str]:
    """Names of the built-in rewards."""
    return sorted(BUILT_IN)


class _Counted:
    """The part of a ``Reward`` that is the same for all: scores from judgements, and counts of them.

    Attributes:
        __name__: the name under which trainers log it.
        columns: columns of the data that it cannot do without.
        counts: how often each verdict was given so far.
        reasons: how often each reason for giving no score was named so far.
        verifies: whether it says if an answer is really right.
        sandbox: what completions run in, "bubblewrap" or "none"; None where no completion is run.
        strict_metric: in a sum, the logged metric of its verifier (for the guards); None where that is the reward.
    """

    __name__: str
    columns: tuple[str, ...] = ()
    verifies: bool = False
    sandbox: str | None = None
    strict_metric: str | None = None

    def __init__(self):
        self.counts: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()

    def judge(self, prompts: list | None, completions: list, **columns: Any) -> list[Judgement]:
        """One judgement per completion."""
        raise NotImplementedError

    def require_columns(self, rows: Iterable[Json]) -> None:
        """Refuse rows of which none has a column it cannot do without, by a UserError; before anything is sampled."""
        _require_columns(self.__name__, self.columns, {name: None for row in rows for name in row if name != "prompt"})

    def __call__(self, prompts: list | None, completions: list, **columns: Any) -> list[float | None]:
        return [judgement.score for judgement in self.judge(prompts, completions, **columns)]

    def _recorded(self, judgements: list[Judgement], columns: Json) -> list[Judgement]:
        """The judgements, counted and their failures logged."""
        self._count(judgements)
        _log_verdicts(self.__name__, judgements, columns.get("log_metric"))
        return judgements

    def _count(self, judgements: list[Judgement]) -> None:
        self.counts.update(judgement.verdict for judgement in judgements)
        self.reasons.update(judgement.reason for judgement in judgements if judgement.score is None)

    @property
    def title(self) -> str:
        """What the user calls it, for messages."""
        return self.__name__

    def no_scores(self) -> str | None:
        """Why no completion has had a score so far; None where one had, or where none was judged."""
        if not self.counts or self.counts.total() != self.reasons.total():
            return None
        reason, count = self.reasons.most_common(1)[0]
        return (
            f"reward '{self.title}' gave none of {self.counts.total()} completions a score ({count} times: {reason})"
        )


class BuiltInReward(_Counted):
    """A built-in reward.

    Picklable: it holds only its name and its options; pools and models are built where they are used.
    """

    def __init__(self, name: str, options: Options):
        super().__init__()
        verifier = BUILT_IN[name]
        self.__name__, self.options = name, options
        self.columns, self.verifies, self._batch = verifier.columns, verifier.verifies, verifier.batch
        function = import_function(verifier.function, "reward")
        _require_known(function, options)
        self._judge = partial(function, **options)
        found = import_function(verifier.check, "reward")(**options) if verifier.check else None
        self.sandbox = found if verifier.runs_code else None

    def __reduce__(self):
        return BuiltInReward, (self.__name__, self.options)

    def judge(self, prompts: list | None, completions: list, **columns: Any) -> list[Judgement]:
        """One judgement per completion; a judge that fails gives the verdict ``error``.

        Raises:
            UserError: the data lacks a column that this reward needs.
        """
        rows = _rows(len(completions), columns)
        _require_columns(self.__name__, self.columns, columns)
        samples = [
            _sample(prompt, completion, row)
            for prompt, completion, row in zip(
                prompts if prompts is not None else [None] * len(completions), completions, rows, strict=True
            )
        ]
        if self._batch:
            judgements = self._judge(samples)
        else:
            judgements = [_guarded(self._judge, sample) for sample in samples]
        return self._recorded(judgements, columns)


class CustomReward(_Counted):
    """A function with TRL's signature: a user's (``package.module:function``), or one of TRL's (``trl:accuracy``)."""

    def __init__(self, path: str, options: Options):
        super().__init__()
        self.path, self.options = path, options
        self.__name__ = path.rpartition(":")[2]
        if path.startswith(trl_rewards.PREFIX):
            found = trl_rewards.load(self.__name__, options)
            self._call, self.columns, self.verifies = found.function, found.columns, found.verifies
        else:
            self._call = partial(import_function(path, "reward"), **options)

    def __reduce__(self):
        return CustomReward, (self.path, self.options)

    @property
    def title(self) -> str:
        """Its path: the name alone may be anything."""
        return self.path

    def judge(self, prompts: list | None, completions: list, **columns: Any) -> list[Judgement]:
        """Scores of the function as judgements: None is ``error``, any number is ``scored``. A verifier of TRL's gives
        ``right`` and ``wrong``, and ``unscorable`` where it cannot read the gold answer.

        It sees prompts and completions in the form of the data: strings where the rows have strings, also where a chat
        template writes them as turns.

        Raises:
            UserError: it fails, does not return one number or None per completion, or the data lacks a column.
        """
        _require_columns(self.title, self.columns, columns)
        if any(as_text := columns.pop(GIVEN_AS_TEXT, None) or []):
            completions = [text_of(y) if is_text else y for y, is_text in zip(completions, as_text, strict=True)]
            if prompts is not None:
                prompts = [user_text(x) if is_text else x for x, is_text in zip(prompts, as_text, strict=True)]
        try:
            scores = self._call(prompts=prompts, completions=completions, **columns)
        except UserError:
            raise
        except Exception as failure:
            raise UserError(_failure_text(self.path, failure, columns)) from failure
        scores = _listed(self.path, scores, len(completions))
        if self.verifies:
            judgements = [unscorable("the gold answer is no formula") if s is None else judged(s == 1) for s in scores]
        else:
            judgements = [_judgement_of(self.path, index, score) for index, score in enumerate(scores)]
        return self._recorded(judgements, columns)


class WeightedSum(_Counted):
    """``sum_k w_k R_k``; None where any part is None (TRL's own sum would count a missing part as 0). A part of
    weight 0 is only watched, and may be None.
    """

    def __init__(self, parts: list[tuple[float, Reward]]):
        super().__init__()
        self.parts = parts
        name_apart([part for _, part in parts])
        self.columns = tuple(dict.fromkeys(column for _, part in parts for column in part.columns))
        self.sandbox = next((part.sandbox for _, part in parts if part.sandbox), None)
        verifier = next((part.__name__ for weight, part in parts if part.verifies and weight > 0), None)
        self.strict_metric = f"reward_parts/{verifier}" if verifier else None
        terms = [part.__name__ if weight == 1 else f"{weight:g}*{part.__name__}" for weight, part in parts]
        self.__name__ = "+".join(terms).replace("+-", "-")

    def __reduce__(self):
        return WeightedSum, (self.parts,)

    def judge(self, prompts: list | None, completions: list, **columns: Any) -> list[Judgement]:
        by_part = [part.judge(prompts, completions, **columns) for _, part in self.parts]
        judgements = [self._total(row) for row in zip(*by_part, strict=True)]
        self._count(judgements)
        log_metric = columns.get("log_metric")
        for (_, part), column in zip(self.parts, by_part, strict=True):
            scores = [judgement.score for judgement in column if judgement.score is not None]
            if log_metric is not None and scores:
                log_metric(f"reward_parts/{part.__name__}", sum(scores) / len(scores))
        return judgements

    def _total(self, row: Sequence[Judgement]) -> Judgement:
        parts: dict[str, float | None] = {}
        for (_, part), judgement in zip(self.parts, row):
            parts |= {part.__name__: judgement.score, **(judgement.parts or {})}
        used = [(weight, judgement) for (weight, _), judgement in zip(self.parts, row) if weight]
        missing = next((judgement for _, judgement in used if judgement.score is None), None)
        total = missing or scored(math.fsum(weight * judgement.score for weight, judgement in used))
        return total._replace(parts=parts)


def name_apart(rewards: Sequence[Reward]) -> None:
    """Number the rewards that have one name, ``length`` and ``length_2``: they are logged by it."""
    seen: Counter[str] = Counter()
    for reward in rewards:
        seen[reward.__name__] += 1
        if seen[reward.__name__] > 1:
            reward.__name__ += f"_{seen[reward.__name__]}"


def get_reward(spec: str | list[str], *, allow_unsafe_code_execution: bool = False, **options: Any) -> Reward:
    """The reward that ``spec`` names.

    ``spec`` is a built-in name, a dotted path ``package.module:function``, or a weighted sum of both such as
    ``"math + 0.2*format"`` (a list of terms is their sum). Options are for a single reward, or are written in
    parentheses after a term: ``"length(limit=128)"``. ``allow_unsafe_code_execution`` may be given with any reward: it
    reaches the parts that run code.

    Raises:
        UserError: an unknown name, an unknown option or a malformed sum.
    """
    terms = [term for text in ([spec] if isinstance(spec, str) else spec) for term in terms_of(text)]
    if not terms:
        raise UserError("reward: the name is empty; known: " + ", ".join(names()))
    if len(terms) == 1 and terms[0][0] == 1.0:
        _, name, written = terms[0]
        return _single(name, {**options, **written}, allow_unsafe_code_execution)
    if options:
        raise UserError(
            f"reward: write the options of a sum behind its terms, like 'length(limit=128)', not {options}"
        )
    return WeightedSum(
        [(weight, _single(name, written, allow_unsafe_code_execution)) for weight, name, written in terms]
    )


def _single(name: str, options: Options, allow_unsafe: bool) -> Reward:
    if ":" in name:
        return CustomReward(name, options)
    if name not in BUILT_IN:
        theirs = {full: short for short, full in trl_rewards.names().items()}
        if name in theirs:
            raise UserError(f"reward: unknown name '{name}'; TRL's is called {trl_rewards.PREFIX}{theirs[name]} here")
    others = "trl:NAME for TRL's, package.module:function, or the folder of a reward model"
    require_known(name, BUILT_IN, "reward", also=others)
    if BUILT_IN[name].runs_code:
        options = {"allow_unsafe_code_execution": allow_unsafe, **options}
    return BuiltInReward(name, options)


def _require_known(function: Callable, options: Options) -> None:
    """Refuse an option that a judging function does not take."""
    accepted = list(inspect.signature(function).parameters)[1:]
    for option in options:
        if option not in accepted:
            known = f"it takes {', '.join(accepted) or 'none'}"
            raise UserError(f"reward: unknown option '{option}'; {known}{did_you_mean(option, accepted)}")


def _rows(count: int, columns: Json) -> list[Json]:
    """The columns row by row. Only lists with one entry per completion are columns."""
    listed = {
        name: values
        for name, values in columns.items()
        if name not in _NOT_COLUMNS and isinstance(values, list | tuple) and len(values) == count
    }
    return [{name: values[index] for name, values in listed.items()} for index in range(count)]


def _require_columns(reward: str, needed: tuple[str, ...], columns: Json) -> None:
    for column in needed:
        if column not in columns:
            present = ", ".join(sorted(set(columns) - _NOT_COLUMNS - {"completion_ids"})) or "none"
            raise UserError(
                f"reward '{reward}' needs the column '{column}'; the data has: {present}; "
                f"rename one with dataset_map, such as gold={column}"
            )


def _sample(prompt: Turn | None, completion: Turn, row: Json) -> Sample:
    return Sample(prompt, completion, text_of(completion), row)


def _guarded(judge: Callable[[Sample], Judgement], sample: Sample) -> Judgement:
    try:
        return judge(sample)
    except UserError:
        raise
    except Exception as failure:
        return error(f"{type(failure).__name__}: {failure}")


def _judgement_of(path: str, index: int, score: object) -> Judgement:
    if score is None:
        return error("it returned None")
    try:
        number = None if isinstance(score, str | bytes) else float(score)
    except (TypeError, ValueError, OverflowError):
        number = None
    if number is None:
        raise UserError(f"reward '{path}' returned {score!r:.80} for completion {index}: return a number or None")
    return scored(number) if math.isfinite(number) else error(f"it returned {number}")


def _listed(path: str, scores: object, count: int) -> list:
    """What a user's function returned, as a list with one entry per completion; arrays and tensors are taken too."""
    shape = getattr(scores, "shape", None)
    if isinstance(scores, list | tuple) and len(scores) == count:
        return list(scores)
    if shape is not None and tuple(shape) == (count,):
        return scores.tolist()
    if isinstance(scores, list | tuple):
        found = f"{len(scores)} scores"
    else:
        found = type(scores).__name__ + (f" of shape {tuple(shape)}" if shape is not None else "")
    raise UserError(
        f"reward '{path}' returned {found} for {count} completions: return a list with one number (or None) for each"
    )


def _failure_text(path: str, failure: Exception, columns: Json) -> str:
    """One line on an exception in a user's function: what, where, and the columns that it was given."""
    place = traceback.extract_tb(failure.__traceback__)[-1]
    given = ", ".join(sorted(set(columns) - _NOT_COLUMNS)) or "none"
    what = " ".join(f"{type(failure).__name__}: {failure}".split())
    return f"reward '{path}' failed: {what} ({place.filename}, line {place.lineno}); columns it was given: {given}"


def _log_verdicts(name: str, judgements: list[Judgement], log_metric: Callable[[str, float], None] | None) -> None:
    """Shares of what is neither right nor wrong, to the trainer's log: silent zeros are how runs die."""
    if log_metric is None or not judgements:
        return
    for verdict in ("timeout", "unscorable", "error"):
        log_metric(f"verdicts/{name}/{verdict}", sum(j.verdict == verdict for j in judgements) / len(judgements))
