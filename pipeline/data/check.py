"""What a stage would make of a dataset, before any compute is spent on it.

    python -m pipeline.data.check my_pairs.jsonl
    python -m pipeline.data.check openai/gsm8k --config main --dataset_map question=prompt,answer=completion \\
        --tokenizer Qwen/Qwen3-0.6B --max_length 512

Prints the format found, rows, bad rows (the first ten, each with file, row, field and reason), duplicates; with a
tokenizer also token lengths, the supervised share, and one sample with what is learned between [[ and ]]. Exit code 0
when the dataset can be read (bad rows included), 2 with one ``error:`` line when it cannot.
"""

import argparse
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.data.columns import parse_map
from pipeline.data.formats import settle_systems
from pipeline.data.loading import PEEK, read_source
from pipeline.data.mixing import Part
from pipeline.data.schemas import KINDS, find_form, prepare
from pipeline.data.sources import Source, raw_rows
from pipeline.runtime.command_table import as_started, as_typed
from pipeline.runtime.entry import CommandParser, run_and_exit
from pipeline.runtime.errors import UserError
from pipeline.runtime.files import Json, is_local, near_path
from pipeline.runtime.messages import as_turns

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from pipeline.model.dialogue_tokens import Coded

# Tried in this order when --kind is not given; ranked and prompt also take other kinds' columns, so they come late.
GUESSES = ("preference", "labelled", "sft", "ranked", "prompt")
MEASURED_ROWS = 5000
SHOWN_BAD_ROWS = 10
SHOWN_CHARACTERS = 1500


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the report.

    Raises:
        UserError: the dataset or the tokenizer cannot be read, or a flag is wrong.
    """
    parser = CommandParser(
        prog=as_typed("check"),
        description=as_started(__doc__),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("name", help="Hub id, local file or folder, or world/<name>")
    parser.add_argument("--kind", choices=KINDS, help="what the data is for; guessed from the columns when not given")
    parser.add_argument("--split", default="train", help="split, with a slice if you like: test[:200]")
    parser.add_argument("--config", help="configuration (subset) of a Hub dataset")
    parser.add_argument("--dataset_map", default="", help="rename columns: old=new,…")
    parser.add_argument("--tokenizer", help="model or tokenizer, Hub id or folder: adds lengths and a masked sample")
    parser.add_argument(
        "--as_chat", choices=("auto", "true", "false"), default="auto",
        help="with --tokenizer: whether strings are turns of a chat, as in the stages [auto]",
    )  # fmt: skip
    parser.add_argument("--system", help="with --tokenizer: system message for dialogues that have none")
    parser.add_argument("--max_length", type=int, default=1024, help="tokens the stage will keep of a row [1024]")
    options = parser.parse_args(argv)

    source = Source(
        name=options.name, split=options.split, config=options.config, dataset_map=parse_map(options.dataset_map)
    )
    if options.tokenizer and is_local(options.tokenizer) and not Path(options.tokenizer).expanduser().exists():
        raise UserError(f"tokenizer: there is no folder {options.tokenizer}{near_path(options.tokenizer)}")
    columns, kind = _look(source, options.kind)
    part = read_source(source, kind, skip_bad_rows=True)
    for line in describe(part, kind, columns, guessed=options.kind is None):
        print(line)
    if options.tokenizer:
        tokenizer = _tokenizer(options.tokenizer)
        rows, said = _as_trained(part.rows, kind, tokenizer, options)
        for line in [*said, *measure(rows, tokenizer, options.max_length)]:
            print(line)


def _look(source: Source, kind: str | None) -> tuple[list[str], str]:
    """The columns as they are stored, and the kind: the given one, else the first that the columns fit."""
    first = [row for row, _ in zip(raw_rows(source), range(PEEK))]
    if not first:
        raise UserError(f"{source.label} is empty: there are no rows in split {source.split!r}")
    columns = list(dict.fromkeys(key for _, _, row in first if isinstance(row, Mapping) for key in row))
    if kind:
        find_form(source, kind, first)
        return columns, kind
    for guess in GUESSES:
        try:
            form = find_form(source, guess, first)
        except UserError:
            continue
        labels = (prepare(row, source).get("label") for _, _, row in first if isinstance(row, Mapping))
        if guess == "labelled" and not any(isinstance(label, bool) for label in labels):
            continue  # a class, not a judgement of the answer
        return columns, "text" if form.columns == ("text",) else guess
    renamed = [source.dataset_map.get(c, c) if source.dataset_map else c for c in columns]
    for guess in ("sft", "preference"):
        # Raises with the columns found and the nearest --dataset_map; pairs are named like pairs.
        if guess == "preference" or not {"chosen", "rejected"} & set(renamed):
            find_form(source, guess, first)
    raise UserError(f"{source.label} fits no kind ({', '.join(KINDS)}); it has {', '.join(columns)}")


def describe(part: Part, kind: str, columns: Sequence[str], guessed: bool = False) -> list[str]:
    """The report without a tokenizer: format, rows, bad rows, duplicates."""
    row = part.rows[0]
    shapes = ", ".join(f"{name} ({_shape(row[name])})" for name in row)
    first = {}
    for digest in part.hashes:
        first[digest] = first.get(digest, 0) + 1
    counts = part.counts
    unwanted = f", {counts['label_false']} whose label is false" if "label_false" in counts else ""
    lines = [
        f"dataset      {part.source.label}, split {part.source.split}",
        f"columns      {', '.join(columns)}",
        f"kind         {kind}{' (guessed; --kind says otherwise)' if guessed else ''}",
        f"read as      {part.reading}",
        f"form         {shapes}",
        f"rows         {counts['rows_read']}: {len(part.rows)} good, {counts['bad_rows']} bad{unwanted}",
        f"duplicates   {len(part.rows) - len(first)} (exact; training drops them)",
    ]
    asked = len(set(part.prompts))
    if kind != "text" and asked < len(first):
        lines.append(f"prompts      {asked} different ones in {len(first)} different rows")
    seen = [len(r["images"]) for r in part.rows if r.get("images")]
    if seen:
        lines.append(
            f"images       {sum(seen)} in {len(seen)} rows, {max(seen)} in one at most: for a model that sees"
        )
    glued = [r for r in part.rows if _glued(r)]
    if glued:
        lines.append(f"note         in {len(glued)} rows no white space separates the answer from the prompt")
    lines += [f"bad row      {described}" for described in part.bad_rows[:SHOWN_BAD_ROWS]]
    if counts["bad_rows"] > SHOWN_BAD_ROWS:
        lines.append(
            f"             and {counts['bad_rows'] - SHOWN_BAD_ROWS} more; --skip_bad_rows trains without them"
        )
    return lines


def _glued(row: Json) -> bool:
    """Whether prompt and answer, both plain text, run into one another: trainers join them as they are."""
    prompt, answer = row.get("prompt"), row.get("completion", row.get("chosen"))
    texts = isinstance(prompt, str) and isinstance(answer, str)
    return texts and not prompt[-1:].isspace() and not answer[:1].isspace()


def _shape(value: object) -> str:
    if isinstance(value, list) and value and isinstance(value[0], Mapping) and "role" in value[0]:
        return "messages"
    if isinstance(value, list):
        return f"list of {_shape(value[0])}" if value else "list"
    return "text" if isinstance(value, str) else type(value).__name__


def _tokenizer(name: str) -> "PreTrainedTokenizerBase":
    from transformers import AutoTokenizer

    from pipeline.model.loading import with_processor

    try:
        return with_processor(AutoTokenizer.from_pretrained(name, trust_remote_code=False), name)
    except (OSError, ValueError) as error:
        raise UserError(f"tokenizer {name!r} cannot be loaded: {str(error).strip().splitlines()[0]}") from error


def _as_trained(
    rows: list[Json], kind: str, tokenizer: "PreTrainedTokenizerBase", options: argparse.Namespace
) -> tuple[list[Json], list[str]]:
    """The rows as a stage would give them to the chat template, and what there is to say about it."""
    from pipeline.model.chat import decide, sentence, with_system

    said = []
    if isinstance(rows[0].get("prompt"), str):
        decision = decide(options.as_chat, tokenizer, options.tokenizer, trains=True)
        said = [f"chat         {sentence(decision)}"]
        rows = [as_turns(row, kind) for row in rows] if decision.as_chat else settle_systems(rows, kind, chat=False)
    return [with_system(row, options.system) for row in rows], said


def measure(rows: Sequence[Json], tokenizer: "PreTrainedTokenizerBase", max_length: int) -> list[str]:
    """Token lengths, supervised share and one masked sample, of all rows or of a fixed draw of ``MEASURED_ROWS``."""
    from pipeline.model.tokens import ANSWERS

    if isinstance(rows[0].get("prompt", rows[0].get("messages")), list):
        # Dialogues need a template; the model room knows what to do for a tokenizer without one.
        from pipeline.model.tokenizer import ensure_training_chat_template

        ensure_training_chat_template(tokenizer)
    drawn = list(rows) if len(rows) <= MEASURED_ROWS else random.Random(0).sample(list(rows), MEASURED_ROWS)
    encoded, refused = [], []
    for row in drawn:
        try:
            encoded.append(tokens_of(row, tokenizer))
        except UserError as error:
            refused.append(str(error))
    lines = [f"refused      {len(refused)} of {len(drawn)} rows: {refused[0]}"] if refused else []
    if not encoded:
        return lines
    lengths = sorted(len(tokens) for tokens, _ in encoded)
    over = sum(length > max_length for length in lengths) / len(lengths)
    packed = "text" in rows[0]
    limit = lengths[-1] if packed else max_length
    kept = [sum(mask[:limit]) for _, mask in encoded]
    trained = [min(len(tokens), limit) for (tokens, _), count in zip(encoded, kept) if count]
    lines += [
        f"tokens       median {_quantile(lengths, 0.5)}, p95 {_quantile(lengths, 0.95)}, longest {lengths[-1]}"
        + (f" (of {MEASURED_ROWS} rows drawn)" if len(rows) > MEASURED_ROWS else ""),
        f"max_length   {max_length}: {over:.1%} of rows are longer" + (" (packed, nothing is cut)" if packed else ""),
    ]
    if any(kept):
        lines.append(f"supervised   {sum(kept) / sum(trained):.1%} of the tokens that are kept: {ANSWERS.of(rows[0])}")
    silent = sum(not count for count in kept)
    if silent and any(kept):
        lines.append(f"             {silent} rows have nothing to learn within max_length and are dropped")
    sample = next((place for place, count in enumerate(kept) if count), 0)
    return [*lines, "sample       " + shown(*encoded[sample], tokenizer)]


def _quantile(ordered: Sequence[int], share: float) -> int:
    """The smallest value that at least ``share`` of the values do not exceed."""
    return ordered[max(0, -int(-share * len(ordered) // 1) - 1)]


def tokens_of(row: Json, tokenizer: "PreTrainedTokenizerBase") -> "Coded":
    """Tokens of a converted row and which of them are learned, as the stages have it (`pipeline.model.tokens`).

    A pair or ranking: the answers, of which the longest counts. A prompt alone: nothing.
    """
    from pipeline.model.tokens import encode_answer, encode_row

    if "prompt" not in row or _answers(row["prompt"], row.get("completion")):
        return encode_row(tokenizer, row)
    prompt = row["prompt"]
    answers = [row[name] for name in ("chosen", "rejected") if _answers(prompt, row.get(name))]
    encoded = [encode_answer(tokenizer, prompt, answer, row) for answer in answers + row.get("ranked", [])]
    encoded = encoded or [encode_answer(tokenizer, prompt, "" if isinstance(prompt, str) else [], row)]
    head, answer = max(encoded, key=lambda both: len(both[0]) + len(both[1]))
    return head + answer, [False] * len(head) + [bool(answers or row.get("ranked"))] * len(answer)


def _answers(prompt: object, value: object) -> bool:
    """Whether a column is an answer in the form of the prompt, not a column that only goes with the prompt."""
    return value is not None and type(value) is type(prompt)


def shown(tokens: Sequence[int], mask: Sequence[bool], tokenizer: "PreTrainedTokenizerBase") -> str:
    """The decoded tokens with what is learned between ``[[`` and ``]]``, cut after ``SHOWN_CHARACTERS``."""
    text, start = "", 0
    for end in range(1, len(tokens) + 1):
        if end == len(tokens) or mask[end] != mask[start]:
            piece = tokenizer.decode(tokens[start:end])
            text += f"[[{piece}]]" if mask[start] else piece
            start = end
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]} …"


if __name__ == "__main__":
    run_and_exit(main)
