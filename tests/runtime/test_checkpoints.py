"""Which checkpoints count, and which saved folders are refused."""

import json
import os

import pytest
import torch
from safetensors.torch import save_file

from pipeline.runtime.checkpoints import (
    check_saved,
    damage,
    newest_checkpoint,
    publish_checkpoint,
    require_checkpoint,
    require_model_folder,
)
from pipeline.runtime.errors import UserError


def checkpoint(folder, step):
    """A whole checkpoint: weights, then the trainer's state."""
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    save_file({"w": torch.arange(6.0)}, path / "model.safetensors")
    (path / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    return path


def test_the_newest_whole_checkpoint_is_by_number_not_by_name(tmp_path):
    for step in (100, 20, 3):
        checkpoint(tmp_path, step)
    assert newest_checkpoint(tmp_path).name == "checkpoint-100"
    assert newest_checkpoint(tmp_path / "nowhere") is None


@pytest.mark.parametrize("damage", ["no state", "half a state", "cut weights", "no weights"])
def test_a_half_written_checkpoint_is_passed_over(tmp_path, damage):
    checkpoint(tmp_path, 10)
    broken = checkpoint(tmp_path, 20)
    state, weights = broken / "trainer_state.json", broken / "model.safetensors"
    if damage == "no state":
        state.unlink()
    elif damage == "half a state":
        state.write_text(state.read_text()[:-3])
    elif damage == "cut weights":
        weights.write_bytes(weights.read_bytes()[:-1])
    else:
        weights.unlink()
    assert newest_checkpoint(tmp_path).name == "checkpoint-10"


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("optimizer.pt", None, "optimizer.pt is missing"),
        ("optimizer.pt", b"", "optimizer.pt has 0 of 9 bytes"),
        ("optimizer.pt", b"momentun!", "optimizer.pt is not what was written"),
        ("critic/model.bin", None, "critic/model.bin is missing"),
        ("model.safetensors", b"x", "model.safetensors has 1 of"),
        ("manifest.json", b"", "manifest.json cannot be read"),
        ("manifest.json", b"[]", "manifest.json cannot be read"),
    ],
)
def test_a_checkpoint_that_does_not_hold_what_was_written_is_passed_over(tmp_path, name, content, found):
    """Nine bytes are "momentum!"; with one of them changed only the hash tells."""
    for step in (10, 20):
        written = checkpoint(tmp_path / ".unfinished", step)
        (written / "critic").mkdir()
        (written / "critic" / "model.bin").write_bytes(b"value")
        (written / "optimizer.pt").write_bytes(b"momentum!")
        publish_checkpoint(written, tmp_path / f"checkpoint-{step}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-20"]
    newest = newest_checkpoint(tmp_path)
    assert newest.name == "checkpoint-20"
    assert damage(newest) is None
    broken = newest / name
    broken.unlink() if content is None else broken.write_bytes(content)
    clear = newest / "manifest.json"
    os.utime(clear, ns=(0, clear.stat().st_mtime_ns + 1))  # another process has verified nothing yet
    assert found in damage(newest)
    assert newest_checkpoint(tmp_path).name == "checkpoint-10"
    with pytest.raises(UserError, match=r"checkpoint-20 is no complete checkpoint: "):
        require_checkpoint(str(newest))


def test_a_damaged_checkpoint_is_replaced_by_that_of_its_step(tmp_path):
    (tmp_path / "checkpoint-5").mkdir()
    publish_checkpoint(checkpoint(tmp_path / ".unfinished", 5), tmp_path / "checkpoint-5")
    assert damage(tmp_path / "checkpoint-5") is None
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-5"]


def test_a_saved_folder_must_hold_what_was_trained(tmp_path):
    with pytest.raises(RuntimeError, match="no safetensors"):
        check_saved(tmp_path)
    save_file({"lora_B.weight": torch.zeros(2, 2), "lora_A.weight": torch.ones(2, 2)}, tmp_path / "a.safetensors")
    with pytest.raises(RuntimeError, match="every LoRA B matrix is zero"):
        check_saved(tmp_path)
    check_saved(tmp_path, trained=False)
    save_file({"lora_B.weight": torch.ones(2, 2)}, tmp_path / "a.safetensors")
    check_saved(tmp_path)
    save_file({"w": torch.zeros(0)}, tmp_path / "b.safetensors")
    with pytest.raises(RuntimeError, match="saved empty"):
        check_saved(tmp_path)
    save_file({"w": torch.tensor([1.0, float("nan")])}, tmp_path / "b.safetensors")
    with pytest.raises(RuntimeError, match=r"b\.safetensors: tensor w holds numbers that are not finite"):
        check_saved(tmp_path)


def test_a_mistyped_model_folder_is_not_looked_for_on_the_hub(tmp_path):
    for name in ("./nowhere", "a/b/c", str(tmp_path / "x")):
        with pytest.raises(UserError, match="there is no folder"):
            require_model_folder(name)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"neither config.json nor adapter_config.json"):
        require_model_folder(str(tmp_path / "empty"))
    require_model_folder("user/name")  # may be on the Hub: asked later
