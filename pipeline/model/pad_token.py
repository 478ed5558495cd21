"""The pad token of a tokenizer that has none: an id that no text contains, so that the embedding keeps its rows.

Many published bases pad with EOS or with nothing. A row added to the embedding would be saved with every adapter and
would keep the adapter from loading onto the plain base. Padding is masked, so any id serves that neither ends a turn
nor occurs in text. Such ids are looked for in this order:

1. a token that the vocabulary reserves (``<pad>``, ``<|reserved_special_token_0|>``, ``<unused0>``, ...);
2. a row of the embedding that no token uses (many vocabularies are rounded up), which is named ``<|pad|>``;
3. in a byte-level vocabulary, a byte that UTF-8 never uses (RFC 3629), which is renamed to ``<|pad|>``: byte 0xFF is
   called by the letter U+00FF, which occurs in words and would be read as padding;
4. ``<unk>``.
"""

import json
import re
import tempfile
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from pipeline.model.tokenizer import PAD

KNOWN = (PAD, "<|finetune_right_pad_id|>", "<pad>", "[PAD]", "<|endoftext|>", "<|reserved_special_token_0|>")
RESERVED = re.compile(r"^(?!.*(image|video|audio)).*(pad|unused|reserved|dummy|placeholder|filler)", re.IGNORECASE)
# Byte-level BPE writes these bytes as the characters of the same number.
NOT_UTF8 = [chr(byte) for byte in (*range(0xFF, 0xF4, -1), 0xC1, 0xC0)]


def with_pad_token(
    tokenizer: PreTrainedTokenizerBase, rows: int | None, *, may_add: bool, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """The tokenizer with a pad token that is neither EOS nor BOS nor a token of the chat template.

    Args:
        tokenizer: changed in place where that is possible, else a changed copy is returned.
        rows: rows of the model's embedding; None if they are not known.
        may_add: where no token of the vocabulary serves, add one, and the embedding must grow. Otherwise EOS is taken,
            which is safe for a model that is only used.
        trust_remote_code: for a tokenizer with code of its own.
    """
    vocabulary, used = tokenizer.get_vocab(), _used(tokenizer)
    if tokenizer.pad_token_id is not None and tokenizer.pad_token not in used:
        return tokenizer
    specials = [token.content for _, token in sorted(tokenizer.added_tokens_decoder.items()) if token.special]
    reserved = [*KNOWN, *filter(RESERVED.search, specials)]
    free = [token for token in reserved if token in vocabulary and token not in used]
    unknown = [token for token in ("<unk>",) if token in vocabulary and token not in used]
    if free:
        tokenizer.pad_token = free[0]
    elif rows is not None and max(vocabulary.values()) + 1 < rows and PAD not in vocabulary:
        tokenizer.add_special_tokens({"pad_token": PAD})
    elif (renamed := _with_renamed_byte(tokenizer, trust_remote_code)) is not None:
        return renamed
    elif unknown:
        tokenizer.pad_token = unknown[0]
    elif may_add:
        tokenizer.add_special_tokens({"pad_token": PAD})
    elif tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _used(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """Tokens that end or start a text, or a turn of the chat template."""
    template = json.dumps(tokenizer.chat_template or "", ensure_ascii=False)
    in_template = {token for token in tokenizer.all_special_tokens if token in template}
    if tokenizer.pad_token is not None and tokenizer.pad_token in template:
        in_template.add(tokenizer.pad_token)
    return in_template | {tokenizer.eos_token, tokenizer.bos_token}


def _with_renamed_byte(tokenizer: PreTrainedTokenizerBase, trust_remote_code: bool) -> PreTrainedTokenizerBase | None:
    """A copy in which a byte that no text contains is called ``<|pad|>``; None if the vocabulary is not byte-level."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        file = Path(folder) / "tokenizer.json"
        if not file.is_file():
            return None
        content = json.loads(file.read_text(encoding="utf-8"))
        model = content["model"]
        if model["type"] != "BPE" or "ByteLevel" not in json.dumps(content["decoder"]) or PAD in model["vocab"]:
            return None
        merged = {
            part for merge in model["merges"] for part in (merge.split(" ") if isinstance(merge, str) else merge)
        }
        named = merged | {token["content"] for token in content["added_tokens"]}
        byte = next((byte for byte in NOT_UTF8 if byte in model["vocab"] and byte not in named), None)
        if byte is None:
            return None
        model["vocab"][PAD] = model["vocab"].pop(byte)
        file.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
        renamed = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    renamed.name_or_path = tokenizer.name_or_path
    renamed.pad_token = PAD
    return renamed
