"""Four models on one backbone: what each adapter gets of the gradients, what the reference is, what is refused."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from pipeline.model import NarLMForSequenceClassification
from pipeline.runtime.errors import UserError
from pipeline.training import shared_backbone as shared
from pipeline.training.ppo import AdapterReward, PPOTrainer
from tests import enumerable_task as task
from tests.training.ppo_runs import assert_same_law, plain_log_probs, randomise, rollout, trainer


def test_shared_critic_lies_on_one_backbone(start, tmp_path):
    """Policy and value losses reach their own adapter only; the weights are at most 1.3 times those of LoRA alone;
    with the adapters off the model is pi_ref.
    """
    ppo = trainer(start, tmp_path, vf_coef=1.0)
    randomise(ppo.model, "value_head", 0.3)
    batch = rollout(ppo)
    trained = {n: p for n, p in ppo.model.named_parameters() if p.requires_grad}
    critic = {n for n in trained if shared.is_critics(n)}
    assert {n.split(".")[-2] for n in trained if "lora_" in n} == {"default", "critic"}
    for part, own in (("value", critic), ("policy", trained.keys() - critic)):
        ppo.model.zero_grad()
        if part == "value":
            ppo._values(ppo.model, batch).sum().backward()
        else:
            super(PPOTrainer, ppo)._compute_loss(ppo.model, batch).backward()
        touched = {n for n, p in trained.items() if p.grad is not None}
        assert touched == set(own)
    sizes = {n: p.numel() for n, p in ppo.model.named_parameters()}
    without_critic = sum(size for name, size in sizes.items() if not shared.is_critics(name))
    assert sum(sizes.values()) <= 1.3 * without_critic
    randomise(ppo.model, "lora_B", 0.5)
    with torch.no_grad(), ppo._adapters():
        off = plain_log_probs(ppo.model, batch)
    torch.testing.assert_close(off, plain_log_probs(task.load(start), batch))


def test_a_start_that_is_an_adapter_keeps_a_frozen_copy_as_reference(start, start_adapter, tmp_path):
    """After two steps the policy has moved; the reference is still base + the adapter as it was."""
    model = PeftModel.from_pretrained(task.load(start), start_adapter, is_trainable=True)
    ppo = trainer(start, tmp_path, model=model, max_steps=2)
    ppo.train()
    batch = rollout(ppo)
    kl = ppo._metrics["train"]["objective/kl"][-1]
    with torch.no_grad():
        frozen = plain_log_probs(PeftModel.from_pretrained(task.load(start), start_adapter), batch)
    expected = ((batch["old_per_token_logps"] - frozen) * batch["completion_mask"]).sum(1).mean().item()
    assert kl == pytest.approx(expected, abs=1e-5)
    assert abs(kl) > 1e-4
    ppo.save_model(str(tmp_path / "saved"))
    saved = PeftModel.from_pretrained(task.load(start), tmp_path / "saved")
    assert_same_law(saved, ppo.model)


def test_activation_checkpointing_computes_the_same_gradients(start, tmp_path):
    """Recomputed with the adapters of its forward pass, or the critic's gradient would come from the policy's."""
    gradients = []
    for checkpointing in (False, True):
        ppo = trainer(start, tmp_path, gradient_checkpointing=checkpointing)
        randomise(ppo.model, "lora_", 0.2)
        randomise(ppo.model, "value_head", 0.2)
        if checkpointing:
            ppo.model.gradient_checkpointing_enable({"use_reentrant": False})
        torch.manual_seed(0)
        batch = rollout(ppo)
        ppo._compute_loss(ppo.model, batch).backward()
        assert ppo.model.is_gradient_checkpointing == checkpointing
        gradients.append({n: p.grad for n, p in ppo.model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"adapter": False, "critic": "shared"}, "add use_peft: true, or choose critic: separate"),
        (
            {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
            "cannot be recomputed by reentrant",
        ),
    ],
)
def test_impossible_critics_are_refused(start, tmp_path, options, match):
    """With what to change, before anything is sampled."""
    with pytest.raises(UserError, match=match):
        trainer(start, tmp_path, **options)


def test_separate_critic_of_an_adapter_is_an_adapter_too(start, tmp_path):
    """Its backbone stays frozen; a step moves its adapter and its head and nothing of the policy's base."""
    ppo = trainer(start, tmp_path, critic="separate", max_steps=2)
    before = {n: p.clone() for n, p in ppo.model.named_parameters()}
    ppo.train()
    moved = {n for n, p in ppo.model.named_parameters() if not torch.equal(p, before[n])}
    assert any(".critic." in n and "lora_B" in n for n in moved)
    assert any("value_head" in n for n in moved)
    assert all("lora_" in n or "value_head" in n for n in moved)


def test_reward_adapter_scores_like_the_reward_model(start, tmp_path):
    """A LoRA reward model of the same base, scored on the policy's backbone, gives the standalone model's scores, and
    neither its adapter nor its head is trained.
    """
    classifier = NarLMForSequenceClassification.from_pretrained(start, num_labels=1, attn_implementation="eager")
    config = LoraConfig(r=4, target_modules="all-linear", modules_to_save=["score"], task_type="SEQ_CLS")
    reward_model = get_peft_model(classifier, config)
    randomise(reward_model, "lora_B", 0.3)
    randomise(reward_model, "score", 0.3)
    reward_model.save_pretrained(tmp_path / "reward")
    prompts, answers = ["a b", "b", "c"], [" c d", " a", " c d a b"]
    reward = AdapterReward(str(tmp_path / "reward"))
    ppo = trainer(start, tmp_path, reward=reward, max_steps=1)
    assert shared.same_backbone(ppo.model, str(tmp_path / "reward"))
    expected = []
    for prompt, answer in zip(prompts, answers):
        ids = task.tokenizer()(f"{prompt}{answer} <eos>", return_tensors="pt")["input_ids"]
        with torch.no_grad():
            expected.append(reward_model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.item())
    assert reward(prompts, answers) == pytest.approx(expected, abs=1e-5)
    ppo.train()
    assert reward(prompts, answers) == pytest.approx(expected, abs=1e-5)
