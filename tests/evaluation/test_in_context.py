"""In-context accuracy, the copy baseline and the induction score, by hand; the evaluation on both kinds of model."""

import json

import pytest
import torch

from pipeline.evaluation.tasks.in_context import (
    Seen,
    all_shown,
    copy_baseline,
    earlier_showings,
    encode_pairs,
    figures,
    in_context,
    induction_scores,
)
from pipeline.model import NarLMConfig, NarLMForCausalLM
from pipeline.runtime.errors import UserError
from pipeline.worlds import maps
from tests.tiny_models import tiny_model

KEYS, VALUES = ["a", "b", "a", "a"], ["5", "6", "5", "5"]
ROW = {"text": "a 5 b 6 a 5 a 5", "keys": KEYS, "values": VALUES}


def test_earlier_showings_and_the_copy_baseline_by_hand():
    """Before the third pair the values are 5, 6: one of two is right; before the fourth 5, 6, 5: two of three."""
    assert earlier_showings(KEYS) == [[], [], [0], [0, 2]]
    assert all_shown(KEYS) == [False, False, True, True]
    assert copy_baseline(VALUES) == [0, 0, 1 / 2, 2 / 3]


def test_the_induction_score_of_a_hand_made_matrix():
    """Places: a 0, 5 1, b 2, 6 3, a 4, 5 5, a 6, 5 7. The third pair's value is predicted at place 4 and was stated at
    1, the fourth's at 6 and at 1 and 5. Head 0 pays 0.7 and 0.2 + 0.5: mean 0.7. Head 1 looks at itself: 0."""
    attention = torch.zeros(1, 2, 8, 8)
    attention[0, 0, 4, [1, 3]] = torch.tensor([0.7, 0.3])
    attention[0, 0, 6, [1, 5, 3]] = torch.tensor([0.2, 0.5, 0.3])
    attention[0, 1] = torch.eye(8)
    scores = induction_scores(attention, [1, 3, 5, 7], earlier_showings(KEYS))
    torch.testing.assert_close(scores, torch.tensor([[0.7, 0.0]]))
    assert induction_scores(attention, [1, 3], earlier_showings(["a", "b"])).numel() == 0


def test_figures_by_hand():
    """Two rows as above; of the four pairs that count three are right: 0.75, copying would get (1/2 + 2/3)/2."""
    seen = [
        Seen([False, False, *right], [1.0, 1.0, 0.5, 0.5], torch.tensor([[0.2, 0.6]]), torch.tensor([[0.1]]))
        for right in ((True, True), (True, False))
    ]
    metrics, curve, heads = figures([ROW, ROW], seen)
    assert metrics["accuracy"] == 0.75
    assert metrics["accuracy_low"] <= 0.75 <= metrics["accuracy_high"]
    assert metrics["copy_baseline"] == pytest.approx(7 / 12)
    assert metrics["over_copy"] == pytest.approx(0.75 - 7 / 12)
    assert metrics["loss"] == 0.75
    assert (metrics["induction"], metrics["induction_uniform"]) == pytest.approx((0.6, 0.1))
    assert [(point["showing"], point["accuracy"]) for point in curve] == [(2, 1.0), (3, 0.5)]
    assert [head["induction"] for head in heads] == pytest.approx([0.2, 0.6])


class Copier(torch.nn.Module):
    """Predicts, at a key, the value that stood behind its earlier showing, with all attention on it."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.config = type("Config", (), {"_attn_implementation": "sdpa"})()

    def set_attn_implementation(self, name):
        self.config._attn_implementation = name

    def forward(self, input_ids, attention_mask, **options):
        assert self.config._attn_implementation == "eager"
        B, T = input_ids.shape
        logits, attention = torch.zeros(B, T, maps.VOCABULARY), torch.zeros(B, 1, T, T)
        for row, ids in enumerate(input_ids.tolist()):
            for t in range(T):
                s = max((s for s in range(t) if ids[s] == ids[t]), default=t - 1)
                logits[row, t, ids[s + 1] if s + 1 < T else 0] = 9.0
                attention[row, 0, t, s + 1] = 1.0
        return type("Output", (), {"logits": logits, "attentions": [attention]})()


def test_a_model_that_copies_from_the_last_showing_is_right_and_scores_one():
    model = Copier()
    metrics = in_context(model, maps.tokenizer(), dataset="world/maps", limit=50).metrics
    assert metrics["accuracy"] == metrics["accuracy_high"] == 1.0
    assert 0.9 < metrics["accuracy_low"] < 1  # fifty rows are no certainty
    assert metrics["induction"] == pytest.approx(1.0)
    assert metrics["over_copy"] == pytest.approx(1 - metrics["copy_baseline"])
    assert metrics["induction_uniform"] < 0.3
    assert model.config._attn_implementation == "sdpa"


def test_narlm_and_another_architecture_are_read_alike(tmp_path):
    """A random NarLM is right by chance only, and any model with attention weights will do."""
    torch.manual_seed(0)
    small = NarLMConfig(vocab_size=maps.VOCABULARY, hidden_size=16, num_hidden_layers=2, num_attention_heads=2)
    result = in_context(NarLMForCausalLM(small).eval(), maps.tokenizer(), dataset="world/maps", limit=40)
    assert result.metrics["accuracy"] < 0.3
    assert len(result.tables["induction by head"]) == 4
    other = tiny_model("llama")
    other.resize_token_embeddings(maps.VOCABULARY)
    assert 0 <= in_context(other, maps.tokenizer(), dataset="world/maps", limit=10).metrics["induction"] <= 1


def test_values_of_several_tokens_are_found_in_any_wording():
    """A tokenizer of single letters; "red->17" has its value at two tokens, and "->" belongs to neither."""

    def letters(text, **options):
        return {"input_ids": [ord(c) for c in text], "offset_mapping": [(i, i + 1) for i in range(len(text))]}

    row = {"text": "red->17, blue->3", "keys": ["red", "blue"], "values": ["17", "3"]}
    assert encode_pairs(letters, row).values == [[5, 6], [15]]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"text": "a 5"}, "row 1 has no lists keys and values"),
        ({"text": "a 5 b", "keys": ["a", "b"], "values": ["5", "6"]}, "'6' is missing"),
        ({"text": "a 5 b 6", "keys": ["a", "b"], "values": ["5", "6"]}, "no key comes again"),
    ],
)
def test_rows_that_show_nothing_are_refused(row, words, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(UserError, match=words):
        in_context(None, None, dataset=str(path))
