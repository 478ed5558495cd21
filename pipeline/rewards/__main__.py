"""Score a file of completions with the reward that will train on them, before any GPU is spent.

    python -m pipeline.rewards --reward numeric --file rows.jsonl --out scores.jsonl --dataset_map gold=answer

Each row of the file (jsonl, json, csv or parquet, as the stages read it) has ``completion`` (text, or a list of
messages), the columns of its reward (``answer`` for numeric, math, logic, exact and choice; ``tests`` for code) and,
where the reward wants it, ``prompt``. The rows of the output are those of the input with ``score``, ``verdict`` and,
for numeric, ``lenient_score`` added, of several rewards and of a sum ``reward_parts``.
"""

import json
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.data.columns import check_map, parse_map
from pipeline.data.files import read_rows
from pipeline.data.rows import Row, RowError
from pipeline.rewards.judging import VERDICTS, Judgement, judge_rows, part_means
from pipeline.rewards.registry import names
from pipeline.rewards.resolve import resolve
from pipeline.rewards.spec import parse_options
from pipeline.runtime.command_table import as_typed
from pipeline.runtime.entry import CommandParser, run_and_exit
from pipeline.runtime.errors import UserError
from pipeline.runtime.files import write_text
from pipeline.runtime.messages import text_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_REASONS_SHOWN = 5


def _parser() -> CommandParser:
    parser = CommandParser(
        prog=as_typed("score"),
        description=__doc__.partition("\n")[0],
        epilog="built-in rewards: " + ", ".join(names()),
        allow_abbrev=False,
    )
    parser.add_argument(
        "--reward",
        required=True,
        nargs="+",
        help="names, trl:NAME for TRL's, sums ('math + 0.2*format'), package.module:function, reward-model folders",
    )
    parser.add_argument("--reward_weights", nargs="+", type=float, help="weight of each reward [1]; 0: only reported")
    parser.add_argument(
        "--file", required=True, type=Path, help="file of rows with a completion each (jsonl, json, csv, parquet)"
    )
    parser.add_argument("--out", required=True, type=Path, help="JSONL file to write; on an error no file is written")
    parser.add_argument("--dataset_map", default="", help="old=new,… renames columns, such as gold=answer")
    parser.add_argument("--options", default="", help="options of the reward, such as limit=128 or deadline=5")
    parser.add_argument(
        "--tokenizer_name", help="model folder or Hub id whose tokens `length` counts; rows may bring completion_ids"
    )
    parser.add_argument(
        "--allow_unsafe_code_execution",
        action="store_true",
        help="run completions without a sandbox where none can be had: they can then do all that you can do",
    )
    return parser


def all_rows(path: Path) -> list[Row]:
    """Every row of a data file, read as the stages read it. UserError at the first bad row, or where there is none."""
    rows = list(read_rows(path))
    for row in rows:
        if isinstance(row.content, RowError):
            raise UserError(f"{path}, row {row.number}: {row.content}")
    if not rows:
        raise UserError(f"{path} is empty: it has no rows")
    return rows


def as_columns(rows: list[Row], renames: dict[str, str], path: Path) -> dict[str, list]:
    """The rows as columns under their new names; a field that a row lacks is None there.

    Raises UserError where a renamed column is in no row, a new name is taken, or a completion is missing or no text.
    """
    present = dict.fromkeys(name for row in rows for name in row.content)
    check_map(renames, present, str(path))
    columns = {renames.get(name, name): [row.content.get(name) for row in rows] for name in present}
    source = {new: old for old, new in renames.items()}.get("completion", "completion")
    for row in rows:
        if row.content.get(source) is None:
            raise UserError(f"{path}, row {row.number}: {source} is missing: every row needs a completion")
        try:
            text_of(row.content[source])
        except TypeError as cause:
            raise UserError(f"{path}, row {row.number}: {source}: {cause}") from cause
    return columns


def write_rows(path: Path, rows: list[dict]) -> None:
    """Write a JSONL file in ASCII, atomically: a completion may hold what UTF-8 cannot (half a surrogate pair).

    Raises:
        UserError: nothing can be written there.
    """
    path = path.resolve()
    try:
        write_text(path, "".join(json.dumps(row, default=str) + "\n" for row in rows))
    except OSError as cause:
        raise UserError(f"{path}: cannot write it: {cause.strerror}") from cause


def _tokenizer(name: str | None, columns: dict[str, list]) -> "PreTrainedTokenizerBase | None":
    """The tokenizer that counts a completion's tokens, where one is named and the rows do not bring their own."""
    if name is None or "completion_ids" in columns:
        return None
    from pipeline.model.loading import load_tokenizer

    return load_tokenizer(name)


def _scored_row(row: dict, judgement: Judgement, with_lenient: bool) -> dict:
    lenient = {"lenient_score": judgement.lenient} if with_lenient else {}
    parts = {} if judgement.parts is None else {"reward_parts": judgement.parts}
    return {**row, "score": judgement.score, **lenient, **parts, "verdict": judgement.verdict}


def summary(judgements: list[Judgement]) -> list[str]:
    """One line per verdict given, then the mean scores over the rows that have one."""
    counts = Counter(judgement.verdict for judgement in judgements)
    lines = [
        f"{v}: {counts[v]} of {len(judgements)} ({counts[v] / len(judgements):.1%})" for v in VERDICTS if counts[v]
    ]
    for name, values in (
        ("mean score", [j.score for j in judgements if j.score is not None]),
        ("mean lenient score", [j.lenient for j in judgements if j.lenient is not None]),
    ):
        if values:
            lines.append(f"{name}: {sum(values) / len(values):.4f} over {len(values)} rows")
    return lines + [f"{name}: {value:.4f}" for name, value in part_means(judgements).items()]


def main(arguments: list[str] | None = None) -> None:
    """Score a file of completions; see the module's docstring.

    Raises:
        UserError: a file, column, reward or option that is not there.
    """
    given = _parser().parse_args(arguments)
    options = parse_options(given.options)
    reward = resolve(
        given.reward, given.reward_weights, allow_unsafe_code_execution=given.allow_unsafe_code_execution, **options
    )
    if given.out.is_dir():
        raise UserError(f"{given.out}: is a folder; --out names a file")
    rows = all_rows(given.file)
    columns = as_columns(rows, parse_map(given.dataset_map), given.file)
    completions = columns.pop("completion")
    renamed = [dict(zip(columns, values)) for values in zip(*columns.values())] if columns else [{} for _ in rows]
    judgements = judge_rows(reward, renamed, completions, tokenizer=_tokenizer(given.tokenizer_name, columns))

    with_lenient = [text.strip() for text in given.reward] == ["numeric"]
    write_rows(given.out, [_scored_row(row.content, j, with_lenient) for row, j in zip(rows, judgements, strict=True)])
    print("\n".join(summary(judgements)))
    unjudged = [(row.number, j) for row, j in zip(rows, judgements) if j.verdict in ("unscorable", "error")]
    for number, judgement in unjudged[:_REASONS_SHOWN]:
        print(f"warning: row {number}: {judgement.verdict}: {judgement.reason}", file=sys.stderr)
    if len(unjudged) > _REASONS_SHOWN:
        print(f"warning: {len(unjudged) - _REASONS_SHOWN} more rows without a score", file=sys.stderr)


if __name__ == "__main__":
    run_and_exit(main)
