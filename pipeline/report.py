"""The report: what every stage in a folder of runs did, on one self-contained HTML page.

    python pipeline/report.py --runs runs/quickstart --output runs/quickstart/report.html

Everything is read from the run records (run.json), the trainer's logs and the samples of assessments; stages that are
missing, failed or were interrupted are shown as such. The page needs no network and no script.
"""

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from pipeline.runtime.entry import entry
from pipeline.runtime.errors import UserError
from pipeline.runtime.files import write_text


@dataclass
class ReportArguments:
    """The runs to show and the page to write."""

    runs: str = field(
        metadata={"help": "Folder that contains the stages' output folders (also accepted without a flag)."}
    )
    output: str | None = field(default=None, metadata={"help": "HTML file to write; default: report.html in runs."})
    title: str | None = field(default=None, metadata={"help": "Title of the page; default: the folder's name."})


def main(argv: list[str] | None = None) -> None:
    """Run the stage; see the module's docstring."""
    from pipeline.reporting.history import best_model, read_runs
    from pipeline.reporting.page import build_page, talk_command
    from pipeline.runtime.arguments import first_as_flag, parse

    (args,) = parse(first_as_flag(argv, "--runs"), ReportArguments, prog="report.py")
    folder = Path(args.runs).expanduser()
    output = Path(args.output).expanduser() if args.output else folder / "report.html"
    runs = read_runs(folder)
    page = build_page(args.title or folder.resolve().name, runs, machine(), f"{datetime.now():%Y-%m-%d %H:%M}")
    try:
        write_text(output, page)
    except OSError as error:
        raise UserError(f"output: {output} cannot be written: {error.strerror}") from error
    print(text_table(runs))
    found = best_model(runs)
    if found is not None:
        best, rule = found
        print(f"talk to {best.name} ({rule}): {talk_command(best)}")
        print("your own model and data: docs/jobs.md")
    print(f"report: {output}")


def text_table(runs: Sequence) -> str:
    """The stages and the expectations as lines for the terminal."""
    from pipeline.reporting.history import change, model_of
    from pipeline.runtime.formatting import duration, memory, short

    rows = [("stage", "status", "what changed", "time", "memory")]
    for run in runs:
        found = change(run)
        if run.stage == "assess":
            claims = run.record.get("expected") or []
            met = sum(claim["met"] is True for claim in claims)
            text = f"{model_of(run)} evaluated" + (f": {met} of {len(claims)} expectations met" if claims else "")
        else:
            text = f"{found.what} {short(found.before)} -> {short(found.after)}" if found else "-"
        time, size = duration(run.record.get("seconds")), memory(run.record.get("peak_memory_bytes"))
        rows.append((run.name, run.status, text, time, size))
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    lines = ["  ".join(value.ljust(width) for value, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    for run in runs:
        for claim in run.record.get("expected") or []:
            if claim["met"] is not True:
                lines.append(f"not met: {claim['claim']} (after {model_of(run)}: {claim.get('value')})")
    return "\n".join(lines)


def machine() -> dict[str, str]:
    """What this machine is, as far as it can be read without importing anything heavy."""
    facts = {"processor": f"{_processor()}, {os.cpu_count()} cores"}
    try:
        pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
        facts["memory"] = f"{pages * size / 1e9:.0f} GB"
    except (ValueError, OSError, AttributeError):
        pass
    cards = [path.read_text(errors="replace") for path in Path("/proc/driver/nvidia/gpus").glob("*/information")]
    names = [
        line.partition(":")[2].strip() for card in cards for line in card.splitlines() if line.startswith("Model")
    ]
    if names:
        facts["accelerator"] = f"{len(names)} x {names[0]}" if len(names) > 1 else names[0]
    return facts


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    entry(main, ReportArguments, __doc__, trains=False)
