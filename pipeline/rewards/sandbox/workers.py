"""A pool of worker processes that can be killed: what a deadline needs and threads cannot give.

A worker is a fresh Python with a clean environment that answers jobs with ``function(job)``; jobs and answers are
plain data (``marshal``). One that overruns is killed and replaced.
"""

import atexit
import contextlib
import marshal
import os
import queue
import select
import signal
import subprocess
import sys
import threading
import time
from typing import NamedTuple

from pipeline.runtime.registry import import_function

_START_LIMIT = 120.0
_SERVE = "import sys; sys.path[:] = {path!r}; from pipeline.rewards.sandbox.workers import serve; serve({function!r})"


class Outcome(NamedTuple):
    """What became of a job: ``status`` is "done" (with ``value``), "timeout" or "died"."""

    status: str
    value: object = None


def core_share() -> int:
    """Cores for this process: those it may run on, shared among the processes that a launcher started beside it."""
    return max(1, len(os.sched_getaffinity(0)) // max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


class WorkerPool:
    """``size`` workers that answer with ``function``, a dotted path ``package.module:function``.

    ``environment`` is all that a worker's environment holds. Workers start with the first job, end with the process
    that started them, and are not shared with forks of it.
    """

    def __init__(self, function: str, size: int | None = None, environment: dict[str, str] | None = None):
        self.function, self.size, self.environment = function, size or core_share(), environment or {}
        self._lock = threading.Lock()
        self._reset()
        atexit.register(self.close)

    def _reset(self) -> None:
        self._owner = os.getpid()
        self._idle: queue.SimpleQueue[_Worker | None] = queue.SimpleQueue()
        for _ in range(self.size):
            self._idle.put(None)

    def run(self, jobs: list, limit: float) -> list[Outcome]:
        """Answers to ``jobs`` in their order; each may take ``limit`` seconds, counted from its own start."""
        with self._lock:
            if self._owner != os.getpid():
                self._reset()
        outcomes: list[Outcome | None] = [None] * len(jobs)
        waiting = iter(range(len(jobs)))
        failures: list[BaseException] = []

        def work() -> None:
            worker = self._idle.get()
            try:
                while not failures:
                    with self._lock:
                        index = next(waiting, None)
                    if index is None:
                        break
                    worker = worker or _Worker(self.function, self.environment)
                    outcomes[index] = worker.ask(jobs[index], limit)
                    if outcomes[index].status != "done":
                        worker = worker.close()
            except BaseException as failure:
                failures.append(failure)
                worker = worker.close() if worker else None
            finally:
                self._idle.put(worker)

        threads = [threading.Thread(target=work, daemon=True) for _ in range(min(self.size, len(jobs)))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]
        return outcomes

    def close(self) -> None:
        """End the idle workers."""
        if self._owner != os.getpid():
            return
        with contextlib.suppress(queue.Empty):
            while True:
                worker = self._idle.get_nowait()
                if worker is not None:
                    worker.close()
        self._reset()


class _Worker:
    def __init__(self, function: str, environment: dict[str, str]):
        code = _SERVE.format(path=[os.path.abspath(entry) for entry in sys.path], function=function)
        self._process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            start_new_session=True,
        )
        try:
            self._read(1, time.monotonic() + _START_LIMIT)  # its imports are done: jobs are timed without them
        except (TimeoutError, EOFError) as cause:
            self.close()
            raise RuntimeError(f"a worker for {function} did not start") from cause

    def ask(self, job: object, limit: float) -> Outcome:
        end = time.monotonic() + limit
        try:
            self._process.stdin.write(_frame(job))
            self._process.stdin.flush()
            size = int.from_bytes(self._read(4, end), "big")
            return Outcome("done", marshal.loads(self._read(size, end)))
        except TimeoutError:
            return Outcome("timeout")
        except (OSError, EOFError):
            return Outcome("died")

    def _read(self, size: int, end: float) -> bytes:
        chunks = []
        descriptor = self._process.stdout.fileno()
        while size:
            if not select.select([descriptor], [], [], max(0.0, end - time.monotonic()))[0]:
                raise TimeoutError
            chunk = os.read(descriptor, size)
            if not chunk:
                raise EOFError
            chunks.append(chunk)
            size -= len(chunk)
        return b"".join(chunks)

    def close(self) -> None:
        """Kill the worker and all that it started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        self._process.stdout.close()


def _frame(value: object) -> bytes:
    data = marshal.dumps(value)
    return len(data).to_bytes(4, "big") + data


def serve(function: str) -> None:
    """The worker's side: answer jobs from standard input until it ends."""
    answer = import_function(function, "worker")
    jobs, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    answers.write(b".")
    answers.flush()
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(2, 1)  # whatever a library prints must not end up among the answers
    while size := jobs.read(4):
        value = answer(marshal.loads(jobs.read(int.from_bytes(size, "big"))))
        answers.write(_frame(value))
        answers.flush()
