"""Run a recipe: stages in order, each in a process of its own through `accelerate launch`.

    python -m pipeline.run configs/quickstart/recipe.yaml
    python -m pipeline.run configs/quickstart/recipe.yaml --only dpo --dry_run
    python -m pipeline.run configs/quickstart/recipe.yaml --jobs 2
    python -m pipeline.run configs/smollm2-135m/recipe.yaml --estimate

A recipe is a YAML list of {name, stage, config, overrides}: config is a path beside the recipe, overrides are laid
over it, and ${name} stands for the output folder of an earlier entry. What is up to date is skipped, what was
interrupted resumes, and what is stale (its arguments, parents or data changed) moves aside and runs anew.
With --jobs N up to N entries that don't name each other run side by side, each line of theirs with its name before it;
training goes before assessments.
"""

import multiprocessing
import os
import re
import shlex
import signal
import sys
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from pipeline.runtime.arguments import parse, plain, read_given
from pipeline.runtime.comparison import changed_inputs
from pipeline.runtime.entry import entry
from pipeline.runtime.errors import UserError
from pipeline.runtime.record import RECIPE_VARIABLE, read_record, status_of


@dataclass
class RunArguments:
    """Which stages of a recipe to run, and on what."""

    recipe: str = field(metadata={"help": "The recipe's YAML file (also accepted without a flag)."})
    only: list[str] | None = field(default=None, metadata={"help": "Run just these entries."})
    from_: str | None = field(
        default=None, metadata={"help": "Start at this entry; earlier ones must be finished.", "aliases": ["--from"]}
    )
    jobs: int = field(
        default=1,
        metadata={"help": "Run up to so many entries at a time, where none needs the other; they share the cores."},
    )
    dry_run: bool = field(default=False, metadata={"help": "Print what would be run, and run nothing."})
    estimate: bool = field(
        default=False, metadata={"help": "Print the memory that each stage will need (docs/scaling.md), run nothing."}
    )
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
    needs: frozenset[str]  # the entries that must be finished before this one can start

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
    if args.jobs < 1:
        raise UserError(f"--jobs {args.jobs}: give the number of entries to run at a time, at least 1")
    entries = read_recipe(Path(args.recipe))
    numbers = {item.name: f"[{number}/{len(entries)}]" for number, item in enumerate(entries, start=1)}
    chosen = [item for item in entries if _selected(item.name, args, list(numbers))]
    if args.estimate:
        print(memory_table(entries, chosen))
        return
    if args.dry_run:
        for item in chosen:
            state = announce(item, numbers[item.name])
            if state == "stale":
                item.argv.append("--force")
            if state != "up to date":
                print(f"    {shlex.join(launch_command_line(item, args.accelerate_config))}")
        return
    os.environ[RECIPE_VARIABLE] = args.recipe  # each stage records it
    started = time.monotonic()
    ran = run_entries(chosen, numbers, args.jobs, args.accelerate_config)
    print(f"recipe done in {time.monotonic() - started:.0f} s" if ran else "everything is up to date", flush=True)


def memory_table(entries: list[Entry], chosen: list[Entry]) -> str:
    """The memory that the chosen entries which train will need, by formula; see ``pipeline.recipes.estimate``.

    Raises:
        UserError: a model's shape is not known, or nothing of it trains.
    """
    from pipeline.recipes.estimate import TRAINED, shape_by_name, shape_of, table

    shapes, adapters, rows = {}, set(), []
    for item in entries:
        if item.stage not in TRAINED:
            continue
        given = {name: plain(value) for name, value in item.given.items()}
        start = item.given.get("model_name_or_path")
        if start is not None:
            shapes[str(item.output)] = shapes.get(str(start)) or shape_by_name(str(start))
        else:
            from pipeline.model import NarLMConfig

            known = NarLMConfig().to_dict()
            fields = {name: value for name, value in given.items() if name in known}
            preset = given.get("preset")
            config = NarLMConfig.from_preset(preset, **fields) if preset else NarLMConfig(**fields)
            shapes[str(item.output)] = shape_of(config.to_dict())
        goes_on = str(start) in adapters or (Path(str(start)) / "adapter_config.json").is_file()
        if goes_on and given.get("adapter_mode", "continue") == "continue":
            given = {**given, "use_peft": True}
        if given.get("use_peft"):
            adapters.add(str(item.output))
        if item in chosen:
            rows.append((item.name, item.stage, given, shapes[str(item.output)]))
    if not rows:
        raise UserError("no entry of these trains a model: there is nothing to estimate")
    return "GiB on one device, and what holds it (docs/scaling.md says what is counted)\n" + table(rows)


def announce(item: Entry, number: str) -> str:
    """Say what will be done with an entry, and return its state.

    Raises:
        UserError: another process is at work in its folder.
    """
    state = item.state()
    print(f"{number} {item.name}: {state} -> {item.output}", flush=True)
    if state == "running":
        raise UserError(f"{item.name}: another process is running in {item.output}; wait for it")
    return state


def run_entries(left: list[Entry], numbers: dict[str, str], jobs: int, accelerate_config: str | None) -> int:
    """Run entries, each as soon as those it names are finished, up to ``jobs`` at a time; how many had to run.

    Where one fails no other is started, and those that run are waited for.

    Raises:
        SystemExit: with the exit code of the entry that failed first.
    """
    left, running, ran, code = list(left), [], 0, 0

    def pass_on(number: int, frame: Any) -> None:  # a stage writes its checkpoint on SIGTERM
        for job in running:
            os.kill(job.process.pid, signal.SIGTERM)

    # A terminal sends SIGINT to the stages as well; what is left to do here is to wait until they have saved.
    handlers = {
        signal.SIGTERM: signal.signal(signal.SIGTERM, pass_on),
        signal.SIGINT: signal.signal(signal.SIGINT, lambda *_: None),
    }
    try:
        while running or (left and not code):
            unfinished = {item.name for item in left} | {job.item.name for job in running}
            ready = [] if code else [item for item in left if not item.needs & unfinished]
            if jobs > 1:  # nothing waits for an assessment but others and the report
                ready.sort(key=lambda item: item.stage == "assess")
            ready = ready[: jobs - len(running)]
            # Shared out, never more than there are: OpenMP's threads spin while they wait, and two processes of two on
            # two cores ran at a third of the speed of two of one (sleeping threads were no faster than one, either).
            threads = max(1, (_cores() - sum(job.threads for job in running)) // max(1, len(ready)))
            for item in ready:
                left.remove(item)
                state = announce(item, numbers[item.name])
                if state == "stale":  # moved aside by the stage itself, once it has found its arguments good
                    item.argv.append("--force")
                if state != "up to date":
                    print(f"    {shlex.join(launch_command_line(item, accelerate_config, threads))}", flush=True)
                    running.append(start(item, accelerate_config, threads, named=jobs > 1))
                    ran += 1
            for job in _finished(running):
                running.remove(job)
                if job.process.exitcode:
                    code = code or job.process.exitcode
                    print(
                        f"error: {job.item.name} stopped with exit code {job.process.exitcode} (its own message is "
                        f"above); what it wrote is in {job.item.output}, and the same command goes on from there",
                        file=sys.stderr,
                        flush=True,
                    )
    finally:
        for job in running:
            job.process.join()
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if code:
        raise SystemExit(code)
    return ran


@dataclass
class Job:
    """An entry at work: its process, its threads, and the pipe its output comes through (None: the terminal)."""

    item: Entry
    process: BaseProcess
    threads: int
    output: Connection | None
    rest: bytes = b""  # of a line that has not ended yet

    def show(self) -> None:
        """Print the lines that have come, with the entry's name before each; of a progress bar its last state."""
        text = os.read(self.output.fileno(), 1 << 16)
        *lines, self.rest = (self.rest + text).split(b"\n") if text else (self.rest, b"")
        for line in lines:
            shown = line.rstrip(b"\r").rpartition(b"\r")[2].decode(errors="replace")
            if shown.strip():
                print(f"{self.item.name} | {shown}", flush=True)
        if not text:
            self.output.close()
            self.output = None


def start(item: Entry, accelerate_config: str | None, threads: int, named: bool) -> Job:
    """Start an entry in a process of its own; ``named`` puts its name before each line it prints."""
    import accelerate.commands.launch  # noqa: F401  (2 s, once: the processes are forked from this one)

    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    output, theirs = context.Pipe(duplex=False) if named else (None, None)
    words = launch_command_line(item, accelerate_config, threads)[2:]
    process = context.Process(target=launch, args=(item.stage, words, theirs))
    process.start()
    if theirs is not None:
        theirs.close()
    return Job(item, process, threads, output)


def _finished(running: list[Job]) -> list[Job]:
    """Wait for something to happen, show what has been printed, and return the jobs that have ended."""
    if not running:
        return []
    wait([job.output or job.process.sentinel for job in running])
    for job in running:
        while job.output is not None and job.output.poll():
            job.show()
    done = [job for job in running if job.output is None and wait([job.process.sentinel], timeout=0)]
    for job in done:
        job.process.join()
    return done


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
        named = set(re.findall(r"\$\{([^}]+)\}", str(item.get("overrides"))))
        # A report looks at every folder before it; a stage needs those it names.
        needs = frozenset(named if given.get("output_dir") else folders)
        entries.append(Entry(name, item["stage"], argv, given, needs))
    return entries


def launch_command_line(item: Entry, accelerate_config: str | None, threads: int | None = None) -> list[str]:
    """The command a user would type for this entry; ``threads`` is for one process, a config file states its own."""
    if accelerate_config:
        options = ["--config_file", accelerate_config]
    else:
        options = [*_ONE_PROCESS, "--num_cpu_threads_per_process", str(threads or _cores())]
    return ["accelerate", "launch", *options, f"pipeline/{item.stage}.py", *item.argv]


# Spelled out so that no config file in the user's cache, and no question on stdin, decides how a recipe runs.
_ONE_PROCESS = ["--num_processes", "1", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]


def _cores() -> int:
    """Threads to share out: accelerate would give one; more than a few cost small models more than they bring."""
    return int(os.environ.get("OMP_NUM_THREADS") or min(4, os.cpu_count() or 1))


def launch(stage: str, words: list[str], output: Connection | None) -> None:
    """Run a stage through accelerate, in the process made for it, and leave with the stage's own exit code."""
    import subprocess

    import psutil

    from pipeline.runtime.compat import launch_command, launch_command_parser

    if output is not None:
        os.dup2(output.fileno(), sys.stdout.fileno())
        os.dup2(output.fileno(), sys.stderr.fileno())
    script = str(Path(__file__).parent / f"{stage}.py")
    options = launch_command_parser().parse_args([script if word.startswith("pipeline/") else word for word in words])

    def pass_on(number: int, frame: Any) -> None:
        for child in psutil.Process().children(recursive=True):
            child.send_signal(number)

    signal.signal(signal.SIGTERM, pass_on)
    signal.signal(signal.SIGINT, lambda *_: None)
    try:
        launch_command(options)
    except (subprocess.CalledProcessError, SystemExit) as error:
        code = getattr(error, "returncode", None) or getattr(error, "code", 1)
        raise SystemExit(128 - code if code < 0 else code) from None


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
    words = ["null" if v is None else str(v).lower() if isinstance(v, bool) else str(v) for v in values]
    return [re.sub(r"\$\{([^}]+)\}", replace, word) for word in words]


if __name__ == "__main__":
    entry(main, RunArguments, __doc__, trains=False)
