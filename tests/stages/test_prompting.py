"""Prompting by command: generate.py asks with examples, assess.py on three kinds of model and in the report."""

import json

import pytest

from pipeline import assess, generate, report
from pipeline.runtime.errors import UserError
from tests.stages.conftest import write_rows
from tests.stages.test_adapters import saved_adapter

EXAMPLES = [{"prompt": f"What is {a} plus 1?", "completion": f"{a}+1={a + 1} #### {a + 1}"} for a in range(5)]


@pytest.fixture(scope="module", params=["narlm", "llama", "adapter"])
def folder(request, tmp_path_factory):
    """The three kinds of model."""
    if request.param == "adapter":
        foreign = request.getfixturevalue("foreign_model")
        return saved_adapter(tmp_path_factory.mktemp("prompting") / "adapter", foreign)
    return request.getfixturevalue({"narlm": "tiny_model", "llama": "foreign_model"}[request.param])


def answered(folder, out, prompts, tmp_path, *flags):
    rows = write_rows(tmp_path / "asked.jsonl", [{"prompt": p} for p in prompts])
    given = ["--model_name_or_path", str(folder), "--prompt_file", str(rows), "--output_file", str(out), *flags]
    generate.main([*given, "--max_new_tokens", "6"])
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_generate_asks_as_by_hand(folder, tmp_path):
    """With one example, which is drawn by --seed plus the place, the completion is that of the text written out."""
    file = str(write_rows(tmp_path / "examples.jsonl", EXAMPLES[:1]))
    asking = ["--as_chat", "false", "--examples", file, "--shots", "1", "--think_end_token", "1"]
    asking += ["--example_template", "{prompt} {completion}\n"]
    text = "What is 0 plus 1? #### 1\nWhat is 7 plus 1?"
    by_hand = answered(folder, tmp_path / "a.jsonl", [text], tmp_path, "--as_chat", "false")
    asked = answered(folder, tmp_path / "b.jsonl", ["What is 7 plus 1?"], tmp_path, *asking)
    assert asked[0]["completions"] == by_hand[0]["completions"]
    [said] = asked[0]["completions"]
    assert asked[0]["answers"] == [said.rpartition("1")[2] if "1" in said else ""]
    assert json.loads((tmp_path / "b.jsonl.settings.json").read_text())["prompting"]["shots"] == 1
    with pytest.raises(UserError, match="1 shots need 1 rows that nobody asks; 0 of 1 are left"):
        answered(folder, tmp_path / "c.jsonl", ["What is 0 plus 1?"], tmp_path, *asking)


def test_three_kinds_of_model(folder, tmp_path):
    """Random models are right by chance at most; every figure is there, and the report draws curve and tables."""
    asked = [{"prompt": f"What is {a} plus 2?", "answer": str(a + 2)} for a in range(4)]
    entry = {
        "name": "plus", "type": "prompting", "dataset": str(write_rows(tmp_path / "rows.jsonl", asked)),
        "split": "train", "reward": "numeric", "max_new_tokens": 8, "shots": [0, 2], "think_end_token": "1",
        "chains": 4, "filler": " .", "examples": str(write_rows(tmp_path / "examples.jsonl", EXAMPLES)),
    }  # fmt: skip
    config, out = tmp_path / "assess.yaml", tmp_path / "runs" / "assessed"
    config.write_text(json.dumps({"evaluations": [entry]}))
    assess.main(["--config", str(config), "--model_name_or_path", str(folder), "--output_dir", str(out)])
    record = json.loads((out / "run.json").read_text())
    got = {name.partition("/")[2]: value for name, value in record["metrics"].items()}
    for name in ("direct@0", "direct@2", "cot@0", "cot@2"):
        assert 0 <= got[f"{name}_low"] <= got[name] <= got[f"{name}_high"] <= 1
    assert {"cot_minus_direct@2", "cot_lenient@2", "direct_tokens@0", "chains/prompts"} <= set(got)
    assert len(record["tables"]["plus"]["accuracy by shots"]) == 4
    page = tmp_path / "report.html"
    report.main(["--runs", str(tmp_path / "runs"), "--output", str(page)])
    assert "plus, accuracy by shots" in page.read_text()


def test_examples_do_not_go_with_a_chat(tiny_model):
    with pytest.raises(UserError, match="--cot does not go with --chat"):
        generate.main(["--model_name_or_path", str(tiny_model), "--chat", "--cot"])
