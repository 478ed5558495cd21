"""The worker of ``math``: the only place that imports math-verify, whose comparisons can take for ever."""

import functools
import logging
import resource

import sympy
from math_verify import LatexExtractionConfig, parse, verify

_MEMORY = 4 << 30
_DIGITS = 12

logging.disable(
    logging.WARNING
)  # math-verify announces that its own timeouts are off: this process gets killed instead
resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))


def _parsed(latex: str) -> list:
    found = parse(
        f"\\boxed{{{latex}}}",
        extraction_config=[LatexExtractionConfig()],
        fallback_mode="no_fallback",
        parsing_timeout=None,
    )
    return [item for item in found if isinstance(item, sympy.Basic | sympy.MatrixBase)]


_gold = functools.lru_cache(maxsize=4096)(_parsed)


def compare(job: dict) -> str:
    """Whether ``job["answer"]`` equals ``job["gold"]``: "right", "wrong", "limit" or "unscorable" (no such gold).

    Without an answer the gold is read and compared with 0: whatever that costs is not a completion's fault.
    """
    try:
        gold = _gold(job["gold"])
    except Exception:
        gold = []
    if not gold:
        return "unscorable"
    only_gold = job.get("answer") is None
    try:
        answer = [sympy.Integer(0)] if only_gold else _parsed(job["answer"])
        same = bool(answer) and verify(gold, answer, float_rounding=_DIGITS, timeout_seconds=None, raise_on_error=True)
    except (MemoryError, RecursionError):
        return "limit"
    except Exception:
        return "right" if only_gold else "wrong"
    return "right" if same or only_gold else "wrong"
