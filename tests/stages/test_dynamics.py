"""Injected errors and Jacobians through assess.py on a NarLM, a stock Llama folder and an adapter; in the report."""

import json

import pytest

from pipeline import assess, report
from tests.stages.conftest import write_rows
from tests.stages.test_adapters import saved_adapter

OWN = [
    {"prompt": f"What is {a} plus 2? The answer is", "wrong": f" {a}.", "right": f" {a + 2}.",
     "question": f" What is {a} plus 2? The answer is", "answer": str(a + 2), "value": str(a),
     "candidates": [f" {a}.", f" {a + 2}."]}
    for a in range(3)
]  # fmt: skip
SWAPS = [
    {"prompt": f"What is {a} plus 2? The", "swaps": {"number": [f"What is {b} plus 2? The" for b in range(5, 9)]}}
    for a in range(3)
]


@pytest.mark.parametrize("subject", ["narlm", "llama", "adapter"])
def test_three_kinds_of_model(subject, tiny_model, foreign_model, tmp_path):
    """Random models say neither truth nor error: rho within 0.1 of 0; q is the finite KL; all is in the report."""
    folder = {"narlm": tiny_model, "llama": foreign_model}.get(subject)
    if folder is None:
        folder = saved_adapter(tmp_path / "adapter", foreign_model)
    rows, swaps = write_rows(tmp_path / "own.jsonl", OWN), write_rows(tmp_path / "swaps.jsonl", SWAPS)
    given = {"split": "train", "as_chat": False}
    entries = [
        {
            "name": "own",
            "type": "dynamics",
            "dataset": str(rows),
            "max_new_tokens": 10,
            "n": 2,
            "stop": ["."],
            **given,
        },
        {"name": "chat", "type": "dynamics", "dataset": "world/errors-chat", "limit": 6, "max_new_tokens": 9, "n": 1},
        {"name": "maps", "type": "jacobian", "dataset": str(swaps), "directions": 2, "maps": 1, **given},
    ]
    config = tmp_path / "assess.yaml"
    config.write_text(json.dumps({"evaluations": entries}))
    out = tmp_path / "runs" / "assessed"
    assess.main(["--config", str(config), "--model_name_or_path", str(folder), "--output_dir", str(out)])
    record = json.loads((out / "run.json").read_text())
    got = record["metrics"]
    assert abs(got["own/errors/exact_rho"]) < 0.1
    assert 0 <= got["own/errors/merged"] <= 1
    assert {"chat/sum/exact_rho", "chat/contradiction/kl_suffix", "chat/sum/ideal_rho"} <= set(got)
    assert got["maps/fisher_error"] < 0.05
    assert got["maps/number/pairs"] == 3
    page = tmp_path / "report.html"
    report.main(["--runs", str(tmp_path / "runs"), "--output", str(page)])
    text = page.read_text()
    for words in ("own, pairs merged by step", "own, KL by step", "chat, propagation", "maps, relative gain by layer",
                  "maps, singular values"):  # fmt: skip
        assert words in text
