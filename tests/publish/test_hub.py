"""Pushing, against a Hub on loopback: what goes up, what stays at home, and that a dead Hub costs nothing."""

import getpass
import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load, load_file, save_file

from pipeline.publish import hub as pushing
from pipeline.publish.cards import public_value
from pipeline.publish.hub import main, push_run
from pipeline.runtime.errors import PushError, UserError
from pipeline.runtime.files import write_json
from pipeline.runtime.run_json import read_record
from tests.stub_hub import TOKEN, StubHub, card_problems

RECORD = {
    "schema": 1, "stage": "dpo", "status": "completed",
    "given": {"beta": 0.1, "dataset_name": "/home/someone/x.jsonl"},
    "arguments": {}, "versions": {"trl": "1.16.0"}, "seed": 1, "metrics": {"eval_loss": 0.5}, "seconds": 1.0,
    "peak_memory_bytes": 1, "parents": [], "data": [],
}  # fmt: skip
STAY_AT_HOME = (
    "training_args.bin", "optimizer.pt", "pairs.jsonl", "samples.jsonl", "omega.json", "leg.json", ".hidden",
    "checkpoint-1/model.safetensors",
)  # fmt: skip
WEIGHTS = {"A": (2, 3), "B": (4, 2)}  # rank 2, from 3 inputs to 4 outputs


@pytest.fixture
def hub(monkeypatch):
    """A stub of the Hub, and a process that takes it for the real one and does not wait long between tries."""
    stub = StubHub()
    stub.repos["org/model"] = {"private": False, "branches": {"main": [{"oid": "0" * 40, "files": {}}]}}
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", stub.url)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(pushing, "RETRY_DELAYS_S", (0.0, 0.0, 0.0))
    yield stub
    stub.close()


def adapter_run(folder: Path, base: str, *, seed: int = 0, alpha: int = 2, parent: Path | None = None, **arguments):
    """A finished LoRA run of rank 2, with the things that must not leave the machine beside it."""
    (folder / "checkpoint-1").mkdir(parents=True)
    (folder / "plots").mkdir()
    torch.manual_seed(seed)
    module = "base_model.model.layers.0.q_proj"
    weights = {f"{module}.lora_{letter}.weight": torch.randn(shape) for letter, shape in WEIGHTS.items()}
    save_file(weights, folder / "adapter_model.safetensors")
    config = {"base_model_name_or_path": base, "peft_type": "LORA", "r": 2, "lora_alpha": alpha}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    for name in STAY_AT_HOME:
        (folder / name).write_bytes(b"/home/someone")
    (folder / "plots" / "margin.png").write_bytes(b"png")
    source = {"name": "/home/someone/x.jsonl", "split": "train", "rows": 3, "fingerprint": "ab"}
    parents = [{"path": str(parent or base), "sha256": "0"}]
    write_json(folder / "run.json", RECORD | {"parents": parents, "data": [source], "arguments": arguments})
    return folder


@pytest.fixture
def adapter(tmp_path) -> Path:
    """A finished adapter run on a finished base run."""
    base = tmp_path / "base"
    base.mkdir()
    save_file({"w": torch.ones(2)}, base / "model.safetensors")
    (base / "config.json").write_text("{}")
    write_json(base / "run.json", RECORD | {"stage": "pretrain"})
    return adapter_run(tmp_path / "adapter", str(base))


def test_a_local_base_must_be_pushed_first_and_is_then_named_by_its_hub_id(adapter, hub, tmp_path, capsys):
    with pytest.raises(UserError, match=r"base is the local folder .*base, which is not on the Hub: push that"):
        push_run(adapter, "me/name")
    main(["push", str(tmp_path / "base"), "me/base"])
    assert push_run(adapter, "name", private=True) == "me/name"  # a bare name is the logged-in user's
    assert [hub.repos[repo]["private"] for repo in ("me/base", "me/name")] == [False, True]
    files = hub.files("me/name")
    assert set(files) == {"adapter_model.safetensors", "adapter_config.json", "README.md", "plots/margin.png"}
    assert set(hub.files("me/base")) == {"model.safetensors", "config.json", "README.md"}
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "me/base"
    card = files["README.md"].decode()
    assert card_problems(card) == []
    assert "base_model: me/base" in card
    assert "https://huggingface.co/me/base" in card
    assert "from_pretrained('me/name'" in card
    assert "![plots/margin.png](plots/margin.png)" in card
    assert "model-index" in card
    # Nothing of this machine leaves it, and the run on disk is as it was but for the name it was pushed under.
    for content in [*files.values(), *hub.files("me/base").values()]:
        for secret in (TOKEN, "/home/someone", str(tmp_path), f"/{getpass.getuser()}/"):
            assert secret.encode() not in content
    assert json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == str(
        tmp_path / "base"
    )
    assert read_record(adapter)["hub"] == {"repo": "me/name"}


def test_two_refused_commits_are_survived_and_a_third_try_sends_the_weights_once(adapter, hub):
    hub.refuse_commits = 2
    push_run(adapter, "me/name", base="org/model")
    commits = [status for method, path, status in hub.requests if "/commit/" in path]
    assert commits == [503, 503, 200]
    assert sum(method == "PUT" for method, _, _ in hub.requests) == 2  # the adapter and the plot, once each
    assert json.loads(hub.files("me/name")["adapter_config.json"])["base_model_name_or_path"] == "org/model"


def test_what_may_not_pass_is_not_tried_again(adapter, hub):
    """A card that the Hub refuses (400) is refused for good."""
    write_json(adapter / "run.json", read_record(adapter) | {"metrics": {"eval_loss": 0.5}})
    hub.repos["me/name"] = {"private": False, "branches": {}}  # no branch: the commit's preupload is a 404
    with pytest.raises(PushError, match="404"):
        push_run(adapter, "me/name", base="org/model")
    assert sum("/preupload/" in path for _, path, _ in hub.requests) == 1


def test_a_revision_is_a_branch_of_its_own(adapter, hub):
    for _ in range(2):  # the second time it is there already
        push_run(adapter, "me/name", base="org/model", revision="try-2")
    assert "adapter_config.json" in hub.files("me/name", "try-2")
    assert hub.files("me/name", "main") == {}


def test_merged_starts_become_sums_of_adapters_on_the_first_base(hub, tmp_path):
    """sft on the Hub's base; dpo on base + sft merged; ppo on that + dpo merged. Pushed, ppo is one adapter whose
    B A is the sum of the three (scales alpha/r: 1, 2 and 4), and no file of the runs is touched."""
    sft = adapter_run(tmp_path / "sft", "org/model", seed=1, alpha=2)
    dpo = adapter_run(
        tmp_path / "dpo", str(tmp_path / "dpo" / "start"), seed=2, alpha=4, parent=sft, adapter_mode="merge"
    )
    ppo = adapter_run(
        tmp_path / "ppo", str(tmp_path / "ppo" / "start"), seed=3, alpha=8, parent=dpo, adapter_mode="merge"
    )
    for folder in (dpo, ppo):
        (folder / "start").mkdir()
    before = (ppo / "adapter_model.safetensors").read_bytes()
    push_run(ppo, "me/ppo")
    config = json.loads(hub.files("me/ppo")["adapter_config.json"])
    assert (config["base_model_name_or_path"], config["r"], config["lora_alpha"]) == ("org/model", 6, 6)

    def product(tensors) -> torch.Tensor:
        (a,), (b,) = ([x for name, x in tensors.items() if f"lora_{letter}" in name] for letter in "AB")
        return b @ a

    parts = [product(load_file(folder / "adapter_model.safetensors")) for folder in (sft, dpo, ppo)]
    expected = parts[0] + 2 * parts[1] + 4 * parts[2]
    assert torch.allclose(product(load(hub.files("me/ppo")["adapter_model.safetensors"])), expected, atol=1e-5)
    assert (ppo / "adapter_model.safetensors").read_bytes() == before


def test_a_merged_start_of_another_kind_of_adapter_is_refused_with_the_way_out(hub, tmp_path):
    sft = adapter_run(tmp_path / "sft", "org/model")
    config = json.loads((sft / "adapter_config.json").read_text())
    (sft / "adapter_config.json").write_text(json.dumps(config | {"use_dora": True}))
    dpo = adapter_run(tmp_path / "dpo", str(tmp_path / "dpo" / "start"), parent=sft, adapter_mode="merge")
    (dpo / "start").mkdir()
    with pytest.raises(UserError, match=r"not plain LoRA.*pipeline\.merge"):
        push_run(dpo, "me/dpo")


def test_a_dead_hub_costs_nothing_and_says_how_to_push_again(adapter, hub):
    hub.close()
    before = (adapter / "run.json").read_bytes()
    with pytest.raises(PushError, match=r"is complete.*`python -m pipeline.publish.hub push .* --private`") as caught:
        push_run(adapter, "me/name", base="org/model", private=True)
    assert "\n" not in str(caught.value)
    assert (adapter / "run.json").read_bytes() == before


def test_a_base_that_the_hub_does_not_know_is_not_pushed(adapter, hub, tmp_path):
    """Its folder is gone, or another one is at work here than the run was made from; or it was named wrongly."""
    shutil.rmtree(tmp_path / "base")
    for base, options in ((str(tmp_path / "base"), {}), ("runs/base", {}), ("org/modle", {"base": "org/modle"})):
        config = json.loads((adapter / "adapter_config.json").read_text())
        (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": base}))
        with pytest.raises(UserError, match=f"base is {base}, which is neither a local folder nor a repository"):
            push_run(adapter, "me/name", **options)
    assert "me/name" not in hub.repos


@pytest.mark.parametrize(("points", "drawn"), [(2, True), (1, False), (0, False)])
def test_a_card_shows_what_training_logged(adapter, hub, points, drawn):
    """A curve of at least two points; one point, or none, is no curve."""
    history = [{"step": step, "loss": 1.0 / (step + 1), "epoch": 0.1} for step in range(points)]
    write_json(adapter / "trainer_state.json", {"log_history": [*history, {"step": 9, "train_loss": 0.5}]})
    push_run(adapter, "me/name", base="org/model")
    files = hub.files("me/name")
    assert files.get("plots/training.png", b"").startswith(b"\x89PNG") == drawn
    assert ("](plots/training.png)" in files["README.md"].decode()) == drawn
    assert "trainer_state.json" not in files


@pytest.mark.parametrize(
    ("kind", "library", "loads"),
    [
        ({"peft_type": "LORA"}, "peft", "AutoPeftModelForCausalLM.from_pretrained('me/name'"),
        ({"peft_type": "NARLM", "method": "routed"}, "narlm", "(base, 'me/name', subfolder='routes/1')"),
        ({"peft_type": "NARLM", "method": "bias"}, "narlm", "pipeline.model.loading import load_model"),
    ],
)
def test_a_card_says_how_its_kind_of_adapter_is_loaded(adapter, hub, kind, library, loads):
    """By plain PEFT, by a route's subfolder, or by this package where PEFT has no such adapter."""
    config = {"base_model_name_or_path": "org/model"} | kind
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    push_run(adapter, "me/name")
    card = ModelCard(hub.files("me/name")["README.md"].decode())
    assert (card.data.library_name, "lora" in card.data.tags) == (library, library == "peft")
    assert loads in card.text


def test_every_route_of_a_routed_folder_goes_up_on_the_hubs_base(adapter, hub, tmp_path):
    """Loaded by its subfolder, a route is an adapter like any other."""
    for route in ("1", "2"):
        shutil.copytree(adapter, adapter.parent / "copy" / route)
    shutil.copytree(adapter.parent / "copy", adapter / "routes")
    push_run(adapter, "me/name", base="org/model")
    files = hub.files("me/name")
    for route in ("1", "2"):
        assert json.loads(files[f"routes/{route}/adapter_config.json"])["base_model_name_or_path"] == "org/model"
        assert f"routes/{route}/adapter_model.safetensors" in files


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("/home/someone/rm", "rm"),
        ("math + 0.1 * reward_model(model='/a/my rm', batch_size=8)",
         "math + 0.1 * reward_model(model='my rm', batch_size=8)"),
        ("a.jsonl,~/b.jsonl ../c/d.jsonl", "a.jsonl,b.jsonl d.jsonl"),
        (["/data/x.jsonl", {"path": "file:///data/y.jsonl"}], ["x.jsonl", {"path": "y.jsonl"}]),
        ("Don't say 1/2 / 3; see https://example.org/a", "Don't say 1/2 / 3; see https://example.org/a"),
        ("org/model", "org/model"),
    ],
)  # fmt: skip
def test_a_card_shows_paths_by_their_last_part_wherever_they_stand(value, shown):
    assert public_value(value) == shown


def test_only_a_completed_run_is_pushed(adapter, hub):
    write_json(adapter / "run.json", read_record(adapter) | {"status": "interrupted"})
    with pytest.raises(UserError, match="no completed run"):
        push_run(adapter, "me/name")


@pytest.mark.parametrize("words", [[], ["push", "x"], ["pull", "x", "y"], ["push", "x", "y", "--privat"]])
def test_the_command_line_says_how_it_is_used(words):
    with pytest.raises(UserError, match=r"see python -m pipeline\.publish\.hub( push)? --help"):
        main(words)
