"""Blocks by hand: every token in its place, positions that restart, nothing lost and nothing else learned."""

import json
from itertools import pairwise

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.arrow import to_dataset
from pipeline.data.loading import read_source
from pipeline.data.packing import IGNORED, Packer, pack
from pipeline.data.sources import Source
from pipeline.data.streaming import DocumentStream
from pipeline.model.tokens import encode_documents
from pipeline.runtime.errors import UserError

WORDS = [f"w{i}" for i in range(10)]
PAD, BOS, EOS = 10, 11, 12


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


def make_tokenizer(**special):
    """Word w3 is token 3; pad 10, bos 11, eos 12."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate([*WORDS, "<pad>", "<bos>", "<eos>"])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = special or {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def texts(*rows):
    return datasets.Dataset.from_dict({"text": list(rows)})


def test_blocks_by_hand(tokenizer):
    """Documents [11 1 2 12], [11 3 4 5 6 7 12], [11 8 12] in blocks of 6:

    block 0: 11 1 2 12 | 11 3        the second document begins at place 4
    block 1: 4 5 6 7 12 | 11         it goes on with position 0, and is learned there: 3 stands before 4 in its text
    block 2: 8 12 | pad pad pad pad  the tail is a document of padding that is not learned
    """
    packed = pack(texts("w1 w2", "w3 w4 w5 w6 w7", "w8"), tokenizer, 6)
    assert packed["input_ids"][:] == [
        [BOS, 1, 2, EOS, BOS, 3],
        [4, 5, 6, 7, EOS, BOS],
        [8, EOS, PAD, PAD, PAD, PAD],
    ]
    assert packed["labels"][:] == [
        [IGNORED, 1, 2, EOS, IGNORED, 3],
        [4, 5, 6, 7, EOS, IGNORED],
        [8, EOS, IGNORED, IGNORED, IGNORED, IGNORED],
    ]
    assert packed["position_ids"][:] == [[0, 1, 2, 3, 0, 1], [0, 1, 2, 3, 4, 0], [0, 1, 0, 1, 2, 3]]


def test_unlearned_spans_are_read_and_not_learned(tokenizer, tmp_path):
    """The text w1 w2 w3 with the span of w2, characters 3 to 5, in a block of 5 and, cut in two, of 3: its label is
    -100, its id stays, all else is learned. The column comes through the data room from a file; other documents have
    none.
    """
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "w1 w2 w3", "unlearned": [[3, 5]]}\n{"text": "w4 w5 w6"}\n')
    rows = read_source(Source(name=str(file), split="train", role="train"), "text", False).rows
    packed = pack(to_dataset(rows, "text"), tokenizer, 5)
    assert packed["input_ids"][:] == [[BOS, 1, 2, 3, EOS], [BOS, 4, 5, 6, EOS]]
    assert packed["labels"][:] == [[IGNORED, 1, IGNORED, 3, EOS], [IGNORED, 4, 5, 6, EOS]]
    assert pack(to_dataset(rows[:1], "text"), tokenizer, 3)["labels"][:] == [
        [IGNORED, 1, IGNORED],
        [3, EOS, IGNORED],
    ]


@pytest.mark.parametrize("spans", [[[3, 99]], [[2, 2]], [3, 5], "3-5", [[0, 1.5]]])
def test_a_span_that_is_none(spans, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"text": "w1 w2 w3", "unlearned": spans}) + "\n")
    with pytest.raises(UserError, match="row 1: unlearned"):
        read_source(Source(name=str(file), split="train", role="train"), "text", False)


def test_a_stream_has_no_unlearned_spans(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "w1 w2 w3", "unlearned": [[3, 5]]}\n' * 3)
    stream = DocumentStream([Source(name=str(file), split="train", role="train")], seed=0)
    with pytest.raises(UserError, match="unlearned needs the documents in memory"):
        next(iter(stream.texts()))


def test_tokenizer_without_bos_or_pad():
    """No bos: a document is its tokens and eos. No pad: the unlearned tail is filled with eos."""
    bare = make_tokenizer(eos_token="<eos>")
    assert encode_documents(bare, ["w1 w2", ""]) == [[1, 2, EOS], [EOS]]
    packed = pack(texts("w1 w2"), bare, 4)
    assert packed["input_ids"][:] == [[1, 2, EOS, EOS]]
    assert packed["labels"][:] == [[IGNORED, 2, EOS, IGNORED]]


def test_one_bos_only(tokenizer):
    """A tokenizer that adds its own bos and eos does not add them a second time."""
    from tokenizers.processors import TemplateProcessing

    own = make_tokenizer()
    own.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", BOS), ("<eos>", EOS)]
    )
    assert own("w1")["input_ids"] == [BOS, 1, EOS]
    assert encode_documents(own, ["w1"]) == encode_documents(tokenizer, ["w1"]) == [[BOS, 1, EOS]]


def test_what_cannot_be_packed():
    with pytest.raises(UserError, match="no eos token"):
        encode_documents(make_tokenizer(pad_token="<pad>"), ["w1"])
    with pytest.raises(UserError, match="max_length 1"):
        Packer(1)


@settings(max_examples=60, deadline=None)
@given(
    documents=st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=20), max_size=12),
    length=st.integers(2, 9),
    cut=st.integers(0, 12),
)
def test_no_token_is_lost_and_a_packer_goes_on(documents, length, cut):
    """The blocks, end to end and without padding, are the documents end to end; a packer that is taken up again in the
    middle gives the same blocks; positions count up from each start."""
    packer = Packer(length)
    blocks = [block for tokens in documents for block in packer.add(tokens)]
    tail = list(packer.flush(PAD))
    stream = [token for block in blocks + tail for token in block["input_ids"]]
    every = [token for tokens in documents for token in tokens]
    assert stream[: len(every)] == every
    assert set(stream[len(every) :]) <= {PAD}
    assert len(stream) - len(every) < length
    assert all(len(block[name]) == length for block in blocks + tail for name in block)
    learned = sum(label != IGNORED for block in blocks + tail for label in block["labels"])
    assert learned == len(every) - len(documents)
    for block in blocks + tail:
        positions = block["position_ids"]
        assert positions[0] == 0
        assert all(b in (0, a + 1) for a, b in pairwise(positions))
    first = Packer(length)
    before = [block for tokens in documents[:cut] for block in first.add(tokens)]
    second = Packer(length, first.unfinished())
    after = [block for tokens in documents[cut:] for block in second.add(tokens)]
    assert before + after + list(second.flush(PAD)) == blocks + tail


def test_packed_documents_do_not_see_each_other(tokenizer):
    """A Llama with packed positions and no mask gives a document the logits it has alone, to float32 rounding."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=13, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2)
    ).eval()
    packed = pack(texts("w1 w2 w3", "w4 w5 w6"), tokenizer, 10).with_format("torch")[:]
    with torch.no_grad():
        together = model(**{k: packed[k] for k in ("input_ids", "position_ids")}, use_cache=False).logits[0, 5:]
        alone = model(input_ids=packed["input_ids"][:, 5:]).logits[0]
        run_on = model(input_ids=packed["input_ids"]).logits[0, 5:]
    assert packed["position_ids"][0].tolist() == [0, 1, 2, 3, 4] * 2
    torch.testing.assert_close(together, alone)
    assert (run_on - alone).abs().max() > 1e-4
