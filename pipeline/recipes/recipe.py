"""Read a recipe: a YAML list of {name, stage, config, overrides}, resolved before anything starts.

``config`` is a path beside the recipe, ``overrides`` are laid over it, and ``${name}`` is replaced by the output
folder of an earlier entry.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.runtime.comparison import changed_inputs
from pipeline.runtime.errors import UserError
from pipeline.runtime.given import read_given
from pipeline.runtime.run_json import read_record, status_of

FIELDS = {"name", "stage", "config", "overrides"}
STAGES = Path(__file__).parents[1]  # the folder of the stage files
REFERENCE = re.compile(r"\$\{([^}]+)\}")


@dataclass
class Entry:
    """One entry of a recipe, resolved.

    Attributes:
        name: unique in the recipe.
        stage: name of the stage file, such as ``dpo``.
        argv: the command-line words that the stage gets.
        given: the same words and the config file, by field; values as they were written.
        needs: names of the entries that must be finished before this one can start.
    """

    name: str
    stage: str
    argv: list[str]
    given: dict
    needs: frozenset[str]

    @property
    def output(self) -> Path:
        """The entry's output folder (a stage) or file (a report)."""
        return Path(str(self.given.get("output_dir") or self.given.get("output")))

    def state(self) -> str:
        """``up to date``, ``resume``, ``stale``, ``running`` or ``new``, from the run record alone."""
        if "output_dir" not in self.given:
            return "up to date" if self._newer_than_runs() else "new"
        record = read_record(self.output)
        if record is None:
            return "new"
        if record["stage"] != self.stage or changed_inputs(record, self.given):
            return "stale"
        return {"completed": "up to date", "failed": "resume", "interrupted": "resume"}.get(
            status_of(record), "running"
        )

    def _newer_than_runs(self) -> bool:
        runs = list(Path(str(self.given.get("runs", "."))).glob("*/run.json"))
        return self.output.is_file() and all(r.stat().st_mtime <= self.output.stat().st_mtime for r in runs)


def read_recipe(path: Path) -> list[Entry]:
    """Parse and resolve a recipe.

    Raises:
        UserError: not a list of known entries, an unknown stage, a missing config, or a ${name} that is not earlier.
    """
    entries: list[Entry] = []
    for number, item in enumerate(_items(path), start=1):
        entries.append(_entry(item, entries, path, f"{path}: entry {number}"))
    return entries


def select(entries: Sequence[Entry], only: Sequence[str] | None, first: str | None) -> list[Entry]:
    """The entries named in ``only``, else those from ``first`` on, else all.

    Raises:
        UserError: a name that is not in the recipe.
    """
    names = [item.name for item in entries]
    for wanted in [*(only or []), *([first] if first else [])]:
        if wanted not in names:
            raise UserError(f"the recipe has no entry {wanted}; it has {', '.join(names)}")
    if only:
        return [item for item in entries if item.name in only]
    return list(entries[names.index(first) if first else 0 :])


def _items(path: Path) -> list:
    import yaml

    try:
        items = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(items, list) or not items:
        raise UserError(f"{path} must be a list of entries with name, stage, config and overrides")
    return items


def _entry(item: object, earlier: Sequence[Entry], path: Path, where: str) -> Entry:
    """One item of the YAML list, checked and resolved; ``where`` names it in messages."""
    if not isinstance(item, Mapping) or "stage" not in item or set(item) - FIELDS:
        raise UserError(f"{where}: expected name, stage, config and overrides, found {item!r}")
    name, stage = str(item.get("name", item["stage"])), item["stage"]
    if name in {entry.name for entry in earlier}:
        raise UserError(f"{where}: the name {name} is already taken; give each entry its own")
    if not (STAGES / f"{stage}.py").is_file():
        raise UserError(f"{where}: there is no stage {stage!r} in pipeline/")
    argv = []
    if item.get("config"):
        config = path.parent / item["config"]
        if not config.is_file():
            raise UserError(f"{where}: there is no config {config}")
        argv += ["--config", str(config)]
    folders = {entry.name: str(entry.output) for entry in earlier}
    overrides = item.get("overrides") or {}
    if not isinstance(overrides, Mapping):
        raise UserError(f"{where}: overrides must be a mapping such as {{seed: 1}}, not {overrides!r}")
    for key, value in overrides.items():
        argv += [f"--{key}", *_words(value, folders, where)]
    given = read_given(argv)
    if not (given.get("output_dir") or given.get("output")):
        raise UserError(f"{where}: {name} has no output_dir, neither in its config nor in overrides")
    # A report looks at every folder before it; a stage needs those it names.
    needs = REFERENCE.findall(str(overrides)) if given.get("output_dir") else folders
    entry = Entry(name, stage, argv, given, frozenset(needs))
    same = [other.name for other in earlier if other.output.absolute() == entry.output.absolute()]
    if same:
        raise UserError(f"{where}: {name} writes to {entry.output}, as {same[0]} does; give each entry its own")
    return entry


def _words(value: object, folders: Mapping[str, str], where: str) -> list[str]:
    """An override as command-line words, ${name} replaced."""

    def replace(match: re.Match) -> str:
        if match[1] not in folders:
            raise UserError(f"{where}: ${{{match[1]}}} is not the name of an earlier entry ({', '.join(folders)})")
        return folders[match[1]]

    values = value if isinstance(value, list) else [value]
    words = ["null" if v is None else str(v).lower() if isinstance(v, bool) else str(v) for v in values]
    return [REFERENCE.sub(replace, word) for word in words]
