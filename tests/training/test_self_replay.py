"""Self-generated replay: rows of the corpora's form whose answers are the model's."""

import pytest
import torch

from pipeline.runtime.errors import UserError
from pipeline.training.self_replay import written_by
from tests.tiny_models import tiny_model, tiny_tokenizer


def writer(model, *words):
    """Make the model write the given words only, each as often as the others."""
    head, tokenizer = model.get_output_embeddings(), tiny_tokenizer()
    head.weight.data.zero_()
    head.bias = torch.nn.Parameter(torch.full((head.out_features,), -30.0))
    head.bias.data[tokenizer.convert_tokens_to_ids(list(words))] = 0.0
    return model


def test_the_model_writes_the_answers():
    """A model that writes "7" or ends ("<|eos|>", and "<|end|>" of a turn): prompts, dialogues and other columns stay,
    the answers are its own, and what did not end within three tokens or is empty is no row.
    """
    model = writer(tiny_model(), "7", "<|eos|>", "<|end|>")
    user = {"role": "user", "content": "a"}
    rows = [{"prompt": f"{i % 10} =", "completion": " 3", "kept": i} for i in range(40)]
    written = written_by(model, tiny_tokenizer(), rows, kind="sft", count=0, max_new_tokens=3, seed=0)
    assert 5 < len(written) < 40
    assert all(rows[row["kept"]]["prompt"] == row["prompt"] for row in written)
    assert {row["completion"].strip() for row in written} <= {"7", "7 7", "7 <|end|>", "<|end|> 7"}
    chats = [{"prompt": [user], "completion": [{"role": "assistant", "content": "b"}]}] * 20
    for row in written_by(model, tiny_tokenizer(), chats, kind="sft", count=0, max_new_tokens=3, seed=0):
        assert row["prompt"] == [user]
        assert row["completion"][0]["role"] == "assistant"
        assert set(row["completion"][0]["content"].split()) == {"7"}
    dialogues = [{"messages": [user, {"role": "assistant", "content": "b"}]}] * 20
    for row in written_by(model, tiny_tokenizer(), dialogues, kind="sft", count=0, max_new_tokens=3, seed=0):
        assert row["messages"][0] == user
        assert set(row["messages"][1]["content"].split()) == {"7"}


def test_texts_need_no_memory():
    """Whole texts from the BOS token, by the seed; without a BOS token, or where none ends, it is an error."""
    model, tokenizer = writer(tiny_model(), "7", "<|eos|>"), tiny_tokenizer()
    options = {"kind": "text", "count": 30, "max_new_tokens": 4}
    texts = written_by(model, tokenizer, [], seed=0, **options)
    assert 5 < len(texts) < 30
    assert {word for row in texts for word in row["text"].split()} == {"7"}
    assert texts == written_by(model, tokenizer, [], seed=0, **options)
    assert texts != written_by(model, tokenizer, [], seed=1, **options)
    with pytest.raises(UserError, match="none of 30 samples ended"):
        written_by(writer(tiny_model(), "7"), tokenizer, [], seed=0, **options)
    tokenizer.bos_token = None
    with pytest.raises(UserError, match="BOS token"):
        written_by(model, tokenizer, [], seed=0, **options)
    assert written_by(model, tokenizer, [], seed=0, kind="sft", count=9, max_new_tokens=4) == []
