"""Assessment end to end on a tiny model: the record, the samples, the guard against training rows, the exit codes."""

import json
import re
import shutil
import subprocess
import sys

import pytest
import yaml
from safetensors.torch import load_file, save_file

from pipeline import assess
from pipeline.runtime.errors import UserError
from pipeline.runtime.messages import user_text
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


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (
            {"type": "accuracy", "dataset": "PAIRS", "reward": "numeric", "max_new_tokens": 4},
            "needs the column 'answer'",
        ),
        ({"type": "accuracy", "dataset": "nowhere.jsonl", "reward": "exact", "max_new_tokens": 4}, r"nowhere\.jsonl"),
        ({"type": "accuracy", "dataset": "PROMPTS", "reward": "exact", "max_new_tokens": 4, "by": "kid"}, "'kid'"),
        ({"type": "reward", "dataset": "PROMPTS", "reward": "exat", "max_new_tokens": 4}, "exat"),
        ({"type": "reward", "dataset": "PAIRS", "reward": "2*exact", "max_new_tokens": 4}, "the column 'answer'"),
        ({"type": "reward", "dataset": "PROMPTS", "reward": "exact", "max_new_tokens": 4, "top_p": 2}, "top_p is 2"),
        ({"type": "loss", "dataset": "PROMPTS"}, "completion"),
        ({"type": "preference", "dataset": "PROMPTS"}, "chosen"),
        ({"type": "samples", "prompts": ["a"], "max_new_tokens": 0}, "max_new_tokens is 0"),
        (
            {"type": "objective", "dataset": "PAIRS", "reward": "exact", "beta": 1, "max_new_tokens": 4},
            "needs the column 'answer'",
        ),
        (
            {"type": "best_of_n", "dataset": "PAIRS", "reward": "exact", "max_new_tokens": 4},
            "needs the column 'answer'",
        ),
    ],
)
def test_the_last_entry_s_mistakes_are_found_before_a_model_is_loaded(
    wrong, words, prompts, preference_file, tiny_model, tmp_path, monkeypatch
):
    """Each mistake is in the second entry; no model is loaded for the first one, and nothing is left behind."""
    monkeypatch.setattr("pipeline.model.loading.load_model", None)
    monkeypatch.setattr("pipeline.model.loading.load_tokenizer", None)
    files = {"PROMPTS": prompts, "PAIRS": str(preference_file)}
    wrong = wrong | ({"dataset": files.get(wrong["dataset"], wrong["dataset"])} if "dataset" in wrong else {})
    first = {"name": "first", "type": "samples", "prompts": ["What is 1 plus 1?"], "max_new_tokens": 3}
    (tmp_path / "assess.yaml").write_text(yaml.safe_dump({"evaluations": [first, wrong]}))
    words_of = ["--reference_model_name_or_path", str(tiny_model)]
    with pytest.raises(UserError, match=f"evaluation {wrong['type']}: .*{words}"):
        run(["--config", str(tmp_path / "assess.yaml")], tiny_model, tmp_path / "out", *words_of)
    assert not (tmp_path / "out").exists()


def fails_once(model, tokenizer, *, marker: str):
    """An evaluation by dotted path that fails once the model is there, until a file says that it may succeed."""
    from pathlib import Path

    from pipeline.evaluation.registry import Result

    length = len(tokenizer)
    if not Path(marker).exists():
        raise UserError("the file is not there")
    return Result({"tokens": length})


def counted(model, tokenizer, *, log: str):
    """An evaluation by dotted path that notes in a file that it measured."""
    from pathlib import Path

    from pipeline.evaluation.registry import Result

    vocabulary = len(tokenizer)
    with Path(log).open("a") as stream:
        stream.write("measured\n")
    return Result({"tokens": vocabulary}, samples=[{"prompt": "p", "completions": ["c"]}])


def test_a_failure_loses_no_result_and_a_rerun_measures_what_is_missing(tiny_model, tmp_path, capsys):
    log, marker, out = tmp_path / "log.txt", tmp_path / "marker", tmp_path / "out"
    entries = [
        {"name": "kept", "type": f"{__name__}:counted", "log": str(log)},
        {"name": "later", "type": f"{__name__}:fails_once", "marker": str(marker)},
    ]
    (tmp_path / "assess.yaml").write_text(yaml.safe_dump({"evaluations": entries}))
    config = ["--config", str(tmp_path / "assess.yaml")]
    with pytest.raises(UserError, match="evaluation later: the file is not there"):
        run(config, tiny_model, out)
    record = json.loads((out / "run.json").read_text())
    assert record["status"] == "failed"
    size = record["metrics"]["kept/tokens"]
    assert json.loads((out / "samples.jsonl").read_text())["evaluation"] == "kept"
    marker.touch()
    record = run(config, tiny_model, out)
    assert record["status"] == "completed"
    assert record["metrics"] == {"kept/tokens": size, "later/tokens": size}
    assert log.read_text() == "measured\n"  # once, in two runs
    assert "kept: tokens" in (shown := capsys.readouterr().out)
    assert "(measured before)" in shown
    assert [path.name for path in sorted(out.iterdir())] == ["run.json", "samples.jsonl"]


def test_what_was_measured_of_other_weights_is_measured_again(tiny_model, tmp_path):
    log, marker, out, model = tmp_path / "log.txt", tmp_path / "marker", tmp_path / "out", tmp_path / "model"
    shutil.copytree(tiny_model, model)
    entries = [
        {"name": "kept", "type": f"{__name__}:counted", "log": str(log)},
        {"name": "later", "type": f"{__name__}:fails_once", "marker": str(marker)},
    ]
    (tmp_path / "assess.yaml").write_text(yaml.safe_dump({"evaluations": entries}))
    config = ["--config", str(tmp_path / "assess.yaml")]
    with pytest.raises(UserError, match="evaluation later"):
        run(config, model, out)
    weights = load_file(model / "model.safetensors")
    save_file({name: tensor + 0.01 for name, tensor in weights.items()}, model / "model.safetensors", {"format": "pt"})
    marker.touch()
    run(config, model, out)
    assert log.read_text() == "measured\nmeasured\n"


@pytest.mark.parametrize("path", ["runs/nothing/here", "/nowhere", "nobody/nothing"])
def test_a_model_or_a_reference_that_is_not_there_is_one_line(config, tiny_model, tmp_path, path):
    words = "there is no folder" if path != "nobody/nothing" else "neither a model folder nor a Hub repository"
    with pytest.raises(UserError, match=f"model_name_or_path: .*{words}"):
        run(config, path, tmp_path / "out", "--reference_model_name_or_path", str(tiny_model))
    assert not (tmp_path / "out").exists()
    if path != "nobody/nothing":
        with pytest.raises(UserError, match=f"reference_model_name_or_path: {words}"):
            run(config, tiny_model, tmp_path / "out", "--reference_model_name_or_path", path)


@pytest.fixture(scope="module", params=["tiny_model", "foreign_model"])
def tuned(request, tmp_path_factory, sft_file):
    """An SFT run of one step, which holds out a tenth of the 40 rows."""
    from pipeline import sft
    from tests.stages.conftest import flags

    folder = tmp_path_factory.mktemp("tuned") / "sft"
    model = request.getfixturevalue(request.param)
    sft.main(flags(model_name_or_path=model, dataset_name=sft_file, output_dir=folder, max_steps=1))
    return folder


def test_tasks_without_yaml_on_the_rows_that_the_run_held_out(tuned, tmp_path, sft_file):
    """As many rows as the run recorded, none that it trained on (by the loader's own list of them), in the form each
    task needs; 40 rows hold 40 prompts, so a row is its prompt."""
    from pipeline.data.arguments import DataArguments
    from pipeline.data.loading import load_data

    record = run(["--tasks", "perplexity,samples", "--max_new_tokens", "2"], tuned, tmp_path / "out")
    [held] = [s for s in json.loads((tuned / "run.json").read_text())["data"] if s["role"] == "evaluation"]
    assert {source["rows"] for source in record["data"]} == {held["rows"]} == {4}
    assert record["metrics"]["perplexity/perplexity"] > 1
    lines = (tmp_path / "out" / "samples.jsonl").read_text().splitlines()
    seen = [user_text(json.loads(line)["prompt"]) for line in lines]
    trained = [
        user_text(row["prompt"]) for row in load_data(DataArguments(dataset_name=str(sft_file)), "sft", 42).train
    ]
    every = {json.loads(line)["prompt"] for line in sft_file.read_text().splitlines()}
    assert sorted([*seen, *trained]) == sorted(every)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tasks", "perplexty"], r"no task 'perplexty'; did you mean perplexity\?"),
        (["--tasks", "bleu"], "no task 'bleu'; choose from perplexity, loss"),
        (["--tasks", "loss", "--temperature", "1"], "temperature: none of the tasks loss takes it"),
        (["--tasks", "loss"], "needs the run record .*, or name a dataset and its split"),
    ],
)
def test_mistakes_in_tasks_are_named(tiny_model, tmp_path, words, message):
    with pytest.raises(UserError, match=message):
        run(words, tiny_model, tmp_path / "out")


@pytest.fixture
def foreign_adapter(foreign_model, tmp_path):
    """A LoRA adapter on the foreign Llama that changes what it says."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = AutoModelForCausalLM.from_pretrained(foreign_model)
    adapted = get_peft_model(base, LoraConfig(r=2, init_lora_weights=False, task_type="CAUSAL_LM"))
    adapted.save_pretrained(tmp_path / "adapter")
    AutoTokenizer.from_pretrained(foreign_model).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.mark.parametrize("kind", ["tiny_model", "foreign_adapter"])
def test_the_cache_is_measured_and_continued_in_a_fresh_process(kind, request, tmp_path):
    """Any causal LM by name, an adapter on its base too: the fresh process finds the same weights, and gives the
    uncached distributions of two tokens, which differ. A windowed variant of the same shape is timed beside it."""
    cache = {"type": "cache", "lengths": [8, 16, 24, 32], "window": 12, "rounds": 1, "device": "A100"}
    (tmp_path / "cache.yaml").write_text(yaml.safe_dump({"evaluations": [cache]}))
    record = run(["--config", str(tmp_path / "cache.yaml")], request.getfixturevalue(kind), tmp_path / "out")
    found = record["metrics"]
    assert found["cache/markov/fresh_process"] == 1
    assert found["cache/markov/difference"] < 1e-4
    assert found["cache/markov/apart"] > 1e-3
    steps = {(row["attention"], row["n"]): row for row in record["tables"]["cache"]["steps"]}
    assert sorted(steps) == [(attention, n) for attention in ("full", "window") for n in (8, 16, 24, 32)]
    # 31 tokens of the past and the present one; a window of 12 keeps 11
    assert steps["full", 32]["cache_bytes"] == 32 * steps["window", 32]["cache_bytes"] // 11
    [ridge] = {row["ridge"] for row in record["tables"]["cache"]["FLOPs per byte"]}
    assert ridge == pytest.approx(312 / 2.039)
    assert {"seconds per step, full attention", "seconds per step, window attention"} == set(record["curves"]["cache"])


def test_it_says_once_how_rows_were_read_and_ends_with_what_to_do(tiny_model, tmp_path, capsys):
    """Two evaluations read the same rows in the same way; one line says so, and not used columns with it."""
    rows = write_rows(tmp_path / "qa.jsonl", [{"question": f"{a}?", "answer": str(a), "id": a} for a in range(6)])
    words = [
        "--tasks",
        "accuracy,samples",
        "--reward",
        "numeric",
        "--dataset_name",
        str(rows),
        "--max_new_tokens",
        "2",
    ]
    record = run(words, tiny_model, tmp_path / "judged")
    lines = capsys.readouterr().out.splitlines()
    said = [line for line in lines if "read as" in line]
    assert said == [f"assess: {rows}: read as prompt from question; for the rewards: answer, id"]
    assert len(record["data"]) == 2
    assert lines[-2].startswith(f"assess: saved in {tmp_path / 'judged'} ")
    assert re.fullmatch(rf"assess: next: \S.* {tmp_path}", lines[-1])
