"""The commands of ``narlm``: one table, and how one of them is typed by whoever started this process."""

import os
import re
import sys
from pathlib import Path
from typing import NamedTuple


class Command(NamedTuple):
    """A module that runs as a script, the words it is given first, and a line on what it does."""

    module: str
    line: str
    words: tuple[str, ...] = ()


COMMANDS = {
    "pretrain": Command("pipeline.pretrain", "Pretrain a NarLM or another causal LM on text."),
    "sft": Command("pipeline.sft", "Fine-tune on answers: prompts with completions, or chats."),
    "reward_model": Command("pipeline.reward_model", "Train a reward model on preferences."),
    "dpo": Command("pipeline.dpo", "Train on preference pairs directly (DPO and its kin)."),
    "ppo": Command("pipeline.ppo", "Train against a reward with PPO."),
    "rsft": Command("pipeline.rsft", "Fine-tune on the best of several samples (rejection sampling)."),
    "grpo": Command("pipeline.grpo", "Train against a verifier or reward with GRPO."),
    "continual": Command("pipeline.continual", "Learn corpora one after another without forgetting."),
    "generate": Command("pipeline.generate", "Complete prompts in the terminal or a file; chat."),
    "assess": Command("pipeline.assess", "Evaluate a model on held-out data, with intervals."),
    "merge": Command("pipeline.merge", "Merge an adapter into its base, or convert a model."),
    "run": Command("pipeline.run", "Run a recipe, stage by stage: narlm run quickstart."),
    "report": Command("pipeline.report", "Show a folder of runs on one HTML page."),
    "check": Command("pipeline.data.check", "Show what a stage would make of a dataset."),
    "score": Command("pipeline.rewards", "Score a file of completions with a reward."),
    "retrieval": Command("pipeline.inference.retrieval", "Index documents, search them, make RAFT rows."),
    "push": Command("pipeline.publish.hub", "Upload a finished run with its card to the Hub.", ("push",)),
    "completion": Command("pipeline.runtime.commands", "Print the completion of a shell: bash, zsh or fish."),
}
started: set[str] = set()  # the command of the console script that this process runs


def as_typed(name: str) -> str:
    """How a command is typed by somebody who started this process as they did, for messages that name a next step.

    Args:
        name: one of ``COMMANDS``.

    Returns:
        ``narlm NAME`` under the console script; ``python pipeline/NAME.py`` for a script beside the one that runs,
        where it is in the current folder; else ``python -m pipeline.NAME``.
    """
    if started:
        return f"narlm {name}"
    command, script = COMMANDS[name], Path(sys.argv[0])
    beside = script.parent / f"{name}.py"
    is_stage = command.module == f"pipeline.{name}"  # the files of the rooms do not run as scripts
    if is_stage and script.suffix == ".py" and beside.is_file() and beside.resolve().is_relative_to(Path.cwd()):
        return f"python {os.path.relpath(beside)}"
    return " ".join(["python -m", command.module, *command.words])


def as_started(text: str) -> str:
    """A help text with its launch lines as the user types them: under the console script ``narlm dpo …`` in the place
    of ``accelerate launch pipeline/dpo.py …`` and ``python -m pipeline.dpo …``.
    """
    for name, command in COMMANDS.items() if started else ():
        script, module = (
            rf"(?:accelerate launch|python) pipeline/{name}\.py",
            " ".join([command.module, *command.words]),
        )
        text = re.sub(rf"{script}|python -m {re.escape(module)}(?![.\w])", f"narlm {name}", text)
    return text
