"""Verdicts a second: numeric, code on two boxes each, and what the sandbox adds to a call.

    python benchmarks/rewards.py [--code 200] [--numeric 20000]

Run it on an idle machine: both figures are bounded by the cores. The overhead is the wall time of one verdict with
bubblewrap less that of the same verdict in two bare processes, one at a time, as medians.
"""

import argparse
import json
import statistics
import time

from pipeline.rewards.code import prepare_tests
from pipeline.rewards.registry import get_reward
from pipeline.rewards.sandbox import boxes
from pipeline.rewards.sandbox.workers import core_share

PROGRAM = "def f(x):\n    return sum(k * k for k in range(x))\n"
ASSERTS = ["assert f(3) == 5", "assert f(1) == 0", "assert f(100) == 328350"]


def numeric_rate(count: int) -> float:
    reward = get_reward("numeric")
    work = "First 12 + 30 = 42 clips, then 42 / 2 = 21 more.\n" * 8
    completions = [f"<think>{work}</think>\n{work}#### ${n:,}.00" for n in range(count)]
    start = time.perf_counter()
    scores = reward(None, completions, answer=[str(n) for n in range(count)])
    seconds = time.perf_counter() - start
    assert set(scores) == {1.0}
    return count / seconds


def code_rate(count: int) -> float:
    reward = get_reward("code")
    reward(None, [PROGRAM] * core_share(), tests=[ASSERTS] * core_share())  # the workers' own start
    start = time.perf_counter()
    scores = reward(None, [PROGRAM] * count, tests=[ASSERTS] * count)
    seconds = time.perf_counter() - start
    assert set(scores) == {1.0}
    return count / seconds


def call_milliseconds(bubblewrap: str | None, count: int = 30) -> float:
    """Median wall time of one verdict, in this process."""
    tests = prepare_tests("\n".join(ASSERTS), None)
    job = {
        "source": PROGRAM,
        "code": tests.code,
        "names": list(tests.names),
        "deadline": 10.0,
        "bubblewrap": bubblewrap,
    }
    times = []
    for _ in range(count):
        start = time.perf_counter()
        assert boxes.run_pair(job)[0] == "right"
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--code", type=int, default=200)
    parser.add_argument("--numeric", type=int, default=20_000)
    given = parser.parse_args()
    boxed, bare = call_milliseconds(boxes.launcher()), call_milliseconds(None)
    print(
        json.dumps(
            {
                "cores": core_share(),
                "numeric_verdicts_per_second": round(numeric_rate(given.numeric)),
                "code_verdicts_per_second": round(code_rate(given.code), 1),
                "code_call_ms": round(boxed, 1),
                "code_call_without_sandbox_ms": round(bare, 1),
                "sandbox_overhead_ms": round(boxed - bare, 1),
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
