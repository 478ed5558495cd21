"""The pad token of bases that have none: an id that no text contains, and no new row of the embedding."""

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from pipeline.model.pad_token import with_pad_token

CHATML = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
EVERY_LETTER = "Louÿs À Á õö÷øùúûüýþ Āā <|im_start|> naïve 漢字 \x00\x7f"


def byte_level(*specials: str, **options) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer as others publish them: EOS, the tokens of ChatML, and the given ones."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special_tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *specials]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend.train_from_iterator(
        ["the cat sat on the mat"] * 3,
        trainers.BpeTrainer(
            vocab_size=280, special_tokens=special_tokens, initial_alphabet=alphabet, show_progress=False
        ),
    )
    options = {"eos_token": "<|endoftext|>", "additional_special_tokens": special_tokens[1:]} | options
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **options)
    tokenizer.chat_template = CHATML
    return tokenizer


@pytest.mark.parametrize(
    ("specials", "options", "spare_rows", "expected"),
    [
        ((), {}, 0, "<|pad|>"),  # a byte that UTF-8 never uses
        ((), {}, 5, "<|pad|>"),  # a row that no token has
        (("<|reserved_3|>",), {}, 0, "<|reserved_3|>"),
        (("<|image_pad|>", "[PAD]"), {}, 0, "[PAD]"),
        (("<unused0>",), {"pad_token": "<|endoftext|>"}, 0, "<unused0>"),  # padded with EOS
        (("<unused0>",), {"pad_token": "<|im_end|>"}, 0, "<unused0>"),  # padded with what ends a turn
        (("<mine>",), {"pad_token": "<mine>"}, 0, "<mine>"),
    ],
    ids=["byte", "free row", "reserved", "known name", "pad is eos", "pad ends a turn", "its own"],
)
def test_padding_is_an_id_of_the_base_that_no_text_contains(tmp_path, specials, options, spare_rows, expected):
    """Also after save and load: every text has the ids it had before, and none of them is the pad token's."""
    before = byte_level(*specials, **options)
    rows = len(before) + spare_rows
    ids = before(EVERY_LETTER)["input_ids"]
    with_pad_token(byte_level(*specials, **options), rows, may_add=True).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.pad_token == expected
    assert tokenizer.pad_token_id < rows
    assert tokenizer.pad_token_id not in [
        tokenizer.convert_tokens_to_ids(token) for token in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    ]
    assert tokenizer(EVERY_LETTER)["input_ids"] == ids
    assert tokenizer.pad_token_id not in ids
    assert tokenizer.decode(ids) == EVERY_LETTER
    assert tokenizer.chat_template == CHATML


def test_a_vocabulary_of_words_pads_with_unk_or_grows_or_uses_eos():
    """Without bytes and reserved tokens: ``<unk>``, which position masks; without it a new row for training only."""

    def words(*more: str) -> PreTrainedTokenizerFast:
        backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(("a", "b", "</s>", *more))}))
        return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")

    assert with_pad_token(words("<unk>"), 4, may_add=True).pad_token == "<unk>"
    assert with_pad_token(words(), 3, may_add=True).pad_token_id == 3
    assert with_pad_token(words(), 3, may_add=False).pad_token == "</s>"
