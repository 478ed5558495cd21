"""The sandbox: a completion and its tests, each in a box of its own that bubblewrap builds.

docs/rewards.md says what the boxes guarantee and what not. In short: a box sees Python's standard library read-only, a
small private ``/tmp``, no network, no other process, no environment, no ``/proc``; a system-call filter forbids new
processes, sockets and namespaces; time, memory and files are limited; and the expected values stay in the tests' box.
"""

import contextlib
import functools
import importlib.util
import json
import marshal
import os
import platform
import secrets
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from pipeline.rewards.sandbox.protocol import ProtocolError, decode, receive
from pipeline.rewards.sandbox.system_calls import system_call_filter
from pipeline.rewards.sandbox.workers import WorkerPool
from pipeline.runtime.errors import UserError

_MEMORY = 1 << 30
_TEMPORARY = 16 << 20
_LIMITS = {
    "RLIMIT_AS": _MEMORY,
    "RLIMIT_CORE": 0,
    "RLIMIT_FSIZE": _TEMPORARY,
    "RLIMIT_NOFILE": 64,
    "RLIMIT_NPROC": 64,
    "RLIMIT_MEMLOCK": 0,
    "RLIMIT_MSGQUEUE": 0,
}
_BOXED_PYTHON = f"/python/bin/python{sys.version_info.major}.{sys.version_info.minor}"
_BOOT = """
import sys
programs, job = message[1:]
for name in ("pipeline", "pipeline.rewards", "pipeline.rewards.sandbox"):
    sys.modules[name] = type(sys)(name)
for name, program in programs:
    module = sys.modules[name] = type(sys)(name)
    exec(program, module.__dict__)
sys.modules["pipeline.rewards.sandbox.protocol"].settle(job["limits"], job["uid"])
module.main(job)
"""
_START = "import sys, marshal; message = marshal.load(sys.stdin.buffer); exec(message[0], {'message': message})"


class Probe(NamedTuple):
    """Whether the sandbox holds here; if not, why, and what to do."""

    holds: bool
    cause: str = ""
    fix: str = ""


# --- one box ---------------------------------------------------------------------------------------------------------


class _Box:
    """A started box: the launcher's process, and a handle on the first process inside."""

    def __init__(self, process: subprocess.Popen, inside: int | None):
        self.process, self.inside = process, inside

    def end(self) -> str:
        """Kill everything in the box, wait until it is gone, and give what the launcher wrote to standard error."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if self.inside is not None:
                signal.pidfd_send_signal(self.inside, signal.SIGKILL)
            else:
                os.killpg(self.process.pid, signal.SIGKILL)
        try:
            # The launcher ends after the first process in the box, and that one after all the others in it.
            self.process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.inside is not None:
            os.close(self.inside)
        os.set_blocking(self.process.stderr.fileno(), False)
        complaint = self.process.stderr.read(2000) or b""
        self.process.stderr.close()
        return complaint.decode(errors="replace").strip()


def _interpreter() -> str:
    return os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)


@functools.cache
def _box_command(bubblewrap: str, as_root: bool) -> list[str]:
    """bubblewrap's arguments up to the descriptors and the program."""
    prefix = os.path.realpath(sys.base_prefix)
    # Python is mounted at /python in the box: its own path may lead through folders that only this user may enter.
    shown = [(path, path) for path in ("/usr/lib", "/usr/lib64")]
    shown += [(f"{prefix}/{folder}", f"/python/{folder}") for folder in ("lib", "lib64")]
    command = [
        bubblewrap, "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try",
        "--die-with-parent", "--new-session", "--clearenv", "--setenv", "PYTHONHASHSEED", "0",
        "--setenv", "LD_LIBRARY_PATH", "/python/lib", "--hostname", "box",
    ]  # fmt: skip
    # Root leaves its place inside the box (`settle`), since limits on processes do not hold for it; nobody else can.
    command += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"] if as_root else ["--unshare-user"]
    for folder in ("/usr", "/python", "/dev"):
        command += ["--perms", "0755", "--dir", folder]  # else they would be as closed as the umask or the source
    for path, place in shown:
        if os.path.isdir(path):
            command += ["--ro-bind", path, place]
    for link in ("/lib", "/lib64"):
        if os.path.islink(link):
            command += ["--symlink", os.readlink(link), link]
        elif os.path.isdir(link):
            command += ["--ro-bind", link, link]
    return [
        *command, "--ro-bind", _interpreter(), _BOXED_PYTHON, "--dev-bind", "/dev/null", "/dev/null",
        "--perms", "1777", "--size", str(_TEMPORARY), "--tmpfs", "/tmp", "--chdir", "/tmp", "--remount-ro", "/",
    ]  # fmt: skip


@functools.cache
def _programs(runner: str) -> list:
    """The boot program and the code of the modules that run in a box."""
    modules = ["pipeline.rewards.sandbox.protocol", runner]
    sources = [(name, importlib.util.find_spec(name).origin) for name in modules]
    return [
        compile(_BOOT, "boot.py", "exec"),
        [(name, compile(Path(path).read_text(), Path(path).name, "exec")) for name, path in sources],
    ]


def _start(runner: str, job: dict, descriptors: list[int], bubblewrap: str | None) -> _Box:
    """Start ``runner`` with ``job`` in a box, or (without bubblewrap) in a bare process with the same limits."""
    python = [
        _interpreter() if bubblewrap is None else _BOXED_PYTHON,
        "-s",
        "-S",
        "-P",
        "-B",
        "-X",
        "utf8",
        "-c",
        _START,
    ]
    as_root = os.geteuid() == 0
    limits = {**_LIMITS, "RLIMIT_CPU": int(job["deadline"]) + 2}
    if bubblewrap is None:
        del limits["RLIMIT_NPROC"]  # would count all that the user runs
        job = {**job, "limits": limits, "uid": None}
        process = subprocess.Popen(
            python,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={"PYTHONHASHSEED": "0"},
            cwd="/tmp",
            pass_fds=descriptors,
            start_new_session=True,
        )
        box = _Box(process, None)
    else:
        # One spare user a worker: the limit on threads counts by user.
        job = {**job, "limits": limits, "uid": 60000 + os.getpid() % 4000 if as_root else None}
        rules, rules_end = os.pipe()
        report, report_end = os.pipe()
        os.write(rules_end, system_call_filter(platform.machine()))
        os.close(rules_end)
        process = subprocess.Popen(
            [*_box_command(bubblewrap, as_root), "--seccomp", str(rules), "--info-fd", str(report_end), "--", *python],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={},  # the first process in the box shows the launcher's environment
            pass_fds=[rules, report_end, *descriptors],
            start_new_session=True,
        )
        os.close(rules)
        os.close(report_end)
        box = _Box(process, _first_process(report))
    with contextlib.suppress(BrokenPipeError), process.stdin:
        process.stdin.write(marshal.dumps((*_programs(runner), job)))
    return box


def _first_process(descriptor: int) -> int | None:
    """A handle on the first process of the box that bubblewrap reports, or None where it failed before."""
    report = b""
    with os.fdopen(descriptor, "rb") as file:
        while b"}" not in report and (chunk := file.read1(512)):
            report += chunk
    try:
        return os.pidfd_open(json.loads(report)["child-pid"])
    except (ValueError, KeyError, ProcessLookupError):
        return None


def run_pair(job: dict) -> tuple[str, str]:
    """(verdict, reason) for a completion's ``source`` by compiled ``code`` of tests that uses its ``names``.

    ``job`` also holds ``deadline`` in seconds and ``bubblewrap``, the launcher's path or None. Called in a worker.
    """
    seal = secrets.token_bytes(16)
    end = time.monotonic() + job["deadline"]
    (asked, asking), (answered, answering), (verdict_read, verdict_write) = os.pipe(), os.pipe(), os.pipe()
    boxes = []
    try:
        try:
            common = {"deadline": job["deadline"]}
            candidate = {**common, "requests": asked, "replies": answering, "source": job["source"]}
            boxes.append(
                _start("pipeline.rewards.sandbox.candidate_box", candidate, [asked, answering], job["bubblewrap"])
            )
            tests = {**common, "requests": asking, "replies": answered, "verdict": verdict_write, "seal": seal}
            tests |= {"code": job["code"], "names": job["names"]}
            boxes.append(
                _start(
                    "pipeline.rewards.sandbox.tests_box", tests, [asking, answered, verdict_write], job["bubblewrap"]
                )
            )
        finally:
            for descriptor in (asked, asking, answered, answering, verdict_write):
                os.close(descriptor)
        if not select.select([verdict_read], [], [], max(0.0, end - time.monotonic()))[0]:
            return "timeout", f"no verdict within {job['deadline']:g} s"
        try:
            sealed, verdict, reason = decode(receive(verdict_read), lambda reference: None)
            if sealed == seal:
                return verdict, reason
        except (ProtocolError, ValueError):
            pass
        complaints = "; ".join(filter(None, (box.end() for box in boxes)))
        boxes = []
        return "error", f"the tests' box ended without a verdict: {complaints}"[:500]
    finally:
        os.close(verdict_read)
        for box in boxes:
            box.end()


# --- the pool and the probe ------------------------------------------------------------------------------------------

_PROBED = """
import json, math, os, re, typing

def attempt(action):
    try:
        action()
        return True
    except BaseException:
        return False

def leaks():
    def environment():
        assert CANARY in repr(dict(os.environ))
    def first_environment():
        assert open("/proc/1/environ", "rb").read()
    def read_file():
        open(FILE).read()
    def write(path):
        with open(path, "w") as file:
            file.write("x")
    def fill():
        for name in range(40):
            with open(f"/tmp/{name}", "wb") as file:
                file.write(bytes(1 << 20))
    def connect():
        import socket
        socket.create_connection(("127.0.0.1", PORT), timeout=2).close()
    def abstract():
        import socket
        socket.socket(socket.AF_UNIX).connect(ABSTRACT)
    def memory():
        bytearray(2 << 30)
    found = {
        "its environment": environment, "the environment of process 1": first_environment, "a file outside": read_file,
        "a write to /": lambda: write("/x"), "a write to /dev": lambda: write("/dev/x"),
        "a write to /dev/shm": lambda: write("/dev/shm/x"), "more than its share of /tmp": fill,
        "the network": connect,
        "an abstract socket": abstract, "a new process": os.fork, "more memory than allowed": memory,
        "root": lambda: os.setuid(0) if os.getuid() else None,
    }
    return [name for name, action in found.items() if attempt(action)]
"""


@functools.cache
def pool(size: int | None = None) -> WorkerPool:
    """Workers that judge code, one per core."""
    return WorkerPool("pipeline.rewards.code:run_job", size)


def launcher() -> str | None:
    """The path of bubblewrap, or None."""
    return shutil.which("bwrap")


def probe() -> Probe:
    """Try the sandbox: a canary in the environment and in a file, sockets of this process, limits on all sides."""
    bubblewrap = launcher()
    if bubblewrap is None:
        return Probe(False, "bubblewrap (bwrap) is not installed", "install it: apt-get install bubblewrap")
    if system_call_filter(platform.machine()) is None:
        return Probe(False, f"no filter of system calls is written for {platform.machine()}", "use x86_64 or aarch64")
    canary = secrets.token_hex(16)
    with (
        tempfile.NamedTemporaryFile("w") as file,
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.socket(socket.AF_UNIX) as abstract,
    ):
        file.write(canary)
        file.flush()
        os.chmod(file.name, 0o644)
        address = f"\0narlm-{canary}"
        abstract.bind(address)
        abstract.listen()
        names = f"CANARY, FILE, PORT, ABSTRACT = {canary!r}, {file.name!r}, {server.getsockname()[1]}, {address!r}\n"
        tests = "found = leaks()\nassert not found, ', '.join(found)"
        job = {"source": names + _PROBED, "code": compile(tests, "tests.py", "exec"), "names": ["leaks"]}
        with _environment("NARLM_CANARY", canary):
            verdict, reason = run_pair({**job, "deadline": 20.0, "bubblewrap": bubblewrap})
    if verdict == "right":
        return Probe(True)
    if verdict == "error":
        fix = "bubblewrap 0.7 or newer must be allowed to make namespaces (kernel.unprivileged_userns_clone=1, in a "
        fix += "container --security-opt seccomp=unconfined or --privileged)"
        return Probe(False, f"the sandbox does not start: {reason}", fix)
    fix = "run where bubblewrap can isolate, as root or as an ordinary user with user namespaces"
    return Probe(False, f"the sandbox does not hold: {reason}", fix)


@contextlib.contextmanager
def _environment(name: str, value: str):
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]


@functools.cache
def require(allow_unsafe: bool) -> str:
    """What code runs in: "bubblewrap", or (only if allowed) "none". Probes once per process.

    Raises UserError with the cause and the fix where the sandbox does not hold.
    """
    found = probe()
    if found.holds:
        return "bubblewrap"
    if not allow_unsafe:
        raise UserError(
            f"reward 'code': {found.cause}; {found.fix}; or accept that completions can do all that you can do with "
            "--allow_unsafe_code_execution"
        )
    print(f"warning: {found.cause}: sandbox: none, completions can do all that you can do", file=sys.stderr)
    return "none"
