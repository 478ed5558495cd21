"""Pushing: what goes up, what stays at home, and that a dead Hub costs nothing."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pipeline.runtime.errors import PushError, UserError
from pipeline.runtime.hub import push_run
from pipeline.runtime.record import read_record, write_json

RECORD = {
    "schema": 1, "stage": "dpo", "status": "completed",
    "given": {"beta": 0.1, "dataset_name": "/home/someone/x.jsonl"},
    "arguments": {}, "versions": {"trl": "1.16.0"}, "seed": 1, "metrics": {"eval_loss": 0.5}, "seconds": 1.0,
    "peak_memory_bytes": 1,
}  # fmt: skip


@pytest.fixture
def adapter(tmp_path) -> Path:
    """A finished adapter run on a finished base run, with the things that must not leave the machine beside it."""
    base, folder = tmp_path / "base", tmp_path / "adapter"
    for path in (base, folder):
        (path / "checkpoint-1").mkdir(parents=True)
        save_file({"w": torch.ones(2)}, path / "adapter_model.safetensors")
        (path / "checkpoint-1" / "model.safetensors").write_bytes(b"x")
    write_json(base / "run.json", RECORD | {"stage": "pretrain", "parents": [], "data": []})
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
    source = {"name": "/home/someone/x.jsonl", "split": "train", "rows": 3, "fingerprint": "ab"}
    write_json(folder / "run.json", RECORD | {"parents": [{"path": str(base), "sha256": "0"}], "data": [source]})
    return folder


@pytest.fixture
def hub(monkeypatch):
    """A Hub that takes everything and remembers it."""
    uploads = {}

    class Repo:
        repo_id = "me/name"

    def create_repo(self, repo, private=None, exist_ok=False):
        uploads["private"] = private
        return Repo()

    def upload_folder(self, *, repo_id, folder_path, ignore_patterns, commit_message):
        from huggingface_hub.utils import filter_repo_objects

        paths = [str(path.relative_to(folder_path)) for path in Path(folder_path).rglob("*") if path.is_file()]
        kept = filter_repo_objects(paths, ignore_patterns=ignore_patterns)
        uploads["files"] = {path: (Path(folder_path) / path).read_bytes() for path in kept}

    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", create_repo)
    monkeypatch.setattr("huggingface_hub.HfApi.upload_folder", upload_folder)
    return uploads


def test_a_local_base_must_be_pushed_first_and_is_then_named_by_its_hub_id(adapter, hub, tmp_path):
    with pytest.raises(
        UserError, match=r"stands on the local folder .*base, which is not on the Hub: push that first"
    ):
        push_run(adapter, "me/name")
    write_json(tmp_path / "base" / "run.json", read_record(tmp_path / "base") | {"hub": {"repo": "me/base"}})
    assert push_run(adapter, "me/name", private=True) == "me/name"
    assert hub["private"] is True
    assert set(hub["files"]) == {"adapter_model.safetensors", "adapter_config.json", "README.md"}
    assert json.loads(hub["files"]["adapter_config.json"])["base_model_name_or_path"] == "me/base"
    card = hub["files"]["README.md"].decode()
    assert "base_model: me/base" in card
    assert "https://huggingface.co/me/base" in card
    # Nothing of this machine leaves it, and the run on disk is as it was but for the name it was pushed under.
    for content in hub["files"].values():
        assert b"/home/someone" not in content
        assert str(tmp_path).encode() not in content
    assert json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == str(
        tmp_path / "base"
    )
    assert read_record(adapter)["hub"] == {"repo": "me/name"}


def test_a_dead_hub_costs_nothing_and_says_how_to_push_again(adapter, monkeypatch):
    def refuse(*args, **kwargs):
        raise ConnectionError("no route to host")

    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", refuse)
    before = (adapter / "run.json").read_bytes()
    with pytest.raises(
        PushError, match=r"no route to host.*is complete.*python -m pipeline.runtime.hub push"
    ) as caught:
        push_run(adapter, "me/name")
    assert "\n" not in str(caught.value)
    assert (adapter / "run.json").read_bytes() == before


def test_only_a_completed_run_is_pushed(adapter, hub):
    write_json(adapter / "run.json", read_record(adapter) | {"status": "interrupted"})
    with pytest.raises(UserError, match="no completed run"):
        push_run(adapter, "me/name")
