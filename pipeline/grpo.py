"""Reinforcement learning with verifiable rewards: sample N answers a prompt, verify each, reinforce the right ones.

    A_i = R(x, y_i) - mean_j R(x, y_j)        maximise  E[ sum_t A_i log pi(y_t | x, y_<t) ] - beta * KL term

    accelerate launch pipeline/grpo.py --config configs/quickstart/grpo.yaml

Data: prompt, and the columns that the reward reads (answer for numeric). --reward names one of the registry's rewards
(numeric, math, code, exact, …) or is a dotted path package.module:function.

Paper: Part 2, section 3. TRL's default beta is 0, which is no KL at all: write beta and scale_rewards: none for the
paper's objective. The KL stands inside the loss, so its fixed point is per prefix, not pi* (docs/errata.md, line 9).
"""

from dataclasses import dataclass, field

from pipeline.runtime.arguments import StageArguments
from pipeline.runtime.entry import entry
from pipeline.runtime.record import Run


@dataclass
class GRPOArguments(StageArguments):
    """What GRPO rewards; everything else is TRL's ``GRPOConfig``."""

    reward: str = field(
        default="numeric",
        metadata={"help": "Reward by registry name, weighted sum of names, or package.module:function."},
    )


def main(argv: list[str] | None = None) -> None:
    """Run the stage; see the module's docstring."""
    with Run("grpo", argv) as run:
        if run.done:
            return
        from trl import GRPOConfig, GRPOTrainer

        from pipeline.data.arguments import DataArguments
        from pipeline.data.loading import load_data
        from pipeline.model.loading import ModelArguments, load_policy
        from pipeline.rewards.registry import get_reward
        from pipeline.runtime.training import train_and_save

        own, data_args, model_args, config = run.parse(GRPOArguments, DataArguments, ModelArguments, GRPOConfig)
        reward = get_reward(own.reward)
        policy = load_policy(model_args, run, trust_remote_code=config.trust_remote_code)
        data = load_data(data_args, "prompt", config.seed)
        run.add_data(data.sources)
        trainer = GRPOTrainer(
            model=policy.model,
            reward_funcs=reward,
            args=config,
            train_dataset=data.train,
            eval_dataset=data.evaluation if config.eval_strategy != "no" else None,
            processing_class=policy.tokenizer,
            peft_config=policy.peft_config,
        )
        train_and_save(run, trainer, own, policy.finish)


FLAGS = {
    "num_generations": "answers sampled a prompt (N) [8]",
    "max_completion_length": "tokens of an answer [256]",
    "beta": "weight of the KL to pi_ref [0: none]",
    "scale_rewards": "divide advantages by their spread: group, batch or none [group]",
    "loss_type": "grpo, dr_grpo, dapo, bnpo, … [dapo]",
    "temperature": "sampling temperature [1.0]",
}

if __name__ == "__main__":
    entry(main, GRPOArguments, __doc__, flags=FLAGS)
