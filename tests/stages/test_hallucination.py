"""The evaluation through assess.py on a NarLM, a stock Llama folder and an adapter on it; its place in the report."""

import json

import pytest

from pipeline import assess, report
from tests.stages.conftest import write_rows
from tests.stages.test_adapters import saved_adapter

LAWS = {
    "type": "hallucination", "dataset": "world/questions", "where": {"kind": "known"}, "limit": 6, "max_new_tokens": 4,
    "n": 2, "rumour_share": 0.1, "sweep": {"temperature": [0.5, 1.0]}, "batch_size": 64,
}  # fmt: skip


@pytest.mark.parametrize("subject", ["narlm", "llama", "adapter"])
def test_three_kinds_of_model(subject, tiny_model, foreign_model, tmp_path):
    """Random models: nearly nothing that they write is a claim, and the candidates share what mass there is evenly, so
    that one value in twelve is true: Hall about 11/12, where the values' distribution has log 12 nats.
    """
    folder = {"narlm": tiny_model, "llama": foreign_model}.get(subject)
    if folder is None:
        folder = saved_adapter(tmp_path / "adapter", foreign_model)
    own = write_rows(tmp_path / "own.jsonl", [{"prompt": "What is 1 plus 2?", "answer": "3"}])
    entries = [
        {"name": "people", **LAWS},
        {"name": "text", **LAWS, "dataset": "world/statements", "claims": "statements", "as_chat": False},
        {"name": "own", "type": "hallucination", "dataset": str(own), "split": "train", "claims": "numeric",
         "reward": "numeric", "max_new_tokens": 4},
    ]  # fmt: skip
    config = tmp_path / "assess.yaml"
    config.write_text(json.dumps({"evaluations": entries}))
    out = tmp_path / "runs" / "assessed"
    assess.main(["--config", str(config), "--model_name_or_path", str(folder), "--output_dir", str(out)])
    record = json.loads((out / "run.json").read_text())
    for name in ("people", "text"):
        got = {k.partition("/")[2]: v for k, v in record["metrics"].items() if k.startswith(f"{name}/")}
        for kind in ("", "exact_"):
            labels = ("true", "rumour", "other_false", "unsupported", "no_claim")
            assert sum(got[kind + label] for label in labels) == pytest.approx(1)
        assert got["exact_unsupported"] == 0
        assert 0.5 < got["exact_hall"] < 1
        assert 0 < got["value_entropy"] <= 2.4850
        assert got["kl_to_ideal"] > 0.5
        assert [p["temperature"] for p in record["curves"][name]["Hall by temperature"]] == [0.5, 1.0]
    page = tmp_path / "report.html"
    report.main(["--runs", str(tmp_path / "runs"), "--output", str(page)])
    text = page.read_text()
    for words in ("people, imitation and fabrication by temperature", "ideal rumour", "people, calibration", "hall"):
        assert words in text
