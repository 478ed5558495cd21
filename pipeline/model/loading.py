"""Models and tokenizers: from a Hub id, a full-model folder, or an adapter folder. Needs PEFT only for its adapters.

`attach_adapter` is the one place where a base and a saved adapter meet. What a training stage starts from, and what
its reference is, is decided in ``pipeline.model.policy``.
"""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import cached_file

import pipeline.model  # noqa: F401 - registers NarLM with the Auto classes
from pipeline.model.adapters import is_narlm_config, load_adapter
from pipeline.model.pad_token import with_pad_token
from pipeline.model.tokenizer import check_tokenizer, set_eos_token
from pipeline.model.vision import keep_processor, load_processor, sees
from pipeline.runtime.checkpoints import require_model_folder
from pipeline.runtime.compat import require
from pipeline.runtime.distributed import is_main
from pipeline.runtime.errors import UserError
from pipeline.runtime.files import is_local, near_path
from pipeline.runtime.terminal import hide_weight_bars

require("whole_weights")

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel


@contextlib.contextmanager
def whole_weights() -> Iterator[None]:
    """Inside, models load unsplit: once a trainer is set up for ZeRO-3, transformers splits whatever it loads."""
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
    **kwargs: object,
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
    return (model if base is None else merged(attach_adapter(model, name))).eval()


def load_for_use(name: str, **options: object) -> PreTrainedModel:
    """As ``load_model`` by the same options, on this process's GPU where there is one."""
    return on_accelerator(load_model(name, **options))


def on_accelerator(model: PreTrainedModel) -> PreTrainedModel:
    """The model on this process's GPU, where there is one."""
    return model.to(torch.cuda.current_device()) if torch.cuda.is_available() else model


def attach_adapter(
    model: PreTrainedModel,
    name: str,
    *,
    trainable: bool = False,
    revision: str | None = None,
    adapter_name: str = "default",
) -> "PreTrainedModel | PeftModel":
    """The base with a saved adapter on it, and with its end tokens.

    An adapter of a causal LM also fits the sequence classifier of the same base, whose score head is then new. An
    adapter that was saved with an embedding of another number of rows (other tools add rows for new tokens) gets them.

    Args:
        model: the base, or a model that carries adapters of other names already.
        name: the adapter's folder or repository on the Hub.
        trainable: it is trained on.
        revision: of the repository.
        adapter_name: what PEFT calls it.

    Raises:
        UserError: it was made for another base.
    """
    take_end_tokens(model, name)
    if is_narlm_config(adapter_config(name, revision)):
        return load_adapter(model, name, trainable=trainable)
    from peft import PeftConfig, PeftModel

    if isinstance(model, PeftModel):
        model.load_adapter(name, adapter_name=adapter_name, is_trainable=trainable, revision=revision)
        return model
    config = PeftConfig.from_pretrained(name, revision=revision)
    rows = _saved_rows(model, name, revision)
    if rows is not None and rows != model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(rows, mean_resizing=False)
    try:
        if hasattr(model, "score") and config.task_type != "SEQ_CLS":
            return _with_new_head(model, name, config, revision)
        return PeftModel.from_pretrained(
            model, name, is_trainable=trainable, revision=revision, adapter_name=adapter_name
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"the adapter in {name} does not fit its base: was it trained on another model? "
            f"({' '.join(str(error).split())[:200]})"
        ) from error


def _with_new_head(model: PreTrainedModel, name: str, config: "PeftConfig", revision: str | None) -> "PeftModel":
    """A sequence classifier with a causal LM's adapter on it; its score head is trained and saved with the adapter."""
    from peft import get_peft_model, load_peft_weights, set_peft_model_state_dict

    modules = {module.rpartition(".")[2] for module, _ in model.named_modules()}
    config.task_type, config.inference_mode = "SEQ_CLS", False
    config.modules_to_save = sorted({"score", *modules.intersection(config.modules_to_save or ())})
    weights = load_peft_weights(name, device="cpu", revision=revision)
    weights["base_model.model.score.weight"] = model.score.weight.detach().clone()
    adapted = get_peft_model(model, config)
    set_peft_model_state_dict(adapted, weights)
    return adapted


def merged(model: "PreTrainedModel | PeftModel") -> PreTrainedModel:
    """The plain model that answers as base and adapter do; an adapter of `pipeline.model.adapters` stays attached."""
    if not hasattr(model, "merge_and_unload"):
        return model
    from pipeline.runtime.compat import BaseTunerLayer

    base = model.get_base_model()
    head, embedding = base.get_output_embeddings(), base.get_input_embeddings()
    tied = head is not None and getattr(base.config, "tie_word_embeddings", False)
    if tied and any(isinstance(layer, BaseTunerLayer) for layer in (head, embedding)):
        # What is merged into one of the two must not change the other, which the adapter left as it was.
        inner = getattr(head, "base_layer", head)
        inner.weight = torch.nn.Parameter(inner.weight.detach().clone(), requires_grad=False)
    plain = model.merge_and_unload(safe_merge=True)  # safe: a weight that is not finite is an error
    if tied:
        plain.config.tie_word_embeddings = torch.equal(
            plain.get_output_embeddings().weight, plain.get_input_embeddings().weight
        )
    return plain


def load_tokenizer(
    name: str,
    trust_remote_code: bool = False,
    revision: str | None = None,
    *,
    for_training: bool = False,
    eos_token: str | None = None,
) -> PreTrainedTokenizerBase:
    """The tokenizer saved with a model or adapter (else its base's), with a pad token (`with_pad_token`).

    Args:
        name: Hub id, model folder or adapter folder.
        for_training: the pad token must not be EOS; where no token of the vocabulary serves, one is added and the
            embeddings must grow. For use alone EOS will do, since padding is masked.
        eos_token: another token of the vocabulary that becomes the EOS.

    Raises:
        UserError: there is none, or it cannot be used as it is.
    """
    base = adapter_base(name, revision)
    for source, its_revision in ((name, revision), (base, None)):
        if source is None:
            continue
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                source, trust_remote_code=trust_remote_code, revision=its_revision
            )
        except (OSError, ValueError, KeyError):
            continue
        set_eos_token(tokenizer, eos_token)
        config = _config_or_none(base or name, trust_remote_code)
        rows = None if config is None else getattr(config.get_text_config(), "vocab_size", None)
        tokenizer = with_pad_token(tokenizer, rows, may_add=for_training, trust_remote_code=trust_remote_code)
        with_processor(tokenizer, source, config, trust_remote_code)
        if for_training:
            check_tokenizer(tokenizer)
        return tokenizer
    if not is_local(name):
        _reachable_config(name, trust_remote_code)
    raise UserError(f"model_name_or_path: no tokenizer can be loaded from {name}; save one beside the model")


def adapter_base(name: str, revision: str | None = None) -> str | None:
    """The base model's name of an adapter (a folder, or a repository on the Hub); None for a full model.

    Raises:
        UserError: the adapter names no base.
    """
    config = adapter_config(name, revision)
    if config is None:
        return None
    base = config.get("base_model_name_or_path")
    if not base:
        raise UserError(f"{name}: adapter_config.json names no base_model_name_or_path; add it")
    return base


def adapter_config(name: str, revision: str | None = None) -> dict | None:
    """``adapter_config.json`` of an adapter folder or repository; None for a full model."""
    found = _file_of(name, "adapter_config.json", revision)
    return None if found is None else json.loads(Path(found).read_text(encoding="utf-8"))


def _file_of(name: str, file: str, revision: str | None) -> str | None:
    """Path of a file of a folder or repository; None where it is not there or cannot be reached."""
    if Path(name).is_dir():
        return str(Path(name) / file) if (Path(name) / file).is_file() else None
    require_model_folder(name)
    return cached_file(
        name,
        file,
        revision=revision,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        _raise_exceptions_for_gated_repo=False,
    )


def _saved_rows(model: PreTrainedModel, name: str, revision: str | None) -> int | None:
    """Rows of the embedding that an adapter was saved with; None where it holds none."""
    embedding = model.get_input_embeddings()
    place = next(module for module, found in model.named_modules() if found is embedding)
    file = _file_of(name, "adapter_model.safetensors", revision)
    if file is None:
        return None
    with safe_open(file, framework="pt") as tensors:
        key = f"base_model.model.{place}.weight"
        return tensors.get_slice(key).get_shape()[0] if key in tensors.keys() else None  # noqa: SIM118


def with_processor(
    tokenizer: PreTrainedTokenizerBase,
    name: str,
    config: PretrainedConfig | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedTokenizerBase:
    """The tokenizer, with the processor that was saved beside it where its model reads images.

    Args:
        config: the model's; default: that of ``name``.

    Raises:
        UserError: the model reads images, and there is no processor.
    """
    config = config or _config_or_none(name, trust_remote_code)
    processor = None if config is None else load_processor(name, config, trust_remote_code)
    return tokenizer if processor is None else keep_processor(tokenizer, processor)


def _config_or_none(name: str, trust_remote_code: bool) -> PretrainedConfig | None:
    """A model's config; None where there is none, as for a tokenizer alone."""
    try:
        return AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError):
        return None


def model_config(name: str, trust_remote_code: bool = False, revision: str | None = None) -> PretrainedConfig:
    """The config of a model, or of the base of an adapter.

    Raises:
        UserError: neither a model folder nor a repository that can be reached.
    """
    base = adapter_base(name, revision)
    return _reachable_config(base or name, trust_remote_code, revision if base is None else None)


def position_limit(config: PretrainedConfig) -> int | None:
    """Tokens that a model has positions for; None where its config sets no limit."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    return getattr(text, "max_position_embeddings", None) or None


def require_language_model(name: str, trust_remote_code: bool = False) -> None:
    """Catch a reward model that is named as a policy: transformers would give it a random output layer and continue.

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


def from_pretrained(auto_class: type, name: str, **kwargs: object) -> PreTrainedModel:
    """``auto_class.from_pretrained``, with one clear error where there is no such model, and no bar of its weights.

    Weights that the files lack are random: they are named in one line, but for a score head, which starts that way.

    Raises:
        UserError: neither a model folder nor a repository that can be reached.
    """
    kwargs = {key: value for key, value in kwargs.items() if value is not None}
    hide_weight_bars()
    config = _config_or_none(name, kwargs["trust_remote_code"]) if auto_class is AutoModelForCausalLM else None
    if config is not None and sees(config):
        auto_class = AutoModelForImageTextToText
    try:
        model, found = auto_class.from_pretrained(name, **kwargs, output_loading_info=True)
    except (OSError, ValueError):
        _reachable_config(name, kwargs["trust_remote_code"])
        raise
    missing = sorted(key for key in found["missing_keys"] if not key.startswith("score."))
    if missing and is_main():
        print(f"warning: {name} lacks {len(missing)} weights, which are random now: {missing[0]}, …", flush=True)
    return model


def _reachable_config(name: str, trust_remote_code: bool, revision: str | None = None) -> PretrainedConfig:
    try:
        return AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code, revision=revision)
    except (OSError, ValueError) as error:
        raise UserError(
            f"model_name_or_path: {name} is neither a model folder nor a Hub repository that can be reached"
            f"{near_path(name)}"
        ) from error
