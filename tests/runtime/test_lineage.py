"""Walks over run records: everything a model was made from, its start, its Hub id, its assessments."""

import pytest

from pipeline.runtime.errors import UserError
from pipeline.runtime.files import write_json
from pipeline.runtime.lineage import ancestors, assessments_of, merged_parent, repo_of, walk
from pipeline.runtime.run_json import parent_of, read_record


def run(folder, stage="sft", parents=(), weights=None, **more):
    """A finished run's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    if weights is not None:
        (folder / "model.safetensors").write_bytes(weights)
    entries = [parent_of(str(parent)) for parent in parents]
    write_json(
        folder / "run.json", {"stage": stage, "status": "completed", "parents": entries, "arguments": {}} | more
    )
    return folder


@pytest.fixture
def family(tmp_path):
    """base -> sft -> ppo, and a reward model of the same base that PPO has as its second parent."""
    base = run(tmp_path / "base", "pretrain", weights=b"base")
    sft = run(tmp_path / "sft", "sft", [base], b"sft", hub={"repo": "me/sft"})
    reward = run(tmp_path / "rm", "reward_model", [base], b"rm")
    return run(tmp_path / "ppo", "ppo", [sft, reward], b"ppo")


def test_ancestors_come_nearest_first_and_each_once(family):
    assert [record["stage"] for _, record in ancestors(family)] == ["ppo", "sft", "reward_model", "pretrain"]
    assert ancestors(family / "nowhere") == []


def test_the_chain_of_starts_leaves_reward_models_out(family):
    """By the first parent only, up to a run without parents."""
    chain = walk(read_record(family), starts_only=True)
    assert [(child["stage"], parent["path"].rpartition("/")[2]) for child, parent in chain] == [
        ("ppo", "sft"),
        ("sft", "base"),
    ]


def test_a_circle_of_records_ends(tmp_path):
    a, b = run(tmp_path / "a"), run(tmp_path / "b")
    run(a, parents=[b])
    run(b, parents=[a])
    assert len(ancestors(a)) == 2


def test_a_parent_has_the_hub_id_that_it_was_pushed_under(family):
    first, second = read_record(family)["parents"]
    assert (repo_of(first), repo_of(second)) == ("me/sft", None)
    assert repo_of({"repo": "org/model", "sha256": None}) == "org/model"


def test_the_start_of_a_merging_run_names_the_adapter(family, tmp_path):
    merging = run(tmp_path / "dpo", "dpo", [family], arguments={"adapter_mode": "merge"})
    assert merged_parent(merging / "start")["path"] == str(family)
    assert merged_parent(family / "start") is None
    assert merged_parent(merging) is None


def test_assessments_of_a_model_are_the_finished_ones_of_these_weights(family, tmp_path):
    """Beside it; of another model, unfinished, moved aside or of earlier weights they do not count."""
    run(tmp_path / "late", "assess", [family], started="2026-12-02")
    run(tmp_path / "early", "assess", [family, tmp_path / "sft"], started="2026-12-01")
    run(tmp_path / "of_its_start", "assess", [tmp_path / "sft", family])
    run(tmp_path / "stopped", "assess", [family], status="interrupted")
    run(tmp_path / "early.old-20261201", "assess", [family])
    assert [folder.name for folder, _ in assessments_of(family)] == ["early", "late"]
    (family / "model.safetensors").write_bytes(b"trained again")
    assert assessments_of(family) == []


def test_assessments_are_found_from_another_working_folder(family, tmp_path, monkeypatch):
    """The recorded path is relative to where the assessment was started."""
    monkeypatch.chdir(tmp_path)
    run(tmp_path / "judged", "assess", ["ppo"])
    monkeypatch.chdir("/")
    assert [folder.name for folder, _ in assessments_of(family)] == ["judged"]


def test_an_assessment_elsewhere_is_read_when_it_is_given(family, tmp_path):
    elsewhere = run(tmp_path / "other" / "judged", "assess", [family])
    assert assessments_of(family) == []
    assert [folder for folder, _ in assessments_of(family, [elsewhere])] == [elsewhere]
    with pytest.raises(UserError, match=r"sft holds no finished assessment of the weights in .*ppo"):
        assessments_of(family, [tmp_path / "sft"])
