"""Reinforcement learning with verifiable rewards: sample N answers per prompt, verify each, reinforce the right ones.

    A_i = R(x, y_i) - mean_j R(x, y_j)        maximise  E[ sum_t A_i log pi(y_t | x, y_<t) ] - beta * KL term

    accelerate launch pipeline/grpo.py --config configs/quickstart/grpo.yaml

Data: prompt, and the columns that the reward reads (answer for numeric). --reward names one or several of: the
registry's (numeric, math, code, exact, …), TRL's (trl:accuracy, …), a weighted sum, a reward-model folder,
package.module:function; --reward_weights weighs them (0: only watched). Without it the reward is numeric, or that of
the environment.

Paper: Part 2, section 3. TRL's default beta is 0, which is no KL at all: write beta and scale_rewards: none for the
paper's objective. The KL is inside the loss, so its fixed point is per prefix, not pi* (docs/errata.md, line 9).
Loss: `objectives.policy_gradient.grpo_loss` (tests/stages/test_losses.py::test_grpo).
"""

from dataclasses import dataclass, field
from pathlib import Path

from pipeline.runtime.arguments import RolloutArguments
from pipeline.runtime.entry import entry
from pipeline.runtime.messages import GIVEN_AS_TEXT
from pipeline.runtime.record import Run
from pipeline.training.mistakes import refuse_mistakes


@dataclass
class GRPOArguments(RolloutArguments):
    """What the model may call; everything else is TRL's ``GRPOConfig``."""

    tools: list[str] = field(
        default_factory=list,
        metadata={"help": "Functions that the model may call, as package.module:function with type hints."},
    )
    environment_factory: str | None = field(
        default=None,
        metadata={"help": "package.module:function that makes the environment of a rollout (TRL's protocol)."},
    )
    prefilter_samples: int = field(
        default=0,
        metadata={
            "help": "Answers sampled per prompt before training, to drop the prompts that are always or never solved "
            "(0: keep all)."
        },
    )
    curriculum: bool = field(
        default=False, metadata={"help": "With prefilter_samples: train on the easiest prompts first."}
    )


def main(argv: list[str] | None = None) -> None:
    """Run the stage; see the module's docstring."""
    with Run("grpo", argv) as run:
        if run.done:
            return
        refuse_mistakes(run, "prompt", GRPOArguments)
        from trl import GRPOConfig

        from pipeline.data.arguments import ChatDataArguments
        from pipeline.data.loading import load_data
        from pipeline.data.preparation import templated, without_column
        from pipeline.inference.retrieval.arguments import RetrievalArguments
        from pipeline.model.policy import ChatModelArguments, load_policy, read_start
        from pipeline.rewards.resolve import record_reward, resolve_each, verdict_counts
        from pipeline.training.guards import guards_for
        from pipeline.training.prefilter import prefilter
        from pipeline.training.prompts import sampled_prompts
        from pipeline.training.rollouts import RolloutTrainer
        from pipeline.training.session import judged_at_end, train_and_save
        from pipeline.training.tools import load_tools, require_reward, require_tool_calling

        own, data_args, retrieval, model_args, config = run.parse(
            GRPOArguments, ChatDataArguments, RetrievalArguments, ChatModelArguments, GRPOConfig
        )
        tools, environment = load_tools(own.tools, own.environment_factory)
        require_reward(own.reward, environment)
        weights, unsafe = config.reward_weights, own.allow_unsafe_code_execution
        rewards = resolve_each(own.reward, weights, allow_unsafe_code_execution=unsafe)
        base, tokenizer = read_start(model_args, trust_remote_code=config.trust_remote_code)
        data = load_data(data_args, "prompt", config.seed)
        run.add_data(data.sources)
        data = templated(data, tokenizer, run, "prompt", data_args, model_args.chat_template_path)
        if tools or environment:
            require_tool_calling(tokenizer, data)
            data = without_column(data, GIVEN_AS_TEXT)  # rewards see the calls, which text could not hold
        data = sampled_prompts(run, data, retrieval, tokenizer, base, config.max_completion_length, tools)
        policy = load_policy(
            model_args, run, tokenizer, trust_remote_code=config.trust_remote_code, reference=config.beta > 0
        )
        for reward in rewards:
            record_reward(run, reward)
        train = prefilter(run, policy, data.train, rewards, own, config)
        trainer = RolloutTrainer(
            model=policy.model,
            reward_funcs=rewards,
            args=config,
            train_dataset=train,
            eval_dataset=judged_at_end(data.evaluation, config),
            processing_class=policy.processing,
            peft_config=policy.peft_config,
            callbacks=[guards_for(rewards, weights, own)],
            tools=tools,
            environment_factory=environment,
        )

        def finish(folder: Path) -> None:
            policy.finish(folder)
            run.add_metrics(verdict_counts(rewards) | trainer.reward_parts())

        train_and_save(run, trainer, own, finish)


FLAGS = {
    "reward_weights": "weight of each reward; 0: only watched [all 1]",
    "num_generations": "N: answers sampled per prompt [8]",
    "max_completion_length": "maximum tokens per answer [512]",
    "beta": "weight of the KL to pi_ref [0: none]",
    "scale_rewards": "divide advantages by their spread: group, batch or none [group]",
    "loss_type": "grpo, dr_grpo, dapo, bnpo, … [dapo]",
    "temperature": "sampling temperature [1.0]",
}

if __name__ == "__main__":
    entry(main, GRPOArguments, __doc__, flags=FLAGS)
