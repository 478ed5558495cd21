"""JSON read strictly: one object per line, or one list of objects; no type is guessed and no value changed.

Python's parser alone keeps the last of two equal keys, reads half a surrogate pair that no text can hold, and ends in
bare errors on deep nesting and on long integers; here each is a bad row.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from pipeline.data.rows import Cursor, Row, RowError
from pipeline.data.text_files import decode, open_text
from pipeline.runtime.errors import UserError
from pipeline.runtime.files import Json

# Deeper values would overflow the stack of what reads them next (hashing, Arrow).
JSON_LEVELS = 100
_TOO_DEEP = f"JSON nested too deeply (more than {JSON_LEVELS} levels)"
_SPACE = re.compile(r"[ \t\r\n]*")


def _number(text: str) -> int:
    """``json``'s integers without Python's limit of 4300 digits, which would raise a bare ValueError."""
    if len(text) > 4000:
        raise RowError("", f"an integer of {len(text)} digits")
    return int(text)


def _unique(pairs: list[tuple[str, object]]) -> Json:
    """The object of these pairs. ``json`` would keep the last value of a key that comes twice, and lose the other."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise RowError(next(key for key in keys if keys.count(key) > 1), "comes twice in one object")
    return found


_JSON = json.JSONDecoder(parse_int=_number, object_pairs_hook=_unique)


def _json_object(text: str, start: int = 0) -> tuple[Json, int]:
    """The JSON object that begins at ``start`` and the place where it ends.

    Raises:
        RowError: no JSON, no object, or an object that cannot be stored exactly.
    """
    try:
        value, end = _JSON.raw_decode(text, start)
    except json.JSONDecodeError as error:
        line = f" of line {error.lineno}" if error.lineno > 1 else ""
        raise RowError("", f"not valid JSON: {error.msg} at column {error.colno}{line}") from None
    except RecursionError:
        raise RowError("", _TOO_DEEP) from None
    _check_object(value, text[start:end])
    return value, end


def _check_object(value: object, text: str) -> None:
    """Raises RowError unless ``value``, written as ``text``, is an object that can be hashed and stored as it is."""
    if not isinstance(value, dict):
        raise RowError("", f"a JSON object was expected, found {type(value).__name__}")
    if text.count("[") + text.count("{") > JSON_LEVELS and _deeper(value, JSON_LEVELS):
        raise RowError("", _TOO_DEEP)
    if "\\ud" in text or "\\uD" in text:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise RowError("", "half a surrogate pair (\\ud800 to \\udfff alone) is not text") from None


def _deeper(value: object, levels: int) -> bool:
    """Whether objects and lists in ``value`` are nested more than ``levels`` deep."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return inner is not None and (levels == 0 or any(_deeper(item, levels - 1) for item in inner))


def _whole_object(text: str) -> Json:
    """The one JSON object of a line; RowError where it has anything else."""
    text = text.strip()
    value, end = _json_object(text)
    if end < len(text):
        raise RowError("", f"not valid JSON: more text after the object, at column {end + 1}")
    return value


def jsonl_rows(path: Path, start: Cursor) -> Iterator[Row]:
    """One object per line, numbered by line; blank lines are skipped."""
    with open_text(path) as file:
        file.seek(start.offset)
        offset, number = start
        for line in file:
            offset, number = offset + len(line), number + 1
            if not line.strip():
                continue
            content: Json | RowError
            try:
                content = _whole_object(decode(line, number == 1))
            except RowError as error:
                hint = "" if line.endswith(b"\n") else "; the file ends in this row: is it cut?"
                if number == 1 and line.lstrip(b"\xef\xbb\xbf \t").startswith(b"["):
                    hint = "; a list of objects is read from a file named .json"
                content = RowError(error.field, error.reason + hint)
            yield Row(number, content, Cursor(offset, number))


def json_rows(path: Path, start: Cursor) -> Iterator[Row]:
    """A ``.json`` file is one list of objects, or, as often on the Hub, one object per line."""
    with open_text(path) as file:
        head = file.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n")
    if head[:1] == b"{" and not head.partition(b"\n")[0].strip(b"{ \t\r"):
        raise UserError(f"{path} spreads an object over several lines: give a list of objects, or one object per line")
    if not head.startswith(b"["):
        yield from jsonl_rows(path, start)
        return
    with open_text(path) as file:
        try:
            text = decode(file.read(), first=True)
        except RowError as error:
            raise UserError(f"{path}: {error}".replace(" of the row", "")) from None
    for number, content in enumerate(_listed_objects(path, text), start=1):
        if number > start.records:
            yield Row(number, content, Cursor(0, number))


def _listed_objects(path: Path, text: str) -> Iterator["Json | RowError"]:
    """The members of the JSON list that ``text`` is, one by one. UserError where it is none."""
    number = 0

    def wrong(reason: object) -> UserError:
        return UserError(f"{path}, row {number}: {reason}")

    place = _SPACE.match(text, text.index("[") + 1).end()
    while number or text[place : place + 1] != "]":
        number += 1
        content: Json | RowError
        try:
            content, place = _json_object(text, place)
        except RowError as error:
            try:
                place = json.JSONDecoder(parse_int=str).raw_decode(text, place)[1]
            except (json.JSONDecodeError, RecursionError):
                raise wrong(error) from None
            content = error
        yield content
        place = _SPACE.match(text, place).end()
        if text[place : place + 1] == "]":
            break
        if text[place : place + 1] != ",":
            raise wrong("no comma or closing bracket after it: not a JSON list, or a cut one")
        place = _SPACE.match(text, place + 1).end()
        if text[place : place + 1] == "]":
            raise wrong("a comma after the last row, which JSON does not have")
    if text[place + 1 :].strip():
        raise UserError(f"{path} has more text after its list: give one list of objects, or one object per line")
