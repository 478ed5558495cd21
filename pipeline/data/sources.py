"""Where data comes from: named datasets, what identifies their content, and their rows as they are stored.

`sources_of` and `eval_sources` list what a stage reads, `source_fingerprint` identifies it without reading rows, and
`raw_rows` reads it: local files, the embedded worlds or the Hub.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.data.arguments import DataArguments
from pipeline.data.columns import parse_map
from pipeline.data.files import absent, is_one_dataset, read_rows, split_files
from pipeline.data.remote import is_url, local_copy
from pipeline.data.rows import RowError
from pipeline.runtime.errors import UserError, did_you_mean
from pipeline.runtime.files import Json, files_sha256, is_local, near_path
from pipeline.worlds.table import is_world

if TYPE_CHECKING:
    import datasets

RawRow = tuple[str, int, Json | RowError]  # where it is stored, its number there, the row or why it cannot be read

_FILE_BUILDERS = ("json", "csv", "parquet", "text")

_ENTRY_KEYS = ("path", "name", "data_dir", "data_files", "split", "columns", "fraction", "weight", "dataset_map")

_SLICE = re.compile(r"^([^\[\]]+)(?:\[(-?\d+%?)?:(-?\d+%?)?\])?$")


@dataclass(frozen=True)
class Source:
    """One named dataset: what is read and how its columns are renamed, before any row is read."""

    name: str
    split: str = "train"
    config: str | None = None
    revision: str | None = None
    data_dir: str | None = None
    data_files: str | Sequence[str] | Mapping[str, str | Sequence[str]] | None = None
    columns: tuple[str, ...] | None = None
    dataset_map: Mapping[str, str] = field(default_factory=dict)
    weight: float | None = None
    fraction: float | None = None
    role: str = "train"

    @property
    def split_name(self) -> str:
        """The split without its slice."""
        return self.split.partition("[")[0]

    @property
    def is_world(self) -> bool:
        """Whether it is an embedded dataset."""
        return is_world(self.name)

    @property
    def label(self) -> str:
        """The dataset as messages name it."""
        return self.name + (f" ({self.config})" if self.config else "")

    @property
    def is_one(self) -> bool:
        """Whether it is one file or saved Dataset, which has no splits."""
        if self.is_world:
            return False
        return is_one_dataset(local_copy(self.name) if is_url(self.name) else Path(self.name).expanduser())

    def files(self, must_exist: bool = True) -> list[Path]:
        """The local files of this split; empty for a Hub id or the embedded world.

        Raises:
            UserError: it is local by its looks and does not exist, or holds no such split.
        """
        if self.is_world:
            return []
        path = local_copy(self.name) if is_url(self.name) else Path(self.name).expanduser()
        if self.name in _FILE_BUILDERS and not path.exists():
            if self.data_files is None and self.data_dir is None:
                raise UserError(f"dataset {self.name!r} needs data_files or data_dir")
            path = Path(self.data_dir or ".").expanduser()
        elif self.data_dir is not None and path.is_dir():
            path = path / self.data_dir
        if not path.exists() and not is_local(self.name):
            return []
        if not path.exists():
            if not must_exist:
                return []
            raise UserError(absent(self.name))
        if self.data_files is None:
            return split_files(path, self.split_name)
        return self._named_files(path)

    def _named_files(self, folder: Path) -> list[Path]:
        """``data_files`` of an entry: a name or pattern, a list of them, or ``{split: names}``."""
        names = self.data_files
        if isinstance(names, Mapping):
            if self.split_name not in names:
                raise UserError(f"{self.name}: data_files has no split {self.split_name!r}; it has {', '.join(names)}")
            names = names[self.split_name]
        found: list[Path] = []
        for name in [names] if isinstance(names, str) else names:
            path = local_copy(name) if is_url(name) else folder / Path(name).expanduser()
            matches = [path] if path.exists() else sorted(folder.glob(name)) if not Path(name).is_absolute() else []
            matches = [match for match in matches if match == path or not match.name.startswith((".", "__"))]
            if not matches:
                raise UserError(f"{self.name}: data_files {name!r} matches no file in {folder}")
            found += [file for match in matches for file in split_files(match, self.split_name)]
        return found


def sources_of(arguments: DataArguments) -> list[Source]:
    """The training datasets the arguments name, one or a mixture, without reading any."""
    if arguments.datasets:
        if arguments.dataset_name:
            raise UserError("give either dataset_name or datasets (a mixture), not both")
        return parse_mixture(arguments.datasets, arguments.dataset_map)
    if not arguments.dataset_name:
        raise UserError(
            "no data: give --dataset_name (a Hub id, a file, a folder or world/<name>) or datasets in YAML"
        )
    return [
        Source(
            name=arguments.dataset_name,
            split=arguments.dataset_train_split,
            config=arguments.dataset_config,
            revision=arguments.dataset_revision,
            dataset_map=parse_map(arguments.dataset_map),
        )
    ]


def eval_sources(arguments: DataArguments, sources: Sequence[Source]) -> list[Source]:
    """The evaluation datasets the arguments name; empty where rows are to be held out of training."""
    split = arguments.dataset_test_split
    if arguments.eval_dataset_name:
        same = arguments.eval_dataset_name == arguments.dataset_name
        return [
            Source(
                name=arguments.eval_dataset_name,
                split=split or "test",
                config=arguments.dataset_config if same else None,
                revision=arguments.dataset_revision if same else None,
                dataset_map=parse_map(arguments.dataset_map),
                role="evaluation",
            )
        ]
    if not split:
        return []
    for source in sources:
        if source.is_one:
            raise UserError(
                f"{source.name} is one split and has no {split!r}: name the evaluation data by eval_dataset_name"
            )
    return [replace(s, split=split, weight=None, fraction=None, role="evaluation") for s in sources]


def parse_mixture(entries: Sequence[Json], dataset_map: str | Mapping[str, str] | None = None) -> list[Source]:
    """The entries of ``datasets:``; ``dataset_map`` is the default of entries that have none.

    Raises:
        UserError: an entry without path, an unknown key (with the nearest known one), a wrong type, or a weight or
            fraction on some entries only.
    """
    sources = []
    for number, entry in enumerate(entries, start=1):
        at = f"datasets, entry {number}"
        if not isinstance(entry, Mapping):
            raise UserError(f"{at}: a mapping with path, split, … was expected, found {entry!r}")
        for key in entry:
            if key not in _ENTRY_KEYS:
                hint = did_you_mean(str(key), _ENTRY_KEYS, f"the known keys are {', '.join(_ENTRY_KEYS)}")
                raise UserError(f"{at}: unknown key {key!r}{hint}")
        for key in ("path", "name", "data_dir", "split"):
            if entry.get(key) is not None and not isinstance(entry[key], str):
                raise UserError(f"{at}: {key} must be text, found {entry[key]!r}")
        if not entry.get("path"):
            name = entry.get("name")
            hint = f"; name, {name!r}, is the configuration of a Hub dataset: did you mean path?" if name else ""
            raise UserError(f"{at}: path is missing (a Hub id, a file, a folder or world/<name>){hint}")
        columns = entry.get("columns")
        if columns is not None and not (isinstance(columns, list) and all(isinstance(c, str) for c in columns)):
            raise UserError(f"{at}: columns must be a list of column names, found {columns!r}")
        entry_map = entry.get("dataset_map")
        sources.append(
            Source(
                name=entry["path"],
                split=entry.get("split") or "train",
                config=entry.get("name"),
                data_dir=entry.get("data_dir"),
                data_files=entry.get("data_files"),
                columns=tuple(columns) if columns is not None else None,
                dataset_map=parse_map(entry_map if entry_map is not None else dataset_map),
                weight=_share(entry, "weight", at),
                fraction=_share(entry, "fraction", at),
            )
        )
    for key in ("weight", "fraction"):
        given = [getattr(source, key) is not None for source in sources]
        if any(given) and not all(given):
            raise UserError(f"datasets: {key} must be on every entry or on none")
    if sources[0].weight is not None and sources[0].fraction is not None:
        raise UserError("datasets: give weight (repeats rows where needed) or fraction (never repeats), not both")
    return sources


def _share(entry: Json, key: str, at: str) -> float | None:
    value = entry.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise UserError(f"{at}: {key} must be a number above 0, found {value!r}")
    return float(value)


def source_fingerprint(source: Source) -> str | None:
    """SHA-256 of local files, ``world-<version>/<name>/<split>``, or the commit of a Hub dataset."""
    if source.is_world:
        from pipeline.worlds.truth import WORLD_VERSION

        return f"world-{WORLD_VERSION}/{source.name.removeprefix('world/')}/{source.split}"
    files = source.files()
    if not files:
        return _hub_commit(source)
    try:
        return files_sha256(files)
    except OSError as error:
        raise UserError(f"{error.filename or source.label} cannot be read: {error.strerror or error}") from None


def _hub_commit(source: Source) -> str | None:
    """The commit of a Hub dataset's revision: asked of the Hub, else what the cache last saw."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.file_download import repo_folder_name

    revision = source.revision or "main"
    if re.fullmatch(r"[0-9a-f]{40}", revision):
        return revision
    try:
        return HfApi().dataset_info(source.name, revision=revision, timeout=10).sha
    except (HfHubHTTPError, OSError, ValueError):
        ref = Path(
            constants.HF_HUB_CACHE, repo_folder_name(repo_id=source.name, repo_type="dataset"), "refs", revision
        )
        return ref.read_text().strip() if ref.is_file() else None


def raw_rows(source: Source) -> Iterator[RawRow]:
    """``(place, row number, row or why it cannot be read)`` of a dataset as it is stored, before renaming."""
    if source.is_world:
        from pipeline.worlds.table import load_world

        name, split = source.name.removeprefix("world/"), source.split_name
        yield from ((source.label, n, row) for n, row in enumerate(_by_batches(load_world(name, split)), start=1))
        return
    files = source.files()
    if files:
        for file in files:
            yield from ((str(file), row.number, row.content) for row in read_rows(file))
        return
    yield from ((source.label, n, row) for n, row in enumerate(_by_batches(load_hub(source)), start=1))


def sliced(rows: Iterator[RawRow], source: Source) -> Iterator[RawRow]:
    """The rows that a slice in the split's name asks for: ``train[:100]``, ``train[10%:]``, ``train[-50:]``."""
    match = _SLICE.match(source.split)
    if not match:
        raise UserError(f"split {source.split!r} is not a name, or a name with one slice such as train[:1000]")
    start, stop = match[2], match[3]
    if not (start or stop):
        return rows
    if not any(bound and (bound.endswith("%") or bound.startswith("-")) for bound in (start, stop)):
        return islice(rows, int(start or 0), int(stop) if stop else None)
    every = list(rows)

    def place(bound: str | None) -> int | None:
        if not bound:
            return None
        return round(int(bound[:-1]) / 100 * len(every)) if bound.endswith("%") else int(bound)

    return iter(every[place(start) : place(stop)])


def _by_batches(dataset: "datasets.Dataset") -> Iterator[Json]:
    """The rows of a dataset, decoded a thousand at a time (several times faster than one by one)."""
    for batch in dataset.iter(batch_size=1000):
        yield from (dict(zip(batch, values)) for values in zip(*batch.values()))


def load_hub(source: Source, streaming: bool = False) -> "datasets.Dataset | datasets.IterableDataset":
    """A dataset of the Hub, or of its cache when offline.

    Raises:
        UserError: it cannot be reached or does not exist, or has no such configuration or split.
    """
    import datasets

    label = source.name + (f" ({source.config})" if source.config else "")
    try:
        return datasets.load_dataset(
            source.name,
            name=source.config,
            revision=source.revision,
            data_dir=source.data_dir,
            data_files=source.data_files,
            split=source.split_name,
            streaming=streaming,
        )
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = str(error).strip().splitlines()
        raise UserError(
            f"dataset {label}, split {source.split_name!r}, cannot be loaded: it is no local file or folder, and the "
            f"Hub or its cache says {type(error).__name__}: {reason[0] if reason else 'nothing'}"
            f"{near_path(source.name)}"
        ) from error
