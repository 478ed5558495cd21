"""TRL's trainers as the stages use them: their checkpoints hold everything that a run must remember."""

import trl

from pipeline.training.state import Resumable


class SFTTrainer(Resumable, trl.SFTTrainer):
    """Next-token loss on the tokens that ``labels`` name."""


class DPOTrainer(Resumable, trl.DPOTrainer):
    """The DPO losses on preference pairs."""


class RewardTrainer(Resumable, trl.RewardTrainer):
    """The Bradley-Terry loss on preference pairs."""
