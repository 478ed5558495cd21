"""PPO on TRL's GRPOTrainer, which brings sampling (also by vLLM), LoRA, DeepSpeed, logging and checkpoints.

    maximise  E[R(x, y)] - beta KL(pi || pi_ref)

with the KL as a reward at every token, a critic, generalised advantage estimation, and clipped losses (Schulman et
al., 2017; Ziegler et al., 2019; the paper's Part 2, section 1). A rollout is ``generation_batch_size`` completions; it
is used for ``num_iterations`` epochs of minibatches. Only a KL in the reward-to-go has the paper's pi* as its optimum:
a KL inside the loss, as GRPO has it, does not (docs/errata.md, 9), so the parent's own KL is switched off here.

Without a critic it is RLOO (Ahmadian et al., 2024): the KL still in the reward, and for a baseline the mean return of
the prompt's other completions.
"""

from pathlib import Path
from typing import Any

import torch
from accelerate.utils import is_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from pipeline.model.batching import Batch, forward_rows
from pipeline.model.chat import as_trained
from pipeline.model.tokens import encode_exchange
from pipeline.objectives.policy_gradient import leave_one_out_advantages, token_rewards
from pipeline.objectives.value import (
    clipped_value_loss,
    explained_variance,
    gae,
    masked_mean,
    masked_moments,
    whiten,
)
from pipeline.runtime.compat import disable_gradient_checkpointing, get_config_model_id, require
from pipeline.runtime.errors import UserError
from pipeline.runtime.files import Json
from pipeline.runtime.messages import text_of
from pipeline.training import shared_backbone as shared
from pipeline.training.optimizers import split_groups
from pipeline.training.rollouts import Rollout, RolloutTrainer
from pipeline.training.state import State

require("PPOTrainer")


class PPOTrainer(RolloutTrainer):
    """GRPOTrainer with the KL in the reward, a critic and GAE.

    Args: those of ``GRPOTrainer``, by name. A reward function with a method ``attach(trainer)`` is given the trainer
    before training (see ``AdapterReward``).

    Raises:
        UserError: ``critic: shared`` without an adapter, or with reentrant activation checkpointing.
    """

    _tag_names = ["trl", "ppo"]
    _name = "PPO"
    _paper = {
        "title": "Fine-Tuning Language Models from Human Preferences",
        "id": "1909.08593",
        "citation": "@article{ziegler2019fine, title={{Fine-Tuning Language Models from Human Preferences}}, "
        "author={Ziegler, Daniel M. and others}, year=2019, eprint={arXiv:1909.08593}}",
    }

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        # args.beta is PPO's coefficient. The parent's copy of it weighs a KL in the loss, which PPO does not have; the
        # parent has read it by now to build pi_ref.
        self.beta = 0.0
        self._has_reference = self.args.beta != 0
        self._adapters = shared.AdapterSwitch(self.model)  # before a separate critic brings adapters of its own
        shared.add_heads(self.model)
        if self.args.critic == "none":
            pass
        elif self.args.critic == "separate":
            shared.add_separate_critic(self.model, self._load_critic_backbone())
        elif not is_peft_model(self.model):
            raise UserError(
                "critic: shared lays the critic's adapter on the policy's frozen backbone, so the policy must be an "
                "adapter too: add use_peft: true, or choose critic: separate"
            )
        else:
            if (self.args.gradient_checkpointing_kwargs or {}).get("use_reentrant"):
                raise UserError(
                    "critic: shared cannot be recomputed by reentrant activation checkpointing (which ZeRO-3 with "
                    "adapters needs): set gradient_checkpointing: false, or choose critic: separate"
                )
            shared.add_shared_critic(self.model)
            self._adapters.follow_checkpointing(shared.base_of(self.model))
        for reward in self.reward_funcs:
            if hasattr(reward, "attach"):
                reward.attach(self)
        if is_peft_model(self.model):
            shared.train_policy_and_critic(self.model)
            save = self.model.save_pretrained
            self.model.save_pretrained = lambda *a, **k: save(*a, **{"selected_adapters": [shared.POLICY]} | k)

    def _load_critic_backbone(self) -> torch.nn.Module:
        """A fresh copy of the start's backbone; loaded as the parent loads pi_ref, since ZeRO-3 cannot copy."""
        config = shared.base_of(self.model).config
        return AutoModel.from_pretrained(
            get_config_model_id(config),
            dtype=self.model.dtype,
            attn_implementation=config._attn_implementation,
            trust_remote_code=self.args.trust_remote_code,
        )

    @staticmethod
    def saves(name: str) -> bool:
        """Whether a parameter is the policy's, not one that was added for the critic or a reward."""
        return not shared.is_added(name)

    # ------------------------------------------------------------------ rollout

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The parent's, kept: its own sum counts a missing part of a weighted reward as 0."""
        self._rewards_per_func = super()._calculate_rewards(*args, **kwargs)  # (B of all processes, functions)
        return self._rewards_per_func

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> tuple:
        """The parent's, its last log-probs kept for the ratio's metrics."""
        result = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        self._last_log_probs = result[0].detach()
        return result

    @torch.no_grad()
    def _generate_and_score_completions(self, inputs: list[Json]) -> Rollout:
        """The parent's rollout, with per-token advantages, old values and returns from the KL in the reward."""
        output = super()._generate_and_score_completions(inputs)
        mode = "train" if self.model.training else "eval"
        mask = completion_mask(output)
        count = mask.size(0)
        local = slice(self.accelerator.process_index * count, (self.accelerator.process_index + 1) * count)
        used = self.reward_weights != 0  # a reward of weight 0 is logged, not learned from
        weighted = self._rewards_per_func[local][:, used] * self.reward_weights[used].to(mask.device)
        scores = weighted.sum(1)  # nan if any part is missing
        scored = ~scores.isnan()
        ended = (torch.isin(output["completion_ids"], self._stop_ids(mask.device)) & mask.bool()).any(1)
        if self.args.missing_eos_penalty is not None:
            scores = scores - self.args.missing_eos_penalty * ~ended

        with disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs):
            log_probs = output.get("old_per_token_logps")
            if log_probs is None:
                log_probs = self._log_probs(self.model, output)
            reference = log_probs
            if self.ref_model is not None:
                reference = self._log_probs(self.ref_model, output)
            elif self._has_reference:
                kept = [shared.REFERENCE] if shared.REFERENCE in self.model.peft_config else []
                with self._adapters(*kept):
                    reference = self._log_probs(self.model, output)
            values = torch.zeros_like(log_probs)
            if self.args.critic != "none":
                values = self._values(self.model, output) * mask

        rewards = token_rewards(scores.nan_to_num(), log_probs, reference, mask, self.args.beta)
        learned = mask * scored[:, None]  # nothing is learned from a completion without a score
        advantages, returns = gae(rewards, values, mask, self.args.gamma, self.args.lam)
        if self.args.critic == "none":
            advantages = self._leave_one_out(rewards.sum(1).where(scored, torch.nan))[local, None] * mask
        everyones = [self._gather_tokens(x) for x in (advantages, values, returns, learned)]
        if self.args.whiten_advantages:
            advantages = whiten(advantages, learned, masked_moments(everyones[0], everyones[3]))

        kl = ((log_probs - reference) * mask).sum(1)
        surprise = -(log_probs * mask).sum(1)
        everyones_rows = self.accelerator.gather(torch.stack([scores, kl, surprise, ended.float()], 1))
        score, mean_kl, entropy, eos_rate = everyones_rows.nanmean(0).tolist()
        self._log_rollout(mode, score, mean_kl, entropy, eos_rate)
        if mode == "train" and self.args.kl_target is not None:
            self.adapt_beta(mean_kl, len(everyones_rows))
        if self.args.critic != "none":
            self._append(mode, "val/explained_variance", explained_variance(*everyones[1:]))
        self._replace_logged_advantages(masked_row_mean(advantages, mask))
        return output | {
            "old_per_token_logps": log_probs,
            "advantages": advantages * learned,
            "old_values": values,
            "returns": returns,
            "learned": learned,
        }

    def adapt_beta(self, kl: float, completions: int) -> None:
        """Move beta by one rollout so that its KL, in nats per completion, tends to ``kl_target``."""
        self.args.beta = adapted_beta(self.args.beta, kl, self.args.kl_target, completions, self.args.kl_horizon)

    def _leave_one_out(self, returns: torch.Tensor) -> torch.Tensor:
        """RLOO's advantages of all processes' completions, from this process's returns (nan: not scored)."""
        count = self.num_generations if self.model.training else self.num_generations_eval
        return leave_one_out_advantages(self.accelerator.gather(returns).view(-1, count)).flatten()

    def _log_probs(self, model: torch.nn.Module, batch: Rollout) -> torch.Tensor:
        """Log-probabilities of the completions' tokens, (B, T), in chunks of the training batch size."""
        log_probs, _, _ = self._get_per_token_logps_and_entropies(
            model, *model_inputs(batch), batch["completion_ids"].size(1), self.args.per_device_train_batch_size
        )
        return log_probs

    def _values(self, model: torch.nn.Module, batch: Rollout) -> torch.Tensor:
        """The critic's value before each token of the completions, (B, T), in chunks of the training batch size."""
        size, parts = self.args.per_device_train_batch_size, []
        names = [shared.CRITIC] if self.args.critic == "shared" else [shared.POLICY]
        input_ids, attention_mask = model_inputs(batch)
        with self._adapters(*names), self.accelerator.autocast():
            for ids, mask in zip(input_ids.split(size), attention_mask.split(size)):
                parts.append(model(input_ids=ids, attention_mask=mask, head=shared.VALUE_HEAD))
        return torch.cat(parts)[:, -batch["completion_ids"].size(1) - 1 : -1]

    def _stop_ids(self, device: torch.device) -> torch.Tensor:
        return torch.tensor(self.eos_token_ids, device=device)

    def _gather_tokens(self, x: torch.Tensor) -> torch.Tensor:
        """(B, T) of this process to (B, T) of all, padded with zeros to the longest."""
        return self.accelerator.gather(self.accelerator.pad_across_processes(x, dim=1))

    # ------------------------------------------------------------------ loss

    def _compute_loss(self, model: torch.nn.Module, inputs: Rollout) -> torch.Tensor:
        """The parent's clipped policy loss on per-token advantages, plus the clipped value loss."""
        mode = "train" if self.model.training else "eval"
        policy_loss = super()._compute_loss(model, inputs)
        if self.args.critic == "none":
            return policy_loss
        learned, old_values, returns = inputs["learned"], inputs["old_values"], inputs["returns"]
        values = self._values(model, inputs)
        value_loss = masked_mean(clipped_value_loss(values, old_values, returns, self.args.cliprange_value), learned)
        accumulation = self.current_gradient_accumulation_steps if mode == "train" else 1

        with torch.no_grad():
            log_ratio = self._last_log_probs - inputs["old_per_token_logps"]
            ratio = log_ratio.exp()
            clipped_values = (values - old_values).abs() > self.args.cliprange_value
            for name, value in {
                "loss/policy": policy_loss * accumulation,
                "loss/value": value_loss,
                "policy/approxkl": 0.5 * masked_mean(log_ratio**2, learned),
                "policy/clipfrac": masked_mean(
                    ((ratio < 1 - self.epsilon_low) | (ratio > 1 + self.epsilon_high)).float(), learned
                ),
                "val/ratio": masked_mean(ratio, learned),
                "val/clipfrac": masked_mean(clipped_values.float(), learned),
            }.items():
                self._append(mode, name, value)
        return policy_loss + self.args.vf_coef * value_loss / accumulation

    # ------------------------------------------------------------------ metrics

    def _append(self, mode: str, name: str, value: torch.Tensor) -> None:
        self._metrics[mode][name].append(self.accelerator.gather(value.detach().float()).mean().item())

    def _log_rollout(self, mode: str, score: float, kl: float, entropy: float, eos_rate: float) -> None:
        """Means over completions: scores, nats per completion, and the share of completions that ended."""
        beta = self.args.beta
        metrics = {
            "objective/scores": score,
            "objective/kl": kl,
            "objective/beta": beta,
            "objective/non_score_reward": -beta * kl,
            "objective/rlhf_reward": score - beta * kl,
            "objective/entropy": entropy,
            "val/eos_rate": eos_rate,
        }
        for name, value in metrics.items():
            self._metrics[mode][name].append(value)
        # The parent's, of GRPO's groups: PPO learns from one completion per prompt too, which has no spread.
        self._metrics[mode].pop("frac_reward_zero_std", None)

    def _replace_logged_advantages(self, advantages: torch.Tensor) -> None:
        """In the completions table, the mean of GAE's instead of the parent's group advantages (0 for one sample)."""
        values = self.accelerator.gather(advantages).tolist()
        logged = self._logs["advantages"]
        for _ in range(min(len(values), len(logged))):
            logged.pop()
        logged.extend(values)

    # ------------------------------------------------------------------ optimizer, save, resume

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """The parent's, with the critic's parameters in groups of their own where they have a learning rate."""
        optimizer = super().create_optimizer(*args, **kwargs)
        if self.args.critic_learning_rate is not None:
            critics = [p for name, p in self.model.named_parameters() if shared.is_critics(name)]
            split_groups(optimizer, critics, lambda rate: self.args.critic_learning_rate)
        return optimizer

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        """The policy alone, as any other trainer would save it; the critic goes beside it."""
        if state_dict is None:
            state_dict = self.accelerator.unwrap_model(self.model).state_dict()
        super()._save(output_dir, {name: x for name, x in state_dict.items() if not shared.is_added(name)})

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The policy in ``output_dir``, the critic's trained weights in ``output_dir/critic``."""
        super().save_model(output_dir, _internal_call)
        weights = {name: self._whole(parameter) for name, parameter in self._critic_parameters().items()}
        if weights and self.args.should_save:
            folder = Path(output_dir or self.args.output_dir) / "critic"
            folder.mkdir(parents=True, exist_ok=True)
            save_file(weights, folder / "critic.safetensors", metadata={"format": "pt"})

    def _critic_parameters(self) -> dict[str, torch.nn.Parameter]:
        named = self.accelerator.unwrap_model(self.model).named_parameters()
        return {name: p for name, p in named if shared.is_critics(name) and p.requires_grad}

    def _whole(self, parameter: torch.nn.Parameter) -> torch.Tensor:
        """A parameter as one tensor on the CPU, whatever has sharded it."""
        with self._dist.gather_params([parameter]):
            tensor = parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter
            return tensor.detach().cpu().clone().contiguous()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        """The parent's, and the critic (DeepSpeed brings all of it back by itself and does not come here)."""
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.args.critic == "none":
            return
        saved = load_file(Path(resume_from_checkpoint) / "critic" / "critic.safetensors")
        with torch.no_grad():
            for name, parameter in self._critic_parameters().items():
                value = saved[name].to(parameter.device, parameter.dtype)
                if hasattr(parameter, "full_tensor"):
                    from torch.distributed.tensor import distribute_tensor

                    value = distribute_tensor(value, parameter.device_mesh, parameter.placements)
                parameter.copy_(value)

    def state_dict(self) -> State:
        """The parent's, and beta, which may have been adapted."""
        return super().state_dict() | {"beta": self.args.beta}

    def load_state_dict(self, state: State) -> None:
        """Continue at the checkpoint's step in the rollout, with its beta.

        Raises:
            UserError: the checkpoint has no beta, so the run could not be continued as it was.
        """
        if "beta" not in state:
            raise UserError("the checkpoint has no state.json with the beta of its step: start anew with --force")
        super().load_state_dict(state)
        self.args.beta = state["beta"]


class AdapterReward:
    """A reward model that is an adapter of the policy's own backbone: a score without a second set of weights.

    Args:
        folder: the reward model's adapter, with its score head.
    """

    def __init__(self, folder: str):
        self.folder = folder
        self.__name__ = Path(folder).name

    def attach(self, trainer: PPOTrainer) -> None:
        """Called by the trainer: load the adapter into its model."""
        self.trainer = trainer
        shared.add_reward_adapter(trainer.model, self.folder)

    def __call__(self, prompts: list, completions: list, **columns: Any) -> list[float]:
        """Scores of complete texts, at their last token, in chunks of the training batch size."""
        trainer = self.trainer
        words = trainer._tokenizer
        prompts = as_trained(prompts, words, self.folder)
        texts = [encode_exchange(words, prompt, text_of(y)) for prompt, y in zip(prompts, completions)]

        def read(every: torch.Tensor, batch: Batch) -> list[float]:
            return every.gather(1, batch.mask.sum(1, keepdim=True) - 1).squeeze(1).float().tolist()

        with trainer._adapters(shared.REWARD), trainer.accelerator.autocast():
            return forward_rows(
                trainer.model, texts, read, batch_size=trainer.args.per_device_train_batch_size,
                pad_token_id=words.pad_token_id, by_length=False, device=trainer.accelerator.device,
                head=shared.REWARD_HEAD,
            )  # fmt: skip


def completion_mask(batch: Rollout) -> torch.Tensor:
    """(B, T), 1 at the tokens that the policy chose: neither padding nor a tool's answer."""
    mask = batch["completion_mask"]
    return mask * batch["tool_mask"] if "tool_mask" in batch else mask


def model_inputs(batch: Rollout) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompt and completion side by side: ids and attention mask, (B, P + T) each."""
    return (
        torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1),
        torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1),
    )


def masked_row_mean(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean of each row over its mask, (B, T) -> (B,); 0 for an empty row."""
    return (x * mask).sum(1) / mask.sum(1).clamp(min=1)


def adapted_beta(beta: float, kl: float, target: float, completions: int, horizon: int) -> float:
    """Ziegler et al. (2019): `beta (1 + clip(KL / target - 1, -0.2, 0.2) completions / horizon)`."""
    error = min(max(kl / target - 1, -0.2), 0.2)
    return beta * (1 + error * completions / horizon)
