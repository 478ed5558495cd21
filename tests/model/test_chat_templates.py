"""Templates by name: what they write, held against what their families write, and what of it is learned.

The table of ``docs/chat_templates.md`` is made here, by the code that training uses (to make it anew:
``python -m tests.model.test_chat_templates``).
"""

import pytest

from pipeline.data.check import shown
from pipeline.model.chat_templates import NAMES, OF_TRL, SHIPPED, named_template
from pipeline.model.dialogue_tokens import MARKER
from pipeline.model.tokenizer import install_chat_template, train_tokenizer
from pipeline.model.tokens import encode_row
from tests.conftest import ROOT

SYSTEM, ASKED, ANSWERED = "Be brief.", ("What is 1+2?", "And 4+4?"), ("It is 3.", "It is 8.")
DIALOGUE = [
    {"role": "system", "content": SYSTEM},
    {"role": "user", "content": ASKED[0]},
    {"role": "assistant", "content": ANSWERED[0]},
    {"role": "user", "content": ASKED[1]},
    {"role": "assistant", "content": ANSWERED[1]},
]
# The special tokens of each family: BOS, EOS, and the others.
TOKENS = {
    "chatml": (None, "<|endoftext|>", ["<|im_start|>", "<|im_end|>"]),
    "zephyr": ("<s>", "</s>", []),
    "mistral": ("<s>", "</s>", []),
    "llama3": (
        "<|begin_of_text|>", "<|end_of_text|>", ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    ),
    "gemma": ("<bos>", "<eos>", ["<start_of_turn>", "<end_of_turn>"]),
}  # fmt: skip
# What the model cards of zephyr-7b-beta and of Mistral-7B-Instruct-v0.2 show, and ChatML as OpenAI described it.
REFERENCES = {
    "chatml": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is 1+2?<|im_end|>\n"
    "<|im_start|>assistant\nIt is 3.<|im_end|>\n<|im_start|>user\nAnd 4+4?<|im_end|>\n"
    "<|im_start|>assistant\nIt is 8.<|im_end|>\n",
    "zephyr": "<|system|>\nBe brief.</s>\n<|user|>\nWhat is 1+2?</s>\n<|assistant|>\nIt is 3.</s>\n"
    "<|user|>\nAnd 4+4?</s>\n<|assistant|>\nIt is 8.</s>\n",
    "mistral": "<s>[INST] Be brief.\n\nWhat is 1+2? [/INST]It is 3.</s>[INST] And 4+4? [/INST]It is 8.</s>",
}
PROMPTS = {"chatml": "<|im_start|>assistant\n", "zephyr": "<|assistant|>\n", "mistral": ""}
SHOWN = {
    "narlm": "NarLM's own",
    "chatml": "ChatML (Qwen, SmolLM, Yi)",
    "llama3": "Llama 3",
    "zephyr": "Zephyr, the alignment handbook",
    "mistral": "Mistral",
    "gemma": "Gemma",
}


def tokenizer_of(name):
    """A tokenizer of bytes with the special tokens of a family, and the family's template by its name."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    if name == "narlm":
        return train_tokenizer(["What is 1+2? It is 3. Be brief."], 300)
    bos, eos, others = TOKENS[name]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = [token for token in (bos, eos, *others) if token]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(["What is 1+2? It is 3."], trainer=trainer)
    named = {"bos_token": bos} if bos else {}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=eos, additional_special_tokens=others, **named
    )
    tokenizer.name_or_path = name
    assert install_chat_template(tokenizer, name).startswith(f"the chat template of {name}")
    return tokenizer


def learned_text(name, messages=DIALOGUE):
    """The dialogue as token ids, decoded, with what is learned between ``[[`` and ``]]``."""
    tokenizer = tokenizer_of(name)
    return shown(*encode_row(tokenizer, {"messages": messages}), tokenizer)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_template_writes_what_its_family_writes(name):
    tokenizer = tokenizer_of(name)
    assert tokenizer.apply_chat_template(DIALOGUE, tokenize=False) == REFERENCES[name]
    asked = tokenizer.apply_chat_template(DIALOGUE[:4], tokenize=False, add_generation_prompt=True)
    assert asked == REFERENCES[name][: REFERENCES[name].index(ANSWERED[1])]
    assert asked.endswith(PROMPTS[name])
    without = tokenizer.apply_chat_template(DIALOGUE[1:], tokenize=False)
    assert SYSTEM not in without
    assert without.count(ASKED[0]) == 1


@pytest.mark.parametrize("name", OF_TRL)
def test_a_template_of_trl_writes_what_its_family_writes(name):
    """The training version against the one that the models ship, of Gemma the oldest, which refuses a system message:
    the same text of one turn and several, and of a prompt."""
    from trl import chat_template_utils

    tokenizer = tokenizer_of(name)
    theirs = getattr(chat_template_utils, f"{name}_chat_template")
    for messages in (DIALOGUE[1:], DIALOGUE[1:3], DIALOGUE[1:4], DIALOGUE[name == "gemma" :]):
        for prompt in (False, True) if messages[-1]["role"] == "user" else (False,):
            options = {"tokenize": False, "add_generation_prompt": prompt}
            written = tokenizer.apply_chat_template(messages, **options)
            assert written == tokenizer.apply_chat_template(messages, chat_template=theirs, **options)


@pytest.mark.parametrize("name", NAMES)
def test_of_every_named_template_the_answers_are_learned_with_the_token_that_ends_them(name):
    tokenizer = tokenizer_of(name)
    assert MARKER.search(tokenizer.chat_template)
    assert name == "narlm" or named_template(name) == tokenizer.chat_template
    ids, marks = encode_row(tokenizer, {"messages": DIALOGUE})
    groups = [[]]
    for i, mark in zip(ids, marks):
        if mark:
            groups[-1].append(i)
        elif groups[-1]:
            groups.append([])
    texts = [tokenizer.decode(group) for group in groups if group]
    assert len(texts) == 2
    for text, answer in zip(texts, ANSWERED):
        before, _, end = text.partition(answer)
        assert before.strip() == ""
        assert end in tokenizer.all_special_tokens


def table():
    """The page: each format's dialogue as one line of a table, line breaks written as ``\\n``."""
    rows = []
    for name, family in SHOWN.items():
        text = learned_text(name).replace("\n", "\\n").replace("|", "\\|")
        rows.append(f"| `{name}` | {family} | `{text}` |")
    return "\n".join(
        ["| `--chat_template_path` | family | two turns after a system message |", "|---|---|---|", *rows]
    )


PAGE = ROOT / "docs" / "chat_templates.md"


def test_the_page_shows_what_is_learned():
    """The table of docs/chat_templates.md is what the code gives now."""
    page = PAGE.read_text(encoding="utf-8")
    assert table() in page
    assert set(SHOWN) == set(NAMES)


if __name__ == "__main__":
    text = PAGE.read_text(encoding="utf-8")
    head, _, rest = text.partition("| `--chat_template_path` |")
    PAGE.write_text(head + table() + "\n\n" + rest.partition("\n\n")[2], encoding="utf-8")
