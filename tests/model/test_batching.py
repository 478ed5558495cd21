"""Sequences as one batch."""

import pytest
import torch

from pipeline.model.batching import forward_rows, pad_right


def test_rows_are_filled_on_the_right():
    """Also a row without tokens has its place; the mask is 1 where a token is, whatever fills the rest."""
    ids, mask = pad_right([[5, 6, 7], [], [8]], "cpu", value=9)
    assert ids.tolist() == [[5, 6, 7], [9, 9, 9], [8, 9, 9]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 0], [1, 0, 0]]


class Sums(torch.nn.Module):
    """A stand-in that notes each batch and gives the sum of a row's ids at every place."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen = []

    def forward(self, input_ids, attention_mask, scale=1):
        self.seen.append((attention_mask.sum(1).tolist(), self.training, torch.is_grad_enabled()))
        return scale * (input_ids * attention_mask).sum(1)


@pytest.mark.parametrize(("by_length", "batches"), [(True, [[3, 2], [1, 1], [0]]), (False, [[1, 3], [0, 2], [1]])])
def test_rows_come_back_in_their_order(by_length, batches):
    """Batches of two, longest first or as given; in evaluation mode, without gradients; the mode is put back."""
    model, rows = Sums().train(), [[4], [1, 2, 3], [], [5, 5], [9]]

    def read(output, batch):
        assert [len(rows[place]) for place in batch.places] == batch.lengths
        return output.tolist()

    found = forward_rows(model, rows, read, batch_size=2, pad_token_id=7, by_length=by_length, scale=2)
    assert found == [8, 12, 0, 20, 18]
    assert model.seen == [(lengths, False, False) for lengths in batches]
    assert model.training


def test_the_mode_is_put_back_after_a_mistake():
    model = Sums().train()
    with pytest.raises(ZeroDivisionError):
        forward_rows(model, [[1]], lambda output, batch: 1 // 0, batch_size=1)
    assert model.training
