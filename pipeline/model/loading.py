"""Models and tokenizers for use: from a Hub id, a full-model folder, or an adapter folder. Needs neither TRL nor PEFT.

What a training stage starts from, and what its reference is, stands in ``pipeline.model.policy``.
"""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import cached_file

import pipeline.model  # noqa: F401 - registers NarLM with the Auto classes
from pipeline.model.adapters import is_own_config, load_adapter
from pipeline.model.tokenizer import check_tokenizer, ensure_pad_token
from pipeline.runtime.checkpoints import require_model_folder
from pipeline.runtime.errors import UserError


@contextlib.contextmanager
def whole_weights() -> Iterator[None]:
    """Inside, models load whole: once a trainer is set up for ZeRO-3, transformers partitions whatever it loads."""
    from transformers.integrations import deepspeed

    configured = deepspeed._hf_deepspeed_config_weak_ref
    deepspeed._hf_deepspeed_config_weak_ref = None
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = configured


def engine() -> str | None:
    """``fsdp``, ``zero`` or ``zero3`` where one of these holds the weights of whatever a trainer trains, else None.

    Such weights are split over the processes (FSDP, ZeRO-3) or have another type (ZeRO): to use the model beside its
    trainer, save it and load what was saved.
    """
    from transformers.integrations import is_deepspeed_zero3_enabled

    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true":
        return "fsdp"
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true":
        return "zero3" if is_deepspeed_zero3_enabled() else "zero"
    return None


@whole_weights()
def load_model(
    name: str,
    *,
    dtype: str = "float32",
    trust_remote_code: bool = False,
    auto_class: type = AutoModelForCausalLM,
    **kwargs: Any,
) -> PreTrainedModel:
    """A model for use, not for training: adapters are merged into their base, the model is in evaluation mode.

    Raises:
        UserError: no such model, or a reward model where a language model is asked for.
    """
    require_model_folder(name)
    if auto_class is AutoModelForCausalLM:
        require_language_model(name, trust_remote_code)
    kwargs |= {"dtype": getattr(torch, dtype), "trust_remote_code": trust_remote_code}
    base = adapter_base(name)
    model = from_pretrained(auto_class, base or name, **kwargs)
    if base is not None:
        take_end_tokens(model, name)
        if is_own_config(adapter_config(name)):
            return load_adapter(model, name).eval()
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, name).merge_and_unload()
    return model.eval()


def load_tokenizer(
    name: str, trust_remote_code: bool = False, revision: str | None = None, *, for_training: bool = False
) -> PreTrainedTokenizerBase:
    """The tokenizer saved with a model or adapter (else its base's), with a pad token.

    Args:
        name: Hub id, model folder or adapter folder.
        for_training: the pad token must be one of its own, added if need be (the embeddings may then have to grow).
            For use alone EOS will do where there is no other, since padding is masked.

    Raises:
        UserError: there is none, or it cannot be used as it is.
    """
    for source in filter(None, (name, adapter_base(name))):
        try:
            tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code, revision=revision)
        except (OSError, ValueError, KeyError):
            continue
        ensure_pad_token(tokenizer, may_add=for_training)
        if for_training:
            check_tokenizer(tokenizer)
        return tokenizer
    if not Path(name).is_dir():
        _require_reachable(name, trust_remote_code)
    raise UserError(f"model_name_or_path: no tokenizer can be loaded from {name}; save one beside the model")


def adapter_base(name: str) -> str | None:
    """The base model's name of an adapter (a folder, or a repository on the Hub); None for a full model.

    Raises:
        UserError: the adapter names no base.
    """
    config = adapter_config(name)
    if config is None:
        return None
    base = config.get("base_model_name_or_path")
    if not base:
        raise UserError(f"{name}: adapter_config.json names no base_model_name_or_path; add it")
    return base


def adapter_config(name: str) -> dict[str, Any] | None:
    """``adapter_config.json`` of an adapter folder or repository; None for a full model."""
    if Path(name).is_dir():
        file = Path(name) / "adapter_config.json"
        found = str(file) if file.is_file() else None
    else:
        require_model_folder(name)
        found = cached_file(
            name,
            "adapter_config.json",
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
            _raise_exceptions_for_gated_repo=False,
        )
    if found is None:
        return None  # not reachable, perhaps: loading the model says so
    return json.loads(Path(found).read_text(encoding="utf-8"))


def require_language_model(name: str, trust_remote_code: bool = False) -> None:
    """Catch a reward model that is named as a policy: transformers would give it a random output layer and go on.

    Raises:
        UserError: a sequence classifier, or an adapter of one.
    """
    adapter, kinds = adapter_config(name), []
    if adapter is not None:
        kinds = ["sequence classification"] if adapter.get("task_type") == "SEQ_CLS" else []
    else:
        with contextlib.suppress(OSError, ValueError):  # not reachable, perhaps: loading the model says so
            kinds = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code).architectures or []
            kinds = [kind for kind in kinds if "SequenceClassification" in kind]
    if kinds:
        raise UserError(
            f"model_name_or_path: {name} is a reward model ({kinds[0]}): it scores text and writes none; name the "
            "language model here, and the reward model as a reward"
        )


def take_end_tokens(model: PreTrainedModel, adapter: str) -> None:
    """Let a base stop where its adapter's ``generation_config.json`` says, which transformers and PEFT do not read."""
    with contextlib.suppress(OSError):
        found = GenerationConfig.from_pretrained(adapter).eos_token_id
        if found is not None and getattr(model, "generation_config", None) is not None:
            model.generation_config.eos_token_id = found


def from_pretrained(auto_class: type, name: str, **kwargs: Any) -> PreTrainedModel:
    """``auto_class.from_pretrained``, with one clear error where there is no such model.

    Raises:
        UserError: neither a model folder nor a repository that can be reached.
    """
    kwargs = {key: value for key, value in kwargs.items() if value is not None}
    try:
        return auto_class.from_pretrained(name, **kwargs)
    except (OSError, ValueError):
        _require_reachable(name, kwargs["trust_remote_code"])
        raise


def _require_reachable(name: str, trust_remote_code: bool) -> None:
    try:
        AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise UserError(
            f"model_name_or_path: {name} is neither a model folder nor a Hub repository that can be reached"
        ) from error
