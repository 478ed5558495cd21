"""A process as a run record knows it: who it is, whether it still runs, its packages, and how much memory it took."""

import contextlib
import os
import re
import resource
import socket
import sys
import threading
from importlib import metadata
from pathlib import Path

from pipeline.runtime.files import Json

PACKAGES = ("narlm", "torch", "transformers", "trl", "peft", "accelerate", "datasets", "deepspeed", "bitsandbytes")
SAME_START_S = 1.5  # psutil reads the time of boot in whole seconds
HEARTBEAT_S = 30  # how often a run touches its run.json
LEASE_S = 300  # how long after that a run on another host counts as alive


def process_identity(pid: int | None = None) -> Json:
    """Host, pid and start time (seconds since boot) of a process: a pid alone may be given again to another one."""
    pid = os.getpid() if pid is None else pid
    return {"host": socket.gethostname(), "pid": pid, "start": _started_at(pid)}


def process_is_alive(record: Json) -> bool:
    """Whether the process that wrote a record still runs.

    Of another host only the heartbeat can be seen: ``read_record`` takes a run for interrupted once its lease is over.
    """
    process = record.get("process")
    if not process:
        return False
    if process["host"] != socket.gethostname():
        return True
    if process["pid"] == os.getpid():
        return False  # a stage called twice in one process: the earlier call is over
    start = _started_at(process["pid"])
    if start is None or not isinstance(process["start"], int | float):
        return False
    return abs(start - process["start"]) <= SAME_START_S


def _started_at(pid: int) -> float | None:
    """Seconds since boot at which a process started, which no change of the clock moves; None if there is none.

    A dead process whose parent has not asked for its exit code (a zombie) is none.
    """
    import psutil

    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        return process.create_time() - psutil.boot_time()
    except psutil.NoSuchProcess:
        return None


class Heartbeat:
    """Touches a file every ``HEARTBEAT_S`` seconds until it is stopped, however busy the main thread is."""

    def __init__(self, file: Path):
        self.file = file
        self._stopped = threading.Event()
        threading.Thread(target=self._beat, daemon=True).start()

    def _beat(self) -> None:
        while not self._stopped.wait(HEARTBEAT_S):
            with contextlib.suppress(OSError):  # not written yet, or moved
                os.utime(self.file)

    def __deepcopy__(self, memo: dict) -> "Heartbeat":
        """Itself: a copy of what belongs to a run belongs to the same run."""
        return self

    def stop(self) -> None:
        """No beat comes after this one's return, but one that is under way."""
        self._stopped.set()


def peak_memory_bytes() -> int:
    """Largest memory so far: of the GPU if one was used, else the process's resident set."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    with contextlib.suppress(OSError, TypeError):  # Linux; ru_maxrss begins there at the starting process's own peak
        return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a run's numbers."""
    found = {"python": sys.version.split()[0]}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found
