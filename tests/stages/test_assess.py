"""Assessment end to end on a tiny model: the record, the samples, the guard against training rows, the exit codes."""

import json
import shutil
import subprocess
import sys

import pytest
import yaml

from pipeline import assess
from pipeline.runtime.errors import UserError
from tests.stages.conftest import write_rows


@pytest.fixture
def prompts(tmp_path):
    rows = [{"prompt": f"What is {a} plus 1?", "answer": str(a + 1), "kind": "sum"} for a in range(6)]
    return str(write_rows(tmp_path / "prompts.jsonl", rows))


@pytest.fixture
def config(tmp_path, prompts, preference_file):
    """A config of three evaluations and the flags that name it."""
    path = tmp_path / "assess.yaml"
    evaluations = [
        {"name": "sums", "type": "accuracy", "dataset": prompts, "reward": "numeric", "max_new_tokens": 4},
        {"name": "pairs", "type": "preference", "dataset": str(preference_file), "limit": 5},
        {"name": "shown", "type": "samples", "prompts": ["What is 1 plus 1?"], "max_new_tokens": 3},
    ]
    path.write_text(yaml.safe_dump({"evaluations": evaluations}))
    return ["--config", str(path)]


def run(config, model, output, *more):
    """One assessment in this process; gives its record."""
    assess.main([*config, "--model_name_or_path", str(model), "--output_dir", str(output), *more])
    return json.loads((output / "run.json").read_text())


def test_figures_samples_and_expectations_are_recorded(config, tiny_model, tmp_path, monkeypatch, capsys):
    out = tmp_path / "judged"
    flags = [
        "--reference_model_name_or_path",
        str(tiny_model),
        "--expect",
        "pairs/accuracy == 0.5",
        "sums/accuracy > 2",
    ]
    record = run(config, tiny_model, out, *flags)
    assert record["status"] == "completed"
    assert record["metrics"]["pairs/accuracy"] == 0.5  # the reference itself: every pair a tie
    assert record["metrics"]["sums/prompts"] == 6
    assert [claim["met"] for claim in record["expected"]] == [True, False]
    assert record["parents"][0]["path"] == str(tiny_model)
    assert len(record["parents"][0]["sha256"]) == 64
    assert {source["role"] for source in record["data"]} == {"evaluation"}
    rows = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    assert [row["evaluation"] for row in rows] == ["sums"] * 6 + ["shown"]
    assert "NOT AS EXPECTED: sums/accuracy > 2" in capsys.readouterr().out

    monkeypatch.setattr("pipeline.model.loading.load_model", None)  # a second run must not come so far
    assert run(config, tiny_model, out, *flags) == record
    assert "up to date" in capsys.readouterr().out


def test_a_baseline_is_what_before_means(config, tiny_model, tmp_path):
    flags = ["--reference_model_name_or_path", str(tiny_model)]
    first = run(config, tiny_model, tmp_path / "first", *flags)
    claim = ["--expect", "sums/prompts == before + 0", "--baseline", str(tmp_path / "first")]
    second = run(config, tiny_model, tmp_path / "second", *flags, *claim)
    assert second["expected"][0]["bound"] == first["metrics"]["sums/prompts"]
    with pytest.raises(UserError, match="holds no finished assessment"):
        run(config, tiny_model, tmp_path / "third", *flags, "--baseline", str(tmp_path))
    assert not (tmp_path / "third").exists()  # a mistake leaves nothing behind


def test_rows_that_an_ancestor_was_trained_on_are_refused(config, prompts, tiny_model, tmp_path):
    """The model was made from `base`, and `base` was trained on the very file that should judge it."""
    for name, record in (
        ("base", {"stage": "sft", "data": [{"name": prompts, "split": "train", "role": "train"}]}),
        ("model", {"stage": "dpo", "parents": [{"path": str(tmp_path / "base"), "sha256": None}]}),
    ):
        shutil.copytree(tiny_model, tmp_path / name)
        (tmp_path / name / "run.json").write_text(json.dumps({"status": "completed", **record}))
    with pytest.raises(UserError, match=r"evaluation sums: .*prompts.jsonl, split test, holds rows that .*base was"):
        run(config, tmp_path / "model", tmp_path / "out")


def test_an_implicit_reward_needs_a_reference_and_takes_the_recorded_one(config, tiny_model, tmp_path):
    with pytest.raises(UserError, match=r"evaluation pairs: .*reference_model_name_or_path"):
        run(config, tiny_model, tmp_path / "none")
    shutil.copytree(tiny_model, tmp_path / "tuned")
    record = {"stage": "dpo", "status": "completed", "pi_ref": str(tiny_model)}
    (tmp_path / "tuned" / "run.json").write_text(json.dumps(record))
    got = run(config, tmp_path / "tuned", tmp_path / "out")
    assert [parent["path"] for parent in got["parents"]] == [str(tmp_path / "tuned"), str(tiny_model)]
    assert got["metrics"]["pairs/accuracy"] == 0.5  # equal weights in another folder


def test_the_command_line_tells_mistakes_in_one_line(tmp_path):
    command = [sys.executable, "pipeline/assess.py", "--model_name_or_path", "m", "--output_dir", str(tmp_path / "o")]
    done = subprocess.run([*command, "--expct", "a > 1"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "error: --expct: unknown flag; did you mean --expect?"
    assert "Traceback" not in done.stderr
