"""Arguments of every stage: flat YAML and flags, strict in both, on TRL's parser.

TrlParser lets misspelt YAML keys pass, checks neither the types nor the choices of YAML values, and does not see
``--config=file``. This module does, and it reads what the user gave without importing torch or TRL's configs, so that
a finished run is recognised in a fraction of a second.
"""

import dataclasses
import difflib
import sys
import types
import typing
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Union

from pipeline.runtime.errors import UserError


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

    Flags are read by the grammar ``--key value…``, ``--key=value``, ``--key`` (true) and ``--no_key`` (false), and
    their values as YAML scalars, so ``--beta 0.1`` and ``beta: 0.1`` are the same thing.

    Raises:
        UserError: the config file is missing, is not YAML, or is not a flat mapping.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    config_path, argv = _split_config(argv)
    given = _read_yaml(config_path) if config_path else {}
    return given | _read_flags(argv)


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
    config_path, flags = _split_config(argv)
    parser = build_parser(dataclass_types, prog)
    if "--help_all" in argv:
        print(parser.format_help())
        raise SystemExit(0)
    hints = {name: hint for cls in dataclass_types for name, hint in typing.get_type_hints(cls).items()}
    known = {action.dest: action for action in parser._actions if action.dest != "help"}
    if config_path:
        for key, value in _read_yaml(config_path).items():
            where = f"{config_path}: {key}"
            if key not in known:
                raise UserError(f"{where}: unknown key{_nearest(key, known)}")
            value, choices = coerce(value, hints[key], where), known[key].choices
            if choices and value is not None and value not in choices:
                raise UserError(f"{where}: {value!r} is not one of {', '.join(map(str, choices))}")
            parser.set_defaults_with_config(**{key: value})
    namespace, unknown = parser.parse_known_args(flags)
    if unknown:
        flag = unknown[0].split("=")[0]
        if not flag.startswith("-"):
            raise UserError(f"{flag!r}: an argument without a flag; every argument is --name value")
        raise UserError(f"{flag}: unknown flag{_nearest(flag.lstrip('-').replace('-', '_'), known, prefix='--')}")
    instances = []
    for cls in dataclass_types:
        names = [f.name for f in dataclasses.fields(cls) if f.init]
        try:
            instances.append(cls(**{name: getattr(namespace, name) for name in names}))
        except (ValueError, TypeError) as error:
            raise UserError(f"{cls.__name__}: {' '.join(str(error).split())}") from error
    return tuple(instances)


def build_parser(dataclass_types: tuple[type, ...], prog: str | None = None):
    """TrlParser that reports through UserError instead of printing usage, and never guesses at abbreviations."""
    from trl.scripts.utils import TrlParser

    class Parser(TrlParser):
        def error(self, message: str) -> typing.NoReturn:
            raise UserError(message.replace("argument ", "", 1) + "; --help_all lists every field")

    return Parser(dataclass_types, prog=prog, allow_abbrev=False)


def coerce(value: Any, hint: Any, where: str) -> Any:
    """A YAML value as the field's type, e.g. the string ``1e-3`` (which YAML 1.1 does not read as a number) as float.

    Choices are the parser's to check.

    Raises:
        UserError: the value is not of that type.
    """
    origin, members = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        if value is None and type(None) in members:
            return None
        members = [member for member in members if member is not type(None)]
        # An exact match first: with `dict | str` a mapping must stay a mapping.
        members.sort(key=lambda member: not isinstance(value, typing.get_origin(member) or member or object))
        for member in members[:-1]:
            try:
                return coerce(value, member, where)
            except UserError:
                continue
        return coerce(value, members[-1], where)
    if origin is Literal:
        return value  # the parser knows the choices
    if origin is list or hint is list:
        if not isinstance(value, list):
            raise UserError(f"{where}: expected a list, got {value!r}")
        return [coerce(item, members[0], f"{where}[{i}]") for i, item in enumerate(value)] if members else value
    if hint is bool:
        if isinstance(value, bool):
            return value
        raise UserError(f"{where}: expected true or false, got {value!r}")
    if hint in (int, float):
        try:
            number = None if isinstance(value, bool) else float(value)
        except (TypeError, ValueError):
            number = None
        if number is None or (hint is int and not number.is_integer()):
            raise UserError(f"{where}: expected {'a whole number' if hint is int else 'a number'}, got {value!r}")
        return int(value) if hint is int and not isinstance(value, str) else hint(number)
    if hint is str:
        if isinstance(value, (dict, list)):
            raise UserError(f"{where}: expected text, got {value!r}")
        return value if isinstance(value, str) else str(value)
    if isinstance(hint, type) and issubclass(hint, dict) and not isinstance(value, dict):
        raise UserError(f"{where}: expected a mapping, got {value!r}")
    return value


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
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"--config: {path} is not valid YAML: {' '.join(str(error).split())}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"--config: {path} must hold `key: value` lines, found a {type(content).__name__}")
    return {str(key): value for key, value in content.items()}


def _read_flags(argv: list[str]) -> dict[str, Any]:
    import yaml

    def scalar(word: str) -> Any:
        try:
            return yaml.safe_load(word)
        except yaml.YAMLError:
            return word

    given: dict[str, Any] = {}
    key = None
    for word in argv:
        if word.startswith("--"):
            key, separator, value = word[2:].partition("=")
            key = key.replace("-", "_")
            if separator:
                given[key], key = scalar(value), None
            elif key.startswith("no_"):
                given[key.removeprefix("no_")], key = False, None
            else:
                given[key] = True
        elif key is not None:
            value, before = scalar(word), given[key]
            if before is True:
                given[key] = value
            else:
                given[key] = [*before, value] if isinstance(before, list) else [before, value]
    return given


def _nearest(key: str, known: Iterable[str], prefix: str = "") -> str:
    matches = difflib.get_close_matches(key, sorted(known), n=1, cutoff=0.5)
    return f"; did you mean {prefix}{matches[0]}?" if matches else "; --help_all lists every field"
