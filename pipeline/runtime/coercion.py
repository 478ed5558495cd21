"""Given text as a field's type, by the same rules for flags and YAML: ``1e-3`` is a float, ``0042`` is 42."""

import enum
import types
import typing
from typing import Any, Literal, Union

from pipeline.runtime.errors import UserError

TRUE, FALSE, NOTHING = {"true", "yes", "on", "y", "t", "1"}, {"false", "no", "off", "n", "f", "0"}, {"", "~", "null"}


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
        words = (value, str(value).lower() if isinstance(value, bool) else value)  # true of YAML may be a word here
        return next((choice for choice in members if choice in words or str(choice) in words), value)
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
        return yaml.load(value, Loader=yaml_loader())
    except yaml.YAMLError:
        return value


def is_true(value: object) -> bool:
    """Whether a given value, whose field is known to be a bool, is true."""
    return str(value).lower() in TRUE


def _coerce_union(value: Any, members: tuple, where: str) -> Any:
    """The first member that takes the value: numbers and words before text, since text takes everything."""
    optional, members = type(None) in members, [member for member in members if member is not type(None)]
    nothing = NOTHING if str in members else NOTHING | {"none"}
    if optional and (value is None or (isinstance(value, str) and str not in members and value.lower() in nothing)):
        return None

    def rank(member: object) -> int:
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


def _number(value: object, hint: type, where: str) -> int | float:
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


def _shown(value: object) -> str:
    return "nothing" if value is None or value is True else repr(value)


def yaml_loader() -> type:
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

    integer, point = r"[-+]?(?:0|[1-9][0-9]*)", r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?"
    Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(rf"^{integer}$"), list("-+0123456789"))
    special = r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
    Loader.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(rf"^(?:{point}|{special})$"), list("-+0123456789.")
    )
    return Loader
