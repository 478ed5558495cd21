"""What datasets call their columns, and which of the standard forms a dataset is read as.

``FORMS`` are the standard forms of each kind; ``SCHEMAS`` is the table of the names that public datasets use for their
columns. `find_form` decides by the first rows, once for a dataset; `Form.read` gives a row its standard names; and
`Form.reading` says what was taken, from which columns, what would have fitted too and what is not used. Stages and
``python -m pipeline.data.check`` print that same text.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

from pipeline.data.columns import check_map, listed, rename
from pipeline.data.dialogues import checked_list, is_hh
from pipeline.data.rows import RowError
from pipeline.data.sources import RawRow, Source
from pipeline.runtime.errors import UserError, nearest
from pipeline.runtime.files import Json

KINDS = ("text", "sft", "preference", "prompt", "ranked", "labelled")

# Of pairs the chosen answer is learned, as for the SFT that comes before DPO.
_LEARNED = (("messages",), ("conversations",), ("prompt", "completion"), ("prompt", "chosen"), ("chosen",))
# Columns that make a form, in order of preference for each kind.
FORMS: dict[str, tuple[tuple[str, ...], ...]] = {
    "text": (("text",), *_LEARNED),
    "sft": (*_LEARNED, ("text",)),
    "preference": (("prompt", "chosen", "rejected"), ("conversations", "chosen", "rejected"), ("chosen", "rejected")),
    "prompt": (("prompt",), ("messages",), ("conversations",), ("chosen", "rejected")),
    "ranked": (
        ("prompt", "ranked"),
        ("prompt", "chosen", "rejected"),
        ("conversations", "chosen", "rejected"),
        ("chosen", "rejected"),
    ),
    "labelled": (("prompt", "completion", "label"),),
}


class Schema(NamedTuple):
    """Names that datasets use: the column, and the standard column or ``input`` (what the prompt is about)."""

    columns: Mapping[str, str]
    name: str = ""


# The first that gives a form all its columns is taken. docs/new_dataset.md has this table with data sets.
SCHEMAS = (
    Schema({}),  # the standard names
    Schema({"prompt": "prompt", "response": "completion"}),
    Schema({"prompt": "prompt", "output": "completion"}),
    Schema({"instruction": "prompt", "input": "input", "context": "input", "output": "completion"}, "Alpaca"),
    Schema({"instruction": "prompt", "input": "input", "context": "input", "response": "completion"}),
    Schema({"question": "prompt", "response": "completion"}),
    Schema({"question": "prompt", "solution": "completion"}),
    Schema({"question": "prompt", "answer": "completion"}),
    Schema({"problem": "prompt", "solution": "completion"}),
    Schema({"problem": "prompt", "answer": "completion"}),
    Schema({"query": "prompt", "response": "completion"}),
    Schema({"query": "prompt", "answer": "completion"}),
    Schema({"input": "prompt", "output": "completion"}),
    Schema({"conversation": "conversations"}, "Capybara"),
)
# A column with one of these names is the system message of its row, whatever the schema.
SYSTEM = ("system", "system_prompt")

_WANTED = {
    "text": "text (or messages, or prompt+completion)",
    "sft": "messages, or prompt+completion (or text)",
    "preference": "prompt+chosen+rejected, or chosen+rejected that are complete dialogues",
    "prompt": "prompt (or messages)",
    "ranked": "prompt+ranked, best first",
    "labelled": "prompt+completion+label",
}

# Further names of these columns, for the hint that comes with an error.
_ALIASES = {
    "prompt": ("question", "instruction", "problem", "query", "user_query", "input", "task", "sentence", "text"),
    "completion": ("answer", "response", "output", "solution", "chatgpt_response", "target", "code", "label"),
    "text": ("content", "document", "sentence", "passage", "body", "code"),
    "messages": ("dialogue", "dialog", "chat"),
    "chosen": ("preferred", "better", "accepted", "response_chosen", "answer_chosen"),
    "rejected": ("dispreferred", "worse", "response_rejected", "answer_rejected"),
    "ranked": ("ranking", "responses", "completions"),
}

# Who takes rows of a kind, what is asked for most first: pairs are also answers to learn.
_STAGES = {
    "labelled": "reward_model --objective binary",
    "preference": "dpo, or reward_model --objective pairwise",
    "ranked": "reward_model --objective listwise",
    "sft": "sft",
    "prompt": "grpo, ppo or rsft",
    "text": "pretrain or sft",
}


# Columns that are read beside those of the form, and how.
_BESIDE = {"input": "in the prompt", "system": "as the system prompt", "label": "only where it is true"}


class Form(NamedTuple):
    """The form of one dataset: the standard columns it is read as, whether prompts and answers are dialogues, and
    where they are stored: the columns of other names by standard name (also ``input``, ``system`` and ``label``).
    """

    columns: tuple[str, ...]
    conversational: bool
    stored: Mapping[str, str] = {}
    schema: str = ""
    also: tuple[str, ...] = ()

    def read(self, row: Json) -> Json:
        """The row under the standard names; a column that has such a name and is not it leaves."""
        taken = {*self.stored, *self.stored.values()}
        kept = {key: value for key, value in row.items() if key not in taken}
        return kept | {name: row[column] for name, column in self.stored.items() if column in row}

    def read_columns(self, row: Json) -> Json:
        """The columns of the row that make the form, under their standard names."""
        return {name: value for name, value in self.read(row).items() if name in self.columns}

    def reading(self, columns: Collection[str], kind: str) -> str:
        """What was read from which columns, and what was not: ``prompt + completion from …; not used: id``."""
        read = [self.stored.get(name, name) for name in self.columns]
        extra = {self.stored[name]: what for name, what in _BESIDE.items() if name in self.stored}
        text = " + ".join(self.columns)
        if read != list(self.columns):
            text += f" from {' + '.join(read)}" + (f" ({self.schema})" if self.schema else "")
        text += "".join(f", {column} {what}" for column, what in extra.items())
        fitting = {column for other in self.also for column in other.split(" + ")}
        rest = [f"{other} (would fit too)" for other in self.also]
        rest += [column for column in columns if column not in {*read, *extra, *fitting, *self._optional(kind)}]
        if rest:
            text += f"; {'for the rewards' if kind == 'prompt' else 'not used'}: {', '.join(rest)}"
        return text

    def _optional(self, kind: str) -> tuple[str, ...]:
        """Columns that are read where they are there."""
        ranks = ("ranks",) if self.columns == ("prompt", "ranked") else ()
        seen = ("image", "images")
        if kind == "text":
            return ("unlearned", *seen)
        return (*ranks, *seen, "tools", "chat_template_kwargs") if self.conversational else (*ranks, *seen)


def prepare(row: Json, source: Source) -> Json:
    """A raw row after the entry's ``columns`` and ``dataset_map``."""
    if source.columns is not None:
        row = {key: row[key] for key in source.columns if key in row}
    return rename(row, source.dataset_map)


def find_form(source: Source, kind: str, first: Sequence[RawRow]) -> Form:
    """The form of a dataset by its first readable rows; UserError where a named column is missing or none fits."""
    rows = [row for _, _, row in first if not isinstance(row, RowError)]
    if not rows:
        place, number, error = next(iter(first))
        raise UserError(f"{place}, row {number}: {error}")
    columns = list(dict.fromkeys(key for row in rows for key in row))
    for name in source.columns or ():
        if name not in columns:
            raise UserError(f"{source.label} has no column {name!r} (columns); it has {', '.join(columns)}")
    kept = [c for c in columns if source.columns is None or c in source.columns]
    check_map(source.dataset_map, kept, source.label)
    return detect([prepare(row, source) for row in rows], kind, source.label, set(source.dataset_map.values()))


def detect(rows: Sequence[Json], kind: str, where: str, mapped: Collection[str] = ()) -> Form:
    """The form of a dataset, from its first rows (columns already renamed).

    Columns that the user named in ``--dataset_map`` decide before the order of ``FORMS`` and of ``SCHEMAS``.

    Raises:
        UserError: no form of this kind fits; the message lists the columns found and the nearest ``--dataset_map``.
    """
    if kind not in KINDS:
        raise UserError(f"kind {kind!r} is none of {', '.join(KINDS)}")
    columns = list(dict.fromkeys(key for row in rows for key in row))
    fitting = sorted(_fitting(columns, kind), key=lambda form: -len(_used(form) & set(mapped)))
    if not fitting:
        raise UserError(
            f"{where} has no columns for {kind} data: it needs {_WANTED[kind]}; it has {listed(columns)}"
            f"{_map_hint(columns, kind) or _other_stage(columns, kind)}"
        )
    form = fitting[0]
    names = form.columns
    sample = next((row for row in map(form.read, rows) if all(row.get(name) is not None for name in names)), None)
    if sample is None:
        empty = " or ".join(form.stored.get(name, name) for name in names)
        raise UserError(f"{where}: the first {len(rows)} rows leave {empty} empty")
    if names[0] == "chosen" and isinstance(sample["chosen"], str) and not is_hh(sample["chosen"]):
        raise UserError(
            f"{where} has {' and '.join(names)} texts but no prompt: add a prompt column (dataset_map), or give "
            f"complete dialogues; it has {listed(columns)}"
        )
    dialogue = any(not isinstance(sample[name], str) for name in names if name not in ("text", "ranked", "label"))
    if "ranked" in names:
        dialogue = dialogue or any(not isinstance(c, str) for c in checked_list(sample["ranked"], "ranked"))
    dialogue = dialogue or names[0] in ("messages", "conversations", "chosen") or is_hh(sample.get("prompt"))
    used = _used(form)
    others: dict[tuple[str, ...], str] = {}
    for other in fitting:
        if other.columns != names and "chosen" not in other.columns and not used.issuperset(_read(other)):
            others.setdefault(other.columns, " + ".join(_read(other)))
    if kind == "sft" and "completion" in names and _judges(rows):
        form = form._replace(stored={**form.stored, "label": "label"})
    return form._replace(conversational=dialogue, also=tuple(others.values()))


def _judges(rows: Sequence[Json]) -> bool:
    """Whether the column ``label`` says if an answer is good, as in rows for KTO; a class is a number or a word."""
    labels = [row["label"] for row in rows if row.get("label") is not None]
    return bool(labels) and all(isinstance(label, bool) for label in labels)


def _fitting(columns: Collection[str], kind: str) -> Iterator[Form]:
    """The forms whose columns are there, under their own or other names; each by the first schema that has them."""
    system = next((name for name in SYSTEM if name in columns), None)
    for names in FORMS[kind]:
        for schema in SCHEMAS:
            stored = {new: old for old, new in reversed(schema.columns.items()) if old in columns}
            taken = (*names, "input") if names[0] == "prompt" else names
            stored = {new: old for new, old in stored.items() if new in taken}
            asked = "prompt" in stored or "prompt" not in names or not schema.columns
            if asked and all(name in stored or name in columns for name in names):
                if system and names != ("text",):
                    stored["system"] = system
                yield Form(names, False, stored, schema.name)


def _read(form: Form) -> list[str]:
    """The columns that a form's standard columns are stored in."""
    return [form.stored.get(name, name) for name in form.columns]


def _used(form: Form) -> set[str]:
    return {*_read(form), *form.stored.values()}


def _other_stage(columns: Collection[str], kind: str) -> str:
    """``; these rows (instruction + output) are for sft``: the stages that take rows with these columns."""
    for other, stages in _STAGES.items():
        form = next(_fitting(columns, other), None) if other != kind else None
        if form is not None and (form.columns != ("text",) or other == "text"):
            return f"; these rows ({' + '.join(_read(form))}) are for {stages}"
    return ""


def _map_hint(columns: Sequence[str], kind: str) -> str:
    """``; try --dataset_map question=prompt,answer=completion`` where renaming is all it takes; of several forms the
    one of most renamed columns.
    """
    best: dict[str, str] = {}
    for form in FORMS[kind]:
        renames: dict[str, str] = {}
        for name in form:
            if name in columns:
                continue
            free = [c for c in columns if c not in renames and c not in form]
            known = [c for alias in _ALIASES.get(name, ()) for c in free if c.lower() == alias]
            column = known[0] if known else nearest(name, free, cutoff=0.75)
            if column:
                renames[column] = name
        complete = all(name in columns or name in renames.values() for name in form)
        if complete and len(renames) > len(best):
            best = renames
    return "; try --dataset_map " + ",".join(f"{old}={new}" for old, new in best.items()) if best else ""
