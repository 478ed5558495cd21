"""PPO runs on the task whose every completion can be enumerated, and what tests ask of them."""

import torch
from peft import LoraConfig

from pipeline.training.ppo import PPOTrainer, model_inputs
from pipeline.training.ppo_config import PPOConfig
from tests import enumerable_task as task

BATCH = 8
TABLE = task.rewards()


def lora() -> LoraConfig:
    return LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")


def randomise(model: torch.nn.Module, part: str, scale: float, seed: int = 0) -> None:
    """Move the named parameters away from where they start, so that nothing is equal by chance."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if part in name:
                parameter += scale * torch.randn(parameter.shape, generator=generator)


def trainer(start, folder, *, model=None, adapter=True, reward=None, **options) -> PPOTrainer:
    """A PPO trainer of the toy, quiet and in float32; any option of PPOConfig may be changed."""
    config = PPOConfig(
        **{
            "output_dir": str(folder),
            "per_device_train_batch_size": BATCH,
            "gradient_accumulation_steps": 1,
            "num_iterations": 1,
            "max_completion_length": task.LENGTH,
            "learning_rate": 1e-2,
            "beta": 0.5,
            "critic": "shared" if adapter else "separate",
            "bf16": False,
            "gradient_checkpointing": False,
            "report_to": "none",
            "save_strategy": "no",
            "logging_steps": 1,
            "use_cpu": True,
            "disable_tqdm": True,
        }
        | options
    )
    return PPOTrainer(
        model=task.load(start) if model is None else model,
        reward_funcs=reward or task.reward_function(TABLE),
        args=config,
        train_dataset=task.dataset(),
        processing_class=task.tokenizer(),
        peft_config=lora() if adapter and model is None else None,
    )


def rollout(ppo: PPOTrainer, rows: int = BATCH) -> dict:
    """One rollout on the first rows, with the model in training mode as in training."""
    ppo.model.train()
    ppo.current_gradient_accumulation_steps = 1
    return ppo._generate_and_score_completions([{"prompt": task.PROMPTS[i % 4]} for i in range(rows)])


def plain_log_probs(model: torch.nn.Module, batch: dict) -> torch.Tensor:
    """Log-probabilities of the completions' tokens by the model's logits alone, (B, T)."""
    input_ids, attention_mask = model_inputs(batch)
    width = batch["completion_ids"].size(1)
    logits = model(input_ids=input_ids, attention_mask=attention_mask).logits[:, -width - 1 : -1]
    return logits.log_softmax(-1).gather(-1, batch["completion_ids"][..., None]).squeeze(-1)


def assert_same_law(one: torch.nn.Module, other: torch.nn.Module) -> None:
    """Equal log-probability of every completion, up to the rounding of float32 logits."""
    torch.testing.assert_close(task.exact_law(one), task.exact_law(other), atol=1e-4, rtol=0)
