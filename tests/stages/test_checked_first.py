"""Arguments, columns and rows are checked before a model's weights are read, in every stage."""

import importlib
import inspect
import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from pipeline.runtime.errors import UserError
from pipeline.training.mistakes import LOSSES
from tests.conftest import ROOT
from tests.stages.conftest import flags, write_rows

SUM = {"prompt": "What is 1 plus 2?"}
# What each stage reads, and a row of it whose one column has another name.
STAGES = {
    "pretrain": ({"max_length": 16}, {"words": "What is 1 plus 2?"}),
    "sft": ({}, SUM | {"reply": "It is 3."}),
    "reward_model": ({}, SUM | {"chosen": "It is 3.", "worse": "Bad."}),
    "dpo": ({}, SUM | {"chosen": "It is 3.", "worse": "Bad."}),
    "ppo": ({"reward": "numeric", "max_completion_length": 4}, {"ask": "What is 1 plus 2?", "answer": "3"}),
    "grpo": (
        {"reward": "numeric", "max_completion_length": 4, "num_generations": 2},
        {"ask": "What is 1 plus 2?", "answer": "3"},
    ),
    "rsft": ({"reward": "numeric", "max_completion_length": 4}, {"ask": "What is 1 plus 2?", "answer": "3"}),
    "continual": ({}, SUM | {"reply": "It is 3."}),
}


@pytest.fixture(params=["tiny_model", "foreign_model"])
def broken(request, tmp_path):
    """A model whose weights cannot be read: whoever reads them before the rows fails by them."""
    folder = shutil.copytree(request.getfixturevalue(request.param), tmp_path / "model")
    (folder / "model.safetensors").write_bytes(b"no weights")
    return folder


@pytest.mark.parametrize("stage", STAGES)
def test_columns_are_checked_before_weights_are_read(stage, broken, tmp_path):
    options, row = STAGES[stage]
    rows = write_rows(tmp_path / "rows.jsonl", [row | {"n": i} for i in range(20)])
    main = importlib.import_module(f"pipeline.{stage}").main
    given = flags(model_name_or_path=broken, dataset_name=rows, output_dir=tmp_path / "run", max_steps=1, **options)
    with pytest.raises(UserError, match=r"rows\.jsonl.*column|column.*rows\.jsonl"):
        main(given)
    assert not (tmp_path / "run").exists()  # nothing is left for the corrected command to be forced over


@pytest.mark.parametrize("stage", ["sft", "dpo", "reward_model", "grpo", "ppo"])
def test_rows_are_checked_before_weights_are_read(stage, broken, tmp_path):
    """The third row's first turn is nobody's: no chat template writes it."""
    options, _ = STAGES[stage]

    def row(number: int, role: str) -> dict:
        prompt = [{"role": role, "content": f"What is {number} plus 2?"}]
        answers = {
            "sft": {"completion": 1}, "grpo": {}, "ppo": {},
            "dpo": {"chosen": 1, "rejected": 2}, "reward_model": {"chosen": 1, "rejected": 2},
        }[stage]  # fmt: skip
        said = {name: [{"role": "assistant", "content": f"It is {n}."}] for name, n in answers.items()}
        return {"prompt": prompt, "answer": "3", **said}

    rows = write_rows(tmp_path / "rows.jsonl", [row(i, "user" if i != 2 else "nobody") for i in range(20)])
    main = importlib.import_module(f"pipeline.{stage}").main
    given = flags(model_name_or_path=broken, dataset_name=rows, output_dir=tmp_path / "run", **options)
    with pytest.raises(UserError, match="row"):
        main(given)


# A mistake, and what is said of it. None of them needs a model, so torch is not imported for it.
MISTAKES = {
    "nothing": (["sft"], r"sft needs --model_name_or_path \(.*\), --dataset_name \(.*\), --output_dir \(.*\)$"),
    "other names": (
        ["dpo", "--model", "MODEL", "--datset_name", "answers.jsonl", "--lr", "1e-4"],
        r"needs --model_name_or_path \(you gave --model\), --dataset_name \(you gave --datset_name\), --output_dir",
    ),
    "loss": (["dpo", "MODEL", "answers.jsonl", "--loss_type", "sigmoyd"], r"no 'sigmoyd'; did you mean sigmoid\?"),
    "losses": (["grpo", "MODEL", "answers.jsonl", "--loss_type", "dr-grpo"], r"'dr-grpo'; did you mean dr_grpo\?"),
    "data": (["dpo", "--model_name_or_path", "MODEL", "--output_dir", "o"], r"dpo needs --dataset_name \([^)]*\)$"),
    "tasks": (["assess", "--model_name_or_path", "MODEL", "--output_dir", "o"], r"assess needs --tasks \([^)]*\)$"),
    "prompt": (["generate", "--model_name_or_path", "MODEL"], r"generate needs --prompt \([^)]*\)$"),
    "model": (["sft", "MISTYPED", "answers.jsonl"], r"there is no folder ./modle; did you mean model\?$"),
    "file": (["sft", "MODEL", "answer.jsonl"], r"'answer.jsonl' does not exist; did you mean answers.jsonl\?$"),
    "folder": (["sft", "MODEL", "modle/config.json"], r"does not exist; did you mean model/config.json\?$"),
    "world": (["sft", "MODEL", "world/sumz"], r"no embedded dataset world/sumz; .*did you mean world/sums\?$"),
    "columns": (["dpo", "MODEL", "answers.jsonl"], r"these rows \(prompt \+ completion\) are for sft$"),
    "labels": (["reward_model", "MODEL", "answers.jsonl", "--objective", "binary"], r"for labelled data: "),
    "split": (["sft", "MODEL", "answers.jsonl", "--dataset_test_split", "test"], r"is one split and has no 'test'"),
    "reward": (["grpo", "MODEL", "answers.jsonl", "--reward", "trl:none"], r"unknown name 'trl:none'"),
    "reward of none": (["ppo", "MODEL", "answers.jsonl"], r"reward is missing"),
    "gold": (["grpo", "MODEL", "answers.jsonl"], r"reward 'numeric'.* 'answer'"),
    "weights": (
        ["grpo", "MODEL", "answers.jsonl", "--reward", "exact", "numeric", "--reward_weights", "1"],
        r"reward_weights: 1 given for 2 rewards",
    ),
    "candidates": (
        ["rsft", "MODEL", "answers.jsonl", "--reward", "exact", "--rounds", "2", "--from_candidates", "answers.jsonl"],
        r"rounds must be 1$",
    ),
    "choice": (["rsft", "MODEL", "answers.jsonl", "--select", "bst"], r"'bst' is not one of"),
    "omega": (["continual", "MODEL", "answers.jsonl", "--omega", "l3"], r"there is no term 'l3'"),
    "corpus": (["continual", "MODEL", "", "--corpora", "answers.jsonl", "b.jsonl"], r"'b.jsonl' does not exist"),
    "text": (["pretrain", "", "absent.txt"], r"'absent.txt' does not exist"),
    "task": (["assess", "MODEL", "", "--tasks", "acuracy"], r"no task 'acuracy'; did you mean accuracy\?$"),
    "claim": (["assess", "MODEL", "", "--tasks", "accuracy", "--expect", "accuracy"], r"expect: cannot read"),
    "unknown": (["assess", "MODEL", "", "--taks", "accuracy", "--tasks", "loss"], r"did you mean --tasks\?$"),
    "judged": (["assess", "MODEL", "answer.jsonl", "--tasks", "accuracy"], r"did you mean answers.jsonl\?$"),
    "prompts": (
        ["generate", "--model_name_or_path", "MODEL", "--prompt_file", "answer.jsonl"],
        r"No such file or directory; did you mean answers.jsonl\?$",
    ),
    "merged": (["merge", "MISTYPED", ""], r"there is no folder ./modle; did you mean model\?$"),
}
DRIVER = """
import importlib, json, sys
from pipeline.runtime.errors import UserError
for stage, *words in json.loads(sys.argv[1]):
    try:
        importlib.import_module(f"pipeline.{stage}").main(words)
        print("nothing was said")
    except UserError as error:
        print(error)
print([name for name in ("torch", "transformers") if name in sys.modules])
"""


def test_what_the_arguments_show_is_said_before_torch_is_imported(tiny_model, tmp_path):
    """All in one process, so that the first one that imports torch is found by what is imported at the end."""
    (tmp_path / "model").symlink_to(tiny_model)
    write_rows(tmp_path / "answers.jsonl", [SUM | {"completion": f"It is {i}."} for i in range(20)])
    commands = []
    for words, _ in MISTAKES.values():
        stage, *rest = words
        if rest and not rest[0].startswith("--"):
            names = {"MODEL": "model", "MISTYPED": "./modle"}
            given = {"model_name_or_path": names.get(rest[0]), "dataset_name": rest[1], "output_dir": "o"}
            rest = [w for name, value in given.items() if value for w in (f"--{name}", value)] + rest[2:]
        commands.append([stage, *("model" if word == "MODEL" else word for word in rest)])
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, json.dumps(commands)],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    *said, heavy = done.stdout.splitlines()
    assert heavy == "[]", done.stderr
    assert len(said) == len(MISTAKES), done.stderr
    for (name, (_, message)), line in zip(MISTAKES.items(), said):
        assert re.search(message, line), f"{name}: {line}"
    assert not (tmp_path / "o").exists()


def test_the_names_of_losses_are_those_of_trl():
    from trl import DPOTrainer, GRPOTrainer

    for stage, trainer in {"dpo": DPOTrainer, "grpo": GRPOTrainer}.items():
        source = inspect.getsource(trainer._compute_loss)
        compared = re.findall(r"loss_type (?:==|in) (.*):\n", source)
        assert set(re.findall(r'"(\w+)"', " ".join(compared))) == set(LOSSES[stage])
