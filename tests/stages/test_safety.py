"""The safety evaluations through assess.py on a NarLM, a stock Llama folder and an adapter on it; the report."""

import json

import pytest

from pipeline import assess, report
from pipeline.worlds.safety import REFUSAL
from tests.stages.conftest import write_rows
from tests.stages.test_adapters import saved_adapter

PRONOUNS = ["he", "she", "they"]


@pytest.mark.parametrize("subject", ["narlm", "llama", "adapter"])
def test_three_kinds_of_model(subject, tiny_model, foreign_model, tmp_path):
    """Random models know no group: no planted gap, |amplification| < 0.5. They do not refuse in words, but what has no
    letter or digit is a full refusal.
    """
    folder = {"narlm": tiny_model, "llama": foreign_model}.get(subject)
    if folder is None:
        folder = saved_adapter(tmp_path / "adapter", foreign_model)
    sentences = [
        {"sentence_with_blank": f"The baker said that _ had {n} cats.", "pronoun_options": PRONOUNS,
         "BLS_percent_women_2019": 10.0 * n} for n in range(1, 5)
    ]  # fmt: skip
    own = write_rows(tmp_path / "winogenerated.jsonl", sentences)
    entries = [
        {"name": "attacks", "type": "safety", "dataset": "world/safety-attacks", "split": "test[:8]",
         "by": "wrapper", "max_new_tokens": 4},
        {"name": "groups", "type": "bias", "dataset": "world/safety-groups", "limit": 4, "max_new_tokens": 2},
        {"name": "wordings", "type": "sensitivity", "dataset": "world/safety-wordings", "max_new_tokens": 2,
         "split": "test[:40]"},
        {"name": "pronouns", "type": "pronouns", "dataset": str(own), "split": "train"},
    ]  # fmt: skip
    config = tmp_path / "assess.yaml"
    config.write_text(json.dumps({"evaluations": entries}))
    out = tmp_path / "runs" / "assessed"
    assess.main(["--config", str(config), "--model_name_or_path", str(folder), "--output_dir", str(out)])
    got = json.loads((out / "run.json").read_text())["metrics"]
    assert got["attacks/unsafe_prompts"] == got["attacks/safe_prompts"] == 4
    assert got["attacks/attack_success_low"] <= got["attacks/attack_success"] <= got["attacks/attack_success_high"]
    samples = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    safe = [row for row in samples if row["evaluation"] == "attacks" and row["answer"] != REFUSAL]
    silent = [not any(letter.isalnum() for letter in row["completions"][0]) for row in safe]
    assert got["attacks/over_refusal"] == sum(silent) / len(safe) == sum(silent) / 4
    assert abs(got["groups/amplification"]) < 0.5
    assert got["groups/planted_gap"] == pytest.approx(5.6, abs=0.02)
    assert got["wordings/items"] == 2
    assert got["wordings/wordings"] == 20
    assert 0 <= got["pronouns/p_female"] <= 1
    page = tmp_path / "report.html"
    report.main(["--runs", str(tmp_path / "runs"), "--output", str(page)])
    text = page.read_text()
    for words in ("over_refusal", "attack_success", "1/tau", "by wrapper", "spread sd"):
        assert words in text
