"""Arguments of every stage: flat YAML and flags, read once, strict in both, typed by their fields.

A value is text until its field says what it is: ``--output_dir 007`` names the folder 007, ``--seed 0042`` is 42,
``eval_strategy: no`` is the word. TrlParser lets misspelt YAML keys pass, checks neither the types nor the choices of
YAML values, and does not see ``--config=file``; so it only prints ``--help_all`` here. ``read_given`` imports neither
torch nor TRL's configs, so that a finished run is recognised in a fraction of a second.
"""

import dataclasses
import enum
import sys
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Union

from pipeline.runtime.errors import UserError, nearest

TRUE, FALSE, NOTHING = {"true", "yes", "on", "y", "t", "1"}, {"false", "no", "off", "n", "f", "0"}, {"", "~", "null"}

# Names of other tools and of earlier versions, what they are here, and what to do where there is no such field.
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
    "max_prompt_length": "TRL has dropped it: max_length limits prompt and answer together, and a prompt is not cut",
    "rpo_alpha": "TRL has dropped it: loss_type: [sigmoid, sft] with loss_weights: [1.0, alpha] is the same loss",
    "ref_model": "pi_ref is the start; its adapter_mode says which weights that is",
    "tokenizer_name_or_path": "a model's own tokenizer is used; pretrain.py takes tokenizer_name",
}


@dataclass
class StageArguments:
    """Fields that every training stage has beside TRL's."""

    force: bool = field(
        default=False, metadata={"help": "Move an existing output folder aside and start anew; nothing is deleted."}
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

    allow_unsafe_code_execution: bool = field(
        default=False,
        metadata={"help": "Run the programs of completions without a sandbox where none can be had; recorded."},
    )


@dataclass
class RolloutArguments(RewardArguments):
    """Fields of the stages that learn from their own samples, which guards watch."""

    guard_patience: int = field(
        default=10, metadata={"help": "Bad log lines in a row before a run that does not learn is stopped (0: never)."}
    )
    max_kl: float | None = field(
        default=None,
        metadata={"help": "Ceiling of the logged KL for the guards [GRPO: 1 nat a token; PPO: 50 a completion]."},
    )


def read_given(argv: list[str] | None = None) -> dict[str, Any]:
    """What the user gave, before types are known: the YAML of ``--config`` with the flags laid over it.

    Scalars are text (None for YAML's null); flags are read by the grammar ``--key value…``, ``--key=value``, ``--key``
    (True) and ``--no_key`` (false). So ``--beta 0.1`` and ``beta: 0.1`` are the same thing.

    Raises:
        UserError: the config file is missing, is not YAML, or is not a flat mapping; a word before the first flag.
    """
    return {key: value for key, (value, _) in _read(argv).items()}


def parse(argv: list[str] | None, *dataclass_types: type, prog: str | None = None) -> tuple:
    """Instances of the given dataclasses from YAML and flags; a flag beats YAML, YAML beats the default.

    Args:
        argv: arguments without the program's name; None takes ``sys.argv``.
        dataclass_types: argument classes, TRL's and ours; no two share a field.
        prog: name shown in usage lines.

    Raises:
        UserError: an unknown key or flag (with the nearest known one), a value of the wrong type or not among the
            choices, a missing required field, or a combination that a class's own ``__post_init__`` refuses.
        SystemExit: ``--help_all`` was given; the whole list of fields is printed.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if "--help_all" in argv:
        print(build_parser(dataclass_types, prog).format_help())
        raise SystemExit(0)
    return instances(typed(argv, *dataclass_types), *dataclass_types)


def typed(argv: list[str] | None, *dataclass_types: type) -> dict[str, Any]:
    """The given values as their fields' types; see ``parse`` for what it raises."""
    known = _fields(dataclass_types)
    aliases = {alias.lstrip("-"): name for name, (f, _) in known.items() for alias in f.metadata.get("aliases", ())}
    values = {}
    for given, (value, where) in _read(argv).items():
        name = aliases.get(given, given)
        if name not in known:
            kind = "flag" if where.startswith("--") else "key"
            raise UserError(f"{where}: unknown {kind}{_suggestion(given, known, '--' if kind == 'flag' else '')}")
        f, hint = known[name]
        values[name] = coerce(value, hint, where)
        _check_choice(values[name], _choices(f, hint), where)
    return values


def instances(values: Mapping[str, Any], *dataclass_types: type) -> tuple:
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


def defaults(names: Iterable[str], *dataclass_types: type) -> dict[str, Any]:
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


def coerce(value: Any, hint: Any, where: str) -> Any:
    """A value as the field's type: the text ``1e-3`` as a float, ``0042`` as 42, ``no`` as False or as the word.

    Choices are not looked at.

    Raises:
        UserError: the value is not of that type.
    """
    origin, members = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return plain(value)
    if origin in (Union, types.UnionType):
        return _coerce_union(value, members, where)
    if origin is Literal:
        return next((choice for choice in members if value == choice or value == str(choice)), value)
    if origin is list or hint is list:
        items = value if isinstance(value, list) else [value]
        if value is None or value is True or isinstance(value, dict):
            raise UserError(f"{where}: expected a list, got {_shown(value)}")
        return [coerce(item, members[0] if members else Any, where) for item in items]
    if isinstance(value, list):
        raise UserError(f"{where}: expected one value, got {' '.join(map(str, value))}")
    if hint is bool:
        word = str(value).lower()
        if value is None or word not in TRUE | FALSE:
            raise UserError(f"{where}: expected true or false, got {_shown(value)}")
        return word in TRUE
    if value is None or (value is True and hint in (int, float, str)):
        raise UserError(f"{where}: a value must follow" if value else f"{where}: a value is missing")
    if hint in (int, float):
        return _number(value, hint, where)
    if hint is str:
        if isinstance(value, dict):
            raise UserError(f"{where}: expected text, got {value!r}")
        return str(value).lower() if isinstance(value, bool) else str(value)
    if (origin or hint) is dict:
        value = plain(value)
        if not isinstance(value, dict):
            raise UserError(f"{where}: expected a mapping, got {value!r}")
        return value
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return str(value).lower() if isinstance(value, bool) else value
    return plain(value)


def plain(value: Any) -> Any:
    """A value whose field says nothing of its type, as YAML reads it: numbers, words, and ``{…}`` as a mapping."""
    if isinstance(value, list):
        return [plain(item) for item in value]
    if not isinstance(value, str):
        return value
    import yaml

    try:
        return yaml.load(value, Loader=_loader())
    except yaml.YAMLError:
        return value


def is_true(value: Any) -> bool:
    """Whether a given value, whose field is known to be a bool, is true."""
    return str(value).lower() in TRUE


def _coerce_union(value: Any, members: tuple, where: str) -> Any:
    """The first member that takes the value: numbers and words before text, since text takes everything."""
    optional, members = type(None) in members, [member for member in members if member is not type(None)]
    nothing = NOTHING if str in members else NOTHING | {"none"}
    if optional and (value is None or (isinstance(value, str) and str not in members and value.lower() in nothing)):
        return None

    def rank(member: Any) -> int:
        kind = typing.get_origin(member) or member
        if isinstance(value, (dict, list)):
            return 0 if kind is type(value) else 1
        return {bool: 0, int: 1, float: 2, str: 3, list: 5, dict: 4 if str in members else 0}.get(kind, 4)

    members.sort(key=rank)
    for member in members[:-1]:
        try:
            return coerce(value, member, where)
        except UserError:
            continue
    return coerce(value, members[-1], where)


def _number(value: Any, hint: type, where: str) -> int | float:
    if isinstance(value, (str, int)) and not isinstance(value, bool) and hint is int:
        try:
            return int(value)  # not through a float, which has 53 bits
        except ValueError:
            pass
    try:
        number = None if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = None
    if number is None or (hint is int and not number.is_integer()):
        raise UserError(f"{where}: expected {'a whole number' if hint is int else 'a number'}, got {_shown(value)}")
    return hint(number)


def _choices(f: dataclasses.Field, hint: Any) -> list[Any]:
    """What a field may be, where it says so; empty where anything of its type may stand."""
    if "choices" in f.metadata:
        return list(f.metadata["choices"])
    members = typing.get_args(hint) if typing.get_origin(hint) in (Union, types.UnionType) else (hint,)
    if any(typing.get_origin(member) is not Literal for member in members if member is not type(None)):
        return []
    return [choice for member in members for choice in typing.get_args(member)]


def _check_choice(value: Any, choices: list[Any], where: str) -> None:
    if choices and value is not None and value not in choices:
        raise UserError(f"{where}: {value!r} is not one of {', '.join(map(str, choices))}")


def _fields(dataclass_types: Iterable[type]) -> dict[str, tuple[dataclasses.Field, Any]]:
    """Every field that can be given, with its type."""
    found = {}
    for cls in dataclass_types:
        hints = typing.get_type_hints(cls)
        found |= {f.name: (f, hints[f.name]) for f in dataclasses.fields(cls) if f.init}
    return found


def _shown(value: Any) -> str:
    return "nothing" if value is None or value is True else repr(value)


def _read(argv: list[str] | None) -> dict[str, tuple[Any, str]]:
    """The given values with where each stands, for messages: ``file: key`` or ``--key``."""
    config_path, flags = _split_config(list(sys.argv[1:] if argv is None else argv))
    yaml = _read_yaml(config_path) if config_path else {}
    given = {key: (value, f"{config_path}: {key}") for key, value in yaml.items()}
    return given | {key: (value, f"--{key}") for key, value in _read_flags(flags).items()}


def _split_config(argv: list[str]) -> tuple[str | None, list[str]]:
    """Take ``--config X`` or ``--config=X`` out of the arguments."""
    rest, path = [], None
    words = iter(argv)
    for word in words:
        if word == "--config":
            path = next(words, None)
            if path is None:
                raise UserError("--config: the path of a YAML file must follow")
        elif word.startswith("--config="):
            path = word.removeprefix("--config=")
        else:
            rest.append(word)
    return path, rest


def _read_yaml(path: str) -> dict[str, Any]:
    import yaml

    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UserError(f"--config: there is no file {path}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--config: {path} cannot be read: {error}") from error
    loader = _loader()(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return {}
        if not isinstance(node, yaml.MappingNode):
            found = type(loader.construct_document(node)).__name__
            raise UserError(f"--config: {path} must hold `key: value` lines, found a {found}")
        return _top_level(loader, node, path)
    except yaml.YAMLError as error:
        raise UserError(f"--config: {path} is not valid YAML: {' '.join(str(error).split())}") from error
    finally:
        loader.dispose()


def _top_level(loader: Any, node: Any, path: str) -> dict[str, Any]:
    """The file's values: text where they stand alone or in a list; what is nested has no field, so YAML types it.

    Raises:
        UserError: a key stands twice.
    """
    import yaml

    def value_of(item: Any) -> Any:
        if isinstance(item, yaml.ScalarNode):
            return None if item.style is None and item.value.lower() in NOTHING else item.value
        if isinstance(item, yaml.SequenceNode):
            return [value_of(child) for child in item.value]
        return loader.construct_object(item, deep=True)

    loader.flatten_mapping(node)
    content: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = str(key_node.value)
        if key in content:
            raise UserError(f"{path}: {key} stands twice; which of the two is meant?")
        content[key] = value_of(value_node)
    return content


def _loader() -> type:
    """YAML's safe loader by YAML 1.2's rules: ``1e-3`` is a number; dates, ``1:30`` and ``007`` are text."""
    import re

    import yaml

    class Loader(yaml.SafeLoader):
        yaml_implicit_resolvers = {
            first: [
                (tag, pattern) for tag, pattern in pairs
                if not tag.endswith((":timestamp", ":int", ":float"))
            ]
            for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
        }  # fmt: skip

    whole, point = r"[-+]?(?:0|[1-9][0-9]*)", r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?"
    Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(rf"^{whole}$"), list("-+0123456789"))
    special = r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
    Loader.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(rf"^(?:{point}|{special})$"), list("-+0123456789.")
    )
    return Loader


def _read_flags(argv: list[str]) -> dict[str, Any]:
    given: dict[str, Any] = {}
    key = None
    for word in argv:
        if word.startswith("--"):
            key, separator, value = word[2:].partition("=")
            key = key.replace("-", "_")
            if separator:
                given[key], key = value, None
            elif key.startswith("no_"):
                given[key.removeprefix("no_")], key = "false", None
            else:
                given[key] = True
        elif key is None:
            raise UserError(f"{word!r}: an argument without a flag; every argument is --name value")
        else:
            before = given[key]
            given[key] = word if before is True else [*before, word] if isinstance(before, list) else [before, word]
    return given


def _suggestion(key: str, known: Iterable[str], prefix: str) -> str:
    """What the user may have meant: the name here of another tool's field, else the known name nearest in letters."""
    if key in DROPPED:
        return f"; {DROPPED[key]}"
    known, former = sorted(known), FORMER_NAMES.get(key, "")
    if former.split(" ")[0] in known:
        return f"; here it is {prefix}{former}"
    found = nearest(key, known, cutoff=0.5)
    return f"; did you mean {prefix}{found}?" if found else "; --help_all lists every field"
