"""Converted rows as a ``datasets.Dataset`` with features we choose, so that nothing is guessed or rounded."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from pipeline.data.formats import content_hash
from pipeline.data.images import stored
from pipeline.runtime.files import Json

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa

    Feature = datasets.Value | datasets.List | datasets.Json

CHUNK = 10_000


def to_dataset(rows: Iterable[Json], kind: str) -> "datasets.Dataset":
    """Converted rows as a ``datasets.Dataset`` with features we choose, so that nothing is guessed or rounded.

    Text columns and dialogues have fixed types; dialogues whose messages have more than role and content are JSON, so
    that no message gets empty keys from another. Other columns (kind prompt) keep their numbers and lists where Arrow
    can hold them exactly; integers beyond 64 bits and columns of mixed types become text, objects become JSON.
    """
    import datasets
    import pyarrow as pa

    rows = list(rows)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    arrays, features = {}, {}
    for name in columns:
        values = [row.get(name) for row in rows]
        if name == "images":
            values = [stored(images or []) for images in values]
        if name == "chat_template_kwargs":
            values = [value or {} for value in values]  # TRL takes them by **
        feature = _standard_feature(name, values, kind) or _free_feature(values)
        if isinstance(feature, datasets.Json):
            values = [None if v is None else json.dumps(_plain(v), ensure_ascii=False, default=str) for v in values]
            arrays[name] = pa.chunked_array([pa.array(values, type=pa.string()).cast(pa.json_())])
        elif isinstance(feature, datasets.Value) and feature.dtype == "string":
            values = [v if v is None or isinstance(v, str) else json.dumps(v, default=str) for v in values]
            arrays[name] = _chunked(values, pa.string())
        else:
            arrays[name] = _chunked(values, datasets.Features({name: feature}).arrow_schema.field(name).type)
        features[name] = feature
    digest = content_hash({"kind": kind, "rows": [content_hash(row) for row in rows]})
    info = datasets.DatasetInfo(features=datasets.Features(features))
    return datasets.Dataset(pa.table(arrays), info=info, fingerprint=digest[:16])


def _chunked(values: list, kind: "pa.DataType") -> "pa.ChunkedArray":
    """An Arrow column in chunks, for one chunk of text may not pass 2 GiB."""
    import pyarrow as pa

    chunks = [pa.array(values[i : i + CHUNK], type=kind) for i in range(0, len(values), CHUNK)]
    return pa.chunked_array(chunks, type=kind)


def _standard_feature(name: str, values: Sequence[object], kind: str) -> "Feature | None":
    """The type of a column of a standard form; None for the free columns that go with a prompt."""
    import datasets

    if name == "images":
        return datasets.List(datasets.Image())
    text = datasets.Value("string")
    message = {"role": text, "content": text}
    if (kind == "prompt" and name != "prompt") or name in ("tools", "chat_template_kwargs"):
        return None
    if any(_more_than_role_and_content(value) for value in values):
        return datasets.Json()
    if name == "system":
        return text
    if name == "label":
        return datasets.Value("bool")
    if name == "ranks":
        return datasets.List(datasets.Value("int64"))
    if name == "unlearned":
        return datasets.List(datasets.List(datasets.Value("int64")))
    if name == "ranked":
        return datasets.List(text if isinstance(values[0][0], str) else datasets.List(message))
    return text if isinstance(values[0], str) else datasets.List(message)


def _more_than_role_and_content(value: object) -> bool:
    """Whether a message in a (list of) dialogues has keys beside role and content, or content in parts."""
    if isinstance(value, Mapping):
        return len(value) > 2 or isinstance(value.get("content"), list)
    return isinstance(value, list) and any(map(_more_than_role_and_content, value))


def _free_feature(values: Sequence[object]) -> "Feature":
    """The narrowest type that keeps every value as it is; text or JSON where there is none."""
    import datasets
    import pyarrow as pa

    if any(_holds_object(value) for value in values):
        return datasets.Json()
    try:
        found = pa.array(values).type
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        return datasets.Json() if any(isinstance(value, list) for value in values) else datasets.Value("string")
    if pa.types.is_null(found):
        return datasets.Value("string")
    return datasets.features.features.generate_from_arrow_type(found)


def _holds_object(value: object) -> bool:
    return isinstance(value, Mapping) or (isinstance(value, list) and any(_holds_object(item) for item in value))


def _plain(value: object) -> object:
    """The value with integers beyond 64 bits as text: JSON readers would round them."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, int) and not -(2**63) <= value < 2**63 else value
