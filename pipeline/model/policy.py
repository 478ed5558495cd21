"""The model a stage starts from: a Hub id, a full-model folder, or an adapter folder, and what pi_ref is then.

An adapter as the start is handled by ``adapter_mode``:

- ``continue``: training of the same adapter resumes; pi_ref is base + a frozen copy of it.
- ``merge``: the adapter is merged into its base at full precision, written to ``<output_dir>/start``, and that is an
  ordinary model from there on; pi_ref is that model.
- ``stack``: a new adapter is trained over base + frozen adapter; pi_ref is base + adapter. What is saved is one plain
  LoRA adapter on the original base, equal to the sum of both (`stack_adapters`).
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from accelerate import PartialState
from peft import PeftConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    set_seed,
)
from trl import ModelConfig, get_peft_config, get_quantization_config

from pipeline.model.adapters import is_narlm_config
from pipeline.model.loading import (
    adapter_base,
    adapter_config,
    attach_adapter,
    from_pretrained,
    load_tokenizer,
    merged,
    model_config,
    require_language_model,
)
from pipeline.model.lora_sum import adapter_folder, check_stackable, stack_adapters
from pipeline.model.vision import processor_of, trained_with
from pipeline.runtime.checkpoints import require_model_folder
from pipeline.runtime.errors import UserError
from pipeline.runtime.record import Run


@dataclass
class ModelArguments(ModelConfig):
    """TRL's ``ModelConfig`` and what happens to an adapter that is the start."""

    adapter_mode: Literal["continue", "merge", "stack"] = field(
        default="continue", metadata={"help": "How to treat the adapter when model_name_or_path is an adapter."}
    )
    loraplus_lr_ratio: float | None = field(
        default=None,
        metadata={"help": "LoRA+: learning rate of the B matrices over that of the A matrices (its authors take 16)."},
    )


@dataclass
class ChatModelArguments(ModelArguments):
    """For the stages whose TRL config lacks the field that SFT's and the reward model's have."""

    chat_template_path: str | None = field(
        default=None,
        metadata={
            "help": "Chat template: a name (narlm, chatml, zephyr, mistral, llama3, gemma), a .jinja file, or a "
            "folder or Hub id of a tokenizer that has one. Default: the model's, else NarLM's."
        },
    )


@dataclass
class Policy:
    """The model to train, with everything a TRL trainer needs to know about it."""

    model: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerBase
    peft_config: PeftConfig | None
    parent_adapter: Path | None = None  # set by `stack`: the adapter that the saved one must include

    @property
    def processing(self) -> "PreTrainedTokenizerBase | ProcessorMixin":
        """What a trainer takes as ``processing_class``: the processor of a model that sees, else the tokenizer."""
        return trained_with(self.tokenizer)

    def finish(self, folder: Path) -> None:
        """Make the saved folder complete: under ``stack`` the saved adapter takes its parent in.

        An adapter gets a ``generation_config.json``, which PEFT does not write: it says where a turn ends.
        """
        if self.parent_adapter is not None:
            stack_adapters(self.parent_adapter, folder)
        if processor_of(self.tokenizer) is not None:  # a trainer of TRL that takes a tokenizer saves that alone
            trained_with(self.tokenizer).save_pretrained(folder)
        generation_config = getattr(self.model, "generation_config", None)
        if generation_config is not None and (folder / "adapter_config.json").is_file():
            generation_config.to_json_file(folder / "generation_config.json")


def load_policy(
    args: ModelArguments,
    run: Run,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    trust_remote_code: bool = False,
    auto_class: type = AutoModelForCausalLM,
    is_start: bool = True,
    reference: bool = False,
    **kwargs: object,
) -> Policy:
    """Load the start of a training stage, and print which weights are pi_ref where its objective has one.

    Args:
        args: the model's arguments.
        run: the run, whose record gets the start as a parent and whose folder takes a merged start.
        tokenizer: of `read_start`, by which the rows were prepared; default: it is loaded here.
        trust_remote_code: passed on explicitly; None would ask on stdin.
        auto_class: which head, e.g. ``AutoModelForSequenceClassification`` for a reward model.
        is_start: whether the run starts from this model, so that the record gets it as a parent and as pi_ref; a later
            leg of the run starts from the run's own last result.
        reference: the stage's objective has a pi_ref, which is printed. The record has it in any case: an assessment
            compares the trained policy with it.
        kwargs: passed to ``from_pretrained``, e.g. ``num_labels=1``.

    Raises:
        UserError: no such model, an adapter without a base, or a mode that does not fit.
    """
    name = start_name(args)
    if tokenizer is None:
        eos_token = run.record["arguments"].get("eos_token")
        _, tokenizer = read_start(
            args, trust_remote_code=trust_remote_code, auto_class=auto_class, eos_token=eos_token
        )
    if is_start:
        run.add_parent(name, args.model_revision)
    set_seed(run.record["seed"])  # a new head, or new rows of the embedding, must be the same on every process
    kwargs |= {
        "dtype": args.dtype if args.dtype in ("auto", None) else getattr(torch, args.dtype),
        "attn_implementation": args.attn_implementation,
        "trust_remote_code": trust_remote_code,
        "quantization_config": get_quantization_config(args),
    }
    peft_config, base = get_peft_config(args), adapter_base(name, args.model_revision)
    if base is None:
        model = from_pretrained(auto_class, name, revision=args.model_revision, **kwargs)
    else:
        model = _load_adapter(args, from_pretrained(auto_class, base, **kwargs))
    continued = base is not None and args.adapter_mode == "continue"
    peft_config = None if continued else peft_config
    _fit_vocabulary(model, tokenizer, adapter=continued or peft_config is not None)
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id  # a score is read off the last other token
    _spare_the_encoder(peft_config, model.config)
    policy = Policy(model, tokenizer, peft_config)
    pi_ref = _settle_reference(policy, args, base, run)
    if is_start and auto_class is AutoModelForCausalLM:  # a reward model is no policy and has no reference
        run.note("pi_ref", name)  # by every mode the reference is the start as it was, and this loads it
        if reference:
            run.say(f"pi_ref is {pi_ref}")
    return policy


def _spare_the_encoder(peft_config: PeftConfig | None, config: PretrainedConfig) -> None:
    """Keep a new adapter out of a frozen encoder, into which ``all-linear`` would put it."""
    if peft_config is not None and getattr(config, "freeze_vision", False) and not peft_config.exclude_modules:
        peft_config.exclude_modules = r".*vision_tower.*"


def read_start(
    args: ModelArguments,
    *,
    trust_remote_code: bool = False,
    auto_class: type = AutoModelForCausalLM,
    eos_token: str | None = None,
) -> tuple[PretrainedConfig, PreTrainedTokenizerBase]:
    """The config and the tokenizer of a stage's start: all of it that the rows are checked and prepared by.

    A stage reads them before its data and loads the weights after it, so that a mistake in the arguments, the columns
    or the rows is reported in seconds, whatever the size of the model. With ``eos_token`` another token of the
    vocabulary becomes the EOS.

    Raises:
        UserError: no such model, a reward model as a policy, no usable tokenizer, or an adapter without a base or
            under a mode that does not fit.
    """
    name = start_name(args)
    if auto_class is AutoModelForCausalLM:
        require_language_model(name, trust_remote_code)
    if adapter_base(name, args.model_revision) is not None:
        _check_mode(args, get_peft_config(args), scores=auto_class is AutoModelForSequenceClassification)
    tokenizer = load_tokenizer(name, trust_remote_code, args.model_revision, for_training=True, eos_token=eos_token)
    return model_config(name, trust_remote_code, args.model_revision), tokenizer


def _load_adapter(args: ModelArguments, base: PreTrainedModel) -> PreTrainedModel | PeftModel:
    """The base with the adapter that is the start: to be trained on (``continue``), else merged in."""
    continued = args.adapter_mode == "continue"
    model = attach_adapter(base, args.model_name_or_path, trainable=continued, revision=args.model_revision)
    if not continued:
        model = merged(model)
        model.requires_grad_(True)  # PEFT froze the base; whether it is trained is the stage's choice
    return model


def _settle_reference(policy: Policy, args: ModelArguments, base: str | None, run: Run) -> str:
    """Which weights are pi_ref, in words; under ``merge`` they are saved, under ``stack`` the parent is noted.

    The model gets the name that the trainer reloads the reference from.
    """
    name, mode = args.model_name_or_path, args.adapter_mode
    if base is None:
        return f"{name} (the start{', adapter off' if policy.peft_config else ', frozen copy'})"
    if mode == "continue":
        return f"{base} with a frozen copy of the adapter {name}"
    if mode == "stack":
        _rename(policy.model, base)
        policy.parent_adapter = adapter_folder(name, args.model_revision)
        return f"{base} with the adapter {name}, the new adapter off"
    start = run.folder / "start"
    if run.is_main and not (start / "config.json").is_file():
        policy.model.save_pretrained(start)
        trained_with(policy.tokenizer).save_pretrained(start)
    PartialState().wait_for_everyone()
    _rename(policy.model, str(start))
    return f"{start} (base {base} with {name} merged in)"


def start_name(args: ModelArguments) -> str:
    """``model_name_or_path``, once it is known to be given and, where it is a path, to hold a model.

    Raises:
        UserError: it is missing, or there is no such model.
    """
    if not args.model_name_or_path:
        raise UserError("model_name_or_path is missing: give a Hub id, a model folder or an adapter folder")
    require_model_folder(args.model_name_or_path)
    return args.model_name_or_path


def _check_mode(args: ModelArguments, peft_config: PeftConfig | None, *, scores: bool) -> None:
    """Refuse what cannot be done with the adapter that is the start, before its base is loaded.

    Raises:
        UserError: an adapter that can only be continued, or that no score head is saved with, a quantised base, or two
            adapters that have no sum.
    """
    name, mode = args.model_name_or_path, args.adapter_mode
    own = is_narlm_config(adapter_config(name, args.model_revision))
    if own and scores:
        raise UserError(
            f"{name} is no LoRA adapter, and no score head can be trained over it: start from a full model"
        )
    if mode == "continue":
        return
    if own:
        raise UserError(f"adapter_mode {mode}: {name} is no LoRA adapter; it can only be continued")
    if get_quantization_config(args) is not None:
        raise UserError(
            f"adapter_mode {mode} merges {name} into its base, which loses precision in a quantised base: use "
            "--adapter_mode continue, or merge first in full precision"
        )
    if mode == "stack":
        if peft_config is None:
            raise UserError("adapter_mode stack trains a new adapter over the old one: add --use_peft")
        check_stackable(adapter_folder(name, args.model_revision), peft_config.to_dict())


def _fit_vocabulary(model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, *, adapter: bool) -> None:
    """Grow the embedding of a model all of whose weights are trained where its tokenizer has more tokens.

    Raises:
        UserError: an adapter is trained, which would not load onto the base as it is.
    """
    rows = model.get_input_embeddings().num_embeddings
    if len(tokenizer) <= rows:
        return
    if adapter:
        raise UserError(
            f"the tokenizer has {len(tokenizer)} tokens and the embedding {rows} rows: an adapter trained on a larger "
            "embedding would not load onto this base; resize the base, save it and start from there, or train without "
            "--use_peft"
        )
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)


def with_adapter(policy: Policy) -> PreTrainedModel | PeftModel:
    """The policy's model with its new adapter, for a plain Trainer; TRL's trainers do this themselves."""
    return get_peft_model(policy.model, policy.peft_config) if policy.peft_config else policy.model


def _rename(model: PreTrainedModel, name: str) -> None:
    """Say where a model comes from: TRL reloads the reference from there, PEFT writes it into adapter_config.json."""
    model.config._name_or_path = model.name_or_path = name
