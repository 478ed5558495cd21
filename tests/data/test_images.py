"""Images of rows: what is read, where their places are, what is refused."""

import io
import json

import pytest
from PIL import Image

from pipeline.data.arguments import DataArguments
from pipeline.data.images import PLACE, checked, opened, see
from pipeline.data.loading import load_data, read_split
from pipeline.data.rows import RowError
from pipeline.runtime.errors import UserError

RED = Image.new("RGB", (4, 6), "red")
ASKED = {"prompt": "How many?", "completion": "3"}


def png(image: Image.Image = RED) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def test_an_image_may_be_a_path_bytes_or_pil(tmp_path):
    """All three are kept as the same bytes; a relative path is read beside the file of the row."""
    (tmp_path / "red.png").write_bytes(png())
    for value in (png(), {"bytes": png(), "path": None}, RED, "red.png", {"bytes": None, "path": "red.png"}):
        kept = checked(value, "image", str(tmp_path / "rows.jsonl"))
        assert kept["bytes"] == png()
        (image,) = opened([kept])
        assert (image.size, image.getpixel((0, 0))) == ((4, 6), (255, 0, 0))


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("https://example.org/cat.png", "is a URL: images are not fetched"),
        ("data:image/png;base64,AAAA", "is a URL"),
        ("nowhere.png", "there is no file nowhere.png"),
        (b"no image", "is no image"),
        (3, "an image was expected"),
    ],
)
def test_what_is_no_image(value, reason):
    with pytest.raises(RowError, match=reason):
        checked(value, "image")


def test_places_are_before_the_first_words_of_the_user():
    """Strings become turns; two images, two places; an answer that is text stays it, for the reward."""
    row = see(ASKED, {**ASKED, "images": [png(), RED]}, "sft", "")
    content = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "How many?"}]
    assert row["prompt"] == [{"role": "user", "content": content}]
    assert row["completion"] == [{"role": "assistant", "content": "3"}]
    assert [image["bytes"] for image in row["images"]] == [png(), png()]
    assert see({"text": "a red square"}, {"image": png()}, "text", "")["text"] == PLACE + "a red square"
    assert see(ASKED, ASKED, "sft", "") is ASKED


def interleaved(places: int) -> list[dict]:
    parts = [{"type": "text", "text": "This"}, {"type": "image"}, {"type": "text", "text": " or "}, {"type": "image"}]
    return [{"role": "user", "content": parts[: 2 * places]}]


def test_places_in_the_messages_stay_where_they_are():
    row = {"prompt": interleaved(2), "completion": "the first"}
    assert see(row, {"images": [png(), png()]}, "sft", "")["prompt"] == interleaved(2)


@pytest.mark.parametrize(
    ("converted", "row", "kind", "reason"),
    [
        ({"prompt": interleaved(2)}, {"images": [png()]}, "prompt", "has 2 places for images, and the row has 1"),
        ({"prompt": interleaved(1)}, {}, "prompt", "has 1 places for images, and the row has 0"),
        ({"text": f"{PLACE} and {PLACE}"}, {"image": png()}, "text", "has 2 times"),
        (
            {"messages": [{"role": "assistant", "content": "hello"}]}, {"image": png()}, "sft", "no turn of the user",
        ),
    ],
)  # fmt: skip
def test_places_and_images_must_agree(converted, row, kind, reason):
    with pytest.raises(RowError, match=reason):
        see(converted, row, kind, "")


def test_a_file_of_rows(tmp_path):
    """JSONL with paths, of a mixture of rows with an image, two and none: bytes in Arrow, the words of each."""
    (tmp_path / "red.png").write_bytes(png())
    rows = [
        {**ASKED, "images": ["red.png"]},
        {"prompt": "Which?", "completion": "both", "images": ["red.png", "red.png"]},
        {"prompt": "Hello?", "completion": "yes", "images": []},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = read_split(str(path), "train", kind="sft")
    assert [len(images) for images in data["images"]] == [1, 2, 0]
    assert data[0]["images"][0].size == (4, 6)
    assert data[2]["prompt"] == [{"role": "user", "content": "Hello?"}]
    with path.open("a") as file:
        file.write(json.dumps({**ASKED, "images": ["gone.png"]}) + "\n")
    with pytest.raises(UserError, match=r"rows.jsonl, row 4: images\[0\]: there is no file gone.png"):
        load_data(DataArguments(dataset_name=str(path), eval_rows=0), "sft", 0)
