"""The augmented context x' = [z_1 : ... : z_m] concat x (eq. 11), and how much of it a model can read.

Passages are dropped from the last one on until passages, prompt and completion fit: t' + new tokens must be within the
model's positions, and t' within Delta where every layer has a window (the paper's t' <= Delta). The prompt is never
cut. What was dropped is counted.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from pipeline.data.arrow import to_dataset
from pipeline.inference.retrieval.arguments import RetrievalArguments, check_arguments
from pipeline.inference.retrieval.index import Index, Passage, open_index
from pipeline.model.loading import position_limit
from pipeline.model.tokens import encode_answer, encode_prompts
from pipeline.runtime.errors import UserError
from pipeline.runtime.files import Json
from pipeline.runtime.messages import Turn, content_text, is_dialogue, user_text

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from pipeline.data.loading import Data
    from pipeline.runtime.record import Run


class Augmented(NamedTuple):
    """A prompt with passages in it, those passages, and how many were found but left out because they do not fit."""

    prompt: Turn
    passages: list[Passage]
    dropped: int


def augment(prompt: Turn, passages: Sequence[Passage], arguments: RetrievalArguments) -> Turn:
    """The prompt with the passages in its last message of the user; without passages the prompt as it is."""
    if not passages:
        return prompt
    written = ""
    for number, passage in enumerate(passages, 1):
        text = arguments.passage_template.replace("{number}", str(number)).replace("{id}", passage.id)
        written += text.replace("{text}", passage.text)

    def within(text: str) -> str:
        head, _, tail = arguments.context_template.partition("{prompt}")
        return head.replace("{passages}", written) + text + tail.replace("{passages}", written)

    if not is_dialogue(prompt):
        return within(prompt)
    asked = max((i for i, message in enumerate(prompt) if message["role"] == "user"), default=None)
    if asked is None:
        raise UserError("retrieve: a prompt has no message of the user, which the passages would go into")
    message = prompt[asked] | {"content": within(content_text(prompt[asked]["content"]))}
    return [*prompt[:asked], message, *prompt[asked + 1 :]]


def context_limit(config: "PretrainedConfig", new_tokens: int) -> int | None:
    """Tokens that an augmented prompt may have; None where the model sets no limit."""
    positions, text = position_limit(config), config.get_text_config()
    window = getattr(text, "sliding_window", None)
    if not getattr(text, "use_sliding_window", True) or "full_attention" in (getattr(text, "layer_types", None) or ()):
        window = None
    limits = [limit for limit in (positions - new_tokens if positions else None, window) if limit is not None]
    return min(limits) if limits else None


def fit(
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[Turn],
    found: Sequence[Sequence[Passage]],
    arguments: RetrievalArguments,
    limits: Sequence[int | None],
) -> list[Augmented]:
    """Each prompt with as many of its passages as fit into its limit in tokens, the best first."""
    kept = [list(passages) for passages in found]
    dropped = [0] * len(kept)
    waiting = [i for i, limit in enumerate(limits) if limit is not None]
    while waiting:
        lengths = map(len, encode_prompts(tokenizer, [augment(prompts[i], kept[i], arguments) for i in waiting]))
        waiting = [i for i, length in zip(waiting, lengths) if length > limits[i] and kept[i]]
        for i in waiting:
            kept[i].pop()
            dropped[i] += 1
    return [Augmented(augment(p, k, arguments), k, d) for p, k, d in zip(prompts, kept, dropped)]


def retrieve(
    index: Index,
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[Turn],
    arguments: RetrievalArguments,
    limits: Sequence[int | None],
) -> list[Augmented]:
    """Search for what the user asks in each prompt, and put what fits into its limit in front of it."""
    check_arguments(arguments)
    queries = [user_text(prompt) for prompt in prompts]
    found = index.search(queries, arguments.top_passages, arguments.retrieval_hops)
    return fit(tokenizer, prompts, found, arguments, limits)


def dropped_line(augmented: Sequence[Augmented]) -> str:
    """What was left out, in words; empty where everything fitted."""
    lost = sum(each.dropped for each in augmented)
    if not lost:
        return ""
    hit = sum(each.dropped > 0 for each in augmented)
    return f"{lost} passages of {hit} of {len(augmented)} prompts are left out: they do not fit into the context"


def with_passages(
    run: "Run",
    data: "Data",
    arguments: RetrievalArguments,
    tokenizer: "PreTrainedTokenizerBase",
    kind: str,
    limit: int | None,
) -> "Data":
    """The data of a training stage with passages in its prompts; unchanged where none are to be retrieved.

    Rows of kind ``prompt`` gain ``retrieved_contexts`` (texts, RAGAS's name) and ``retrieved_ids``, which rewards get
    like any column.

    Args:
        run: records the index, the passages per prompt and what was dropped.
        data: rows with a ``prompt``.
        kind: of the data, as `load_data` was asked for it.
        limit: tokens that an augmented prompt may have, together with its completion where the row has one.

    Raises:
        UserError: the index cannot be opened, an option is wrong, or the rows have no prompt.
    """
    if arguments.retrieve is None:
        return data
    check_arguments(arguments)
    index, record = open_index(arguments.retrieve)
    run.add_data([record])
    parts = {"train": data.train, "evaluation": data.evaluation}
    for name, rows in parts.items():
        if rows is None:
            continue
        if not hasattr(rows, "__len__") or "prompt" not in rows.column_names:
            raise UserError("retrieve: passages go into a prompt; the rows need one (prompt + completion for SFT)")
        given = list(rows)
        limits = [None if limit is None else limit - _answer_tokens(tokenizer, row) for row in given]
        found = retrieve(index, tokenizer, [row["prompt"] for row in given], arguments, limits)
        prefix = "" if name == "train" else "eval_"
        run.add_metrics({f"{prefix}{key}": value for key, value in figures(found).items()})
        if line := dropped_line(found):
            run.say(f"{name}: {line}")
        parts[name] = to_dataset((_with_contexts(row, each, kind) for row, each in zip(given, found)), kind)
    return replace(data, **parts)


def figures(found: Sequence[Augmented]) -> dict[str, float]:
    """Passages per prompt, and how many were dropped."""
    return {
        "passages_per_prompt": sum(len(each.passages) for each in found) / max(1, len(found)),
        "passages_dropped": sum(each.dropped for each in found),
    }


def _answer_tokens(tokenizer: "PreTrainedTokenizerBase", row: Json) -> int:
    return len(encode_answer(tokenizer, row["prompt"], row["completion"], row)[1]) if "completion" in row else 0


def _with_contexts(row: Json, found: Augmented, kind: str) -> Json:
    return {**row, "prompt": found.prompt, **(contexts(found) if kind == "prompt" else {})}


def contexts(found: Augmented) -> dict[str, list[str]]:
    """The columns that say which passages a prompt has."""
    return {"retrieved_contexts": [p.text for p in found.passages], "retrieved_ids": [p.id for p in found.passages]}


def with_retrieved(
    rows: Sequence[Json],
    prompts: Sequence[Turn],
    arguments: RetrievalArguments,
    tokenizer: "PreTrainedTokenizerBase",
    limit: int | None,
) -> tuple[Sequence[Json], Sequence[Turn], Json | None]:
    """The rows with the columns of `contexts`, their prompts with the passages, and the index for the record; rows and
    prompts as they are, and None, where nothing is to be retrieved.

    Args:
        rows: of the prompts.
        prompts: as the model gets them.
        arguments: which index, if any.
        tokenizer: the model's.
        limit: tokens that an augmented prompt may have.

    Raises:
        UserError: the index cannot be opened, or an option is wrong.
    """
    if arguments.retrieve is None:
        return rows, prompts, None
    check_arguments(arguments)
    index, record = open_index(arguments.retrieve)
    found = retrieve(index, tokenizer, prompts, arguments, [limit] * len(prompts))
    if line := dropped_line(found):
        print(line, file=sys.stderr, flush=True)
    return [{**row, **contexts(each)} for row, each in zip(rows, found)], [each.prompt for each in found], record
