"""Arguments, columns and rows are checked before a model's weights are read, in every stage."""

import importlib
import shutil

import pytest

from pipeline.runtime.errors import UserError
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
