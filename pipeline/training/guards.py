"""Guards on reinforcement learning: a run that no longer learns, or learns the wrong thing, says so and stops.

A callback for ``GRPOTrainer`` and our PPO. It reads what they log, warns when a line looks bad, and after ``patience``
bad lines in a row saves a checkpoint and stops the run with one clear message. (``training.finite`` stops every stage
where a number is not finite.)
"""

import math
from collections import deque
from collections.abc import Callable, Sequence
from statistics import fmean

from transformers import TrainerCallback

from pipeline.rewards.judging import Reward
from pipeline.rewards.resolve import strict_metric
from pipeline.runtime.arguments import RolloutArguments
from pipeline.runtime.distributed import agreed
from pipeline.runtime.errors import UserError
from pipeline.training.state import State

Logs = dict[str, float | None]

# Ceilings on the KL where none is given, in nats, by what the trainer logs: GRPO's is a mean over tokens (the k3
# estimator), PPO's a mean over completions.
KL_CEILINGS = {"objective/kl": 50.0, "kl": 1.0}
UNSCORED = "no completion could be scored: look at the verdicts, and at the data's gold answers"
_ENTROPIES = ("objective/entropy", "entropy")


def guards_for(
    rewards: Sequence[Reward], weights: Sequence[float] | None, own: RolloutArguments, *, grouped: bool = True
) -> "Guards":
    """The guards of a stage, which learns from the rewards whose weight is not 0; its verifier is the strict metric.

    Args:
        rewards: as the trainer has them.
        weights: one for each; None for 1 each.
        own: the stage's fields.
        grouped: as in `Guards`.
    """
    learned = [reward for reward, weight in zip(rewards, weights or [1.0] * len(rewards)) if weight]
    strict = strict_metric(rewards, weights)
    return Guards(strict, rewards=learned, grouped=grouped, max_kl=own.max_kl, patience=own.guard_patience)


class Guards(TrainerCallback):
    """Watch a run; see the module's docstring.

    Args:
        strict: the logged metric that measures whether answers are right, such as ``rewards/numeric/mean`` or
            ``reward_parts/numeric``; compared with ``reward`` to notice hacking. None where they are the same.
        rewards: what the run learns from, which say why they gave no score.
        grouped: rewards are compared within the answers to a prompt (GRPO). Else (PPO) within the batch.
        max_kl: ceiling on the KL to the reference, in the unit of the trainer's own metric; None takes KL_CEILINGS.
        patience: bad log lines in a row before the run is stopped; 0 never stops it.
        window: log lines in the means by which hacking is noticed.
        max_clipped: share of completions cut off at ``max_completion_length`` that is too many.
        entropy_floor: share of the first entropy below which the policy has stopped exploring.
        margin: change of a mean in a window that counts as a rise or a fall (of rewards in 0..1).
    """

    def __init__(
        self,
        strict: str | None = None,
        *,
        rewards: Sequence[Reward] = (),
        grouped: bool = True,
        max_kl: float | None = None,
        patience: int = 10,
        window: int = 5,
        max_clipped: float = 0.9,
        entropy_floor: float = 0.05,
        margin: float = 0.1,
    ):
        if patience < 0 or window < 1:
            raise UserError(f"guards: patience must be at least 0 and window at least 1: {patience} and {window}")
        self.rewards = [reward for reward in rewards if hasattr(reward, "no_scores")]
        self.strict, self.grouped, self.max_kl, self.patience = strict, grouped, max_kl, patience
        self.max_clipped, self.entropy_floor, self.margin = max_clipped, entropy_floor, margin
        self.message: str | None = None
        self._bad: dict[str, int] = {}
        self._rewards: deque[float] = deque(maxlen=window)
        self._stricts: deque[float] = deque(maxlen=window)
        self._best: tuple[float, float] | None = None  # (strict, reward) means of the window with the best strict
        self._first: dict[str, float] = {}

    def state_dict(self) -> State:
        """What the log lines so far showed."""
        return {
            "bad": self._bad,
            "rewards": list(self._rewards),
            "stricts": list(self._stricts),
            "best": self._best,
            "first": self._first,
        }

    def load_state_dict(self, state: State) -> None:
        """Continue the counts and the windows of the log lines before the checkpoint."""
        if state:
            self._bad, self._first = state["bad"], state["first"]
            self._best = None if state["best"] is None else tuple(state["best"])
            self._rewards.extend(state["rewards"])
            self._stricts.extend(state["stricts"])

    # --- what is logged ----------------------------------------------------------------------------------------------

    def on_log(self, args, state, control, logs: Logs | None = None, **kwargs) -> None:
        """Check one line of the training log."""
        if logs is None or "reward" not in logs or self.message is not None:
            return
        for name, check in self._checks().items():
            problem = check(logs)
            self._bad[name] = self._bad.get(name, 0) + 1 if problem else 0
            if not problem:
                continue
            if self.patience and self._bad[name] >= self.patience:
                self._bad[name] = 0  # so that a run that is resumed nevertheless has its patience again
                self._stop(f"{problem}, for {self.patience} log lines in a row", control)
                return
            if self._bad[name] == 1 and state.is_world_process_zero:
                print(f"warning: step {state.global_step}: {problem}", flush=True)

    def on_train_end(self, args, state, control, **kwargs) -> None:
        """Raises UserError where a guard stopped the run, after its checkpoint is written, and where no step of a run
        had a score to learn from.
        """
        if self.message is not None:
            raise UserError(f"stopped by a guard: {self.message}; the last checkpoint is in {args.output_dir}")
        scored = any(_number(entry, "reward") is not None for entry in state.log_history)
        for reward in self.rewards:
            called = agreed(bool(reward.counts))
            some = agreed(bool(reward.counts) and reward.no_scores() is None)
            if called and not some and not scored:
                raise UserError(f"nothing could be learned: {reward.no_scores() or UNSCORED}")

    def _stop(self, message: str, control) -> None:
        self.message = self.message or message
        control.should_training_stop = control.should_save = True

    def _checks(self) -> dict[str, Callable[[Logs], str | None]]:
        return {
            "no signal": self._no_signal,
            "truncated": self._truncated,
            "kl": self._far_from_the_reference,
            "hacking": self._hacked,
            "entropy": self._collapsed,
        }

    def _no_signal(self, logs: Logs) -> str | None:
        reward = _number(logs, "reward")
        if reward is None or math.isnan(reward):
            return next((why for r in self.rewards if (why := r.no_scores())), None) or UNSCORED
        share, spread = _number(logs, "frac_reward_zero_std"), _number(logs, "reward_std")
        if self.grouped and share is not None and share > 0.999:
            return (
                f"all answers to each prompt have the same reward (mean {reward:.3g}): nothing can be learned; "
                "prompts too easy or too hard, a verifier that reads another format, or a temperature too low"
            )
        if not self.grouped and spread is not None and spread < 1e-6:
            return f"all rewards are {reward:.3g}: nothing can be learned"
        return None

    def _truncated(self, logs: Logs) -> str | None:
        share = _number(logs, "completions/clipped_ratio")
        if share is not None and share >= self.max_clipped:
            return (
                f"{share:.0%} of the completions are cut off before they end: raise max_completion_length, or see "
                "that the model knows its end-of-turn token"
            )
        return None

    def _far_from_the_reference(self, logs: Logs) -> str | None:
        for name, ceiling in KL_CEILINGS.items():
            ceiling = ceiling if self.max_kl is None else self.max_kl
            value = _number(logs, name)
            if value is not None:
                far = value > ceiling
                return (
                    f"{name} is {value:.3g}, above {ceiling:.3g}: raise beta or lower learning_rate" if far else None
                )
        return None

    def _hacked(self, logs: Logs) -> str | None:
        reward, strict = _number(logs, "reward"), _number(logs, self.strict) if self.strict else None
        if reward is None or strict is None:
            return None
        self._rewards.append(reward)
        self._stricts.append(strict)
        if len(self._rewards) < self._rewards.maxlen:
            return None
        now = (fmean(self._stricts), fmean(self._rewards))
        if self._best is None or now[0] >= self._best[0]:
            self._best = now
        fallen, risen = self._best[0] - now[0], now[1] - self._best[1]
        if fallen > self.margin and risen > self.margin:
            return (
                f"the reward rose by {risen:.2f} while {self.strict} fell by {fallen:.2f} from its best: the policy "
                "is optimising the reward at the expense of the task (reward hacking); lower the weights of the other "
                "parts"
            )
        return None

    def _collapsed(self, logs: Logs) -> str | None:
        name = next((name for name in _ENTROPIES if _number(logs, name) is not None), None)
        quality = _number(logs, self.strict) if self.strict else _number(logs, "reward")
        if name is None or quality is None:
            return None
        first_entropy = self._first.setdefault(name, logs[name])
        first_quality = self._first.setdefault("quality", quality)
        # A policy that became certain because it became right is what training is for.
        if logs[name] < self.entropy_floor * first_entropy and quality < first_quality + self.margin / 2:
            return (
                f"{name} fell from {first_entropy:.3g} to {logs[name]:.3g} without a better reward: the policy "
                "stopped exploring; lower learning_rate, raise temperature or beta"
            )
        return None


def _number(logs: Logs, name: str) -> float | None:
    value = logs.get(name)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
