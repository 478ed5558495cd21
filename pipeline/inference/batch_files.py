"""Rows of a file to the same rows with completions in another file; a killed run continues where it was.

The output has one line per row, in the rows' order, written as they are completed; ``<output>.settings.json`` beside
it says by what (model, prompts, sampling), and stays as the record of it. A second start reads both.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.data.columns import check_map, parse_map, rename
from pipeline.data.files import read_rows
from pipeline.data.formats import convert, settle_systems
from pipeline.data.rows import RowError
from pipeline.data.schemas import Form, detect
from pipeline.runtime.errors import UserError
from pipeline.runtime.files import Json, write_json
from pipeline.runtime.messages import Turn, is_dialogue
from pipeline.runtime.run_json import set_aside

if TYPE_CHECKING:
    from pipeline.inference.decoding import Completion

    Drawn = list[list[Completion]]


def read_prompts(path: Path, dataset_map: str) -> list[Json]:
    """The rows of a file (jsonl, json, csv, parquet or txt), each with a ``prompt``: text, or a list of messages.
    A line of a text file is a prompt.

    Without a column ``prompt`` it is read from the columns of public datasets (`pipeline.data.schemas`), as the stages
    that sample read it: ``question``, ``instruction`` with ``input``, ``messages``; a system prompt is its first
    message.

    Args:
        dataset_map: ``old=new,…``, which renames columns.

    Raises:
        UserError: a row that cannot be read or has no prompt, or a ``seed`` that is no whole number.
    """
    rows, renames, form = [], parse_map(dataset_map), None
    for row in read_rows(path, lines=True):
        where = f"{path}, row {row.number}"
        if isinstance(row.content, RowError):
            raise UserError(f"{where}: {row.content}")
        if not rows:
            check_map(renames, row.content, str(path))
        content = rename(row.content, renames)
        if set(content) == {"text"}:
            content = {"prompt": content["text"]}  # a line of a .txt file
        if not rows and "prompt" not in content:
            form = detect([content], "prompt", str(path), set(renames.values()))
        if form is not None:
            content["prompt"] = _converted(content, form, where)
        prompt, seed = content.get("prompt"), content.get("seed")
        if not isinstance(prompt, str) and not (is_dialogue(prompt) and prompt):
            raise UserError(
                f"{where}: prompt is {'missing' if prompt is None else 'neither text nor messages'}; "
                f"the row has {', '.join(row.content)} (--dataset_map old=prompt renames a column)"
            )
        if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
            raise UserError(f"{where}: seed is {seed!r}: give a whole number, or none")
        rows.append(content)
    if not rows:
        raise UserError(f"{path} is empty: it has no rows")
    return rows


def _converted(row: Json, form: Form, where: str) -> Turn:
    """The prompt of a row in a public schema; with a system prompt it is a dialogue.

    Raises:
        UserError: the row has none, or not of the form of the first row.
    """
    try:
        converted = convert(row, form, "prompt")
    except RowError as error:
        raise UserError(f"{where}: {error}") from None
    return settle_systems([converted], "prompt", chat=True)[0]["prompt"]


def complete_file(
    rows: Sequence[Json],
    output: Path,
    settings: Json,
    draw: Callable[[range], Drawn],
    *,
    chunk: int,
    force: bool,
    answer_of: Callable[[Completion], str] | None = None,
) -> Drawn:
    """Write each row with its ``completions`` and ``finish_reasons``, and return what was drawn in this start.

    Args:
        rows: the rows in the order in which they are written.
        output: the JSONL file.
        settings: what the completions depend on.
        draw: the completions of the rows with these numbers.
        chunk: rows drawn and written at a time.
        force: rename the files of an earlier start and begin anew.
        answer_of: what a completion answers, for a further column ``answers``.

    Raises:
        UserError: the file is there by other settings or from elsewhere, or cannot be written.
    """
    beside = output.with_name(f"{output.name}.settings.json")
    settings = json.loads(json.dumps(settings))
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        if force:
            for file in (output, beside):
                if file.exists():
                    set_aside(file)
        done = _finished(output, beside, settings)
        if done:
            print(f"{output}: {done} of {len(rows)} rows are there already", flush=True)
        write_json(beside, settings)
        drawn: Drawn = []
        # A surrogate half has no UTF-8; as \udXXX it is JSON all the same.
        with open(output, "a", encoding="utf-8", errors="backslashreplace") as file:
            for start in range(done, len(rows), chunk):
                numbers = range(start, min(start + chunk, len(rows)))
                found = draw(numbers)
                file.writelines(_line(rows[i], group, answer_of) for i, group in zip(numbers, found, strict=True))
                file.flush()
                drawn += found
        return drawn
    except OSError as error:
        raise UserError(f"output_file: {error.filename or output} cannot be written: {error.strerror}") from error


def _line(
    row: Mapping[str, object], group: Sequence[Completion], answer_of: Callable[[Completion], str] | None
) -> str:
    added = {"completions": [c.text for c in group], "finish_reasons": [c.finish_reason for c in group]}
    if answer_of is not None:
        added["answers"] = [answer_of(c) for c in group]
    return json.dumps({**row, **added}, ensure_ascii=False, default=str) + "\n"


def _finished(output: Path, beside: Path, settings: Json) -> int:
    """How many rows an earlier start has written; a line that it was writing when it was killed is taken back."""
    if not output.exists():
        return 0
    if not beside.exists():
        raise UserError(f"output_file: {output} exists and generate.py did not write it; name another, or --force")
    earlier = json.loads(beside.read_text(encoding="utf-8"))
    changed = [name for name in settings | earlier if settings.get(name) != earlier.get(name)]
    if changed:
        name = changed[0]
        raise UserError(
            f"output_file: {output} was begun with other settings: {', '.join(changed)} ({name} was "
            f"{earlier.get(name)!r}, is {settings.get(name)!r}); name another file, or --force renames this one"
        )
    content = output.read_bytes()
    complete = content[: content.rfind(b"\n") + 1]
    if len(complete) < len(content):
        os.truncate(output, len(complete))
    return complete.count(b"\n")
