"""Agreement of the refusal detector with people's labels, also with its rules tuned on another file only.

    python benchmarks/refusal.py completions_a.jsonl completions_b.jsonl

Rows have ``prompt``, ``completion`` and ``label`` (XSTest's ``1_full_compliance``, ``2_full_refusal``,
``3_partial_refusal``). Tuning chooses two thresholds and goes through the phrases and rules in their order.
*Tuned* drops what lowers the agreement on the tuning file by two completions or more; *seen* drops all that does not
raise it, so that nothing is left but what somebody would write down who had seen this one model only: a lower bound.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.objectives.statistics import wilson_interval
from pipeline.rewards.refusal import COMPLIANCE, FULL, OPENING, PARTIAL, REDIRECTED, RULES, Detector
from pipeline.rewards.refusal_cues import CUES, Cue

SCORES = {"1_full_compliance": COMPLIANCE, "2_full_refusal": FULL, "3_partial_refusal": PARTIAL}
MARGIN = 2  # completions: what one of them wants is chance
Labelled = Sequence[tuple[str, str, float]]  # prompt, completion, people's score


def read(path: Path) -> Labelled:
    """The labelled completions of a file."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [(row["prompt"], row["completion"], SCORES[row["label"]]) for row in rows]


def agreement(detector: Detector, rows: Labelled) -> tuple[int, int]:
    """How many completions get people's verdict: full refusal against the rest, and of the three classes."""
    found = [(detector.classify(prompt, completion)[0], score) for prompt, completion, score in rows]
    return sum((a == FULL) == (b == FULL) for a, b in found), sum(a == b for a, b in found)


def tuned(rows: Labelled, only_seen: bool = False) -> Detector:
    """The detector without what lowers the agreement on the rows, or with what raises it alone (``only_seen``)."""
    grid = [(o, s) for o in (2, 3, 4, 5) for s in (0.02, 0.04, 0.08)]
    default = (OPENING, REDIRECTED)
    grid.sort(key=lambda point: point != default)  # of equals the default
    opening, redirected = max(grid, key=lambda point: agreement(Detector(CUES, RULES, *point), rows)[0])
    cues, rules = dict(CUES), list(RULES)
    best = agreement(Detector(cues, rules, opening, redirected), rows)[0]
    for name, cue in CUES.items():
        for phrase in cue.phrases:
            fewer = cues | {name: Cue(cue.where, tuple(p for p in cues[name].phrases if p != phrase))}
            if (now := agreement(Detector(fewer, rules, opening, redirected), rows)[0]) >= best + MARGIN * (
                not only_seen
            ):
                cues, best = fewer, now
    for rule in RULES[:-1]:
        fewer_rules = [other for other in rules if other != rule]
        if (now := agreement(Detector(cues, fewer_rules, opening, redirected), rows)[0]) >= best + MARGIN * (
            not only_seen
        ):
            rules, best = fewer_rules, now
    return Detector(cues, rules, opening, redirected)


def _line(name: str, detector: Detector, rows: Labelled) -> str:
    full, three = agreement(detector, rows)
    low, high = wilson_interval(full, len(rows))
    return (
        f"{name}: full refusal {full / len(rows):.3f} [{low:.3f}, {high:.3f}], three classes {three / len(rows):.3f}"
    )


def main() -> None:
    """Print the agreement on each file, with the rules as they are and tuned on each other file."""
    files = {Path(name).stem: read(Path(name)) for name in sys.argv[1:]}
    for name, rows in files.items():
        print(_line(name, Detector(), rows), flush=True)
    for other, theirs in files.items():
        for how, detector in (("tuned", tuned(theirs)), ("seen", tuned(theirs, only_seen=True))):
            for name, rows in files.items():
                if name != other:
                    print(_line(f"{name}, rules {how} on {other}", detector, rows), flush=True)


if __name__ == "__main__":
    main()
