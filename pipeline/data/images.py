"""Images of rows: read, checked, and given their places among the words.

A row has ``image`` (one) or ``images`` (a list): a path, the bytes of a file, ``{"bytes", "path"}`` as `datasets`
stores them, or a PIL image. URLs are refused: nothing is fetched. After `see` a row has ``images``, always a list of
``{"bytes", "path"}``, and a place for each: a part ``{"type": "image"}`` in the messages, before the first words of
the user where the row says nothing else (as in TRL), or `PLACE` in running text.
"""

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.data.rows import RowError
from pipeline.runtime.files import Json
from pipeline.runtime.messages import Message, as_turns, is_dialogue

if TYPE_CHECKING:
    from PIL import Image

COLUMNS = ("images", "image")
PLACE = "<|image|>"


def see(converted: Json, row: Json, kind: str, place: str) -> Json:
    """A converted row with its images and their places; the row itself where neither has any.

    Args:
        converted: of `formats.convert`.
        row: the row as it is stored.
        kind: of the data.
        place: the file that it is stored in, by whose folder relative paths are read.

    Raises:
        RowError: an image that cannot be read, or more or fewer places than images.
    """
    images = _read(row, place)
    dialogue = next((name for name in ("messages", "prompt") if is_dialogue(converted.get(name))), None)
    places = sum(1 for _ in _parts(converted[dialogue])) if dialogue else 0
    if images is None and not places:
        return converted
    images = images or []
    without = {name: value for name, value in converted.items() if name not in COLUMNS}
    if kind == "text":
        return _written(without, images)
    if dialogue is None:
        if not isinstance(converted.get("prompt"), str):
            raise RowError(next(name for name in COLUMNS if name in row), "goes with a prompt or messages")
        without, dialogue = as_turns(without, kind), "prompt"
    if not places and images:
        without[dialogue] = _before_the_words(without[dialogue], len(images))
        places = len(images)
    if places != len(images):
        raise RowError(
            dialogue, f"has {places} places for images, and the row has {len(images)} images: make them agree"
        )
    answers = (name for name in ("completion", "chosen", "rejected") if is_dialogue(converted.get(name)))
    if any(any(_parts(converted[name])) for name in answers):
        raise RowError("images", "an answer has a place for an image: models that see write text")
    return without | {"images": images}


def has_images(columns: Sequence[str]) -> bool:
    """Whether rows with these columns are rows of a model that sees."""
    return "images" in columns


def stored(images: Sequence[object]) -> list[Json]:
    """Images as rows keep them, also those that were decoded meanwhile."""
    return [image if isinstance(image, Mapping) else {"bytes": _png(image), "path": None} for image in images]


def opened(images: Sequence[object]) -> "list[Image.Image]":
    """PIL images in RGB of what rows keep."""
    from PIL import Image

    found = (image if isinstance(image, Image.Image) else Image.open(io.BytesIO(image["bytes"])) for image in images)
    return [image.convert("RGB") for image in found]


def shown(images: Sequence[Mapping], most: int = 32_768) -> list[str]:
    """Small images as ``data:`` URIs, for a report; those of more than ``most`` bytes are left out."""
    kinds = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpeg", b"GIF8": "gif", b"RIFF": "webp"}
    found = []
    for data in (image["bytes"] for image in images):
        kind = next((kind for magic, kind in kinds.items() if data.startswith(magic)), None)
        if kind and len(data) <= most:
            found.append(f"data:image/{kind};base64,{base64.b64encode(data).decode()}")
    return found


def checked(value: object, field: str, place: str = "") -> Json:
    """One image as ``{"bytes", "path"}``, known to be one.

    Raises:
        RowError: a URL, no such file, or not an image.
    """
    from PIL import Image

    path = None
    if isinstance(value, Mapping) and {"bytes", "path"} & value.keys():
        path, value = value.get("path"), value.get("bytes") or value.get("path")
    if isinstance(value, str):
        if "://" in value or value.startswith("data:"):
            raise RowError(field, f"{value[:80]} is a URL: images are not fetched; store the file or its bytes")
        found = next((p for p in (Path(place).parent / value, Path(value).expanduser()) if p.is_file()), None)
        if found is None:
            raise RowError(field, f"there is no file {value}")
        path, value = value, found.read_bytes()
    if isinstance(value, Image.Image):
        return {"bytes": _png(value), "path": path}
    if not isinstance(value, bytes):
        raise RowError(field, f"an image was expected (path, bytes or PIL), found {type(value).__name__}")
    try:
        Image.open(io.BytesIO(value)).load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise RowError(field, f"is no image: {' '.join(str(error).split())[:100]}") from None
    return {"bytes": value, "path": path}


def _read(row: Json, place: str) -> list[Json] | None:
    """The images of a row in order; None where it has no column for them."""
    for name in COLUMNS:
        if name in row:
            value = row[name]
            if value is None:
                return []
            many = list(value) if isinstance(value, list | tuple) else [value]
            fields = [f"{name}[{i}]" if isinstance(value, list) else name for i in range(len(many))]
            return [checked(one, field, place) for one, field in zip(many, fields)]
    return None


def _png(image: "Image.Image") -> bytes:
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()


def _parts(messages: Sequence[Message]) -> Iterator[Mapping]:
    for message in messages:
        if isinstance(message.get("content"), list):
            yield from (part for part in message["content"] if part["type"] == "image")


def _written(row: Json, images: list[Json]) -> Json:
    text = row["text"]
    if "unlearned" in row:
        raise RowError("unlearned", "text with images is learned completely: leave it out")
    if PLACE not in text:
        text = PLACE * len(images) + text
    if text.count(PLACE) != len(images):
        raise RowError(
            "text", f"has {text.count(PLACE)} times {PLACE}, and the row has {len(images)} images: make them agree"
        )
    return row | {"text": text, "images": images}


def _before_the_words(messages: Sequence[Message], count: int) -> list[Message]:
    """The messages with ``count`` places before the first words of the user."""
    first = next((i for i, message in enumerate(messages) if message["role"] == "user"), None)
    if first is None:
        raise RowError("images", "there is no turn of the user to put the images in")
    content = [*({"type": "image"} for _ in range(count)), {"type": "text", "text": messages[first]["content"]}]
    return [*messages[:first], {**messages[first], "content": content}, *messages[first + 1 :]]
