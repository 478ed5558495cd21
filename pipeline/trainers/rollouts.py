"""What GRPO and PPO share in how prompts become rollouts: an order that survives a resume, and enough of them."""

from typing import Any

from trl import GRPOTrainer
from trl.trainer.utils import RepeatSampler

from pipeline.runtime.errors import UserError


class EpochSampler(RepeatSampler):
    """TRL's sampler, whose order otherwise depends on how many epochs this very process has seen."""

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate's dataloader at the start of each epoch."""
        if self.shuffle:
            self.generator.manual_seed(self.seed + epoch)


class RolloutTrainer(GRPOTrainer):
    """GRPOTrainer that resumes on the prompts it would have seen, and refuses data that cannot fill a rollout.

    Raises:
        UserError: fewer prompts than one rollout takes; TRL's sampler would leave them all out and train nothing.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        needed = self.args.generation_batch_size // self.num_generations
        if hasattr(self.train_dataset, "__len__") and len(self.train_dataset) < needed:
            raise UserError(
                f"a rollout takes {needed} prompts (generation_batch_size {self.args.generation_batch_size} / "
                f"num_generations {self.num_generations}), the data has {len(self.train_dataset)}: raise "
                "num_generations, or make the rollout smaller"
            )

    def _get_train_sampler(self, dataset: Any = None) -> RepeatSampler:
        """The parent's, its order a matter of the epoch alone: a resumed run sees the prompts it would have."""
        sampler = super()._get_train_sampler(dataset)
        sampler.__class__ = EpochSampler
        return sampler
