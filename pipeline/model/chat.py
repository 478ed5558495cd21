"""Strings as turns of a chat: the one place that decides whether they are, by what a model was trained on.

A prompt, a completion or an answer to be compared may be text or a dialogue. Text can be given to a model as it is, or
as one turn of a dialogue that the model's chat template writes. A chat model expects the latter: trained on plain text
it unlearns where a turn begins and ends. ``as_chat`` says which: ``true``, ``false``, or ``auto``, by `decide`. Every
training run notes what came of it in ``run.json`` (``chat``), and evaluations, generation, model cards and learned
rewards follow the note of the model that they use.

A template that a tokenizer brings need not have been trained: many bases ship the one of their chat model
(`never_trained`), and the special tokens of a format can have embeddings that no text has ever moved
(`untrained_tokens`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pipeline.model.dialogue_tokens import closing_token
from pipeline.model.tokens import encode_exchange, encode_prompts
from pipeline.runtime.files import Json
from pipeline.runtime.lineage import starts
from pipeline.runtime.messages import SYSTEM_ROLES, Turn, as_turns, begun, is_dialogue, user_text, user_turn

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Of the median norm of the embedding's rows: where a start at zero, or weight decay, leaves rows that no text moved.
SMALL_NORM = 0.1


class Decision(NamedTuple):
    """Whether strings become turns; why, for the line that says so; the system message that the model is used to."""

    as_chat: bool
    why: str
    system: str | None = None


def decide(
    as_chat: str, tokenizer: PreTrainedTokenizerBase, name: str, *, template: str | None = None, trains: bool = False
) -> Decision:
    """Whether strings are turns of a chat to a model.

    What is given decides, then what the model was last trained on, then whether its tokenizer has a chat template.

    Args:
        as_chat: ``auto``, ``true`` or ``false``.
        tokenizer: the model's.
        name: the model's folder or Hub id.
        template: ``chat_template_path``, where it is given: whoever names a template wants it used.
        trains: for training. Otherwise a model that was only pretrained is given text, whatever its tokenizer brings.
    """
    note, pretrained = last_note(name)
    system = (note or {}).get("system")
    if as_chat != "auto":
        return Decision(as_chat == "true", f"--as_chat {as_chat}", system if as_chat == "true" else None)
    if template:
        return Decision(True, "--chat_template_path is given", system)
    if not tokenizer.chat_template:
        return Decision(False, "the tokenizer has no chat template")
    if note is not None and not note["as_chat"]:
        return Decision(False, f"{name} was trained on plain text")
    if pretrained and not trains:
        return Decision(False, f"{name} was pretrained on text")
    return Decision(True, "the tokenizer has a chat template", system)


def last_note(name: str | Path) -> tuple[Json | None, bool]:
    """What the nearest run of a model's line noted of chats, if one did; whether pretraining came last."""
    for record in starts(name):
        if record["stage"] == "pretrain":
            return None, True
        if record.get("chat"):
            return record["chat"], False
    return None, False


def sentence(decision: Decision) -> str:
    """``prompts as chat turns: the tokenizer has a chat template (--as_chat false for plain text)``."""
    kind, other = ("chat turns", "false for plain text") if decision.as_chat else ("plain text", "true for chat turns")
    hint = "" if decision.why.startswith("--as_chat") else f" (--as_chat {other})"
    return f"prompts as {kind}: {decision.why}{hint}"


# ---------------------------------------------------------------------- rows and prompts


def with_system(row: Mapping, system: str | None) -> Json:
    """The row with a system message in front of its dialogue, where that has none."""
    name = "messages" if row.get("prompt") is None else "prompt"
    return dict(row) | ({name: begun(row[name], system)} if is_dialogue(row.get(name)) else {})


def as_noted(rows: Iterable[Mapping], kind: str, note: Mapping) -> list[Json]:
    """Rows in the form that a run's note (``chat``) says it trained on."""
    turned = (as_turns(row, kind) if note["as_chat"] else row for row in rows)
    return [with_system(row, note["system"]) for row in turned]


def as_trained(prompts: Sequence[Turn], tokenizer: PreTrainedTokenizerBase, name: str) -> list[Turn]:
    """Prompts in the form that a model was trained on, whatever form they have for another: of a reward model's use.

    A dialogue of several turns stays one: it has no form as text.
    """
    decision = decide("auto", tokenizer, name)

    def turned(prompt: Turn) -> Turn:
        if decision.as_chat:
            return with_system(as_turns({"prompt": prompt}, "prompt"), decision.system)["prompt"]
        asked = is_dialogue(prompt) and [m["role"] for m in prompt if m["role"] not in SYSTEM_ROLES] == ["user"]
        return user_text(prompt) if asked else prompt

    return [turned(prompt) for prompt in prompts]


# ---------------------------------------------------------------------- was the template ever trained?


def never_trained(tokenizer: PreTrainedTokenizerBase, name: str, trust_remote_code: bool = False) -> str | None:
    """A reason to think that the chat template of a model was never trained; None where there is none.

    By the run records of its line: one that learned chats settles it, pretraining on text alone gives the reason. Else
    by the tokens at which the model's own files say that it stops: among those of a chat model is the one that ends a
    turn, among those of a base that only ships the template it is not.
    """
    for record in starts(name):
        if record["stage"] == "pretrain":
            return "the model was pretrained on text, and no stage since then learned chats"
        if record["stage"] in ("sft", "continual") and record.get("chat", {}).get("as_chat"):
            return None
    end = closing_token(tokenizer, tokenizer.get_chat_template()) if tokenizer.chat_template else None
    if end is None or end in (listed := _end_tokens(name, trust_remote_code)) or not listed:
        return None
    stops = ", ".join(tokenizer.convert_ids_to_tokens(sorted(listed)))
    return (
        f"a turn ends with {tokenizer.convert_ids_to_tokens(end)}, which is not among the tokens at which the model "
        f"stops ({stops})"
    )


def _end_tokens(name: str, trust_remote_code: bool) -> set[int]:
    """Ids at which a model stops by its own files: of its generation config, else of its config."""
    from transformers import AutoConfig, GenerationConfig

    from pipeline.model.loading import adapter_base

    base = adapter_base(name)
    for place in filter(None, (name, base)):
        for read in (
            lambda: GenerationConfig.from_pretrained(place),  # noqa: B023 - called at once
            lambda: AutoConfig.from_pretrained(place, trust_remote_code=trust_remote_code),  # noqa: B023
        ):
            try:
                found = getattr(read(), "eos_token_id", None)
            except (OSError, ValueError, KeyError):
                continue
            if found is not None:
                return set(found) if isinstance(found, list | tuple) else {found}
    return set()


def untrained_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Special tokens of the chat template whose embeddings look untrained: smaller than a tenth of the median norm.

    A row that was drawn at random and never moved is as long as a trained one and cannot be told from it. Nothing is
    said of an embedding that is split over processes.
    """
    weight = model.get_input_embeddings().weight
    if weight.dim() != 2 or not weight.numel():
        return []
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    ids = {*encode_exchange(tokenizer, user_turn("x"), "y"), *encode_prompts(tokenizer, [user_turn("x")])[0]} & special
    ids = sorted(i for i in ids if i < weight.size(0))
    norms = weight.detach().float().norm(dim=1)
    small = norms[ids] < SMALL_NORM * norms.median()
    return tokenizer.convert_ids_to_tokens([i for i, is_small in zip(ids, small.tolist()) if is_small])
