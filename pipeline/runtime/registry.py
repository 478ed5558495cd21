"""Functions by name: from a table of ours, or the user's, as ``package.module:function`` or ``file.py:function``."""

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType

from pipeline.runtime.errors import UserError, did_you_mean


def find(name: str, table: Mapping[str, str], what: str) -> Callable:
    """The function of a name of ``table``, or of a path such as ``package.module:function``.

    Args:
        name: what the user wrote.
        table: paths of our own functions by their names; imported only when asked for.
        what: the option that names it, for messages.

    Raises:
        UserError: no such name, module or function, or a module that fails while it is imported.
    """
    if ":" not in name:
        require_known(name, table, what)
    return import_function(table.get(name, name), what)


def require_known(name: str, table: Mapping[str, object], what: str, also: str = "package.module:function") -> None:
    """Refuse a name that is not in the table.

    Raises:
        UserError: with the names that there are, what else may be given (``also``), and the nearest name.
    """
    if name not in table:
        raise UserError(
            f"{what}: unknown name '{name}'; choose one of {', '.join(sorted(table))}, or {also}"
            f"{did_you_mean(name, table)}"
        )


def import_function(path: str, what: str) -> Callable:
    """The function that ``path`` names; modules are also looked for in the current folder.

    A stage started as ``python pipeline/grpo.py`` has only the folder of the script on Python's path, so the current
    folder is added at its end: what is installed is found first.

    Args:
        path: ``package.module:function``, or ``folder/file.py:function``.
        what: the option that names it, for messages.

    Raises:
        UserError: no such module or function, or a module that fails while it is imported.
    """
    module, _, name = path.rpartition(":")
    try:
        found = _file(Path(module)) if module.endswith(".py") else _module(module)
    except UserError:
        raise
    except Exception as cause:
        raise UserError(f"{what}: cannot import '{path}': {_reason(cause)}") from cause
    function = getattr(found, name, None)
    if function is None:
        near = did_you_mean(name, [known for known, value in vars(found).items() if callable(value)])
        raise UserError(f"{what}: cannot import '{path}': there is no {name} in {module}{near}")
    if not callable(function):
        raise UserError(f"{what}: '{path}' is not callable")
    return function


def _module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as cause:
        current = os.getcwd()
        if current in sys.path or cause.name not in (name, name.partition(".")[0]):
            raise
        sys.path.append(current)
        importlib.invalidate_caches()
        return importlib.import_module(name)


def _file(path: Path) -> ModuleType:
    """A file as a module, loaded once per process; its folder is on the path for what it imports."""
    path = path.expanduser().resolve()
    name = f"_file_{path.stem}_{abs(hash(str(path))):x}"
    if name in sys.modules:
        return sys.modules[name]
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    spec = importlib.util.spec_from_file_location(name, path)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _reason(cause: Exception) -> str:
    text = " ".join(str(cause).split())
    says_it = isinstance(cause, ImportError | AttributeError | FileNotFoundError)
    return text if says_it else f"{type(cause).__name__}: {text}"
