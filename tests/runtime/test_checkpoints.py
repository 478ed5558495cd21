"""Which checkpoints count, and which saved folders are refused."""

import json

import pytest
import torch
from safetensors.torch import save_file

from pipeline.runtime.checkpoints import check_saved, newest_checkpoint, require_model_folder
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
