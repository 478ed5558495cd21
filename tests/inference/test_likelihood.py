"""Log-likelihoods against one uncached, unpadded forward pass a row."""

import pytest
import torch

from pipeline.inference.likelihood import answer_log_likelihoods, token_log_probabilities
from pipeline.model.tokens import encode_answer, encode_row
from pipeline.runtime.errors import UserError
from tests.tiny_models import tiny_model, tiny_tokenizer

USER = [{"role": "user", "content": "a b"}]


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.mark.parametrize("kind", ["qwen2", "gpt2"])
def test_padding_and_order_change_nothing(kind):
    model = tiny_model(kind)
    sequences = [[1, 5, 9], [1, 7, 8, 9, 10, 11, 3], [4, 6], [1], [2, 2, 2, 2]]
    got = token_log_probabilities(model, sequences, batch_size=2)
    for ids, values in zip(sequences, got, strict=True):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0].double()
        expected = torch.log_softmax(logits, -1)[range(len(ids) - 1), ids[1:]]
        torch.testing.assert_close(values.double(), expected, rtol=0, atol=1e-5)
    assert got[3].numel() == 0


def test_an_answer_is_scored_on_its_own_tokens_only():
    """log pi(y | x) of a two-token answer is the sum of the last two terms of the whole sequence."""
    model = tiny_model()
    [whole] = token_log_probabilities(model, [[1, 7, 8, 9, 10]])
    [got] = answer_log_likelihoods(model, [([1, 7, 8], [9, 10])])
    assert got == pytest.approx(float(whole[-2:].sum()), abs=1e-5)


def test_answers_are_cut_where_the_trainers_cut_them(tokenizer):
    """Template: <|bos|>1 <|user|>3 a b <|assistant|>4 c <|end|>5; plain text ends with <|eos|>2."""
    assert encode_answer(tokenizer, USER, [{"role": "assistant", "content": "c"}]) == ([1, 3, 19, 20, 4], [21, 5])
    assert encode_answer(tokenizer, "a b", " c <|eos|>") == ([19, 20], [21, 2])
    assert encode_answer(tokenizer, "a b ", "c ") == ([19, 20], [21, 2])


def test_what_a_row_is_scored_on(tokenizer):
    assert encode_row(tokenizer, {"text": "a b"}) == ([19, 20, 2], [True] * 3)
    ids, mark = encode_row(tokenizer, {"prompt": "a b ", "completion": "c "})
    assert (ids, mark) == ([19, 20, 21, 2], [False, False, True, True])
    with pytest.raises(UserError, match="text, messages, or prompt"):
        encode_row(tokenizer, {"question": "a"})


def test_messages_are_scored_on_what_the_assistant_says():
    from pipeline.model.tokenizer import train_tokenizer

    tokenizer = train_tokenizer([" hello there you two"] * 20, 290)
    messages = [{"role": "user", "content": "hello there"}, {"role": "assistant", "content": "you"}]
    ids, mark = encode_row(tokenizer, {"messages": messages})
    scored = [i for i, marked in zip(ids, mark, strict=True) if marked]
    assert tokenizer.decode(scored) == " you<|eos|>"
    bare = tiny_tokenizer()  # no generation markers: the turn is found by rendering, and ends with <|end|> 5
    ids, mark = encode_row(bare, {"messages": [*USER, {"role": "assistant", "content": "c"}, *USER]})
    assert [i for i, marked in zip(ids, mark, strict=True) if marked] == [21, 5]
