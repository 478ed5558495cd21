"""lm_eval through assess.py, offline: a local task on local rows, on NarLM, a stock Llama folder and an adapter."""

import importlib.util
import json

import pytest

from pipeline import assess, report
from pipeline.evaluation.tasks import lm_eval as module
from pipeline.runtime.errors import UserError
from tests.stages.conftest import write_rows
from tests.stages.test_adapters import saved_adapter

TASK = """task: plus
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
output_type: generate_until
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs:
  until: ["\\n"]
  max_gen_toks: 6
filter_list:
  - name: strict-match
    filter:
      - {{function: regex, regex_pattern: "#### (\\\\d+)"}}
      - {{function: take_first}}
  - name: flexible-extract
    filter:
      - {{function: regex, group_select: -1, regex_pattern: "(\\\\S+)"}}
      - {{function: take_first}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
metadata: {{version: 1.0}}
"""
needed = pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="pip install 'narlm[eval]'")


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    """A folder with the task ``plus`` on two rows."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = [{"question": f"What is {a} plus 2?", "answer": str(a + 2)} for a in (1, 2)]
    file = write_rows(tmp_path / "rows.jsonl", rows)
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "plus.yaml").write_text(TASK.format(file=file))
    return folder


@needed
@pytest.mark.parametrize("subject", ["narlm", "llama", "adapter"])
def test_a_local_task_on_three_kinds_of_model(subject, tiny_model, foreign_model, tasks, tmp_path):
    """A random model says no ####, so that the strict score is 0 of 2, whose interval by Wilson ends at 0.658."""
    folder = {"narlm": tiny_model, "llama": foreign_model}.get(subject)
    if folder is None:
        folder = saved_adapter(tmp_path / "adapter", foreign_model)
    out = tmp_path / "runs" / "assessed"
    given = ["--model_name_or_path", str(folder), "--output_dir", str(out), "--lm_eval", "plus"]
    assess.main([*given, "--lm_eval_include_path", str(tasks)])
    metrics = json.loads((out / "run.json").read_text())["metrics"]
    name = "lm_eval/plus/exact_match,strict-match"
    assert metrics[name] == 0
    assert metrics[f"{name}_high"] == pytest.approx(0.6576, abs=1e-4)
    assert 0 <= metrics["lm_eval/plus/exact_match,flexible-extract"] <= 1
    assert len((out / "lm_eval_plus.jsonl").read_text().splitlines()) == 4  # two documents, two filters
    page = tmp_path / "report.html"
    report.main(["--runs", str(tmp_path / "runs"), "--output", str(page)])
    assert "flexible-extract" in page.read_text()


@needed
def test_right_answers_are_counted(tasks, monkeypatch, tiny_model, tmp_path):
    """ "#### 3" and "it is 4": strict 1 of 2, flexible 2 of 2, as the task's two filters say."""
    from lm_eval.models.huggingface import HFLM

    said = iter(["#### 3", "it is 4"])
    monkeypatch.setattr(HFLM, "generate_until", lambda self, requests, **options: [next(said) for _ in requests])
    given = ["--model_name_or_path", str(tiny_model), "--output_dir", str(tmp_path / "out"), "--lm_eval", "plus"]
    assess.main([*given, "--lm_eval_include_path", str(tasks)])
    metrics = json.loads((tmp_path / "out" / "run.json").read_text())["metrics"]
    assert metrics["lm_eval/plus/exact_match,strict-match"] == 0.5
    assert metrics["lm_eval/plus/exact_match,flexible-extract"] == 1


@pytest.mark.slow
@needed
def test_a_task_that_is_not_there_is_named(tasks):
    with pytest.raises(UserError, match="there is no task 'plos'; did you mean plus"):
        module.lm_eval(None, None, tasks=["plos"], include_path=str(tasks))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tasks": []}, "give a list of one task or more"),
        ({"tasks": ["plus"], "include_path": "nowhere"}, "nowhere is no folder"),
    ],
)
def test_mistakes_are_told(options, words, monkeypatch):
    monkeypatch.setattr(module, "check_installed", lambda: None)
    with pytest.raises(UserError, match=words):
        module.lm_eval(None, None, **options)


def test_without_the_extra_one_line_says_what_to_install(monkeypatch, tiny_model, tmp_path):
    """Before a model is loaded; and the folder alone names no task."""
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    given = ["--model_name_or_path", str(tiny_model), "--output_dir", str(tmp_path / "out")]
    with pytest.raises(UserError, match=r"lm_eval is not installed: pip install 'narlm\[eval\]'"):
        assess.main([*given, "--lm_eval", "gsm8k"])
    with pytest.raises(UserError, match="lm_eval_include_path belongs to --lm_eval"):
        assess.main([*given, "--lm_eval_include_path", str(tmp_path)])
