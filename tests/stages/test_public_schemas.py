"""Every public schema through the data preparation of every stage that can use it, as the columns are on the Hub."""

from types import SimpleNamespace

import pytest

from pipeline import dpo, grpo, reward_model, sft
from tests.stages.conftest import public_rows, write_rows

# sft; preference (dpo, reward_model); ranked and labelled (reward_model); prompt (grpo, ppo, rsft).
USED = {
    "alpaca": ("sft", "prompt"),
    "openorca": ("sft", "prompt"),
    "orca_dpo": ("sft", "preference", "ranked", "prompt"),
    "capybara": ("sft", "prompt"),
    "sharegpt": ("sft", "prompt"),
    "messages": ("sft", "prompt"),
    "smoltalk": ("sft", "prompt"),
    "ultrafeedback": ("sft", "preference", "ranked", "prompt"),
    "hh": ("sft", "preference", "ranked", "prompt"),
    "kto": ("sft", "labelled", "prompt"),
    "gsm8k": ("sft", "prompt"),
    "math": ("sft", "prompt"),
}


@pytest.mark.parametrize("schema", USED)
@pytest.mark.parametrize("subject", ["tiny_model", "foreign_model", "without a template"])
def test_every_schema_is_prepared_for_every_stage(request, tmp_path, subject, schema):
    """All rows can be written by the chat template, and the system prompt reaches the model: of a chat model as its
    message, of a model without a template as text before the prompt."""
    from pipeline.data.arguments import ChatDataArguments
    from pipeline.data.loading import load_data
    from pipeline.data.preparation import templated
    from pipeline.model.loading import load_tokenizer
    from pipeline.model.tokens import ANSWERS

    chat = subject != "without a template"
    model = str(request.getfixturevalue(subject if chat else "foreign_model"))
    tokenizer = load_tokenizer(model)
    if not chat:
        tokenizer.chat_template = None
    path = write_rows(tmp_path / "rows.jsonl", public_rows(schema, 6))
    run = SimpleNamespace(
        is_main=False, stage="stage", note=lambda *_, **__: None, say=print, warn=print,
        record={"arguments": {"model_name_or_path": model}},
    )  # fmt: skip
    for kind in USED[schema]:
        arguments = ChatDataArguments(dataset_name=str(path), eval_rows=1, deduplicate=False)
        loaded = load_data(arguments, kind, seed=0)
        data = templated(loaded, tokenizer, run, kind, arguments, learned=ANSWERS if kind == "sft" else None)
        bad = sum(row["label"] is False for row in public_rows(schema, 6)) if (schema, kind) == ("kto", "sft") else 0
        assert len(data.train) + len(data.evaluation) == 6 - bad
        if schema not in ("openorca", "orca_dpo"):
            continue
        assert "system" not in data.train.column_names
        rows = [*data.train, *data.evaluation]
        if chat:
            heads = [row["prompt"][0] for row in rows]
            assert heads.count({"role": "system", "content": "Be short."}) == 4  # of 6 rows two have none
            assert all(row["prompt"][-1]["content"].startswith("What is") for row in rows)
        else:
            assert sum(row["prompt"].startswith("Be short.\n\nWhat is") for row in rows) == 4


ONE_STEP = {"max_completion_length": 2, "num_generations": 2, "reward": "numeric"}


@pytest.mark.parametrize(
    ("stage", "schema", "more"),
    [
        (sft, "alpaca", {}),
        (sft, "capybara", {}),
        (dpo, "orca_dpo", {}),
        (reward_model, "kto", {"objective": "binary"}),
        (grpo, "math", ONE_STEP),
    ],
    ids=["sft-alpaca", "sft-capybara", "dpo-orca_dpo", "reward_model-kto", "grpo-math"],
)
def test_a_stage_takes_the_rows_of_the_hub_without_a_map(trainer_of, capsys, stage, schema, more):
    trainer = trainer_of(stage, "foreign_model", public_rows(schema), eval_rows=2, **more)
    assert len(trainer.train_dataset) == 22
    said = capsys.readouterr().err
    assert said.count("read as") == (schema != "kto")
