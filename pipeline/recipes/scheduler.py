"""Run the entries of a recipe, each in a process of its own, as soon as the entries that it names are finished."""

import contextlib
import os
import selectors
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.recipes.recipe import STAGES, Entry
from pipeline.runtime.errors import UserError

# Spelled out so that no config file in the user's cache, and no question on stdin, decides how a recipe runs.
ONE_PROCESS = ["--num_processes", "1", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]


@dataclass
class Job:
    """A running entry.

    Attributes:
        process: its standard output is a pipe where several entries run side by side, else the terminal.
        threads: of the cores, those that it was given.
        rest: of its output, the line that has not ended yet.
    """

    item: Entry
    process: subprocess.Popen[bytes]
    threads: int
    rest: bytes = b""

    @property
    def exit_code(self) -> int:
        """That of the ended process, as a shell reports it: 128 + n where signal n ended it."""
        code = self.process.wait()
        return 128 - code if code < 0 else code

    def show(self) -> bool:
        """Print the complete lines that arrived, each after the entry's name; False at the end of the output.

        Of a progress bar, which overwrites its line, the last state is printed.
        """
        text = os.read(self.process.stdout.fileno(), 1 << 16)
        *lines, self.rest = (self.rest + text).split(b"\n") if text else (self.rest, b"")
        for line in lines:
            shown = line.rstrip(b"\r").rpartition(b"\r")[2].decode(errors="replace")
            if shown.strip():
                print(f"{self.item.name} | {shown}", flush=True)
        return bool(text)


def run_entries(entries: Sequence[Entry], numbers: Mapping[str, str], jobs: int, accelerate_config: str | None) -> int:
    """Run entries, up to ``jobs`` at a time, and return how many had to run.

    Where one fails no other is started, and those that run are waited for.

    Raises:
        SystemExit: with the exit code of the entry that failed first, 130 or 143 after SIGINT or SIGTERM.
    """
    left, running, ran, code = list(entries), [], 0, 0
    with _waited_for(running) as signals:
        while running or (left and not code):
            ready = [] if code else _ready(left, running, jobs)
            # Shared out, never more than there are: OpenMP's threads spin while they wait, and two processes of two on
            # two cores ran at a third of the speed of two of one (sleeping threads were no faster than one, either).
            threads = max(1, (cores() - sum(job.threads for job in running)) // max(1, len(ready)))
            for item in ready:
                left.remove(item)
                if announce(item, numbers[item.name]) != "up to date":
                    print(f"    {shlex.join(launch_command_line(item, accelerate_config, threads))}", flush=True)
                    running.append(start(item, accelerate_config, threads, named=jobs > 1))
                    ran += 1
            for job in _finished(running):
                running.remove(job)
                if job.exit_code:
                    code = code or job.exit_code
                    _report_failure(job)
            code = code or (128 + signals[0] if signals else 0)
    if code:
        raise SystemExit(code)
    return ran


def announce(item: Entry, number: str) -> str:
    """Print what will be done with an entry, and return its state; a stale one runs with ``--force``.

    Raises:
        UserError: another process is running in its folder.
    """
    state = item.state()
    print(f"{number} {item.name}: {state} -> {item.output}", flush=True)
    if state == "running":
        raise UserError(f"{item.name}: another process is running in {item.output}; wait for it")
    if state == "stale":  # the stage moves the old folder aside, once it has found its arguments good
        item.argv.append("--force")
    return state


def launch_command_line(item: Entry, accelerate_config: str | None, threads: int | None = None) -> list[str]:
    """The command a user would type for this entry; ``threads`` is for one process, a config file states its own."""
    if accelerate_config:
        options = ["--config_file", accelerate_config]
    else:
        options = [*ONE_PROCESS, "--num_cpu_threads_per_process", str(threads or cores())]
    return ["accelerate", "launch", *options, _script(item), *item.argv]


def _script(item: Entry) -> str:
    """The stage's file as a user would type it here."""
    file, here = STAGES / f"{item.stage}.py", Path.cwd()
    return str(file.relative_to(here) if file.is_relative_to(here) else file)


def cores() -> int:
    """Threads to share out: accelerate would give one; more than a few cost small models more than they bring."""
    return int(os.environ.get("OMP_NUM_THREADS") or min(4, os.cpu_count() or 1))


def start(item: Entry, accelerate_config: str | None, threads: int, named: bool) -> Job:
    """Start an entry in a process of its own; ``named`` sends its output through a pipe (see ``Job.show``)."""
    words, environment = _process(item, accelerate_config, threads)
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT} if named else {}
    return Job(item, subprocess.Popen(words, env=environment, **output), threads)


def _process(item: Entry, accelerate_config: str | None, threads: int) -> tuple[list[str], dict[str, str] | None]:
    """The words and the environment of an entry's process.

    One process is started as `accelerate launch` starts it, but from here: the command itself would import torch for
    each stage anew, 2 s that the stages of the quickstart would pay one by one.
    """
    words = launch_command_line(item, accelerate_config, threads)[2:]
    words[words.index(_script(item))] = str(STAGES / f"{item.stage}.py")
    if accelerate_config:
        return [sys.executable, "-m", "pipeline.recipes.launch", *words], None
    from pipeline.runtime.compat import (
        _validate_launch_command,
        launch_command_parser,
        prepare_simple_launcher_cmd_env,
    )

    options, *_ = _validate_launch_command(launch_command_parser().parse_args(words))
    return prepare_simple_launcher_cmd_env(options)


def _ready(left: Sequence[Entry], running: Sequence[Job], jobs: int) -> list[Entry]:
    """The entries to start now: all that they need is finished, and there is room for them."""
    unfinished = {item.name for item in left} | {job.item.name for job in running}
    ready = [item for item in left if not item.needs & unfinished]
    if jobs > 1:  # nothing waits for an assessment but others and the report
        ready.sort(key=lambda item: item.stage == "assess")
    return ready[: jobs - len(running)]


def _finished(running: Sequence[Job]) -> list[Job]:
    """Wait until something happens, print the output that arrived, and return the jobs that have ended."""
    if not running:
        return []
    if running[0].process.stdout is None:  # a single one, that prints to the terminal
        running[0].process.wait()
        return [running[0]]
    with selectors.DefaultSelector() as selector:
        for job in running:
            selector.register(job.process.stdout, selectors.EVENT_READ, job)
        return [key.data for key, _ in selector.select() if not key.data.show()]


def _report_failure(job: Job) -> None:
    print(
        f"error: {job.item.name} stopped with exit code {job.exit_code} (its own message is above); what it wrote is "
        f"in {job.item.output}, and the same command resumes there",
        file=sys.stderr,
        flush=True,
    )


@contextlib.contextmanager
def _waited_for(running: list[Job]) -> Iterator[list[int]]:
    """Leave only when every running job has ended; gives the list of the signals that arrive meanwhile.

    On SIGTERM each job is sent one, so that it writes its checkpoint. SIGINT is sent to them by the terminal.
    """
    signals: list[int] = []

    def pass_on(number: int, frame: object) -> None:
        signals.append(number)
        for job in running if number == signal.SIGTERM else ():
            job.process.send_signal(number)

    handlers = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield signals
    finally:
        while running:
            for job in _finished(running):
                running.remove(job)
        for number, handler in handlers.items():
            signal.signal(number, handler)
