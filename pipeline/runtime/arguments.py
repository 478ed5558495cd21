"""Arguments of every stage: flat YAML and flags, read once, strict in both, typed by their fields.

A value is text until its field says what it is: ``--output_dir 007`` names the folder 007, ``--seed 0042`` is 42,
``eval_strategy: no`` is the word. TrlParser lets misspelt YAML keys pass, checks neither the types nor the choices of
YAML values, and does not see ``--config=file``; so it only prints ``--help_all`` here. ``given`` reads the text,
``coercion`` types it.
"""

import dataclasses
import sys
import types
import typing
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, Union

from pipeline.runtime.coercion import coerce
from pipeline.runtime.errors import UserError, nearest
from pipeline.runtime.files import Json
from pipeline.runtime.given import read_with_places

# Field names of other tools and of earlier versions with our names, and what to do if there is no such field.
FORMER_NAMES = {
    "torch_dtype": "dtype",
    "model": "model_name_or_path",
    "model_name": "model_name_or_path",
    "base_model": "model_name_or_path",
    "model_path": "model_name_or_path",
    "tokenizer": "tokenizer_name",
    "dataset": "dataset_name",
    "dataset_path": "dataset_name",
    "train_file": "dataset_name",
    "eval_dataset": "eval_dataset_name",
    "dataset_split": "dataset_train_split",
    "output": "output_dir",
    "overwrite_output_dir": "force",
    "lr": "learning_rate",
    "epochs": "num_train_epochs",
    "num_epochs": "num_train_epochs",
    "batch_size": "per_device_train_batch_size",
    "micro_batch_size": "per_device_train_batch_size",
    "eval_batch_size": "per_device_eval_batch_size",
    "grad_accum": "gradient_accumulation_steps",
    "evaluation_strategy": "eval_strategy",
    "warmup_ratio": "warmup_steps (a number below 1 is a share of all steps)",
    "cutoff_len": "max_length",
    "max_seq_length": "max_length",
    "max_seq_len": "max_length",
    "sequence_len": "max_length",
    "block_size": "max_length",
    "max_new_tokens": "max_completion_length",
    "response_length": "max_completion_length",
    "num_samples": "num_generations",
    "lora_rank": "lora_r",
    "lora_target": "lora_target_modules",
    "quantization_bit": "load_in_4bit",
    "kl_coef": "beta",
    "init_kl_coef": "beta",
    "kl_coeff": "beta",
    "dpo_beta": "beta",
    "pref_beta": "beta",
    "pref_loss": "loss_type",
    "cliprange": "epsilon",
    "reward_model_path": "reward",
    "reward_funcs": "reward",
    "use_flash_attention_2": "attn_implementation (flash_attention_2)",
    "flash_attn": "attn_implementation (flash_attention_2)",
    "cuda": "use_cpu",
}
DROPPED = {
    "max_prompt_length": "TRL removed it: max_length limits prompt and answer together, and a prompt is not cut",
    "rpo_alpha": "TRL removed it: loss_type: [sigmoid, sft] with loss_weights: [1.0, alpha] is the same loss",
    "tools": "tools and environments are for grpo.py",
    "environment_factory": "tools and environments are for grpo.py",
    "ref_model": "pi_ref is the model that training starts from; adapter_mode decides which weights that is",
    "tokenizer_name_or_path": "a model's own tokenizer is used; pretrain.py takes tokenizer_name",
}


@dataclass
class StageArguments:
    """Fields that every training stage has beside TRL's."""

    force: bool = field(
        default=False, metadata={"help": "Rename an existing output folder and start again; nothing is deleted."}
    )
    early_stopping_patience: int | None = field(
        default=None,
        metadata={
            "help": "Stop after this many evaluations without a better metric_for_best_model; the best is kept."
        },
    )


@dataclass
class RewardArguments(StageArguments):
    """Fields of the stages that call a reward."""

    reward: list[str] = field(
        default_factory=list,
        metadata={
            "help": "One or several rewards: registry names, trl:NAME for TRL's, weighted sums, reward-model folders, "
            "or package.module:function; reward_weights weighs them."
        },
    )
    allow_unsafe_code_execution: bool = field(
        default=False,
        metadata={"help": "Run programs in completions even if no sandbox is available; recorded in run.json."},
    )


@dataclass
class RolloutArguments(RewardArguments):
    """Fields of the stages that learn from their own samples, which guards watch."""

    guard_patience: int = field(
        default=10,
        metadata={"help": "Consecutive bad log lines after which a run is stopped (0: never)."},
    )
    max_kl: float | None = field(
        default=None,
        metadata={"help": "Largest KL the guards accept [GRPO: 1 nat per token; PPO: 50 nats per completion]."},
    )


def first_as_flag(argv: list[str] | None, flag: str) -> list[str]:
    """The words of a command line (None: of this process) whose first one may go without its flag."""
    words = list(sys.argv[1:] if argv is None else argv)
    return [flag, *words] if words and not words[0].startswith("-") else words


def parse(argv: list[str] | None, *dataclass_types: type, prog: str | None = None) -> tuple:
    """Instances of the given dataclasses from YAML and flags; a flag beats YAML, YAML beats the default.

    Args:
        argv: arguments without the program's name; None takes ``sys.argv``.
        dataclass_types: argument classes, TRL's and ours; no two share a field.
        prog: name shown in usage lines.

    Raises:
        UserError: an unknown key or flag (with the nearest known one), a value of the wrong type or not among the
            choices, a missing required field, or a combination that a class's own ``__post_init__`` refuses.
        SystemExit: ``--help_all`` was given; the complete list of fields is printed.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if "--help_all" in argv:
        print(build_parser(dataclass_types, prog).format_help())
        raise SystemExit(0)
    return instances(typed(argv, *dataclass_types), *dataclass_types)


def part(argv: list[str] | None, cls: type) -> Any:
    """One argument class from what was given, before the others can be imported; what it does not have is left alone.

    Raises:
        UserError: as ``parse``, but for unknown fields.
    """
    known = _fields((cls,))
    values = {}
    for name, (value, where) in read_with_places(argv).items():
        if name in known:
            f, hint = known[name]
            values[name] = coerce(value, hint, where)
            _check_choice(values[name], _choices(f, hint), where)
    return instances(values, cls)[0]


def typed(argv: list[str] | None, *dataclass_types: type) -> Json:
    """The given values as their fields' types; see ``parse`` for what it raises."""
    known = _fields(dataclass_types)
    aliases = {alias.lstrip("-"): name for name, (f, _) in known.items() for alias in f.metadata.get("aliases", ())}
    values = {}
    for given, (value, where) in read_with_places(argv).items():
        name = aliases.get(given, given)
        if name not in known:
            kind = "flag" if where.startswith("--") else "key"
            raise UserError(f"{where}: unknown {kind}{_suggestion(given, known, '--' if kind == 'flag' else '')}")
        f, hint = known[name]
        values[name] = coerce(value, hint, where)
        _check_choice(values[name], _choices(f, hint), where)
    return values


def instances(values: Json, *dataclass_types: type) -> tuple:
    """The dataclasses filled with typed values.

    Raises:
        UserError: a required field is missing, or a class's own ``__post_init__`` refuses.
    """
    filled = []
    for cls in dataclass_types:
        fields = [f for f in dataclasses.fields(cls) if f.init]
        missing = [f.name for f in fields if f.name not in values and default_of(f) is dataclasses.MISSING]
        if missing:
            raise UserError(f"{', '.join(missing)}: required, as --{missing[0]} or in the YAML of --config")
        try:
            filled.append(cls(**{f.name: values[f.name] for f in fields if f.name in values}))
        except (ValueError, TypeError) as error:
            raise UserError(f"{cls.__name__}: {' '.join(str(error).split())}") from error
    return tuple(filled)


def defaults(names: Iterable[str], *dataclass_types: type) -> Json:
    """The default values of the named fields that have one."""
    known = _fields(dataclass_types)
    found = {name: default_of(known[name][0]) for name in names if name in known}
    return {name: value for name, value in found.items() if value is not dataclasses.MISSING}


def default_of(f: dataclasses.Field) -> Any:
    """A field's default, or ``dataclasses.MISSING``."""
    return f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default


def build_parser(dataclass_types: tuple[type, ...], prog: str | None = None):
    """TrlParser, for the text of ``--help_all``."""
    from trl.scripts.utils import TrlParser

    parser = TrlParser(dataclass_types, prog=prog, allow_abbrev=False)
    for action in parser._actions:
        if action.help:  # argparse formats help texts with %, and the libraries' texts hold percentages
            action.help = action.help.replace("%%", "%").replace("%", "%%")
    return parser


def _choices(f: dataclasses.Field, hint: object) -> list:
    """The choices of a field; empty if every value of its type is allowed."""
    if "choices" in f.metadata:
        return list(f.metadata["choices"])
    members = typing.get_args(hint) if typing.get_origin(hint) in (Union, types.UnionType) else (hint,)
    if any(typing.get_origin(member) is not Literal for member in members if member is not type(None)):
        return []
    return [choice for member in members for choice in typing.get_args(member)]


def _check_choice(value: object, choices: list, where: str) -> None:
    if choices and value is not None and value not in choices:
        raise UserError(f"{where}: {value!r} is not one of {', '.join(map(str, choices))}")


def _fields(dataclass_types: Iterable[type]) -> dict[str, tuple[dataclasses.Field, type]]:
    """Every field that can be given, with its type."""
    found = {}
    for cls in dataclass_types:
        hints = typing.get_type_hints(cls)
        found |= {f.name: (f, hints[f.name]) for f in dataclasses.fields(cls) if f.init}
    return found


def _suggestion(key: str, known: Iterable[str], prefix: str) -> str:
    """What the user may have meant: our name of another tool's field, else the most similar known name."""
    if key in DROPPED:
        return f"; {DROPPED[key]}"
    known, former = sorted(known), FORMER_NAMES.get(key, "")
    if former.split(" ")[0] in known:
        return f"; the field is called {prefix}{former}"
    found = nearest(key, known, cutoff=0.5)
    return f"; did you mean {prefix}{found}?" if found else "; --help_all lists every field"
