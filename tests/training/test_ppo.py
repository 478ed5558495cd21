"""PPO on a task whose every completion can be enumerated: gradients, adapters, checkpoints, and the optimum itself."""

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from pipeline.model import NarLMForCausalLM
from pipeline.objectives.policy_gradient import ppo_clip_loss, token_rewards
from pipeline.objectives.value import clipped_value_loss, gae
from pipeline.training import shared_backbone as shared
from pipeline.training.ppo import adapted_beta
from pipeline.training.ppo_config import PPOConfig
from tests import enumerable_task as task
from tests.training.ppo_runs import BATCH, TABLE, assert_same_law, plain_log_probs, randomise, rollout, trainer


def test_config_lifts_the_group_and_refuses_nonsense(tmp_path):
    """One completion a prompt is allowed; a loss that is not PPO's, a lambda of 2, a target without beta are not."""
    quiet = {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False, "per_device_train_batch_size": 2}
    config = PPOConfig(**quiet)
    assert (config.num_generations, config.num_generations_eval, config.scale_rewards) == (1, 1, "none")
    assert PPOConfig(**quiet, num_generations=2).num_generations == 2
    with pytest.raises(ValueError, match="loss_type cispo is not PPO's"):
        PPOConfig(**quiet, loss_type="cispo")
    with pytest.raises(ValueError, match="lam is 2"):
        PPOConfig(**quiet, lam=2.0)
    with pytest.raises(ValueError, match="first beta must be above 0"):
        PPOConfig(**quiet, beta=0.0, kl_target=1.0)


def test_adapted_beta_by_hand():
    """KL 3 at target 2: error 0.5, clipped to 0.2; 100 of 1,000 completions: 0.1 * 1.02. KL 1.9: 0.1 * 0.995."""
    assert adapted_beta(0.1, kl=3.0, target=2.0, completions=100, horizon=1000) == pytest.approx(0.102)
    assert adapted_beta(0.1, kl=1.9, target=2.0, completions=100, horizon=1000) == pytest.approx(0.0995)


@pytest.mark.parametrize("adapter", [True, False], ids=["shared critic", "separate critic"])
def test_first_minibatch_is_reinforce_with_the_kl_reward(start, tmp_path, adapter):
    """lambda = gamma = 1, V = 0, no whitening: A_t = R - beta sum_{t' >= t} log(pi / pi_ref), and the gradient of the
    whole loss is that of -1/(B T_max) sum A_t log pi_t, taken by autograd through the model's own logits.
    """
    ppo = trainer(start, tmp_path, adapter=adapter, lam=1.0, whiten_advantages=False, loss_type="dr_grpo")
    randomise(ppo.model, "lora_B.default" if adapter else "o_proj.weight", 0.2)
    reference = task.load(start)
    batch = rollout(ppo)
    mask = batch["completion_mask"]
    with torch.no_grad():
        log_ratio = (plain_log_probs(ppo.model, batch) - plain_log_probs(reference, batch)) * mask
    scores = torch.tensor(task.reward_function(TABLE)(*prompts_and_ids(batch)))
    expected = (scores[:, None] - 0.5 * log_ratio.flip(1).cumsum(1).flip(1)) * mask
    assert log_ratio.abs().max() > 0.05  # else the KL is not tested
    assert batch["old_values"].abs().max() == 0.0
    torch.testing.assert_close(batch["advantages"], expected, atol=1e-5, rtol=1e-4)

    policy = {n: p for n, p in ppo.model.named_parameters() if p.requires_grad and not shared.is_critics(n)}
    manual = -(expected * plain_log_probs(ppo.model, batch) * mask).sum() / (BATCH * task.LENGTH)
    wanted = torch.autograd.grad(manual, list(policy.values()), allow_unused=True)
    ppo._compute_loss(ppo.model, batch).backward()
    for (name, parameter), gradient in zip(policy.items(), wanted):
        if gradient is not None:
            torch.testing.assert_close(parameter.grad, gradient, atol=1e-6, rtol=1e-3, msg=name)
    assert max(g.abs().max() for g in wanted if g is not None) > 1e-3


def test_without_a_critic_it_is_rloo(start, tmp_path):
    """Groups of four: every token's advantage is ``G_i - mean_{j != i} G_j`` of the whole return
    ``G = R - beta log(pi / pi_ref)``, and the gradient is that of -1/(B T_max) sum A log pi_t. There is no
    critic in the model.
    """
    ppo = trainer(start, tmp_path, adapter=False, critic="none", num_generations=4, whiten_advantages=False)
    randomise(ppo.model, "o_proj.weight", 0.2)
    assert not any(shared.is_critics(name) for name, _ in ppo.model.named_parameters())
    ppo.model.train()
    ppo.current_gradient_accumulation_steps = 1
    batch = ppo._generate_and_score_completions([{"prompt": task.PROMPTS[i // 4]} for i in range(BATCH)])
    mask = batch["completion_mask"]
    with torch.no_grad():
        log_ratio = (plain_log_probs(ppo.model, batch) - plain_log_probs(task.load(start), batch)) * mask
    scores = torch.tensor(task.reward_function(TABLE)(*prompts_and_ids(batch)))
    returns = (scores - 0.5 * log_ratio.sum(1)).view(2, 4)
    expected = (returns - (returns.sum(1, keepdim=True) - returns) / 3).flatten()
    torch.testing.assert_close(batch["advantages"], expected[:, None] * mask, atol=1e-5, rtol=1e-4)

    manual = -(expected[:, None] * plain_log_probs(ppo.model, batch) * mask).sum() / (BATCH * task.LENGTH)
    policy = [p for p in ppo.model.parameters() if p.requires_grad]
    wanted = torch.autograd.grad(manual, policy)
    ppo._compute_loss(ppo.model, batch).backward()
    for parameter, gradient in zip(policy, wanted):
        torch.testing.assert_close(parameter.grad, gradient, atol=1e-6, rtol=1e-3)
    assert max(g.abs().max() for g in wanted) > 1e-3


def test_rloo_resumes_and_needs_others_to_compare_with(start, tmp_path):
    """The adapted beta comes back from a folder without critic weights; a group of one has no baseline."""
    options = {"adapter": False, "critic": "none", "num_generations": 4, "kl_target": 0.3, "kl_horizon": 100}
    whole = trainer(start, tmp_path / "run", max_steps=2, save_strategy="steps", save_steps=1, **options)
    whole.train()
    checkpoint = tmp_path / "run" / "checkpoint-1"
    assert not (checkpoint / "critic").exists()
    resumed = trainer(start, tmp_path / "again", max_steps=2, **options)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert resumed.args.beta == whole.args.beta != 0.5
    for (name, mine), other in zip(resumed.model.named_parameters(), whole.model.parameters()):
        assert torch.equal(mine, other), name
    with pytest.raises(ValueError, match="num_generations >= 2"):
        trainer(start, tmp_path, adapter=False, critic="none", num_generations=1)


def prompts_and_ids(batch: dict) -> tuple[list[str], list[str], list[list[int]]]:
    """What a reward is given, read back from a batch's tensors."""
    words = task.tokenizer()
    prompts = words.batch_decode([ids[m.bool()][1:] for ids, m in zip(batch["prompt_ids"], batch["prompt_mask"])])
    ids = [row[m.bool()].tolist() for row, m in zip(batch["completion_ids"], batch["completion_mask"])]
    return prompts, ids, ids


def test_rollout_and_both_losses_equal_the_pure_functions(start, tmp_path):
    """Away from the rollout's policy, the trainer's loss is the objectives' clip loss over B T_max plus vf_coef
    times the mean clipped value loss; advantages and returns are GAE's of the rollout's own values.
    """
    ppo = trainer(start, tmp_path, lam=0.9, gamma=0.97, whiten_advantages=False, vf_coef=0.7, epsilon=0.1)
    randomise(ppo.model, "value_head", 0.3)
    randomise(ppo.model, "lora_B.default", 0.2)
    batch = rollout(ppo)
    mask = batch["completion_mask"]
    reference = plain_log_probs(task.load(start), batch).detach()
    scores = torch.tensor(task.reward_function(TABLE)(*prompts_and_ids(batch)))
    rewards = token_rewards(scores, batch["old_per_token_logps"], reference, mask, beta=0.5)
    advantages, returns = gae(rewards, batch["old_values"], mask, gamma=0.97, lam=0.9)
    torch.testing.assert_close(batch["advantages"], advantages, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(batch["returns"], returns, atol=1e-5, rtol=1e-4)

    randomise(ppo.model, "lora_B.default", 0.2, seed=1)
    randomise(ppo.model, "value_head", 0.3, seed=1)
    with torch.no_grad():
        loss = ppo._compute_loss(ppo.model, batch)
        log_probs, values = plain_log_probs(ppo.model, batch), ppo._values(ppo.model, batch)
    clip = (ppo_clip_loss(log_probs, batch["old_per_token_logps"], advantages, 0.1, 0.1) * mask).sum()
    value = (clipped_value_loss(values, batch["old_values"], returns, 0.2) * mask).sum() / mask.sum()
    ratio = (log_probs - batch["old_per_token_logps"]).exp()
    assert (((ratio - 1).abs() > 0.1) & mask.bool()).any()  # else the clip is not tested
    assert loss.item() == pytest.approx((clip / (BATCH * task.LENGTH) + 0.7 * value).item(), rel=1e-4)
    assert ppo._metrics["train"]["loss/value"][-1] == pytest.approx(value.item(), rel=1e-4)
    clipped = ((ratio - 1).abs() > 0.1) & mask.bool()
    assert ppo._metrics["train"]["policy/clipfrac"][-1] == pytest.approx(clipped.sum().item() / mask.sum().item())


@pytest.mark.parametrize("adapter", [True, False], ids=["shared critic", "separate critic"])
def test_the_value_is_read_before_the_token(start, tmp_path, adapter):
    """V_t is the head on the critic's hidden state after the prompt and y_<t, computed here from that prefix alone; so
    the last token changes no value.
    """
    ppo = trainer(start, tmp_path, adapter=adapter)
    randomise(ppo.model, "value_head", 0.5)
    randomise(ppo.model, "lora_B.critic" if adapter else ".critic.", 0.2)
    batch = rollout(ppo)
    ppo.model.eval()
    with torch.no_grad():
        values = ppo._values(ppo.model, batch)
        for row in range(BATCH):
            prompt = batch["prompt_ids"][row][batch["prompt_mask"][row].bool()]
            for t in range(int(batch["completion_mask"][row].sum())):
                prefix = torch.cat([prompt, batch["completion_ids"][row, :t]])[None]
                with ppo._adapters(shared.CRITIC if adapter else shared.POLICY):
                    states = ppo.model(input_ids=prefix, head=shared.VALUE_HEAD)
                assert values[row, t].item() == pytest.approx(states[0, -1].item(), abs=1e-5)
        batch["completion_ids"][:, -1] = (batch["completion_ids"][:, -1] + 1) % task.VOCABULARY
        torch.testing.assert_close(ppo._values(ppo.model, batch), values)
    assert values.std() > 0.05


def test_accumulated_steps_weigh_both_losses_alike(start, tmp_path):
    """Of two micro-batches each has half the weight, the value's loss as much as the policy's: half of the whole loss,
    and of the value loss alone, which is what is left where the advantages are 0.
    """
    ppo = trainer(start, tmp_path, vf_coef=0.7, whiten_advantages=False)
    randomise(ppo.model, "value_head", 0.3)
    batch = rollout(ppo)
    randomise(ppo.model, "lora_B.default", 0.2, seed=1)
    for advantages in (batch["advantages"], torch.zeros_like(batch["advantages"])):
        losses = []
        for ppo.current_gradient_accumulation_steps in (1, 2):
            losses.append(ppo._compute_loss(ppo.model, batch | {"advantages": advantages}).item())
        assert abs(losses[0]) > 1e-2
        assert losses[1] == pytest.approx(losses[0] / 2)
    logged = ppo._metrics["train"]
    for name in ("loss/policy", "loss/value"):  # what is logged is the whole batch's in either case
        assert logged[name][1] == pytest.approx(logged[name][0])
        assert logged[name][3] == pytest.approx(logged[name][2])


def test_only_training_adapts_beta(start, tmp_path):
    """A rollout of evaluation measures the KL and leaves beta; one of training moves it."""
    ppo = trainer(start, tmp_path, kl_target=0.3, kl_horizon=100)
    randomise(ppo.model, "lora_B.default", 0.2)
    ppo.model.eval()
    ppo._generate_and_score_completions([{"prompt": task.PROMPTS[i % 4]} for i in range(BATCH)])
    assert ppo._metrics["eval"]["objective/kl"][-1] != 0
    assert ppo.args.beta == 0.5
    rollout(ppo)
    assert ppo.args.beta != 0.5


def test_logged_objective_is_that_of_the_rollout(start, tmp_path):
    """objective/kl is the mean over completions of sum_t log(pi / pi_ref), and rlhf_reward is scores - beta kl."""
    ppo = trainer(start, tmp_path)
    randomise(ppo.model, "lora_B.default", 0.2)
    batch = rollout(ppo)
    with torch.no_grad():
        reference = plain_log_probs(task.load(start), batch)
    kl = ((batch["old_per_token_logps"] - reference) * batch["completion_mask"]).sum(1).mean().item()
    metrics = {name: values[-1] for name, values in ppo._metrics["train"].items()}
    assert metrics["objective/kl"] == pytest.approx(kl, abs=1e-5)
    scores = task.reward_function(TABLE)(*prompts_and_ids(batch))
    assert metrics["objective/scores"] == pytest.approx(sum(scores) / BATCH, abs=1e-5)
    assert metrics["objective/rlhf_reward"] == pytest.approx(metrics["objective/scores"] - 0.5 * kl, abs=1e-5)
    logged = list(ppo._logs["advantages"])
    means = (batch["advantages"] * batch["completion_mask"]).sum(1) / batch["completion_mask"].sum(1)
    assert logged == pytest.approx(means.tolist(), abs=1e-5)


def test_whitening_is_over_the_rollout(start, tmp_path):
    """The rollout's advantages have mean 0 and variance 1 over its tokens."""
    batch = rollout(trainer(start, tmp_path), rows=32)
    tokens = batch["advantages"][batch["completion_mask"].bool()]
    assert tokens.mean().item() == pytest.approx(0.0, abs=1e-5)
    assert tokens.var().item() == pytest.approx(1.0, abs=1e-4)


def test_unscorable_and_cut_off_completions(start, tmp_path):
    """A part that is None leaves the completion out of both losses; TRL's own sum would have counted it as 0. One that
    was cut off before eos loses the penalty from its score. A part of weight 0 is only watched, and may be blind.
    """

    def half_blind(prompts, completions, **columns):
        return [None if i % 2 else 1.0 for i in range(len(prompts))]

    def blind(prompts, completions, **columns):
        return [None] * len(prompts)

    rewards = [task.reward_function(torch.zeros_like(TABLE)), half_blind, blind]
    ppo = trainer(
        start, tmp_path, reward=rewards, whiten_advantages=False, lam=1.0, missing_eos_penalty=3.0,
        reward_weights=[1.0, 1.0, 0.0],
    )  # fmt: skip
    batch = rollout(ppo, rows=16)
    mask = batch["completion_mask"].bool()
    assert (batch["learned"][1::2] == 0).all()
    assert (batch["advantages"][1::2] == 0).all()
    ended = (batch["completion_ids"] == task.EOS).any(1)
    first = batch["advantages"][:, 0]  # pi is pi_ref still, so there is no KL
    assert ended[::2].any()
    assert (~ended[::2]).any()
    torch.testing.assert_close(first[::2], torch.where(ended, 1.0, -2.0)[::2])
    randomise(ppo.model, "value_head", 0.3)
    before = ppo._compute_loss(ppo.model, batch).item()
    batch["returns"][1::2] = 100.0
    assert ppo._compute_loss(ppo.model, batch).item() == before
    assert mask.any(1).all()


@pytest.mark.parametrize("adapter", [True, False], ids=["shared critic", "separate critic"])
def test_resumed_run_continues_the_interrupted_one(start, tmp_path, adapter):
    """Four steps of two rollouts, resumed after two: policy, critic, adapted beta and all logged figures are equal."""
    options = {"max_steps": 4, "num_iterations": 2, "kl_target": 0.3, "kl_horizon": 100, "adapter": adapter}
    whole = trainer(start, tmp_path / "run", save_strategy="steps", save_steps=2, **options)
    whole.train()
    checkpoint = tmp_path / "run" / "checkpoint-2"
    resumed = trainer(start, tmp_path / "again", **options)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert resumed.args.beta == whole.args.beta != 0.5
    mine = dict(resumed.model.named_parameters())
    for name, parameter in whole.model.named_parameters():
        assert torch.equal(mine[name], parameter), name
    timing = {"step_time", "train_runtime", "train_samples_per_second", "train_steps_per_second", "train_loss"}
    for old, new in zip(whole.state.log_history[2:4], resumed.state.log_history[2:4]):
        assert {k: v for k, v in old.items() if k not in timing} == {k: v for k, v in new.items() if k not in timing}


def test_saved_folder_is_the_policy_alone(start, tmp_path):
    """A full model without the critic's weights, an adapter without the others': both load plainly, to the same law.
    The critic lies beside it, with as many values as were trained.
    """
    for adapter in (True, False):
        folder = tmp_path / str(adapter)
        ppo = trainer(start, folder, adapter=adapter, max_steps=1)
        ppo.train()
        ppo.save_model(str(folder))
        assert sorted(p.name for p in folder.iterdir() if p.is_dir()) == ["critic"]
        plain = (
            PeftModel.from_pretrained(task.load(start), folder)
            if adapter
            else NarLMForCausalLM.from_pretrained(folder)
        )
        assert_same_law(plain, ppo.model)
        names = load_file(next(folder.glob("*.safetensors"))).keys()
        assert not any(shared.is_added(name) for name in names)
        critic = load_file(folder / "critic" / "critic.safetensors")
        assert critic.keys() == ppo._critic_parameters().keys()
        assert any("value_head" in name and weight.abs().max() > 0 for name, weight in critic.items())


def test_critic_has_a_learning_rate_of_its_own(start, tmp_path):
    """Every trained parameter stands in exactly one group, the critic's with the critic's rate."""
    ppo = trainer(start, tmp_path, critic_learning_rate=0.5)
    ppo.create_optimizer()
    rates = {id(p): g["lr"] for g in ppo.optimizer.param_groups for p in g["params"]}
    trained = [(n, p) for n, p in ppo.model.named_parameters() if p.requires_grad]
    assert len(rates) == sum(len(g["params"]) for g in ppo.optimizer.param_groups) == len(trained)
    for name, parameter in trained:
        assert rates[id(parameter)] == (0.5 if shared.is_critics(name) else 1e-2)


def test_beta_zero_needs_no_reference(start, tmp_path):
    """No pi_ref is loaded and no KL is measured."""
    ppo = trainer(start, tmp_path, adapter=False, beta=0.0)
    assert ppo.ref_model is None
    rollout(ppo)
    assert ppo._metrics["train"]["objective/kl"][-1] == 0.0


@pytest.mark.slow
def test_regret_to_the_analytic_optimum(start, tmp_path):
    """300 rollouts of 256 completions at beta 0.5, all weights trained: at least 90% of pi_ref's regret is gone.

    From a start that was pretrained it is more than 99.5% (docs/unified.md); this one's weights are random.
    """
    beta, table = 0.5, TABLE
    ppo = trainer(
        start, tmp_path, adapter=False, beta=beta, max_steps=300, per_device_train_batch_size=256, learning_rate=3e-3,
        lr_scheduler_type="linear", logging_steps=100,
    )  # fmt: skip
    ppo.train()
    reference = task.exact_law(task.load(start))
    assert task.regret_removed(task.exact_law(ppo.model), reference, table, beta) > 0.9
