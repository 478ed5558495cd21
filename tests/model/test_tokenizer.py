"""The tokenizer: leading spaces, single digits, one BOS, the assistant mask, and what other people's bases bring."""

import contextlib

import pytest
from transformers import AutoTokenizer

from pipeline.model.tokenizer import (
    CHAT_TEMPLATE,
    check_tokenizer,
    ensure_training_chat_template,
    install_chat_template,
    train_tokenizer,
)
from pipeline.runtime.errors import UserError

TEXTS = [" Rome is old. What is 17+25? 17+25=42 #### 42", "Where is Rome?\nRome", "naïve 漢字"] * 30
CHAT = [
    {"role": "user", "content": "Where?"},
    {"role": "assistant", "content": "Rome"},
    {"role": "user", "content": "And then?"},
    {"role": "assistant", "content": " Rome 17"},
]


@pytest.fixture(scope="module")
def trained():
    return train_tokenizer(TEXTS, vocab_size=320)


@pytest.fixture
def tokenizer(trained, tmp_path):
    """A copy that a test may change, and that has been through save and load."""
    trained.save_pretrained(tmp_path)
    return AutoTokenizer.from_pretrained(tmp_path)


def test_the_first_word_is_the_same_token_as_any_other(trained):
    rome = trained.convert_tokens_to_ids("ĠRome")
    assert rome != trained.unk_token_id
    for text in ("Rome", " Rome", "Where is Rome"):
        assert trained(text, add_special_tokens=False)["input_ids"][-1] == rome
    # ... and after a special token, where chat answers start.
    assert trained("<|assistant|>Rome", add_special_tokens=False)["input_ids"][-1] == rome


def test_digits_are_single_tokens_only_when_asked(trained):
    assert trained.tokenize("17+25=42 #### 42") == [*"Ġ17+25=42", "Ġ####", "Ġ", "4", "2"]
    together = train_tokenizer(TEXTS, vocab_size=320, split_digits=False)
    assert "Ġ42" in together.tokenize("17+25=42 #### 42")


@pytest.mark.parametrize("text", [" Rome", " naïve 漢字 \t x\n\n  y", " 17 + 25, ok? it's", " \x00\x7f é", " 1 2  3"])
def test_text_with_a_leading_space_comes_back_unchanged(tokenizer, text):
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


def test_one_bos_in_text_and_in_chat(tokenizer):
    assert tokenizer("Rome")["input_ids"].count(tokenizer.bos_token_id) == 1
    ids = tokenizer.apply_chat_template(CHAT, tokenize=True, return_dict=False)
    assert ids.count(tokenizer.bos_token_id) == 1
    assert ids[0] == tokenizer.bos_token_id


def test_chat_renders_as_documented_and_does_not_double_spaces(tokenizer):
    assert tokenizer.apply_chat_template(CHAT, tokenize=False) == (
        "<|bos|><|user|> Where?<|assistant|> Rome<|eos|><|user|> And then?<|assistant|> Rome 17<|eos|>"
    )
    prompt = tokenizer.apply_chat_template(CHAT[:1], tokenize=False, add_generation_prompt=True)
    assert prompt == "<|bos|><|user|> Where?<|assistant|>"


def test_the_prompt_is_a_prefix_in_tokens_too(tokenizer):
    prompt = tokenizer.apply_chat_template(CHAT[:1], tokenize=True, return_dict=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template(CHAT[:2], tokenize=True, return_dict=False)
    assert whole[: len(prompt)] == prompt
    assert whole[len(prompt) :] == [tokenizer.convert_tokens_to_ids("ĠRome"), tokenizer.eos_token_id]


def test_the_assistant_mask_is_exactly_the_answers_and_their_eos(tokenizer):
    out = tokenizer.apply_chat_template(CHAT, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    said = [i for i, mine in zip(out["input_ids"], out["assistant_masks"], strict=True) if mine]
    assert tokenizer.convert_ids_to_tokens(said) == ["ĠRome", "<|eos|>", "ĠRome", "Ġ", "1", "7", "<|eos|>"]


def test_an_unknown_role_is_named(tokenizer):
    with pytest.raises(Exception, match="not 'tool'"):
        tokenizer.apply_chat_template([{"role": "tool", "content": "x"}], tokenize=False)


def test_special_tokens_are_distinct_and_survive_saving(tokenizer, trained):
    check_tokenizer(tokenizer)
    assert len({tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id}) == 3
    assert tokenizer.get_vocab() == trained.get_vocab()
    assert tokenizer.chat_template == CHAT_TEMPLATE
    assert len(tokenizer) <= 320


def test_special_tokens_in_the_corpus_are_read_as_such_and_cost_no_merges():
    text = "<|user|> Where?<|assistant|> Rome<|eos|>"
    tokenizer = train_tokenizer([text] * 30, vocab_size=400)
    assert tokenizer.tokenize(text) == ["<|user|>", "ĠWhere", "?", "<|assistant|>", "ĠRome", "<|eos|>"]
    assert not [token for token in tokenizer.get_vocab() if "user" in token and token != "<|user|>"]


def test_training_is_deterministic_and_order_of_ids_too():
    assert train_tokenizer(iter(TEXTS), 300).get_vocab() == train_tokenizer(TEXTS, 300).get_vocab()


@pytest.mark.parametrize(
    ("texts", "size", "message"), [(TEXTS, 262, "choose a larger"), ([], 300, "no text"), ([""], 300, "no text")]
)
def test_what_cannot_be_trained_is_the_users_error(texts, size, message):
    with pytest.raises(UserError, match=message):
        train_tokenizer(texts, size)


@pytest.mark.parametrize(
    "change", [{"pad_token": None}, {"eos_token": None}, {"pad_token": "<|eos|>"}, {"pad_token": "<|bos|>"}]
)
def test_check_names_what_is_missing(tokenizer, change):
    for name, value in change.items():
        setattr(tokenizer, name, value)
    with pytest.raises(UserError, match="pad" if "pad_token" in change else "no EOS"):
        check_tokenizer(tokenizer)


def test_a_template_with_markers_is_kept(tokenizer):
    theirs = "{% for m in messages %}{%- generation -%}{{ m['content'] }}{%- endgeneration -%}{% endfor %}"
    tokenizer.chat_template = theirs
    assert ensure_training_chat_template(tokenizer) is tokenizer
    assert tokenizer.chat_template == theirs


def test_a_base_without_template_gets_ours_and_only_a_bos_it_has(tokenizer):
    tokenizer.chat_template = None
    ensure_training_chat_template(tokenizer)
    assert tokenizer.chat_template == CHAT_TEMPLATE
    tokenizer.chat_template, tokenizer.bos_token = None, None
    ensure_training_chat_template(tokenizer)
    assert tokenizer.apply_chat_template(CHAT[:2], tokenize=False) == "<|user|> Where?<|assistant|> Rome<|eos|>"


def test_trl_supplies_the_markers_of_templates_it_knows(tokenizer):
    from trl.chat_template_utils import qwen2_5_chat_template, qwen2_5_training_chat_template

    tokenizer.chat_template = qwen2_5_chat_template
    ensure_training_chat_template(tokenizer)
    assert tokenizer.chat_template == qwen2_5_training_chat_template


def test_an_unknown_template_without_markers_stays_as_it_is(tokenizer):
    theirs = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    tokenizer.chat_template = theirs
    assert ensure_training_chat_template(tokenizer).chat_template == theirs


def test_a_template_is_taken_from_a_file_a_folder_or_narlm_by_name(tokenizer, tmp_path):
    ours, theirs = (
        tokenizer.chat_template,
        "{{ '<|im_start|>' }}{% for m in messages %}{{ m['content'] + eos_token }}{% endfor %}",
    )
    assert install_chat_template(tokenizer) is None
    (tmp_path / "any.jinja").write_text(theirs)
    said = install_chat_template(tokenizer, str(tmp_path / "any.jinja"))
    assert tokenizer.chat_template == theirs
    assert said.endswith("plain text to this tokenizer: <|im_start|>")
    assert install_chat_template(tokenizer, "narlm") == "NarLM's chat template"
    assert tokenizer.chat_template == ours
    tokenizer.save_pretrained(tmp_path / "saved")
    tokenizer.chat_template = theirs
    install_chat_template(tokenizer, str(tmp_path / "saved"))
    assert tokenizer.chat_template == ours
    (tmp_path / "empty").mkdir()
    for wrong in ("./none.jinja", str(tmp_path / "empty")):
        with pytest.raises(UserError, match=r"chat_template_path: .* is no file"):
            install_chat_template(tokenizer, wrong)


@pytest.mark.parametrize(
    ("end", "error"),
    [
        (
            "<|im_end|>\\n",
            r"ends the assistant's turn with the plain text '<\|im_end\|>', not with a token .* lacks <\|im_end\|>",
        ),
        ("", "ends the assistant's turn with nothing, not with a token of the tokenizer"),
        ("\\n", "ends the assistant's turn with nothing"),
        ("<|im_end|><|eos|>", None),  # EOS is learned behind the plain text
        ("<|user|>", None),  # a token of its own
    ],
)
def test_a_template_must_end_a_turn_with_a_token(tokenizer, tmp_path, end, error):
    """Else the model learns the letters of ``<|im_end|>``, and nothing at which a sampler stops."""
    (tmp_path / "any.jinja").write_text("{% for m in messages %}{{ m['content'] + '" + end + "' }}{% endfor %}")
    with pytest.raises(UserError, match=error) if error else contextlib.nullcontext():
        install_chat_template(tokenizer, str(tmp_path / "any.jinja"))


def test_what_narlm_s_template_cannot_write_it_refuses(tokenizer):
    """A developer's turn is a system's; tools and calls would be left out."""
    turns = [{"role": "developer", "content": "Be brief."}, *CHAT[:2]]
    assert tokenizer.apply_chat_template(turns, tokenize=False).startswith(
        "<|bos|><|system|> Be brief.<|user|> Where?"
    )
    with pytest.raises(Exception, match="cannot write tools"):
        tokenizer.apply_chat_template([*CHAT[:1], {"role": "assistant", "content": "", "tool_calls": [{}]}])
    with pytest.raises(Exception, match="cannot write tools"):
        tokenizer.apply_chat_template(CHAT, tools=[{"type": "function", "function": {"name": "f"}}])
