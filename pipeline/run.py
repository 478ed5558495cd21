"""Run a recipe: stages in order, each in a process of its own through `accelerate launch`.

    python -m pipeline.run configs/quickstart/recipe.yaml
    python -m pipeline.run configs/quickstart/recipe.yaml --only dpo --dry_run

A recipe is a YAML list of {name, stage, config, overrides}: config is a path beside the recipe, overrides are laid
over it, and ${name} stands for the output folder of an earlier entry. What is up to date is skipped, what was
interrupted resumes, and what is stale (its arguments, parents or data changed) moves aside and runs anew.
"""

import os
import re
import shlex
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.runtime.arguments import parse, read_given
from pipeline.runtime.entry import entry
from pipeline.runtime.errors import UserError
from pipeline.runtime.record import changed_inputs, read_record, set_aside, status_of


@dataclass
class RunArguments:
    """Which stages of a recipe to run, and on what."""

    recipe: str = field(metadata={"help": "The recipe's YAML file (also accepted without a flag)."})
    only: list[str] | None = field(default=None, metadata={"help": "Run just these entries."})
    from_: str | None = field(
        default=None, metadata={"help": "Start at this entry; earlier ones must be finished.", "aliases": ["--from"]}
    )
    dry_run: bool = field(default=False, metadata={"help": "Print what would be run, and run nothing."})
    accelerate_config: str | None = field(
        default=None, metadata={"help": "Accelerate config file; without it one process, on a GPU if there is one."}
    )


@dataclass
class Entry:
    """One line of a recipe, resolved: everything the stage will be given."""

    name: str
    stage: str
    argv: list[str]
    given: dict[str, Any]

    @property
    def output(self) -> Path:
        """The entry's output folder (a stage) or file (a report)."""
        return Path(str(self.given.get("output_dir") or self.given.get("output")))

    def state(self) -> str:
        """``up to date``, ``resume``, ``stale`` or ``new``, from the run record alone."""
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


def main(argv: list[str] | None = None) -> None:
    """Run the recipe; see the module's docstring."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv and not argv[0].startswith("-"):
        argv = ["--recipe", *argv]
    (args,) = parse(argv, RunArguments, prog="pipeline.run")
    entries = read_recipe(Path(args.recipe))
    started = time.monotonic()
    ran = 0
    for number, item in enumerate(entries, start=1):
        if not _selected(item.name, args, [e.name for e in entries]):
            continue
        state = item.state()
        print(f"[{number}/{len(entries)}] {item.name}: {state} -> {item.output}", flush=True)
        if state == "running":
            raise UserError(f"{item.name}: another process is running in {item.output}; wait for it")
        if state == "up to date":
            continue
        command = launch_command_line(item, args.accelerate_config)
        print(f"    {shlex.join(command)}", flush=True)
        if args.dry_run:
            continue
        if state == "stale":
            print(f"    its inputs have changed; the old folder is now {set_aside(item.output)}", flush=True)
        launch(item, args.accelerate_config)
        ran += 1
    if args.dry_run:
        return
    print(f"recipe done in {time.monotonic() - started:.0f} s" if ran else "everything is up to date", flush=True)


def read_recipe(path: Path) -> list[Entry]:
    """Parse and resolve a recipe.

    Raises:
        UserError: not a list of known entries, an unknown stage, a missing config, or a ${name} that is not earlier.
    """
    import yaml

    try:
        items = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"there is no recipe {path}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(items, list) or not items:
        raise UserError(f"{path} must be a list of entries with name, stage, config and overrides")
    entries: list[Entry] = []
    for number, item in enumerate(items, start=1):
        where = f"{path}: entry {number}"
        unknown = set(item) - {"name", "stage", "config", "overrides"} if isinstance(item, dict) else {"?"}
        if unknown or "stage" not in item:
            raise UserError(f"{where}: expected name, stage, config and overrides, found {item!r}")
        name = str(item.get("name", item["stage"]))
        if name in {e.name for e in entries}:
            raise UserError(f"{where}: the name {name} is already taken; give each entry its own")
        if not (Path(__file__).parent / f"{item['stage']}.py").is_file():
            raise UserError(f"{where}: there is no stage {item['stage']!r} in pipeline/")
        argv = []
        if item.get("config"):
            config = path.parent / item["config"]
            if not config.is_file():
                raise UserError(f"{where}: there is no config {config}")
            argv += ["--config", str(config)]
        folders = {e.name: str(e.output) for e in entries}
        for key, value in (item.get("overrides") or {}).items():
            argv += [f"--{key}", *_words(value, folders, where)]
        given = read_given(argv)
        if not (given.get("output_dir") or given.get("output")):
            raise UserError(f"{where}: {name} has no output_dir, neither in its config nor in overrides")
        entries.append(Entry(name, item["stage"], argv, given))
    return entries


def launch_command_line(item: Entry, accelerate_config: str | None) -> list[str]:
    """The command a user would type for this entry."""
    options = ["--config_file", accelerate_config] if accelerate_config else list(_ONE_PROCESS)
    return ["accelerate", "launch", *options, f"pipeline/{item.stage}.py", *item.argv]


# Spelled out so that no config file in the user's cache, and no question on stdin, decides how a recipe runs.
_ONE_PROCESS = (
    "--num_processes", "1", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
    # accelerate would give it one thread; more than a few cost small models more than they bring.
    "--num_cpu_threads_per_process", os.environ.get("OMP_NUM_THREADS", str(min(4, os.cpu_count() or 1))),
)  # fmt: skip


def launch(item: Entry, accelerate_config: str | None) -> None:
    """Run one entry through accelerate and wait.

    Raises:
        SystemExit: with the stage's own exit code where it failed.
    """
    import subprocess

    import psutil
    from accelerate.commands.launch import launch_command, launch_command_parser

    words = launch_command_line(item, accelerate_config)[2:]
    script = str(Path(__file__).parent / f"{item.stage}.py")
    options = launch_command_parser().parse_args([script if word.startswith("pipeline/") else word for word in words])

    def pass_on(number: int, frame: Any) -> None:
        for child in psutil.Process().children(recursive=True):
            child.send_signal(number)

    # The stage writes a checkpoint on SIGTERM; the terminal itself sends SIGINT to it.
    handler = signal.signal(signal.SIGTERM, pass_on)
    try:
        launch_command(options)
    except (subprocess.CalledProcessError, SystemExit) as error:
        code = getattr(error, "returncode", None) or getattr(error, "code", 1)
        code = 128 - code if code < 0 else code
        print(
            f"error: {item.name} stopped with exit code {code} (its own message is above); what it wrote is in "
            f"{item.output}, and the same command goes on from there",
            file=sys.stderr,
        )
        raise SystemExit(code) from None
    finally:
        signal.signal(signal.SIGTERM, handler)


def _selected(name: str, args: RunArguments, names: list[str]) -> bool:
    for wanted in [*(args.only or []), *([args.from_] if args.from_ else [])]:
        if wanted not in names:
            raise UserError(f"the recipe has no entry {wanted}; it has {', '.join(names)}")
    if args.only:
        return name in args.only
    return args.from_ is None or names.index(name) >= names.index(args.from_)


def _words(value: Any, folders: dict[str, str], where: str) -> list[str]:
    """An override as command-line words, ${name} replaced."""

    def replace(match: re.Match) -> str:
        if match[1] not in folders:
            raise UserError(f"{where}: ${{{match[1]}}} is not the name of an earlier entry ({', '.join(folders)})")
        return folders[match[1]]

    values = value if isinstance(value, list) else [value]
    return [re.sub(r"\$\{([^}]+)\}", replace, str(v).lower() if isinstance(v, bool) else str(v)) for v in values]


if __name__ == "__main__":
    entry(main, RunArguments, __doc__, trains=False)
