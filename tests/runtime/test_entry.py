"""What every command does before its stage begins."""

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
from pipeline.runtime.entry import keep_freed_memory

def work():
    blocks = [bytearray(4 << 20) for _ in range(10)]

if sys.argv[1] == "keep":
    keep_freed_memory()
for _ in range(3):
    work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the settings are glibc's")
def test_freed_memory_is_used_again_without_faulting_it_in():
    """Ten rounds of ten blocks of 4 MiB are 102,400 pages of 4 KiB: all of them faults where each round's are given
    back, none where they are kept."""

    def faults(mode: str) -> int:
        return int(subprocess.run([sys.executable, "-c", FAULTS, mode], capture_output=True, text=True).stdout)

    given_back, kept = faults("default"), faults("keep")
    assert given_back > 50_000
    assert kept < 1_000
