"""Log-likelihoods against one uncached, unpadded forward pass a row."""

import pytest
import torch

from pipeline.inference.filters import filtered_probabilities
from pipeline.inference.likelihood import (
    Sampler,
    answer_log_likelihoods,
    candidate_log_probabilities,
    token_log_probabilities,
)
from pipeline.model.tokens import encode_answer, encode_candidates, encode_row
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


@pytest.mark.parametrize("kind", ["qwen2", "gpt2"])
def test_candidates_have_the_probabilities_of_the_sampler(kind):
    """Every candidate against one pass over its own row, at each sampler: the product of its tokens' shares among
    those that the filters keep. Prompts share batches with others of other lengths.
    """
    model = tiny_model(kind)
    prompts = [[1, 7, 8], [1, 9]]
    candidates = [[[9], [10, 11], [10, 12], [11, 2, 5]], [[5, 6], [9]]]
    samplers = [Sampler(), Sampler(0.5), Sampler(2.0, top_k=5), Sampler(1.0, top_p=0.7), Sampler(1.0, min_p=0.1)]
    found = candidate_log_probabilities(model, prompts, candidates, samplers=samplers, batch_size=2)
    for x, answers, law in zip(prompts, candidates, found, strict=True):
        assert law.shape == (len(samplers), len(answers))
        for s, sampler in enumerate(samplers):
            for c, y in enumerate(answers):
                with torch.no_grad():
                    logits = model(input_ids=torch.tensor([x + y])).logits[0, len(x) - 1 : -1]
                kept = filtered_probabilities(logits, **sampler._asdict())
                expected = (kept / kept.sum(-1, keepdim=True))[range(len(y)), y].log().sum()
                torch.testing.assert_close(law[s, c], expected, rtol=0, atol=1e-5)
    (normalised,) = candidate_log_probabilities(model, prompts[:1], candidates[:1], normalised=True)
    torch.testing.assert_close(normalised, found[0][:1].log_softmax(-1), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match=r"candidate \(9, 10\) begins with the candidate \(9,\)"):
        candidate_log_probabilities(model, [[1]], [[[9], [10], [9, 10]]], normalised=True)


def test_candidates_are_cut_where_all_of_them_diverge(tokenizer):
    """A chat answer ends with the turn; a begun turn and plain text go on; a token over the prompt's end is theirs."""
    assert encode_candidates(tokenizer, USER, ["c", "d e"]) == ([1, 3, 19, 20, 4], [[21, 5], [22, 23, 5]])
    begun = [*USER, {"role": "assistant", "content": "c"}]
    assert encode_candidates(tokenizer, begun, [" d", " e"]) == ([1, 3, 19, 20, 4, 21], [[22], [23]])
    assert encode_candidates(tokenizer, "a b", [" c", " d"]) == ([19, 20], [[21], [22]])
    with pytest.raises(UserError, match="the candidate '' adds no token"):
        encode_candidates(tokenizer, "a b", ["", " d"])

    from pipeline.model.tokenizer import train_tokenizer

    merging = train_tokenizer([" roman rome romp"] * 50, 290)
    prompt, answers = encode_candidates(merging, " hello rom", ["an", "e", "p"])
    whole = [merging(" hello rom" + rest)["input_ids"] for rest in ("an", "e", "p")]
    assert [prompt + ids for ids in answers] == whole
    assert len(prompt) < len(merging(" hello rom")["input_ids"])  # " roman" is one token: the prompt ends before it
    with pytest.raises(UserError, match="there is nothing to start from"):
        encode_candidates(without_bos(merging), " rom", ["an", "e"])


def without_bos(tokenizer):
    """The same tokenizer, with nothing in front of a text."""
    import copy

    plain = copy.deepcopy(tokenizer)
    plain.backend_tokenizer.post_processor = None
    return plain
