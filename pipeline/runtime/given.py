"""What the user gave, before types are known: the flat YAML of ``--config`` with the flags laid over it.

Imports neither torch nor TRL's configs, so that a finished run is recognised in a fraction of a second.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from pipeline.runtime.coercion import NOTHING, yaml_loader
from pipeline.runtime.errors import UserError
from pipeline.runtime.files import Json, config_file

if TYPE_CHECKING:
    import yaml


def read_given(argv: list[str] | None = None) -> Json:
    """What the user gave, before types are known: the YAML of ``--config`` with the flags laid over it.

    Scalars are text (None for YAML's null); flags are read by the grammar ``--key value…``, ``--key=value``, ``--key``
    (True) and ``--no_key`` (false). So ``--beta 0.1`` and ``beta: 0.1`` are the same thing.

    Raises:
        UserError: the config file is missing, is not YAML, or is not a flat mapping; a word before the first flag.
    """
    return {key: value for key, (value, _) in read_with_places(argv).items()}


def read_with_places(argv: list[str] | None) -> dict[str, tuple[object, str]]:
    """The given values, each with its place for messages: ``file: key`` or ``--key``."""
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


def _read_yaml(path: str) -> Json:
    import yaml

    try:
        text = config_file(path).read_text(encoding="utf-8")
    except UserError as error:
        raise UserError(f"--config: {error}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--config: {path} cannot be read: {error}") from error
    loader = yaml_loader()(text)
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


def _top_level(loader: yaml.SafeLoader, node: yaml.MappingNode, path: str) -> Json:
    """The file's values: text if alone or in a list; what is nested has no field, so YAML types it.

    Raises:
        UserError: a duplicate key.
    """
    import yaml

    def value_of(item: yaml.Node) -> object:
        if isinstance(item, yaml.ScalarNode):
            return None if item.style is None and item.value.lower() in NOTHING else item.value
        if isinstance(item, yaml.SequenceNode):
            return [value_of(child) for child in item.value]
        return loader.construct_object(item, deep=True)

    loader.flatten_mapping(node)
    content: Json = {}
    for key_node, value_node in node.value:
        key = str(key_node.value)
        if key in content:
            raise UserError(f"{path}: duplicate key {key}; keep one of the two")
        content[key] = value_of(value_node)
    return content


def _read_flags(argv: list[str]) -> Json:
    given: Json = {}
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
