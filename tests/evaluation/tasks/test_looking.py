"""Looking and POPE's figures: by hand, and on a model whose answers are known."""

import pytest
from PIL import Image

from pipeline.evaluation.tasks import looking as task
from pipeline.evaluation.tasks.looking import baselines, blank, looking, objects, said_yes, shuffled, yes_figures
from pipeline.inference.decoding import Completion
from pipeline.runtime.messages import user_turn
from tests.stages.conftest import write_rows


def test_yes_figures():
    """Of yes, yes, no, neither against the truth yes, no, no, yes: two right of four; yes said twice; of two that are
    there one is found, of two found one is there: precision = recall = F1 = 1/2.
    """
    figures = yes_figures([True, True, False, None], [True, False, False, True])
    assert {name: figures[name] for name in ("accuracy", "yes_rate", "precision", "recall", "f1", "neither")} == {
        "accuracy": 0.5, "yes_rate": 0.5, "precision": 0.5, "recall": 0.5, "f1": 0.5, "neither": 0.25,
    }  # fmt: skip
    assert yes_figures([False], [True])["f1"] == 0.0


@pytest.mark.parametrize(("text", "said"), [(" Yes, it is", True), ("no.", False), ("nobody", None), ("", None)])
def test_said_yes(text, said):
    assert said_yes(text) is said


def rows(*colours: str) -> list[dict]:
    return [
        {"prompt": user_turn(f"which {i % 2}?"), "answer": colour, "images": [Image.new("RGB", (4, 4), colour)]}
        for i, colour in enumerate(colours)
    ]


def test_other_images_and_none():
    """Nobody keeps its own image; all are there once; a blank one is grey and as large."""
    given = rows("red", "blue", "green", "yellow", "black")
    other = shuffled(given, 0)
    seen = [row["images"][0].getpixel((0, 0)) for row in other]
    assert all(a != b["images"][0].getpixel((0, 0)) for a, b in zip(seen, given))
    assert len(set(seen)) == 5
    assert [row["images"][0].getpixel((0, 0)) for row in blank(given)] == [(128, 128, 128)] * 5


def test_baselines():
    """Known: red to which 0 (twice), blue to which 1 (once of one), so majority is red and the question tells."""
    known = [rows("red", "blue")[i] for i in (0, 0, 1)]
    asked = [*rows("red", "blue"), {"prompt": user_turn("new?"), "answer": "red", "images": []}]
    assert baselines(known, asked, pixels=False) == {
        "majority": ["red", "red", "red"],
        "question_only": ["red", "blue", "red"],
    }
    pytest.importorskip("sklearn")
    many = rows(*["red", "red", "blue", "blue"] * 5)
    assert baselines(many, rows("blue", "red"), pixels=True)["pixels"] == ["blue", "red"]


@pytest.fixture
def colour_blind(monkeypatch):
    """A model that says the colour of the first pixel it is shown, whatever it is asked."""
    names = {(255, 0, 0): "red", (0, 0, 255): "blue"}

    def complete(model, tokenizer, shown, **options):
        colours = [names.get(task.opened(row["images"])[0].getpixel((0, 0)), "nothing") for row in shown]
        return [[Completion(colour, [1], "eos")] for colour in colours]

    monkeypatch.setattr(task, "complete", complete)


def test_looking_tells_who_looks(colour_blind, tmp_path):
    """Six red and six blue: right with its own images, wrong with grey ones; with others' as often as they agree."""
    Image.new("RGB", (4, 4), "red").save(tmp_path / "red.png")
    Image.new("RGB", (4, 4), "blue").save(tmp_path / "blue.png")
    asked = [
        {"image": f"{c}.png", "prompt": f"which {i}?", "answer": c, "kind": "a" if i < 3 else "b"}
        for i in range(6)
        for c in ("red", "blue")
    ]
    file = write_rows(tmp_path / "rows.jsonl", asked)
    result = looking(
        None, None, dataset=str(file), reward="exact", max_new_tokens=3, by="kind", baseline_split="test", seed=1,
    )  # fmt: skip
    figures = result.metrics
    assert (figures["accuracy"], figures["blank"], figures["majority"]) == (1.0, 0.0, 0.5)
    assert figures["question_only"] == 0.5
    assert 0 < figures["shuffled"] < 1
    assert (figures["a/accuracy"], figures["a/prompts"], figures["b/blank"]) == (1.0, 6, 0.0)
    assert len(result.samples) == 12


def test_objects_counts_who_says_nothing_as_wrong(monkeypatch, tmp_path):
    """Always yes: of two that are there and two that are not, half is right and the rate is 1."""
    said = lambda *args, **kwargs: [[Completion("yes", [1], "eos")]] * 4  # noqa: E731
    monkeypatch.setattr(task, "complete", said)
    Image.new("RGB", (4, 4), "red").save(tmp_path / "red.png")
    asked = [
        {"image": "red.png", "prompt": f"is there {i}?", "answer": a, "kind": a}
        for i, a in enumerate(["yes", "no", "yes", "no"])
    ]
    figures = objects(None, None, dataset=str(write_rows(tmp_path / "rows.jsonl", asked)), by="kind").metrics
    assert (figures["accuracy"], figures["yes_rate"], figures["recall"], figures["precision"]) == (0.5, 1.0, 1.0, 0.5)
    assert (figures["no/accuracy"], figures["no/yes_rate"]) == (0.0, 1.0)
    assert "no/f1" not in figures
