"""A process as a run record knows it: who it is, whether it still runs, its packages, and how much memory it took."""

import contextlib
import os
import re
import resource
import socket
import sys
from importlib import metadata
from pathlib import Path

from pipeline.runtime.files import Json

PACKAGES = ("narlm", "torch", "transformers", "trl", "peft", "accelerate", "datasets", "deepspeed", "bitsandbytes")
SAME_START_S = 1.5  # psutil reads the time of boot in whole seconds


def process_identity(pid: int | None = None) -> Json:
    """Host, pid and start time (seconds since boot) of a process: a pid alone may be given again to another one."""
    pid = os.getpid() if pid is None else pid
    return {"host": socket.gethostname(), "pid": pid, "start": _started_at(pid)}


def process_is_alive(record: Json) -> bool:
    """Whether the process that wrote a record still runs; on another host it is taken to be alive."""
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
    """Seconds since boot at which a process started, which no change of the clock moves; None if there is none."""
    import psutil

    try:
        return psutil.Process(pid).create_time() - psutil.boot_time()
    except psutil.NoSuchProcess:
        return None


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
