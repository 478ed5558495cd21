"""The arguments of PPO: TRL's ``GRPOConfig`` with PPO's defaults and its own fields."""

import dataclasses
from typing import Literal

from trl import GRPOConfig

# The losses that are PPO's clipped ratio and differ only in what they divide by.
LOSSES = ("dr_grpo", "bnpo", "grpo", "dapo")


@dataclasses.dataclass
class PPOConfig(GRPOConfig):
    """TRL's ``GRPOConfig`` with PPO's defaults and PPO's own fields, named as TRL's PPO named them.

    ``num_iterations`` is the number of epochs on a rollout, ``epsilon`` the policy's clip range, ``beta`` the weight
    of the KL in the reward. One completion per prompt is enough, since the critic is the baseline.
    """

    num_generations: int | None = dataclasses.field(default=1, metadata={"help": "Number of completions per prompt."})
    num_iterations: int = dataclasses.field(default=4, metadata={"help": "Epochs on one rollout."})
    beta: float = dataclasses.field(
        default=0.05,
        metadata={"help": "Weight of the KL to pi_ref in the reward; 0 needs no pi_ref and measures no KL."},
    )
    loss_type: str = dataclasses.field(
        default="dr_grpo",
        metadata={"help": "What the policy loss is divided by; dr_grpo, a constant, is the only unbiased one."},
    )
    scale_rewards: str = dataclasses.field(default="none", metadata={"help": "Unused: the critic is the baseline."})
    disable_dropout: bool = dataclasses.field(
        default=True, metadata={"help": "Switch dropout off; it would add noise to the policy ratio."}
    )
    critic: Literal["shared", "separate", "none"] = dataclasses.field(
        default="shared",
        metadata={
            "help": "An adapter on the policy's frozen backbone (needs use_peft), a separate backbone, or none: RLOO, "
            "whose baseline is the mean of the prompt's other completions (needs num_generations of 2 or more)."
        },
    )
    critic_learning_rate: float | None = dataclasses.field(
        default=None, metadata={"help": "Learning rate of the critic [the policy's]."}
    )
    gamma: float = dataclasses.field(default=1.0, metadata={"help": "Discount per token; 1 is the paper's objective."})
    lam: float = dataclasses.field(
        default=0.95, metadata={"help": "GAE's lambda: 1 is unbiased, a smaller value has less variance."}
    )
    vf_coef: float = dataclasses.field(default=0.1, metadata={"help": "Weight of the value loss."})
    cliprange_value: float = dataclasses.field(
        default=0.2, metadata={"help": "Maximum change of a value during a rollout, in units of the reward."}
    )
    whiten_advantages: bool = dataclasses.field(
        default=True, metadata={"help": "Scale the advantages of a rollout to mean 0 and variance 1."}
    )
    missing_eos_penalty: float | None = dataclasses.field(
        default=None, metadata={"help": "Subtracted from the score of a completion that was cut off."}
    )
    kl_target: float | None = dataclasses.field(
        default=None,
        metadata={"help": "Adapt beta so that the KL tends to this many nats per completion [beta is fixed]."},
    )
    kl_horizon: int = dataclasses.field(
        default=10_000, metadata={"help": "Number of completions over which beta adapts; fewer adapts faster."}
    )

    def __post_init__(self):
        # GRPO refuses fewer than two completions per prompt, for the sake of group statistics that are not used here.
        wanted = self.num_generations
        self.num_generations_eval = self.num_generations_eval or wanted
        self.num_generations = 2 if wanted == 1 else wanted
        try:
            super().__post_init__()
        finally:
            self.num_generations = wanted
        if self.ddp_find_unused_parameters is None:
            # Policy and critic are two forward passes before one backward pass, which together use every trained
            # parameter; looking for unused ones after each pass, DDP would take the other's for unused.
            self.ddp_find_unused_parameters = False
        if self.loss_type not in LOSSES:
            raise ValueError(f"loss_type {self.loss_type} is not PPO's; choose one of {', '.join(LOSSES)}")
        if self.kl_target is not None and not (self.kl_target > 0 and self.beta > 0 and self.kl_horizon > 0):
            raise ValueError("kl_target adapts beta: kl_target, kl_horizon and the first beta must be above 0")
        if self.critic == "none" and (wanted < 2 or self.num_generations_eval < 2):
            raise ValueError("critic none takes the prompt's other completions as the baseline: num_generations >= 2")
        for name in ("gamma", "lam"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; give a number from 0 to 1")
