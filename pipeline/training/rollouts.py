"""What GRPO and PPO share in how prompts become rollouts: an order that survives a resume, enough of them, and a
first one that is checked to come from the policy that is trained."""

import logging
import math
from typing import Any

import datasets
import torch
from trl import GRPOTrainer

from pipeline.inference.stopping import declare_stops
from pipeline.runtime.compat import RepeatSampler, require
from pipeline.runtime.errors import UserError
from pipeline.runtime.files import Json
from pipeline.training.state import Resumable, State

require("RolloutTrainer")

Rollout = dict[str, Any]  # tensors (B, T) and what TRL adds to them

# TRL prints five lines for every batch in which a completion has no score; the guards report it once, with the reason.
logging.getLogger("trl.trainer.grpo_trainer").addFilter(
    lambda record: "All reward functions returned None" not in record.getMessage()
)


class EpochSampler(RepeatSampler):
    """TRL's sampler, whose order otherwise depends on how many epochs this very process has seen."""

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate's dataloader at the start of each epoch."""
        if self.shuffle:
            self.generator.manual_seed(self.seed + epoch)


# What TRL keeps of the images of a rollout, for the log-probabilities of its completions.
SEEN = (
    "pixel_values", "num_images", "num_tiles", "image_grid_thw", "pixel_attention_mask", "spatial_shapes",
    "image_sizes", "token_type_ids", "mm_token_type_ids", "image_position_ids",
)  # fmt: skip
MAX_SURPRISE_GAP = 0.05  # nats per token, beyond what chance explains (six standard errors)
MAX_LOG_PROB_GAP = 0.1  # nats per token; bf16 kernels of vLLM and of transformers differ by a tenth of that


class RolloutTrainer(Resumable, GRPOTrainer):
    """GRPOTrainer that resumes on the prompts it would have seen, and refuses data that cannot fill a rollout.

    The first rollout is checked against the trainer's own log-probabilities (`rollout_problem`), whoever sampled it:
    a vLLM with other weights, or a sampler with another temperature, would make every later gradient wrong. How far
    they were from each other, in nats per token, is kept in ``rollout_gap``.

    A completion ends at the first of `stop_token_ids`; the parent and vLLM know those of the generation config alone.

    Raises:
        UserError: fewer prompts than one rollout takes (TRL's sampler would leave them all out and train nothing), or
            a first rollout that was not drawn from the policy.
    """

    rollout_gap: float | None = None

    def __init__(self, **kwargs: Any):
        args, dataset = kwargs["args"], kwargs["train_dataset"]
        processing = kwargs["processing_class"]
        tokenizer = getattr(processing, "tokenizer", processing)  # of a processor, for a model that sees
        stops = declare_stops(kwargs["model"], tokenizer, next(iter(dataset), {}))
        given = kwargs["reward_funcs"]
        self._own_rewards = len(given) if isinstance(given, list) else 1  # those of an environment come behind them
        if args.use_vllm:
            args.generation_kwargs = {"stop_token_ids": stops} | (args.generation_kwargs or {})
        super().__init__(**kwargs)
        needed = self.args.generation_batch_size // self.num_generations
        if hasattr(self.train_dataset, "__len__") and len(self.train_dataset) < needed:
            raise UserError(
                f"a rollout takes {needed} prompts (generation_batch_size {self.args.generation_batch_size} / "
                f"num_generations {self.num_generations}), the data has {len(self.train_dataset)}: raise "
                "num_generations, or make the rollout smaller"
            )

    def _get_train_sampler(self, dataset: datasets.Dataset | None = None) -> RepeatSampler:
        """The parent's, its order a matter of the epoch alone: a resumed run sees the prompts it would have."""
        sampler = super()._get_train_sampler(dataset)
        sampler.__class__ = EpochSampler
        return sampler

    def state_dict(self) -> State:
        """The step within the rollout: a resumed run samples that rollout anew, and the next one when it is due."""
        return {"step": self._step}

    def load_state_dict(self, state: State) -> None:
        """Continue at the step of the checkpoint."""
        self._step = state.get("step", 0)

    def _determine_best_metric(self, metrics: dict[str, float | None], trial: object) -> bool:
        """The parent's; an evaluation in which nothing could be scored has no metric and is not the best."""
        name = self.args.metric_for_best_model
        names = () if name is None else (name, f"eval_{name}")
        if any(key in metrics and metrics[key] is None for key in names):
            return False
        return super()._determine_best_metric(metrics, trial)

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The parent's, (completions of all processes, rewards); nan in all where a reward that counts has no score:
        the completion teaches nothing. The parent's sum would count a missing part as 0.
        """
        rewards = super()._calculate_rewards(*args, **kwargs)
        counts = self.reward_weights[: self._own_rewards] != 0
        missing = rewards[:, : self._own_rewards][:, counts.to(rewards.device)].isnan().any(1)
        return rewards.masked_fill(missing[:, None], torch.nan)

    def reward_parts(self) -> dict[str, float]:
        """``reward_parts/<name>``: the last logged mean of every reward, where there are several, and of the parts of
        a sum.
        """
        last: dict[str, float] = {}
        for entry in self.state.log_history:
            last |= {name: value for name, value in entry.items() if value is not None}
        found = {name: value for name, value in last.items() if name.startswith("reward_parts/")}
        if len(self.reward_func_names) > 1:
            named = {f"reward_parts/{name}": last.get(f"rewards/{name}/mean") for name in self.reward_func_names}
            found |= {name: value for name, value in named.items() if value is not None}
        return found

    @torch.no_grad()
    def _generate_and_score_completions(self, inputs: list[Json]) -> Rollout:
        """The parent's rollout; the first one of training is checked."""
        output = super()._generate_and_score_completions(inputs)
        if self.model.training and self.rollout_gap is None:
            self._check_rollout(output)
        return output

    def _check_rollout(self, output: Rollout) -> None:
        mask = output["completion_mask"].bool()
        # Truncated completions may be masked out of the loss; left out here, those that end early would be too many.
        ended = torch.isin(output["completion_ids"], torch.tensor(self.eos_token_ids, device=mask.device)).long()
        mask = torch.where(mask.any(1, keepdim=True), mask, ended.cumsum(1) == ended)
        attention = torch.cat([output["prompt_mask"], mask.to(output["prompt_mask"].dtype)], dim=1)
        if output.get("tool_mask") is not None:
            mask = mask & output["tool_mask"].bool()
        was_training = self.model.training
        self.model.eval()
        log_probs, entropies, _ = self._get_per_token_logps_and_entropies(
            self.model,
            torch.cat([output["prompt_ids"], output["completion_ids"]], dim=1),
            attention,
            output["completion_ids"].size(1),
            self.args.per_device_train_batch_size,
            compute_entropy=True,
            **{name: output[name] for name in SEEN if name in output},
        )
        self.model.train(was_training)
        sums = rollout_sums(log_probs, entropies, mask, output.get("sampling_per_token_logps"))
        # All processes decide by the same numbers: one that stopped alone would leave the others waiting.
        sums = self.accelerator.gather(sums[None]).sum(0)
        full_support = self.args.top_p in (None, 1.0) and not self.args.top_k and not self.args.min_p
        full_support = full_support and self.args.repetition_penalty in (None, 1.0)
        self.rollout_gap, problem = rollout_problem(sums, full_support=full_support)
        if problem:
            raise UserError(problem)


def rollout_sums(
    log_probs: torch.Tensor, entropies: torch.Tensor, mask: torch.Tensor, sampled: torch.Tensor | None
) -> torch.Tensor:
    """What `rollout_problem` needs, as sums over tokens, which add up over processes.

    Args:
        log_probs: (B, T), the trainer's log-probabilities of the sampled tokens.
        entropies: (B, T), of the trainer's distributions, in nats.
        mask: (B, T), true for sampled tokens.
        sampled: (B, T), the sampler's own log-probabilities, where it reports them; nan where it does not.

    Returns:
        (5,): tokens, sum and sum of squares of ``-log pi(y_t) - H_t``, tokens that the sampler scored, and the sum of
        ``|log pi_trainer - log pi_sampler|`` over them.
    """
    surprise = (-log_probs - entropies)[mask].double()
    both, difference = torch.zeros(1), torch.zeros(1)
    if sampled is not None:
        difference = (log_probs - sampled)[mask].double().abs()
        difference = difference[~difference.isnan()]
        both = torch.ones_like(difference)
    parts = (torch.ones_like(surprise), surprise, surprise**2, both, difference)
    return torch.stack([part.sum().to(log_probs.device) for part in parts])


def rollout_problem(sums: torch.Tensor, *, full_support: bool) -> tuple[float, str | None]:
    """How far a rollout is from the policy that is trained, in nats per token, and the message where that is too far.

    Two checks. If y_t is drawn from pi, ``-log pi(y_t) - H(pi)`` has mean 0: that needs nobody's log-probabilities,
    so it holds for any sampler, and its tolerance is its standard error. And where the sampler reports its
    log-probabilities, as vLLM does, they are the trainer's.

    Args:
        sums: of `rollout_sums`.
        full_support: the sampler draws from all of the distribution (no top-p, top-k or penalty), so that the first
            check applies.
    """
    count, total, squares, both, difference = sums.double().tolist()
    mean = total / max(count, 1)
    error = math.sqrt(max(squares / max(count, 1) - mean**2, 0) / max(count, 1))
    gap = difference / both if both else 0.0
    if gap > MAX_LOG_PROB_GAP:
        return gap, (
            f"the sampler's log-probabilities differ from the trainer's by {gap:.2f} nats per token in the first "
            "rollout: it serves other weights, another dtype or another temperature; check vllm_mode and its server"
        )
    if full_support and count >= 64 and abs(mean) > max(MAX_SURPRISE_GAP, 6 * error):
        side = "less" if mean < 0 else "more"
        return abs(mean), (
            f"the first rollout was not drawn from the policy: its tokens are {abs(mean):.2f} nats {side} surprising "
            "than its own entropy; check temperature, the model's generation_config and the sampler's weights"
        )
    return max(gap, abs(mean) if full_support else 0.0), None
