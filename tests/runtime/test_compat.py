"""The list of what is used of other libraries beyond their documented interface."""

import sys
import tomllib

import pytest

from pipeline.runtime import compat
from pipeline.runtime.errors import UserError
from tests.conftest import ROOT
from tests.stages.conftest import flags


@pytest.mark.parametrize("name", compat.NAMES)
def test_every_name_is_there(name):
    found = getattr(compat, name)
    assert isinstance(found, str) or found.__name__ == name  # a chat template is text


@pytest.mark.parametrize("user", compat.MEMBERS)
def test_every_member_is_there(user):
    compat.require(user)


def test_a_moved_method_stops_the_stage_before_a_model_is_loaded(monkeypatch, tmp_path):
    """PPO on a TRL without ``_calculate_rewards``: one line with the method, the installed and the tested versions.
    The model has no weights, so an error about them would mean that the stage had gone further."""
    from trl import GRPOTrainer

    import pipeline.training.rollouts  # noqa: F401 - it asks for the same method when it is first imported
    from pipeline.ppo import main

    monkeypatch.delattr(GRPOTrainer, "_calculate_rewards")
    monkeypatch.delitem(sys.modules, "pipeline.training.ppo", raising=False)
    monkeypatch.setattr(compat, "version", lambda package: "1.99.0")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.json").write_text("{}")
    with pytest.raises(UserError) as caught:
        main(
            flags(
                model_name_or_path=tmp_path / "empty", output_dir=tmp_path / "run", reward="length",
                dataset_name="world/sums",
            )
        )  # fmt: skip
    assert str(caught.value) == (
        "trl.GRPOTrainer._calculate_rewards is not in trl 1.99.0, and PPOTrainer builds on it: the versions tested "
        f"are trl{compat.TESTED['trl']}; pip install 'trl{compat.TESTED['trl']}'"
    )


def test_a_lost_parameter_is_noticed(monkeypatch):
    """A method that is still there, without a parameter that it is called with."""
    from trl import GRPOTrainer

    def renamed(self, model, ids, attention_mask, logits_to_keep, batch_size=None, compute_entropy=False):
        """Takes ``ids`` for ``input_ids``."""

    monkeypatch.setattr(GRPOTrainer, "_get_per_token_logps_and_entropies", renamed)
    with pytest.raises(UserError, match=r"the parameter input_ids of trl\.GRPOTrainer\._get_per_token.* not in trl"):
        compat.require("RolloutTrainer")


def test_a_moved_name_is_noticed(monkeypatch):
    """As ``from pipeline.runtime.compat import pad`` meets it."""
    from trl.trainer import utils

    monkeypatch.delattr(utils, "pad")
    with pytest.raises(UserError, match=r"^trl\.trainer\.utils\.pad is not in trl "):
        compat.pad  # noqa: B018


def test_an_unset_attribute_is_noticed(monkeypatch):
    """An attribute of instances, which the class itself does not have."""
    monkeypatch.setitem(compat.MEMBERS, "PPOTrainer", {"trl:GRPOTrainer": ("_metrics", "_never_set")})
    with pytest.raises(UserError, match=r"trl\.GRPOTrainer\._never_set is not in trl"):
        compat.require("PPOTrainer")


def test_the_tested_ranges_are_those_of_the_package():
    """What an error advises to install is what ``pip install narlm`` accepts."""
    given = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    for package, versions in compat.TESTED.items():
        assert f"{package}{versions}" in given
