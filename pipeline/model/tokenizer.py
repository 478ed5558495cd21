"""The tokenizer of NarLM: byte-level BPE, and what every tokenizer must bring before it is trained with.

One rule decides whether a small model can carry what it read into what it says: **every word carries its leading
space**, also the first word of a document, a message or an answer, so that `` Rome`` is one and the same token
everywhere. The tokenizer sees to it itself (a text that does not start with a space is given one, after every special
token too), so neither data nor template has to. Decoded text therefore starts with one space: joined to a prompt it
reads as written, alone it wants ``str.strip``.

Digits are single tokens by default (the paper's footnote 5: a number cut by frequency hides its digits from the
model), and the space before a number is its own token, so that a digit is the same token in every place.

``tokenizer(text)`` puts one BOS in front. The chat template writes that BOS as well, so a text that the template made
is tokenized with ``add_special_tokens=False``, as transformers and TRL do.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.model.chat_templates import NAMES, named_template
from pipeline.model.dialogue_tokens import closing_token, turn_end
from pipeline.runtime.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

PAD, BOS, EOS = "<|pad|>", "<|bos|>", "<|eos|>"
ROLES = ("system", "user", "assistant")
SPECIAL_TOKENS = (PAD, BOS, EOS, *(f"<|{role}|>" for role in ROLES))

# NarLM's templates begin every message with this: its role, and an error for what they cannot write.
MESSAGE_RULES = """{%- set role = 'system' if message['role'] == 'developer' else message['role'] -%}
{%- if role not in ['system', 'user', 'assistant'] -%}
{{- raise_exception("NarLM's chat template knows the roles system, user and assistant, not '" + role + "'.") -}}
{%- endif -%}
{%- if message['tool_calls'] or tools -%}
{{- raise_exception("NarLM's chat template cannot write tools and tool calls.") -}}
{%- endif -%}
"""

# The first word's space is written out, not left to the tokenizer, so that a template's text is the same for every
# reader of it. Content that brings its own (an answer sampled from the model starts with one) is left as it is.
CHAT_TEMPLATE = (
    """{{- bos_token -}}
{%- for message in messages -%}
"""
    + MESSAGE_RULES
    + """{%- set content = message['content'] or '' -%}
{%- set content = content if content[:1] in ' \\n\\t' else ' ' + content -%}
{{- '<|' + role + '|>' -}}
{%- if role == 'assistant' -%}
{% generation %}{{- content + eos_token -}}{% endgeneration %}
{%- else -%}
{{- content -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"""
)


def train_tokenizer(texts: Iterable[str], vocab_size: int, split_digits: bool = True) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer.

    Args:
        texts: the corpus, read once; a generator is fine.
        vocab_size: entries in all: 6 special tokens, 256 bytes, and merges. A corpus too small to fill it gives a
            smaller tokenizer, so size the model by ``len(tokenizer)``.
        split_digits: whether every digit is a token.

    Returns:
        A tokenizer with distinct pad, BOS and EOS tokens and the chat template.

    Raises:
        UserError: ``vocab_size`` leaves no room for a merge, or there is no text.
    """
    from tokenizers import pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    smallest = len(SPECIAL_TOKENS) + len(alphabet)
    if vocab_size <= smallest:
        raise UserError(
            f"vocab_size is {vocab_size}, but {len(SPECIAL_TOKENS)} special tokens and {len(alphabet)} bytes already "
            f"take {smallest}; choose a larger one, for example 640"
        )
    tokenizer = _byte_level(split_digits)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=alphabet,
        show_progress=False,
    )
    marker = re.compile("|".join(map(re.escape, SPECIAL_TOKENS)))
    seen = 0

    def pieces() -> Iterable[str]:
        nonlocal seen
        for text in texts:
            seen += bool(text)
            yield from marker.split(text)  # the trainer would spend merges on spelling them out

    tokenizer.train_from_iterator(pieces(), trainer=trainer)
    if not seen:
        raise UserError("the corpus has no text to train a tokenizer on; check --dataset_name and its text column")
    _start_with_bos(tokenizer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        additional_special_tokens=[f"<|{role}|>" for role in ROLES],
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def _byte_level(split_digits: bool) -> Tokenizer:
    """An untrained BPE over bytes, to which text is given word by word."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    tokenizer = Tokenizer(models.BPE())
    # trim_offsets=False: otherwise no token owns the leading space and the mask of {% generation %} starts nowhere.
    splits = [pre_tokenizers.ByteLevel(add_prefix_space=True, trim_offsets=False, use_regex=True)]
    if split_digits:
        splits.append(pre_tokenizers.Digits(individual_digits=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(splits)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _start_with_bos(tokenizer: Tokenizer) -> None:
    from tokenizers import processors

    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A",
        pair=f"{BOS} $A $B:1",
        special_tokens=[(BOS, tokenizer.token_to_id(BOS))],
    )


def install_chat_template(tokenizer: PreTrainedTokenizerBase, path: str | None = None) -> str | None:
    """Give ``tokenizer`` the chat template that dialogues need, in place; every stage comes here before its rows.

    Args:
        path: a name (``narlm`` for NarLM's, else of `pipeline.model.chat_templates`), a ``.jinja`` file, or a folder
            or Hub id of a tokenizer that has one; None keeps the tokenizer's, or takes NarLM's where it has none.

    Returns:
        What was installed, in words; None where the tokenizer's stays. The text alone is taken: special tokens of it
        that the tokenizer lacks are plain text to it.

    Raises:
        UserError: there is no template under ``path``, or it ends the assistant's turn with no token of the tokenizer;
            NarLM's is wanted and the tokenizer has no EOS token.
    """
    if path is None and tokenizer.chat_template is not None:
        return None
    if path in (None, "narlm"):
        if tokenizer.eos_token is None:
            raise UserError(f"the tokenizer of {_name(tokenizer)} has no EOS token; set eos_token and save it again")
        template = CHAT_TEMPLATE if tokenizer.bos_token else CHAT_TEMPLATE.partition("\n")[2]
        if template == tokenizer.chat_template:
            return None
        tokenizer.chat_template = template
        why = "" if path else f"{_name(tokenizer)} has none; --chat_template_path names another"
        return "NarLM's chat template" + (f" ({why})" if why else "")
    template = named_template(path) or _read_template(path)
    if template == tokenizer.chat_template:
        return None
    tokenizer.chat_template = template
    require_end_of_turn(tokenizer, f"chat_template_path: the template of {path}")
    lacking = _lacking(tokenizer)
    return f"the chat template of {path}" + (f"; plain text to this tokenizer: {' '.join(lacking)}" if lacking else "")


def set_eos_token(tokenizer: PreTrainedTokenizerBase, token: str | None) -> None:
    """Make another token of the vocabulary the EOS, in place, as TRL's ``eos_token`` asks; None leaves it.

    Raises:
        UserError: the vocabulary does not have it.
    """
    if token is None:
        return
    if token not in tokenizer.get_vocab():
        raise UserError(
            f"eos_token: {token!r} is no token of the tokenizer of {_name(tokenizer)}; name one of its tokens"
        )
    tokenizer.eos_token = token


def require_end_of_turn(tokenizer: PreTrainedTokenizerBase, template: str) -> None:
    """Hold the chat template to ending the assistant's turn with a token of the tokenizer.

    An end that is plain text is learned letter by letter, and no sampler stops at it.

    Args:
        template: what the error calls it.

    Raises:
        UserError: neither a special token follows the answer, nor is EOS in what follows.
    """
    ids = turn_end(tokenizer)
    if ids is None or tokenizer.eos_token_id in ids:
        return
    if closing_token(tokenizer, tokenizer.get_chat_template()) is not None:
        return
    tail = tokenizer.decode(ids).strip()
    lacking = ", ".join(_lacking(tokenizer))
    raise UserError(
        f"{template} ends the assistant's turn with "
        f"{f'the plain text {tail!r}' if tail else 'nothing'}, not with a token of the tokenizer of {_name(tokenizer)}"
        + (f", which lacks {lacking}" if lacking else "")
        + ": the model would never learn to stop; choose --chat_template_path narlm, zephyr or mistral, or another "
        f"template that ends the turn with {tokenizer.eos_token}, or a tokenizer with these tokens"
    )


def _lacking(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Special tokens that the chat template writes (``<|im_end|>``) and the tokenizer does not have."""
    return sorted(
        set(re.findall(r"<\|[^|<>{}\s'\"]+\|>", tokenizer.get_chat_template())) - tokenizer.get_vocab().keys()
    )


def _read_template(path: str) -> str:
    file = Path(path).expanduser()
    if file.is_file():
        return file.read_text(encoding="utf-8")
    if file.is_dir() and (file / "chat_template.jinja").is_file():
        return (file / "chat_template.jinja").read_text(encoding="utf-8")
    from transformers import AutoTokenizer

    try:
        found = AutoTokenizer.from_pretrained(path, trust_remote_code=False).chat_template
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"chat_template_path: {path} is no file, no folder of a tokenizer, no Hub id that can be reached, and "
            f"none of the names {', '.join(NAMES)}{did_you_mean(path, NAMES)}"
        ) from error
    if not found:
        raise UserError(f"chat_template_path: the tokenizer of {path} has no chat template")
    return found["default"] if isinstance(found, dict) else found


def ensure_training_chat_template(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Give ``tokenizer`` a chat template with ``{% generation %}`` markers, in place, and return it.

    Its own template stays if it has the markers. Otherwise TRL's training version of it is taken, which renders the
    same text, where there is one; any other stays as it is, and `pipeline.model.dialogue_tokens` finds the turns by
    rendering prefixes. A base without any template gets NarLM's, with the role names as plain text if they are no
    tokens of it.

    Raises:
        UserError: there is no template and no EOS token either.
    """
    install_chat_template(tokenizer)
    template = tokenizer.chat_template
    template = template["default"] if isinstance(template, dict) else template  # a base may ship named variants
    if re.search(r"\{%-?\s*generation\s*-?%\}", template):
        return tokenizer

    from pipeline.runtime.compat import get_training_chat_template

    with contextlib.suppress(ValueError):  # no family that TRL knows
        tokenizer.chat_template = get_training_chat_template(tokenizer)
    return tokenizer


def check_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    """Hold the tokenizer to what training and generation rely on.

    With pad equal to EOS the end of an answer is masked out of the loss, and the model learns never to stop.

    Raises:
        UserError: no EOS token, no pad token, or one that is EOS or BOS.
    """
    if tokenizer.eos_token_id is None:
        raise UserError(f"the tokenizer of {_name(tokenizer)} has no EOS token; set eos_token and save it again")
    if tokenizer.pad_token_id is None:
        raise UserError(
            f"the tokenizer of {_name(tokenizer)} has no pad token; set pad_token to one of its tokens "
            "that is otherwise unused, and save it again"
        )
    for name in ("eos", "bos"):
        if tokenizer.pad_token_id == getattr(tokenizer, f"{name}_token_id"):
            raise UserError(
                f"the tokenizer of {_name(tokenizer)} pads with its {name.upper()} token {tokenizer.pad_token!r}: "
                "set pad_token to another one that is otherwise unused, and save it again"
            )


def _name(tokenizer: PreTrainedTokenizerBase) -> str:
    return repr(tokenizer.name_or_path or type(tokenizer).__name__)
