"""Files: atomic writes, content hashes (by which a run record names its parents and its data), and local names."""

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.runtime.errors import UserError, did_you_mean, nearest

Json = dict[str, Any]  # a JSON object, as run records, logs and rows of data hold it
WHOLE_FILE_LIMIT, SAMPLE_BYTES = 1 << 30, 16 << 20
DATA_SUFFIXES = (".jsonl", ".json", ".parquet", ".csv", ".txt", ".arrow", ".gz", ".zst")


def is_local(name: str | Path) -> bool:
    """Whether a model's or dataset's name is a local path; everything else is a Hub id (or an embedded dataset).

    A name is local if it exists, or cannot be a Hub id: it starts with ``.``, ``/`` or ``~``, has more than one slash
    or one at its end, or ends like a data file.
    """
    name = str(name)
    looks_local = name.startswith((".", "/", "~")) or name.count("/") > 1 or name.endswith("/")
    return looks_local or name.lower().endswith(DATA_SUFFIXES) or os.path.exists(name)


def near_path(name: str | Path, otherwise: str = "") -> str:
    """The end of a message about a missing path: ``; did you mean runs/sft?`` by what is beside it, else ``; `` with
    ``otherwise``.
    """
    path = Path(name)
    beside: dict[str, str] = {}  # by the name without its suffix, which nearly all of them share
    with contextlib.suppress(OSError):
        beside = {entry.stem: entry.name for entry in path.expanduser().parent.iterdir()}
    found = nearest(path.stem, beside)
    if found is None and path.parent != path and not path.parent.expanduser().exists():  # the folder is mistyped
        parent = nearest(path.parent.name, (p.name for p in path.parent.expanduser().parent.glob("*/")))
        meant = path.parent.with_name(parent) / path.name if parent else None
        if meant is not None and meant.expanduser().exists():
            return f"; did you mean {meant}?"
    if found is not None:
        return f"; did you mean {path.with_name(beside[found])}?"
    return f"; {otherwise}" if otherwise else ""


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path to write to, which replaces ``path`` at the end of the block.

    A reader sees the old file or the new one, never a part of it; if the block fails, the old file stays.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: object) -> None:
    """Write a JSON file, atomically."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def write_rows(path: Path, rows: Iterable[Json]) -> None:
    """Write a JSONL file, one object per line, atomically."""
    with atomic(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def as_json(mapping: Json) -> Json:
    """A mapping as JSON can hold it: what is not a plain value is written as text, private keys are left out."""

    def convert(value: object) -> object:
        if isinstance(value, dict):
            return {str(key): convert(item) for key, item in value.items()}
        if isinstance(value, (list, tuple, set)):
            return [convert(item) for item in value]
        if isinstance(value, float) and not math.isfinite(value):
            return str(value)
        if value is None or isinstance(value, (bool, int, float, str)):
            return value if not hasattr(value, "value") else value.value
        return str(value)

    return {key: convert(value) for key, value in mapping.items() if not key.startswith("_")}


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal; reads 1 MiB at a time."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def files_sha256(files: Sequence[Path]) -> str:
    """Identity of a dataset's files in their order; of one file it is what ``sha256sum`` prints.

    Of a file above 1 GiB only the size and the first, middle and last 16 MiB enter, so that the check before a run
    stays quick.
    """
    digests = [file_sha256(f) if f.stat().st_size <= WHOLE_FILE_LIMIT else _sampled_sha256(f) for f in files]
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256("\n".join(f"{d}  {f.name}" for d, f in zip(digests, files)).encode()).hexdigest()


def _sampled_sha256(path: Path) -> str:
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with open(path, "rb") as stream:
        for offset in (0, size // 2, size - SAMPLE_BYTES):
            stream.seek(offset)
            digest.update(stream.read(SAMPLE_BYTES))
    return digest.hexdigest()


def path_sha256(path: Path, pattern: str = "*") -> str | None:
    """SHA-256 of a file, or of the sorted (name, hash) pairs of a folder's files that match ``pattern``.

    Returns None where nothing matches, so that a folder without weights is not mistaken for an unchanged one.
    """
    path = Path(path)
    if path.is_file():
        return file_sha256(path)
    return _listed_sha256(
        path, sorted(file for file in path.rglob(pattern) if file.is_file()) if path.is_dir() else []
    )


def _listed_sha256(folder: Path, files: Sequence[Path]) -> str | None:
    """SHA-256 of the lines ``name hash`` of files below a folder, in their order; None where there is none."""
    lines = "".join(f"{file.relative_to(folder).as_posix()} {file_sha256(file)}\n" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest() if files else None


def weights_sha256(folder: Path) -> str | None:
    """Identity of a saved model or adapter: the hash of the safetensors at the top of its folder.

    Checkpoints below the folder do not count: they come and go while the weights stay the same.
    """
    return _listed_sha256(Path(folder), sorted(Path(folder).glob("*.safetensors")))


# What decides, beside the weights, what a model is given and how it is built.
SETUP = (
    "config.json", "adapter_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "tokenizer.model", "vocab.json", "vocab.txt", "merges.txt", "chat_template.jinja",
)  # fmt: skip


def setup_sha256(folder: Path) -> str | None:
    """Identity of a saved model's config, tokenizer and chat template; None where there is none of them."""
    return _listed_sha256(Path(folder), [file for name in SETUP if (file := Path(folder) / name).is_file()])


def packaged(pattern: str) -> list[str]:
    """The names of the packaged configs whose path matches: ``quickstart/dpo``, of a recipe its folder's name."""
    root = resource("configs", "")
    names = (path.relative_to(root).with_suffix("").as_posix() for path in root.glob(pattern))
    return sorted(name.removesuffix("/recipe") for name in names)


def config_file(name: str | Path, pattern: str = "*/*.yaml") -> Path:
    """A config file: the path itself, or where there is none the packaged one of this name.

    ``quickstart/dpo`` is ``configs/quickstart/dpo.yaml``, ``quickstart`` is the recipe in that folder. ``configs/`` in
    front and ``.yaml`` at the end may be left out, so that commands of the documentation work in any folder.

    Args:
        name: what the user wrote.
        pattern: which packaged ones are meant, such as ``*/recipe.yaml``.

    Raises:
        UserError: neither is there; with the nearest name of a packaged one or of a file beside the path.
    """
    path = Path(name)
    if path.is_file():
        return path
    known = packaged(pattern)
    short = path.as_posix().removeprefix("configs/").removesuffix(".yaml").removesuffix("/recipe")
    if short not in known:
        listed = "" if path.suffix else f"packaged are {', '.join(known)}"
        raise UserError(f"there is no file {name}{did_you_mean(short, known) or near_path(name, listed)}")
    root = resource("configs", "")
    return next(found for found in (root / f"{short}.yaml", root / short / "recipe.yaml") if found.is_file())


def resource(folder: str, name: str) -> Path:
    """Path of ``<folder>/<name>`` that travels with the package: ``configs`` or ``model_cards``.

    It is beside the package in a checkout and inside it when installed.

    Raises:
        UserError: no such file in either place.
    """
    package = Path(__file__).resolve().parents[1]
    for root in (package.parent, package):
        path = root / folder / name
        if path.exists():
            return path
    raise UserError(f"there is no {folder}/{name}, neither beside the package nor inside it")
