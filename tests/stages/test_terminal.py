"""What a stage prints: what it does, how it ends, and nothing of other libraries'."""

import contextlib
import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest

from tests.conftest import ROOT
from tests.stages.conftest import write_rows

LINES = 25  # of a ten-step run, at most
STAGES = ("pretrain", "sft", "reward_model", "dpo", "ppo", "grpo", "rsft", "continual")
HAVE_REFERENCE = ("dpo", "ppo")  # GRPO with its default beta of 0 has none
# What libraries print that nobody can act on: reports and bars of weights, accelerate's and the tokenizer's notes,
# anything a library's logger, Python's warnings or torch's C++ put before it.
FOREIGN = re.compile(
    r"LOAD REPORT|Loading weights|Writing model shards|it/s\]|were not passed to|Token indices sequence length"
    r"|\[transformers\]|\[WARNING\]|\[rank\d+\]|\[W\d|FutureWarning|UserWarning|DeprecationWarning|warnings\.warn"
    r"|Setting accelerator|find_unused_parameters|tie_word_embeddings|Map:|Tokenizing"
)
# Runs stages one after another in one process, as quietly as a stage that is started alone: imports take longest.
DRIVER = """
import importlib, json, sys
from pipeline.runtime.terminal import quiet
quiet()
for stage, words in json.loads(sys.argv[1]).items():
    print(f"=== {stage}", flush=True)
    importlib.import_module(f"pipeline.{stage}").main(words)
    sys.stderr.flush()
"""


def turns(role: str, content: str) -> list[dict]:
    return [{"role": role, "content": content}]


def arguments(model, folder, chat: bool) -> dict[str, list[str]]:
    """Ten steps of every stage, with little more than what must be given."""
    user = (lambda text: turns("user", text)) if chat else str
    assistant = (lambda text: turns("assistant", text)) if chat else str
    sums = [(a, b) for a in range(8) for b in range(5)]
    asked = [{"prompt": user(f"What is {a} plus {b}?"), "answer": str(a + b)} for a, b in sums]
    said = [assistant(f"It is {a + b}.") for a, b in sums]
    files = {
        "text": [{"text": f"What is {a} plus {b}? It is {a + b}. " * 8} for a, b in sums],
        "answers": [{"prompt": row["prompt"], "completion": y} for row, y in zip(asked, said)],
        "others": [{"prompt": user(f"{a} times {b}?"), "completion": assistant(f"{a * b}.")} for a, b in sums],
        "pairs": [
            {"prompt": row["prompt"], "chosen": y, "rejected": assistant("Bad.")} for row, y in zip(asked, said)
        ],
        "questions": asked,
    }
    at = {name: str(write_rows(folder / f"{name}.jsonl", rows)) for name, rows in files.items()}
    sampling = ["--dataset_name", at["questions"], "--reward", "numeric", "--max_completion_length", "8"]
    words = {
        "pretrain": ["--dataset_name", at["text"], "--max_length", "32"],
        "sft": ["--dataset_name", at["answers"]],
        "reward_model": ["--dataset_name", at["pairs"]],
        "dpo": ["--dataset_name", at["pairs"], "--use_peft"],
        "ppo": [*sampling, "--use_peft"],
        "grpo": [*sampling, "--num_generations", "4"],
        "rsft": [*sampling, "--num_candidates", "2"],
        "continual": ["--corpora", at["answers"], at["others"]],
    }
    common = ["--model_name_or_path", str(model), "--max_steps", "10"]
    return {stage: [*common, *words[stage], "--output_dir", str(folder / f"run-{stage}")] for stage in STAGES}


def check(stage: str, lines: list[str]) -> None:
    """The contract of one stage's output."""
    text = "\n".join(lines)
    assert len(lines) < LINES, text
    assert not FOREIGN.search(text), text
    assert len(set(lines)) == len(lines), f"said twice:\n{text}"
    assert lines[-1].startswith(f"{stage}: next: python ")
    assert lines[-2].startswith(f"{stage}: saved in ")
    assert re.match(rf"{stage}: held out.*: \w+ \d.* \(95% interval \S+ to \S+\) on \d+ rows", lines[-3]), text
    assert any(line.startswith(f"{stage}: hardware: ") for line in lines), text
    assert any(re.match(rf"{stage}: .*training .* 10 steps", line) for line in lines), text
    assert any(re.match(r"step 10/10  .*\d", line) for line in lines), text
    assert ("pi_ref is" in text) is (stage in HAVE_REFERENCE)


@pytest.mark.parametrize("base", ["foreign_model", pytest.param("tiny_model", marks=pytest.mark.slow)])
def test_a_stage_prints_what_it_does_and_nothing_else(base, request, tmp_path):
    """Standard output and errors together, of ten steps with the defaults, not on a terminal."""
    given = arguments(request.getfixturevalue(base), tmp_path, chat=base == "foreign_model")
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, json.dumps(given)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    before, *parts = re.split(r"^=== (\w+)\n", done.stdout, flags=re.M)
    assert before == ""
    shown = dict(zip(parts[::2], parts[1::2]))
    for stage in STAGES:
        print(f"{stage}: {len(shown[stage].splitlines())} lines\n{shown[stage]}")
        check(stage, shown[stage].splitlines())
        assert json.loads((tmp_path / f"run-{stage}" / "run.json").read_text())["hardware"]["device"]


def on_a_terminal(words: list[str], columns: int = 100) -> tuple[str, list[str]]:
    """All that a command writes to a terminal, and the lines that stand there at the end."""
    screen, ours = pty.openpty()
    fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    with subprocess.Popen(words, stdin=ours, stdout=ours, stderr=ours, cwd=ROOT) as process:
        os.close(ours)
        written = b""
        with contextlib.suppress(OSError):  # how Linux says that the other end is closed
            while block := os.read(screen, 1 << 16):
                written += block
    os.close(screen)
    assert process.returncode == 0, written.decode()
    left = []
    for line in written.decode().replace("\r\n", "\n").split("\n"):
        shown = ""
        for part in line.split("\r"):  # each overwrites what was there
            shown = part + shown[len(part) :]
        left.append(shown.rstrip())
    return written.decode(), left


@pytest.mark.slow
def test_bars_are_for_what_takes_time_and_leave_nothing_behind(foreign_model, tmp_path):
    """The training's bar is shown (its delay set to nothing) and is gone at the end, as are those of the data."""
    words = arguments(foreign_model, tmp_path, chat=True)["sft"]
    code = DRIVER.replace("import importlib", "import os; os.environ['TQDM_DELAY'] = '0'\nimport importlib", 1)
    written, left = on_a_terminal([sys.executable, "-c", code, json.dumps({"sft": words})])
    assert "10/10" in re.sub("step 10/10", "", written)
    check("sft", [line for line in left[1:] if line])
    assert all(re.match(r"===|sft: |step |warning: |\S+\.jsonl: |$", line) for line in left)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["pretrain", "sft", "dpo", "grpo"])
def test_two_processes_say_it_once(stage, foreign_model, tmp_path):
    """``ddp.yaml`` on CPUs: rank 0 speaks for both."""
    words = arguments(foreign_model, tmp_path, chat=True)[stage]
    launch = [
        sys.executable, "-m", "accelerate.commands.launch", "--config_file", "accelerate_configs/ddp.yaml",
        "--num_processes", "2", f"pipeline/{stage}.py", *words,
    ]  # fmt: skip
    done = subprocess.run(launch, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT, timeout=900)
    assert done.returncode == 0, done.stdout
    check(stage, done.stdout.splitlines())
