"""The rows of world/maps say what their maps say, and the floor of the loss is what the counting gives."""

import math

import pytest
import torch

from pipeline.worlds import maps
from pipeline.worlds.table import load_world


@pytest.mark.parametrize("name", maps.NAMES)
def test_every_row_states_its_map_and_test_maps_are_new(name):
    train, test = (load_world(name, split).select(range(500)) for split in ("train", "test"))
    for row in [*train, *test]:
        assert row["values"] == [row["map"][maps.KEY_WORDS.index(key)] for key in row["keys"]]
        assert row["text"].split() == [word for pair in zip(row["keys"], row["values"]) for word in pair]
        assert len(row["keys"]) == maps.PAIRS
    known, new = ({tuple(row["map"]) for row in rows} for rows in (train, test))
    assert not known & new
    count = next((int(part) for part in name.split("-") if part.isdigit()), None)
    assert len(known) == (count if count in (4, 16) else len(known))
    assert count is None or known <= {tuple(map(str, row)) for row in maps.training_maps(count).tolist()}
    recurs = [len(set(row["keys"])) < maps.PAIRS for row in train]
    assert all(recurs) if "once" not in name else not any(recurs)
    assert all(len(set(row["keys"])) <= maps.SHOWN for row in test)


def test_the_tokenizer_gives_the_ids_that_the_tensors_have():
    drawn = maps.draw(3, torch.Generator().manual_seed(0))
    words = maps.tokenizer()
    texts = [" ".join(words.convert_ids_to_tokens(row)) for row in drawn.tokens.tolist()]
    assert [words(text)["input_ids"] for text in texts] == [[1, *row] for row in drawn.tokens.tolist()]
    assert len(words) == maps.VOCABULARY


def test_the_ideal_reader_by_hand():
    """Pairs a 5, b 6, a 5, b 6. New maps: log 1/VALUES twice, then 0. Of the maps (a5 b6), (a5 b7), (a4 b6), (a5 b6),
    three have a = 5; of these two have b = 6; then nothing is left to guess."""
    rows = torch.tensor([[5, 6, 5, 6]])
    keys = torch.tensor([[0, 1, 0, 1]])
    four = torch.tensor([[5, 6], [5, 7], [4, 6], [5, 6]])
    drawn = maps.Sequences(keys, rows, four[:1])
    guess = -math.log(maps.VALUES)
    assert maps.ideal_log_probs(drawn, None).tolist() == [pytest.approx([guess, guess, 0, 0])]
    assert maps.ideal_log_probs(drawn, four).tolist() == [pytest.approx([math.log(3 / 4), math.log(2 / 3), 0, 0])]
    assert maps.shown_before(keys).tolist() == [[0, 0, 1, 1]]
