"""Constitutional pairs (Bai et al. 2022): a draft, a critique by stated principles, a revision; DPO prefers the last.

A critic is any model, which is asked to criticise and to revise, or a function ``package.module:function`` of prompts,
drafts, principles and ``answer`` (prompts -> the model's own answers) that returns a critique and a revision of each
draft. One that knows the truth sets ``oracle = True`` on itself, and every row that it makes says so.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.inference.decoding import sample
from pipeline.model.loading import load_for_use, load_tokenizer
from pipeline.runtime.errors import UserError
from pipeline.runtime.files import Json
from pipeline.runtime.messages import Turn, as_answer, assistant_turn, is_dialogue, user_turn
from pipeline.runtime.registry import import_function

Answer = Callable[[Sequence[Turn]], list[str]]
Critic = Callable[[Sequence[Turn], Sequence[str], Sequence[str], Answer], list[tuple[str, str]]]

CRITIQUE = "Say in which way your last answer breaks this principle, if it does: {principle}"
REVISION = "Now answer my question again so that it keeps the principle. Give the answer alone."


def read_principles(path: Path) -> list[str]:
    """One principle per line; empty lines and those that begin with # are left out.

    Raises:
        UserError: there is no such file, or it has no principle.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"constitution: {path} cannot be read: {error.strerror}") from error
    found = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not found:
        raise UserError(f"constitution: {path} has no principle: write one per line")
    return found


def answers_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sampling: Json) -> Answer:
    """What a model answers, drawn by these options of `decoding.sample`."""

    def answer(prompts: Sequence[Turn]) -> list[str]:
        return [group[0].text for group in sample(model, tokenizer, list(prompts), **sampling)]

    return answer


def get_critic(name: str | None, own: Answer, sampling: Json, loading: Json) -> Critic:
    """The critic of a name: a function, a model that is loaded for it, or (None) whoever gives the answers.

    Args:
        own: the answers of the model that drafts.
        sampling: options by which another model's words are drawn.
        loading: dtype and trust_remote_code of another model.

    Raises:
        UserError: there is no such function.
    """
    if name and ":" in name:
        return import_function(name, "critic")
    if name:
        tokenizer = load_tokenizer(name, loading["trust_remote_code"])
        return by_model(answers_of(load_for_use(name, **loading), tokenizer, sampling))
    return by_model(own)


def by_model(asked: Answer) -> Critic:
    """A model as critic: it sees the draft as its own answer, is asked for a critique and then for a revision, by one
    principle after another.
    """

    def critic(
        prompts: Sequence[Turn], drafts: Sequence[str], principles: Sequence[str], answer: Answer
    ) -> list[tuple[str, str]]:
        critiques, texts = [""] * len(drafts), list(drafts)
        for principle in principles:
            told = [
                [*(x if is_dialogue(x) else user_turn(x)), *assistant_turn(y),
                 *user_turn(CRITIQUE.format(principle=principle))]
                for x, y in zip(prompts, texts, strict=True)
            ]  # fmt: skip
            found = asked(told)
            texts = asked([[*t, *assistant_turn(c), *user_turn(REVISION)] for t, c in zip(told, found, strict=True)])
            critiques = [f"{before}\n{said}".strip() for before, said in zip(critiques, found, strict=True)]
        return list(zip(critiques, (text.strip() for text in texts), strict=True))

    return critic


def revised_pairs(
    prompts: Sequence[Turn],
    given: Sequence[Turn],
    principles: Sequence[str],
    critic: Critic,
    answer: Answer,
    name: str,
) -> list[Json]:
    """``prompt``, ``chosen`` (the revision), ``rejected`` (the draft), ``critique`` and ``critic`` of every draft that
    the critic changed.

    Args:
        prompts: as the model reads them.
        given: as the rows have them, which the pairs repeat.
        principles: the constitution.
        critic: see `by_model`.
        answer: the model's own answers.
        name: of the critic, for the rows.

    Raises:
        UserError: the critic returned no critique and revision per draft, or changed nothing.
    """
    drafts = [text.strip() for text in answer(prompts)]
    found = critic(prompts, drafts, principles, answer)
    if len(found) != len(drafts) or not all(isinstance(each, tuple) and len(each) == 2 for each in found):
        raise UserError(f"critic: {name} must return a critique and a revision of each of the {len(drafts)} drafts")
    label = f"oracle: {name}" if getattr(critic, "oracle", False) else name
    pairs = [
        {"prompt": row, "chosen": as_answer(row, revision), "rejected": as_answer(row, draft), "critique": critique,
         "critic": label}
        for row, draft, (critique, revision) in zip(given, drafts, found, strict=True)
        if revision and draft and revision != draft
    ]  # fmt: skip
    if not pairs:
        raise UserError(f"critic: {name} revised none of {len(drafts)} drafts: there is no pair to write")
    return pairs
