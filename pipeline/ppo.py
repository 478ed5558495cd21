"""Reinforcement learning from human feedback: proximal policy optimisation of a reward, kept near pi_ref by a KL.

    maximise  E[ R(x, y) ] - beta KL( pi(.|x) || pi_ref(.|x) )
    r_t = -beta log pi(y_t|.)/pi_ref(y_t|.),  plus R(x, y) at the last token;   A_t by GAE(gamma, lambda)
    L = -min( rho_t A_t, clip(rho_t, 1 - eps, 1 + eps) A_t ) + vf_coef * clipped value loss

    accelerate launch pipeline/ppo.py --config configs/quickstart/ppo.yaml

Data: prompt, and the columns that the reward reads. --reward names one or several of: a reward-model folder, a name of
the registry, trl:NAME for TRL's, a weighted sum, package.module:function; --reward_weights weighs them (0: only
watched).

Paper: Part 2, section 1B. theta_frozen is one backbone with the adapters of policy and critic (critic: shared), and of
the reward where it is an adapter of the same backbone; pi_ref is the backbone alone, or with a frozen copy of the
adapter that was the start.
Loss: `objectives.policy_gradient.ppo_clip_loss` and `token_rewards`, `objectives.value.gae` and `clipped_value_loss`
(tests/stages/test_losses.py::test_ppo).
"""

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.runtime.arguments import RolloutArguments
from pipeline.runtime.entry import entry
from pipeline.runtime.errors import UserError
from pipeline.runtime.record import Run
from pipeline.training.mistakes import refuse_mistakes

if TYPE_CHECKING:
    from pipeline.model.policy import Policy
    from pipeline.rewards.judging import Reward


def main(argv: list[str] | None = None) -> None:
    """Run the stage; see the module's docstring."""
    with Run("ppo", argv) as run:
        if run.done:
            return
        refuse_mistakes(run, "prompt", RolloutArguments, check)
        from pipeline.data.arguments import ChatDataArguments
        from pipeline.data.loading import load_data
        from pipeline.data.preparation import templated
        from pipeline.data.seen import refuse_images
        from pipeline.inference.retrieval.arguments import RetrievalArguments
        from pipeline.model.policy import ChatModelArguments, load_policy, read_start
        from pipeline.rewards.resolve import record_reward, resolve_each, verdict_counts
        from pipeline.training.guards import guards_for
        from pipeline.training.ppo import PPOTrainer
        from pipeline.training.ppo_config import PPOConfig
        from pipeline.training.prompts import sampled_prompts
        from pipeline.training.session import judged_at_end, train_and_save

        own, data_args, retrieval, model_args, config = run.parse(
            RolloutArguments, ChatDataArguments, RetrievalArguments, ChatModelArguments, PPOConfig
        )
        unsafe = own.allow_unsafe_code_execution
        resolved = resolve_each(own.reward, config.reward_weights, allow_unsafe_code_execution=unsafe)
        base, tokenizer = read_start(model_args, trust_remote_code=config.trust_remote_code)
        data = load_data(data_args, "prompt", config.seed)
        run.add_data(data.sources)
        refuse_images(data, "ppo")
        data = templated(data, tokenizer, run, "prompt", data_args, model_args.chat_template_path)
        data = sampled_prompts(run, data, retrieval, tokenizer, base, config.max_completion_length)
        policy = load_policy(model_args, run, tokenizer, trust_remote_code=config.trust_remote_code, reference=True)
        for reward in resolved:
            record_reward(run, reward)
        rewards = on_backbone(policy, own.reward, resolved) if config.critic == "shared" else resolved
        trainer = PPOTrainer(
            model=policy.model,
            reward_funcs=rewards,
            args=config,
            train_dataset=data.train,
            eval_dataset=judged_at_end(data.evaluation, config),
            processing_class=tokenizer,
            peft_config=policy.peft_config,
            callbacks=[guards_for(rewards, config.reward_weights, own, grouped=False)],
        )

        def finish(folder: Path) -> None:
            policy.finish(folder)
            run.add_metrics(first_and_last(trainer.state.log_history))
            run.add_metrics(verdict_counts(resolved) | trainer.reward_parts())

        train_and_save(run, trainer, own, finish)


def on_backbone(policy: "Policy", names: list[str], rewards: "list[Reward]") -> "list[Reward]":
    """The rewards, of which the first that is an adapter of the policy's own backbone is scored on that backbone.

    A second one would be a model of its own. Under ``adapter_mode stack`` the backbone contains the policy's first
    adapter, which no reward model was trained on.
    """
    from pipeline.training.ppo import AdapterReward
    from pipeline.training.shared_backbone import same_backbone

    if policy.parent_adapter is not None:
        return rewards
    place = next((i for i, name in enumerate(names) if same_backbone(policy.model, name)), None)
    return [AdapterReward(names[i]) if i == place else reward for i, reward in enumerate(rewards)]


def check(own: RolloutArguments) -> None:
    """Refuse a run without a reward."""
    if not own.reward:
        raise UserError("reward is missing: name a reward-model folder, a reward of the registry, or both")


def first_and_last(history: list[dict[str, float]]) -> dict[str, float]:
    """What PPO changed, by its own logs: score, KL, their sum and each reward at the first and at the last entry."""
    rows = [entry for entry in history if "objective/kl" in entry]
    if not rows:
        return {}
    return {
        f"{when}_{name}": value
        for when, row in (("first", rows[0]), ("last", rows[-1]))
        for name, value in row.items()
        if name.startswith(("objective/", "rewards/")) and value is not None
    }


FLAGS = {
    "reward_weights": "weight of each reward; 0: only watched [all 1]",
    "beta": "weight of the KL to pi_ref in the reward [0.05]",
    "kl_target": "adapt beta towards this KL, in nats per completion [beta is fixed]",
    "critic": "shared (an adapter of the policy's backbone) | separate | none (RLOO) [shared]",
    "lam": "GAE's lambda [0.95]",
    "num_iterations": "epochs on one rollout [4]",
    "generation_batch_size": "completions per rollout [batch x accumulation]",
    "max_completion_length": "maximum tokens per completion [512]",
    "missing_eos_penalty": "subtracted from the score of a completion that was cut off [none]",
}

if __name__ == "__main__":
    entry(main, RolloutArguments, __doc__, flags=FLAGS)
