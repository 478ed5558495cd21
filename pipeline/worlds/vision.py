"""Drawn shapes and written digits: images whose content is known, with captions, questions and preference pairs.

An image is 32 x 32 pixels on a pale ground: a grid of 4 x 4 cells of 8 pixels with one shape at most in each,
a circle, square, triangle or cross in red, green, blue or yellow, of varying size and shade.

===================== ==============================================================================================
world/vision          ``image``, ``prompt``, ``completion``, ``answer``, ``kind`` (``count``, ``colour``, ``relation``,
                      ``presence``)
world/vision-counts   the rows of kind ``count`` alone, for a verifier
world/vision-captions ``image``, ``text``: the shapes in reading order, then a fact about them
world/vision-text     ``text``: such captions, and questions with answers, without images: for learning to read
world/vision-pairs    ``image``, ``prompt``, ``chosen``, ``rejected``, ``kind``
world/vision-pope     presence alone, half of it absent: ``kind`` is ``present``, ``random`` (any absent object) or
                      ``adversarial`` (its colour and its shape are both there, on other objects); POPE's form
world/vision-digits   scikit-learn's 8 x 8 digits: ``image``, ``prompt``, ``completion``, ``answer``
===================== ==============================================================================================

Who does not look is at chance. The answers of ``count`` and ``colour`` are uniform over four, of the others over two,
whatever the question's words. The pairs come in twos: the same question about two images with different answers, each
the other's rejected one, so that a judge of words alone has exactly half. A layout (which shape is in which cell)
belongs to one split by its hash, so no test image has been seen in other sizes and shades.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from random import Random

from pipeline.runtime.errors import UserError
from pipeline.worlds.truth import seeded

SIDE, CELL = 4, 8
COLOURS = {"red": (214, 48, 44), "green": (44, 150, 62), "blue": (46, 86, 204), "yellow": (232, 190, 30)}
SHAPES = ("circle", "square", "triangle", "cross")
KINDS = ("count", "colour", "relation", "presence")
NAMES = ("vision", "vision-counts", "vision-captions", "vision-pairs", "vision-pope", "vision-digits", "vision-text")
ROWS = {"train": 8000, "test": 800}  # of world/vision; the other tables have a part of it
DIGITS = ("Which digit is this?", 1500)  # the question, and how many of the 1797 are for training

Thing = tuple[str, str]  # colour, shape
Scene = dict[int, Thing]  # cell (row by row) -> what is in it


def rows(name: str, split: str) -> Iterator[dict]:
    """The rows of a table, always the same ones in the same order."""
    if name == "vision-digits":
        yield from _digits(split)
        return
    count = ROWS[split]
    if name == "vision-captions":
        for i in range(count // 2):
            r = seeded(name, split, str(i))
            scene = _scene(r, split, r.randint(1, 6))
            yield {"image": _image(scene, r), "text": _caption(scene, r)}
        return
    if name == "vision-text":
        for i in range(count):
            r = seeded(name, split, str(i))
            _, question, answer = ask(r, split, KINDS[i % len(KINDS)])
            yield {"text": f"{question} {answer}" if i % 2 else _caption(_scene(r, split, r.randint(1, 6)), r)}
        return
    if name == "vision-pairs":
        for i in range(count // 8):
            yield from _pair(seeded(name, split, str(i)), split, KINDS[i % len(KINDS)])
        return
    kinds = {
        "vision": KINDS,
        "vision-counts": ("count",),
        "vision-pope": ("present", "random", "present", "adversarial"),
    }
    for i in range(count if name == "vision" else count // 4):
        r = seeded(name, split, str(i))
        kind = kinds[name][i % len(kinds[name])]
        scene, question, answer = ask(r, split, kind)
        image = _image(scene, r)
        yield {"image": image, "prompt": question, "completion": answer, "answer": answer, "kind": kind}


# ---------------------------------------------------------------------- questions


def ask(r: Random, split: str, kind: str) -> tuple[Scene, str, str]:
    """A scene, a question about it and its answer."""
    if kind == "count":
        return _count(r, split, r.randint(1, 4), *r.choice([(c, None) for c in COLOURS] + [(None, s) for s in SHAPES]))
    if kind == "colour":
        return _colour(r, split, r.choice(list(COLOURS)), r.choice(SHAPES))
    if kind == "relation":
        return _relation(r, split, r.random() < 0.5, r.choice(("left of", "above")), *_two(r))
    thing = r.choice(list(COLOURS)), r.choice(SHAPES)
    present = kind == "present" or (kind == "presence" and r.random() < 0.5)
    adversarial = kind == "adversarial" or (kind == "presence" and r.random() < 0.5)
    return _presence(r, split, present, adversarial, thing)


def _count(r: Random, split: str, count: int, colour: str | None, shape: str | None) -> tuple[Scene, str, str]:
    """``count`` objects of a colour or shape, among up to three others."""

    def is_one(thing: Thing) -> bool:
        return thing[0] == colour if shape is None else thing[1] == shape

    things = [thing for thing in _all() if is_one(thing)]
    others = [thing for thing in _all() if not is_one(thing)]
    scene = _laid(r, split, lambda: r.choices(things, k=count) + r.choices(others, k=r.randint(0, 3)))
    return scene, f"How many {plural(shape) if shape else f'{colour} shapes'} are there?", str(count)


def _colour(r: Random, split: str, colour: str, shape: str) -> tuple[Scene, str, str]:
    """One object of a shape, among others of other shapes and any colour."""
    others = [thing for thing in _all() if thing[1] != shape]
    scene = _laid(r, split, lambda: [(colour, shape), *r.choices(others, k=r.randint(1, 4))])
    return scene, f"What colour is the {shape}?", colour


def _relation(r: Random, split: str, holds: bool, where: str, one: Thing, other: Thing) -> tuple[Scene, str, str]:
    """Two objects, one of each, among others; whether the first is left of, or above, the second."""
    others = [thing for thing in _all() if thing not in (one, other)]

    def fits(scene: Scene) -> bool:
        first, second = (next(cell for cell, thing in scene.items() if thing == t) for t in (one, other))
        a, b = (first % SIDE, second % SIDE) if where == "left of" else (first // SIDE, second // SIDE)
        return a != b and (a < b) == holds

    scene = _laid(r, split, lambda: [one, other, *r.choices(others, k=r.randint(0, 2))], fits)
    return scene, f"Is the {' '.join(one)} {where} the {' '.join(other)}?", "yes" if holds else "no"


def _presence(r: Random, split: str, present: bool, adversarial: bool, thing: Thing) -> tuple[Scene, str, str]:
    """An object that is there or not; where ``adversarial`` its colour and its shape are there on other objects."""
    others = [one for one in _all() if one != thing]
    same_colour = [one for one in others if one[0] == thing[0]]
    same_shape = [one for one in others if one[1] == thing[1]]

    def things() -> list[Thing]:
        near = [r.choice(same_colour), r.choice(same_shape)] if adversarial else r.choices(others, k=2)
        return [*near, *([thing] if present else [r.choice(others)]), *r.choices(others, k=r.randint(0, 2))]

    article = "an" if thing[0][0] in "aeiou" else "a"
    scene = _laid(r, split, things)
    return scene, f"Is there {article} {' '.join(thing)}?", "yes" if present else "no"


def _pair(r: Random, split: str, kind: str) -> Iterator[dict]:
    """One question about two images with two answers."""
    asked = []
    if kind == "count":
        what = r.choice([(c, None) for c in COLOURS] + [(None, s) for s in SHAPES])
        asked = [_count(r, split, count, *what) for count in r.sample(range(1, 5), 2)]
    elif kind == "colour":
        shape = r.choice(SHAPES)
        asked = [_colour(r, split, colour, shape) for colour in r.sample(list(COLOURS), 2)]
    elif kind == "relation":
        where, things = r.choice(("left of", "above")), _two(r)
        asked = [_relation(r, split, holds, where, *things) for holds in (True, False)]
    else:
        thing = r.choice(list(COLOURS)), r.choice(SHAPES)
        asked = [_presence(r, split, present, r.random() < 0.5, thing) for present in (True, False)]
    answers = [answer for _, _, answer in asked]
    for (scene, question, answer), other in zip(asked, reversed(answers)):
        image = _image(scene, r)
        yield {"image": image, "prompt": question, "chosen": answer, "rejected": other, "kind": kind}


# ---------------------------------------------------------------------- scenes and pixels


def plural(shape: str) -> str:
    """``circles``, ``crosses``."""
    return shape + ("es" if shape.endswith("s") else "s")


def split_of(scene: Scene) -> str:
    """The split that a layout belongs to: one of ten is for testing."""
    layout = ",".join(f"{cell}{colour}{shape}" for cell, (colour, shape) in sorted(scene.items()))
    return "test" if hashlib.sha256(layout.encode()).digest()[0] % 10 == 0 else "train"


def draw(scene: Scene, r: Random) -> bytes:
    """A scene as the bytes of a PNG; sizes, places within the cell and shades vary with ``r``."""
    from PIL import Image, ImageDraw

    ground = tuple(r.randint(225, 250) for _ in range(3))
    image = Image.new("RGB", (SIDE * CELL, SIDE * CELL), ground)
    pen = ImageDraw.Draw(image)
    for cell, (colour, shape) in sorted(scene.items()):
        size = r.randint(5, 6)
        x = cell % SIDE * CELL + r.randint(0, CELL - 1 - size)
        y = cell // SIDE * CELL + r.randint(0, CELL - 1 - size)
        fill = tuple(min(255, max(0, value + r.randint(-18, 18))) for value in COLOURS[colour])
        box = (x, y, x + size, y + size)
        if shape == "circle":
            pen.ellipse(box, fill=fill)
        elif shape == "square":
            pen.rectangle(box, fill=fill)
        elif shape == "triangle":
            pen.polygon([(x, y + size), (x + size, y + size), (x + size // 2, y)], fill=fill)
        else:
            pen.line((x, y, x + size, y + size), fill=fill, width=2)
            pen.line((x, y + size, x + size, y), fill=fill, width=2)
    return _png(image)


def _png(image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _image(scene: Scene, r: Random) -> dict:
    return {"bytes": draw(scene, r), "path": None}


def _all() -> list[Thing]:
    return [(colour, shape) for colour in COLOURS for shape in SHAPES]


def _two(r: Random) -> list[Thing]:
    return r.sample(_all(), 2)


def _scene(r: Random, split: str, count: int) -> Scene:
    return _laid(r, split, lambda: r.choices(_all(), k=count))


def _laid(r: Random, split: str, things, fits=lambda scene: True) -> Scene:
    """The things in cells of their own, drawn until the layout belongs to the split and ``fits``."""
    while True:
        chosen = things()
        scene = dict(zip(r.sample(range(SIDE * SIDE), len(chosen)), chosen))
        if split_of(scene) == split and fits(scene):
            return scene


def _caption(scene: Scene, r: Random) -> str:
    """The shapes in reading order, then how many there are of a colour or a shape that is there."""
    things = [scene[cell] for cell in sorted(scene)]
    listed = ", ".join(" ".join(thing) for thing in things)
    which = r.randint(0, 1)
    value = r.choice(things)[which]
    count = sum(thing[which] == value for thing in things)
    noun = f"{value} {'shape' if count == 1 else 'shapes'}" if which == 0 else value if count == 1 else plural(value)
    return f"{listed}. There {'is' if count == 1 else 'are'} {count} {noun}."


def _digits(split: str) -> Iterator[dict]:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise UserError("world/vision-digits comes with scikit-learn: pip install 'narlm[vision]'") from None
    from PIL import Image

    question, training = DIGITS
    data = load_digits()
    order = list(range(len(data.target)))
    seeded("vision-digits").shuffle(order)
    for i in order[:training] if split == "train" else order[training:]:
        picture = Image.fromarray((data.images[i] * 15.9375).astype("uint8")).convert("RGB")
        size = (SIDE * CELL, SIDE * CELL)
        image = {"bytes": _png(picture.resize(size, Image.Resampling.BILINEAR)), "path": None}
        answer = str(int(data.target[i]))
        yield {"image": image, "prompt": question, "completion": answer, "answer": answer}
