"""Datasets at a URL that fsspec knows (``s3://``, ``gs://``, ``https://``, ``hf://`` …): copied once, then local.

The copy is below ``HF_HOME`` (``narlm-data``), in a folder named after the URL and what the store says of the files'
content (an ETag, a time), so a file that changed is copied anew and everything else reads local files.
"""

import hashlib
import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from pipeline.data.files import is_data_name
from pipeline.runtime.errors import UserError
from pipeline.runtime.files import atomic

if TYPE_CHECKING:
    import fsspec


def is_url(name: str) -> bool:
    """Whether a dataset's name is a URL."""
    return "://" in name


@lru_cache
def local_copy(url: str) -> Path:
    """The local copy of the file or folder at ``url``, made where it is not there yet; one look a process.

    Raises:
        UserError: the protocol is unknown or needs a package (which is named), or nothing can be read there.
    """
    import fsspec
    from filelock import FileLock
    from huggingface_hub import constants

    protocol = url.partition("://")[0]
    try:
        store, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise UserError(f"{url}: {_package_hint(protocol, error)}") from None
    except ValueError:
        raise UserError(
            f"{url}: unknown protocol {protocol!r}: use s3, gs, https, or another that fsspec has"
        ) from None
    try:
        names = _names(store, path)
        identity = hashlib.sha256(json.dumps([url, *((n, str(store.ukey(p))) for n, p in names)]).encode()).hexdigest()
        folder = Path(constants.HF_HOME, "narlm-data", identity[:20])
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            for name, remote in names:
                if not (folder / name).is_file():
                    with atomic(folder / name) as file:
                        store.get_file(remote, str(file))
    except ImportError as error:
        raise UserError(f"{url}: {_package_hint(protocol, error)}") from None
    except Exception as error:  # each store has exceptions of its own
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UserError(f"{url} cannot be read: {reason}") from error
    return folder / names[0][0] if names[0][1] == path else folder


def _names(store: "fsspec.AbstractFileSystem", path: str) -> Sequence[tuple[str, str]]:
    """``(name below the folder, path in the store)`` of the data files: the one at the path, or those below it."""
    if store.isfile(path):
        return [(PurePosixPath(path).name, path)]
    found = sorted(file for file in store.find(path, maxdepth=3))
    names = [(file[len(path) :].strip("/"), file) for file in found]
    names = [(name, file) for name, file in names if is_data_name(name)]
    if not names:
        raise FileNotFoundError("no data files are there")
    return names


def _package_hint(protocol: str, error: ImportError) -> str:
    """Which package reads a protocol: of ``s3fs.S3FileSystem`` it is ``s3fs``; else fsspec's own words."""
    from fsspec.registry import known_implementations

    module = known_implementations.get(protocol, {}).get("class", "").partition(".")[0]
    if module in ("", "fsspec"):
        return str(error).partition("\n")[0]
    return f"{protocol}:// needs the package {module}: pip install {module}"
