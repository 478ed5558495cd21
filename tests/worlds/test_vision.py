"""What is true of the drawn shapes: answers that can be read off the layout, chance for who does not look."""

import io
from collections import Counter, defaultdict

import pytest
from PIL import Image

from pipeline.worlds import vision
from pipeline.worlds.table import load_world
from pipeline.worlds.truth import seeded


@pytest.fixture(scope="module")
def table():
    """The test rows of a table, and of ``vision-pairs`` the first of training too."""
    return {name: list(vision.rows(name, "test")) for name in vision.NAMES if name not in ("vision-digits",)}


@pytest.mark.parametrize("kind", vision.KINDS)
def test_answers_are_true_of_the_scene(kind):
    """Counted and compared here from the layout itself, 60 scenes of a kind: question words -> answer."""
    for i in range(60):
        scene, question, answer = vision.ask(seeded("a test", kind, str(i)), "train", kind)
        things = list(scene.values())
        words = question.rstrip("?").split()
        if kind == "count":
            names = {vision.plural(shape): shape for shape in vision.SHAPES}
            if words[3] == "shapes":
                true = sum(colour == words[2] for colour, _ in things)
            else:
                true = sum(shape == names[words[2]] for _, shape in things)
            assert answer == str(true)
        elif kind == "colour":
            assert [colour for colour, shape in things if shape == words[-1]] == [answer]
        elif kind == "relation":
            one, other = (words[2], words[3]), (words[-2], words[-1])
            (a,), (b,) = ([cell for cell, thing in scene.items() if thing == t] for t in (one, other))
            true = a % 4 < b % 4 if "left" in words else a // 4 < b // 4
            assert answer == ("yes" if true else "no")
        else:
            assert answer == ("yes" if (words[-2], words[-1]) in things else "no")


def test_who_does_not_look_is_at_chance(table):
    """Of 200 rows a kind: no answer of count or colour above 0.35 (chance 0.25, six standard errors of 0.03 are 0.18),
    none of the others above 0.6.
    """
    answers = defaultdict(Counter)
    for row in table["vision"]:
        answers[row["kind"]][row["answer"]] += 1
    assert {kind: sum(counts.values()) for kind, counts in answers.items()} == dict.fromkeys(vision.KINDS, 200)
    for kind, most in (("count", 0.35), ("colour", 0.35), ("relation", 0.6), ("presence", 0.6)):
        assert max(answers[kind].values()) / 200 < most
    assert Counter(row["answer"] for row in table["vision-pope"]) == {"yes": 100, "no": 100}


def test_pairs_come_in_twos(table):
    """The same words twice, with the answers exchanged and another image: a judge of words alone has one of two."""
    rows = table["vision-pairs"]
    assert len(rows) == 200
    for one, other in zip(rows[::2], rows[1::2]):
        assert (one["prompt"], one["chosen"], one["rejected"]) == (other["prompt"], other["rejected"], other["chosen"])
        assert one["image"]["bytes"] != other["image"]["bytes"]


def test_adversarial_objects_are_almost_there():
    """Asked for a red circle that is absent: something red is there, and a circle."""
    for i in range(40):
        scene, question, answer = vision.ask(seeded("pope", str(i)), "test", "adversarial")
        colour, shape = question.rstrip("?").split()[-2:]
        assert answer == "no"
        assert colour in {c for c, _ in scene.values()}
        assert shape in {s for _, s in scene.values()}


def test_no_layout_is_in_both_splits():
    """Every scene says itself where it belongs, and questions keep to it."""
    for split in ("train", "test"):
        for kind in (*vision.KINDS, "present", "random", "adversarial"):
            scene, _, _ = vision.ask(seeded(split, kind), split, kind)
            assert vision.split_of(scene) == split


def test_pixels_show_the_scene(table):
    """A 32 x 32 PNG; the cell of a red square is red, an empty one is pale; the same rows twice."""
    picture = Image.open(io.BytesIO(vision.draw({5: ("red", "square")}, seeded("pixels"))))
    assert picture.size == (32, 32)
    red, green, blue = picture.getpixel((12, 12))  # the middle of cell 5: row 1, column 1
    assert red > 180
    assert max(green, blue) < 80
    assert min(picture.getpixel((28, 28))) > 200
    assert list(vision.rows("vision-pope", "test")) == table["vision-pope"]


def test_captions_name_what_is_there(table):
    for row in table["vision-captions"][:30]:
        listed, fact = row["text"].split(". ")
        things = [tuple(thing.split()) for thing in listed.split(", ")]
        number, name = fact.removesuffix(".").split()[2:4]
        singular = {vision.plural(shape): shape for shape in vision.SHAPES}.get(name, name)
        assert int(number) == sum(singular in thing for thing in things)


def test_digits():
    """scikit-learn's 1797 digits, 1500 of them for training; without it, an error that names the extra."""
    pytest.importorskip("sklearn")
    assert [len(load_world("vision-digits", split)) for split in ("train", "test")] == [1500, 297]
    row = load_world("vision-digits", "test")[0]
    assert Image.open(io.BytesIO(row["image"]["bytes"])).size == (32, 32)
    assert row["answer"] in set("0123456789")
