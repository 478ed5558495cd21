"""What the pages tell people to write is what the stages read."""

import importlib
import re

import pytest
import yaml

from pipeline.runtime.arguments import parse
from tests.conftest import ROOT
from tests.test_configs import parsers

PAGE = (ROOT / "docs" / "new_dataset.md").read_text(encoding="utf-8")
SECTION = PAGE.split("## A new domain in under ten lines")[1].split("\n## ")[0]
BLOCKS = re.findall(r"```yaml\n(# .*?pipeline/(\w+)\.py.*?)```", SECTION, re.S)


def test_there_is_one_for_each_kind_of_data():
    assert [stage for _, stage in BLOCKS] == ["sft", "dpo", "grpo", "continual"]


@pytest.mark.parametrize(("text", "stage"), BLOCKS, ids=[stage for _, stage in BLOCKS])
def test_a_new_domain_takes_under_ten_lines_that_the_stage_reads(text, stage, tmp_path):
    """Nine lines at most, the comment with the command included; no key that the stage does not know."""
    assert len(text.strip().splitlines()) < 10
    pytest.importorskip(f"pipeline.{stage}")
    path = tmp_path / "new.yaml"
    path.write_text(text)
    types = parsers(stage)
    if len(types) == 1:  # continual's trainer is SFT's unless its kind is preference
        types = (*types, *parsers("sft")[1:])
    parsed = parse(["--config", str(path), "--use_cpu", "--bf16", "false"], *types)
    assert parsed[1].dataset_map == yaml.safe_load(text)["dataset_map"]
    assert importlib.import_module(f"pipeline.{stage}").main
