"""Sequences as one batch."""

from pipeline.model.batching import pad_right


def test_rows_are_filled_on_the_right():
    """Also a row without tokens has its place; the mask is 1 where a token is, whatever fills the rest."""
    ids, mask = pad_right([[5, 6, 7], [], [8]], "cpu", value=9)
    assert ids.tolist() == [[5, 6, 7], [9, 9, 9], [8, 9, 9]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 0], [1, 0, 0]]
