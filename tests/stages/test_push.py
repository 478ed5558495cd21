"""Pushing from a stage, against a Hub on loopback: what goes up loads elsewhere, and nothing is lost when it fails."""

import getpass
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pipeline.training.callbacks import PushCheckpoints
from tests.conftest import ROOT
from tests.publish.test_hub import adapter_run, hub  # noqa: F401 - a fixture
from tests.stages.conftest import flags
from tests.stub_hub import TOKEN, StubHub, card_problems

# What a stranger has: transformers and peft. Neither this package nor TRL can be imported. The card's lines run too.
STRANGER = """
import contextlib, io, json, sys
sys.modules["pipeline"] = sys.modules["trl"] = None
import torch
from peft import PeftConfig, PeftModel
from transformers import AutoModelForCausalLM
base = PeftConfig.from_pretrained("me/dpo").base_model_name_or_path
model = AutoModelForCausalLM.from_pretrained(base, trust_remote_code=True, attn_implementation="eager")
for revision in ("main", "checkpoint-2"):
    tuned = PeftModel.from_pretrained(model, "me/dpo", revision=revision)
    print(json.dumps(tuned(torch.tensor([[1, 5, 7, 9]])).logits.tolist()))
    model = tuned.unload()
with contextlib.redirect_stdout(io.StringIO()):  # what the model writes
    exec(sys.argv[1])
print(json.dumps(model(torch.tensor([[1, 5, 7, 9]])).logits.tolist()))
"""


def run(words: list, environment: dict[str, str]) -> subprocess.CompletedProcess:
    """A command in a process of its own, in the repository's root."""
    return subprocess.run(
        [str(word) for word in words], cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip


@pytest.mark.slow
def test_from_a_dead_hub_to_a_stranger_who_loads_it(tiny_model, sft_file, preference_file, tmp_path):
    """SFT of all weights while the Hub is dead; pushed by the command it prints; DPO on it, pushed by the stage while
    the first two commits are refused; then a process with transformers and peft alone computes the same logits."""
    stub = StubHub()
    stub.close()  # the port now refuses connections
    sft, dpo = tmp_path / "sft", tmp_path / "dpo"
    common = {"eval_rows": 8, "eval_strategy": "steps", "use_cpu": True, "push_to_hub": True, "save_steps": 2}
    words = flags(
        model_name_or_path=tiny_model, dataset_name=sft_file, output_dir=sft, max_steps=2, hub_model_id="me/sft",
        hub_strategy="end", **common,
    )  # fmt: skip
    done = run([sys.executable, "pipeline/sft.py", *words], stub.environment(tmp_path / "cache"))
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert (done.returncode, len(errors)) == (1, 1), done.stderr[-2000:]
    assert f"the run in {sft} is complete" in errors[0]
    assert json.loads((sft / "run.json").read_text())["status"] == "completed"

    stub = StubHub()
    environment = stub.environment(tmp_path / "cache")
    again = shlex.split(errors[0].split("`")[1])
    done = run([sys.executable, *again[1:]], environment)
    assert done.returncode == 0, done.stderr[-2000:]
    code = {"configuration_narlm.py", "modeling_narlm.py", "versions_narlm.py"}
    assert {"model.safetensors", "tokenizer.json", "README.md", *code} <= set(stub.files("me/sft"))
    assert b"it runs on transformers 5.18 to 5.24." in stub.files("me/sft")["README.md"]

    stub.refuse_commits = 2
    words = flags(
        model_name_or_path=sft, dataset_name=preference_file, output_dir=dpo, max_steps=4, hub_model_id="me/dpo",
        hub_strategy="all_checkpoints", hub_always_push=True, hub_private_repo=True, use_peft=True,
        lora_target_modules="all-linear", hub_token=TOKEN, **common,
    )  # fmt: skip
    done = run([sys.executable, "pipeline/dpo.py", *words], environment)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "was not pushed" not in done.stdout
    assert [status for _, path, status in stub.requests if "me/dpo/commit" in path] == [503, 503, 200, 200, 200]
    assert stub.repos["me/dpo"]["private"] is True
    assert set(stub.repos["me/dpo"]["branches"]) == {"main", "checkpoint-2", "checkpoint-4"}
    config = json.loads(stub.files("me/dpo")["adapter_config.json"])
    assert config["base_model_name_or_path"] == "me/sft"
    card = stub.files("me/dpo")["README.md"].decode()
    assert card_problems(card) == []
    assert "base_model: me/sft" in card
    assert "model-index" in card
    assert "eval_rewards/margins" in card
    pushed = [c for r in stub.repos.values() for b in r["branches"].values() for x in b for c in x["files"].values()]
    for secret in (TOKEN, str(tmp_path), str(tiny_model), str(ROOT), f"/{getpass.getuser()}/"):
        assert not any(secret.encode() in content for content in pushed), secret
    assert TOKEN not in (dpo / "run.json").read_text()

    fresh = stub.environment(tmp_path / "another cache")
    done = run([sys.executable, "-c", STRANGER, card.split("```python\n")[1].split("```")[0]], fresh)
    assert done.returncode == 0, done.stderr[-2000:]
    theirs, halfway, by_the_card = (torch.tensor(json.loads(line)) for line in done.stdout.splitlines()[-3:])
    from pipeline.model.loading import load_model

    with torch.no_grad():
        ours = load_model(str(dpo), attn_implementation="eager")(torch.tensor([[1, 5, 7, 9]])).logits
    assert (theirs - ours).abs().max() < 1e-4
    assert (by_the_card - ours).abs().max() < 1e-4
    assert (theirs - halfway).abs().max() > 1e-3  # another revision is another adapter
    stub.close()


def pushes(tmp_path: Path, strategy: str) -> PushCheckpoints:
    """The callback of a run whose adapter stands on a base of the Hub, with one checkpoint to send."""
    folder = adapter_run(tmp_path / "run", "org/model")
    checkpoint = folder / "checkpoint-1"
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        (checkpoint / name).write_bytes((folder / name).read_bytes())
    (checkpoint / "model.safetensors").unlink()
    for name in ("optimizer.pt", "training_args.bin", "README.md"):
        (checkpoint / name).write_bytes(b"/home/someone")
    state = {"global_step": 1, "best_model_checkpoint": str(checkpoint)}
    (checkpoint / "trainer_state.json").write_text(json.dumps(state))
    args = SimpleNamespace(
        hub_strategy=strategy, hub_always_push=False, output_dir=str(folder), hub_model_id="me/run",
        hub_private_repo=None, hub_token=None, hub_revision=None,
    )  # fmt: skip
    record = json.loads((folder / "run.json").read_text())
    return PushCheckpoints(SimpleNamespace(folder=folder, record=record), args)


def test_a_checkpoint_to_resume_from_goes_up_without_this_machines_paths(hub, tmp_path):  # noqa: F811
    callback = pushes(tmp_path, "checkpoint")
    callback.on_save(callback.args, SimpleNamespace(global_step=1), None)
    callback.finish()
    files = hub.files("me/run")
    assert {"adapter_model.safetensors", "README.md", "last-checkpoint/optimizer.pt"} <= set(files)
    assert json.loads(files["last-checkpoint/trainer_state.json"])["best_model_checkpoint"] == "checkpoint-1"
    assert "last-checkpoint/training_args.bin" not in files
    assert not any(str(tmp_path).encode() in content for content in files.values())
    state = json.loads((tmp_path / "run" / "checkpoint-1" / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == str(tmp_path / "run" / "checkpoint-1")  # ours is as it was
    assert not list((tmp_path / "run").glob(".push-*"))


def test_a_checkpoint_that_cannot_be_sent_is_a_warning(hub, tmp_path, capsys):  # noqa: F811
    hub.close()
    callback = pushes(tmp_path, "every_save")
    callback.on_save(callback.args, SimpleNamespace(global_step=1), None)
    callback.finish()
    printed = capsys.readouterr().out
    assert printed.startswith("warning: checkpoint-1 was not pushed (")
    assert printed.count("\n") == 1
