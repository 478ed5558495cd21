"""The sandbox against completions that lie, hang, harm and spy: no wrong verdict, nothing left, nothing seen."""

import os
import shutil
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.rewards.registry import get_reward
from pipeline.rewards.sandbox import boxes
from pipeline.rewards.sandbox.workers import core_share
from pipeline.runtime.errors import UserError
from tests.rewards.hostile import cases

DEADLINE = 1.2
CASES = cases()
ALLOW_ALL = b"\x06\0\0\0\0\0\xff\x7f"  # one instruction: return SECCOMP_RET_ALLOW
pytestmark = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """What a completion must not reach: a secret in the environment and in a file, sockets, a folder."""
    folder = tmp_path_factory.mktemp("outside")
    os.chmod(folder, 0o777)
    secret = "s3cret-" + os.urandom(8).hex()
    (folder / "secret").write_text(secret)
    os.environ["NARLM_TEST_SECRET"] = secret
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as abstract:
        abstract.bind(f"\0{secret[-8:]}")
        abstract.listen()
        server.setblocking(False)
        abstract.setblocking(False)
        names = {
            "FILE": str(folder / "secret"),
            "PORT": server.getsockname()[1],
            "ABSTRACT": f"\0{secret[-8:]}",
            "OUTSIDE": str(folder),
        }
        header = "".join(f"{name} = {value!r}\n" for name, value in names.items())
        yield {"header": header, "secret": secret, "folder": folder, "sockets": (server, abstract)}
    del os.environ["NARLM_TEST_SECRET"]


def boxed_processes() -> set[int]:
    """Processes that run in, or launch, a box: below this process, or orphaned."""
    found, parents = set(), {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat") as file:
                    parents[int(entry)] = int(file.read().rpartition(")")[2].split()[1])
                with open(f"/proc/{entry}/cmdline", "rb") as file:
                    if b"/python/bin/python3" in file.read():
                        found.add(int(entry))
            except OSError:
                continue
    ours = {os.getpid()}
    for _ in range(6):
        ours |= {pid for pid, parent in parents.items() if parent in ours}
    return {pid for pid in found if pid in ours or parents[pid] == 1}


def test_there_are_enough_of_them():
    assert len(CASES) >= 60
    assert len({name for name, *_ in CASES}) >= 100


@pytest.fixture(scope="module")
def judged(world):
    """All cases, two at a time, as name -> (judgement, seconds)."""
    reward = get_reward("code", deadline=DEADLINE)
    reward(None, ["f = 1"] * 4, tests=["assert f == 1"] * 4)  # the pool's own start is not the completion's

    def judge(case):
        name, completion, tests, _ = case
        program = f"SECRET = {world['secret']!r}\n" + (tests if isinstance(tests, str) else "\n".join(tests))
        start = time.monotonic()
        judgement = reward.judge(None, [world["header"] + completion], tests=[program])[0]
        return name, (judgement, time.monotonic() - start)

    with ThreadPoolExecutor(core_share()) as threads:
        return dict(threads.map(judge, CASES))


@pytest.mark.parametrize(("name", "hangs"), [(name, hangs) for name, _, _, hangs in CASES], ids=[c[0] for c in CASES])
def test_hostile_completion(judged, name, hangs):
    """Wrong or timed out, never right and never unjudged, within the deadline + 2 s."""
    judgement, seconds = judged[name]
    assert judgement.verdict in (("timeout",) if hangs else ("wrong", "timeout")), judgement
    assert judgement.score == 0.0
    assert seconds < DEADLINE + 2


def test_hostile_completions_leave_nothing_behind(judged, world):
    """No process, no file, and nobody knocked at the judge's sockets."""
    assert boxed_processes() == set()
    assert os.listdir(world["folder"]) == ["secret"]
    assert not any(os.path.exists(f"{place}/pwned") for place in ("/", "/dev/shm", "/tmp", sys.base_prefix + "/lib"))
    for listening in world["sockets"]:
        with pytest.raises(BlockingIOError):
            listening.accept()


def test_the_probe_holds_here():
    assert boxes.probe() == boxes.Probe(True)
    assert get_reward("code").sandbox == "bubblewrap"


def test_the_probe_sees_a_shared_network_and_a_missing_filter(monkeypatch):
    command = boxes._box_command
    monkeypatch.setattr(
        boxes, "_box_command", lambda *given: [part for part in command(*given) if part != "--unshare-net"]
    )
    monkeypatch.setattr(boxes, "system_call_filter", lambda machine: ALLOW_ALL)
    found = boxes.probe()
    assert not found.holds
    for leak in ("the network", "an abstract socket", "a new process"):
        assert leak in found.cause


def test_the_probe_sees_an_environment_and_writable_places(monkeypatch):
    command = boxes._box_command

    def open_box(*given):
        canary = ["--setenv", "LEAK", os.environ["NARLM_CANARY"], "--perms", "0777", "--tmpfs", "/dev/shm"]
        return [*command(*given)[:-2], *canary, "--remount-ro", "/"]

    monkeypatch.setattr(boxes, "_box_command", open_box)
    cause = boxes.probe().cause
    assert "its environment" in cause
    assert "a write to /dev/shm" in cause


def test_no_bubblewrap_is_the_users_mistake_unless_allowed(monkeypatch, capsys):
    monkeypatch.setattr(boxes, "launcher", lambda: None)
    boxes.require.cache_clear()
    try:
        with pytest.raises(UserError, match=r"not installed; install it.*--allow_unsafe_code_execution"):
            get_reward("code")
        reward = get_reward("code", allow_unsafe_code_execution=True)
        assert "sandbox: none" in capsys.readouterr().err
        assert reward.sandbox == "none"
        assert get_reward("format + code", allow_unsafe_code_execution=True).sandbox == "none"
        assert reward(None, ["def f(x): return x"] * 2, tests=["assert f(3) == 3", "assert f(3) == 4"]) == [1.0, 0.0]
    finally:
        boxes.require.cache_clear()


def test_a_box_that_does_not_start_is_no_wrong_answer(monkeypatch):
    """bubblewrap that fails after the probe: the verdict is error and the score None, with bubblewrap's own words."""
    job = {"source": "def f(x): return 9", "code": compile("assert f(3) == 9", "tests.py", "exec"), "names": ["f"]}
    monkeypatch.setattr(boxes, "_box_command", lambda *given: ["/usr/bin/env", "false"])
    verdict, _ = boxes.run_pair({**job, "deadline": 5.0, "bubblewrap": "/usr/bin/env"})
    assert verdict == "error"
