"""The figure that a run ends with: loss, accuracy or reward on its held-out rows, with a 95% interval.

Trainer reports a mean over batches and no spread. What an interval needs is taken from the evaluation's own forward
passes, over all processes, and costs none of its own: each row's loss and its tokens, each completion's reward. A
share of pairs needs no more than their number.
"""

import torch
from transformers import Trainer, TrainerCallback

from pipeline.objectives.likelihood import IGNORED
from pipeline.objectives.statistics import mean_interval, ratio_with_interval, wilson_interval, with_interval
from pipeline.runtime.compat import require

ACCURACIES = ("rewards/accuracies", "accuracy")  # TRL's names of the share of pairs in the right order
UNITS = {"loss": "nats per token"}

require("HeldOut")


class HeldOut(TrainerCallback):
    """Collects, in every evaluation of a trainer, what its interval needs.

    Attributes:
        figures: of the last evaluation: ``held_out_<name>``, with ``_low`` and ``_high``, and ``held_out_rows``.
    """

    def __init__(self, trainer: Trainer):
        self.figures: dict[str, float] = {}
        self._trainer = trainer
        self._losses: list[torch.Tensor] = []  # (B, 2) each: sum of -log p over a row's learned tokens, their number
        self._rewards: list[torch.Tensor] = []  # (B, rewards) each; nan where there is no score
        self._shares: list[tuple[float, int]] = []  # of pairs in a batch that are right, and rows in the batch
        if hasattr(trainer, "_calculate_rewards"):
            self._watch_rewards()
        else:
            trainer.model.register_forward_hook(self._see_losses, with_kwargs=True)
            self._watch_shares()

    def on_evaluate(self, args, state, control, **kwargs) -> None:
        """Make the figures of the evaluation that has ended."""
        rows = len(self._trainer.eval_dataset) if hasattr(self._trainer.eval_dataset, "__len__") else 0
        losses, rewards, shares = self._losses, self._rewards, self._shares
        self._losses, self._rewards, self._shares = [], [], []
        if rewards:
            figures = self._reward_figures(torch.cat(rewards).double())
            if not figures:
                self.figures = {}
                return
        elif shares:
            share = sum(value * size for value, size in shares) / sum(size for _, size in shares)
            figures = with_interval("accuracy", share, wilson_interval(share * rows, rows))
        elif losses:
            sums, counts = torch.cat(losses).double().T.tolist()
            if not sum(counts):
                return
            rows = len(sums)
            figures = ratio_with_interval(sums, [int(count) for count in counts])
            del figures["tokens"]
        else:
            return
        self.figures = {f"held_out_{name}": value for name, value in figures.items()} | {"held_out_rows": rows}

    def _reward_figures(self, rewards: torch.Tensor) -> dict[str, float]:
        """The mean of the weighted sum of rewards, (completions, rewards), and of several each one's own mean."""
        total = (rewards * self._trainer.reward_weights.to(rewards)).nansum(1)
        columns = {"reward": total.masked_fill(rewards.isnan().all(1), torch.nan)}
        if rewards.shape[1] > 1:
            names = self._trainer.reward_func_names
            columns |= {f"reward_parts/{name}": column for name, column in zip(names, rewards.T, strict=True)}
        figures: dict[str, float] = {}
        for name, column in columns.items():
            scores = column[~column.isnan()].tolist()
            if scores:
                figures |= with_interval(name, sum(scores) / len(scores), mean_interval(scores))
        return figures if "reward" in figures else {}

    def _see_losses(self, module: torch.nn.Module, args: tuple, kwargs: dict, outputs: object) -> None:
        """A forward hook: TRL's fused head gives log-probabilities of the labels, other heads logits."""
        if module.training:
            return
        if getattr(outputs, "log_probs", None) is not None and getattr(outputs, "label_mask", None) is not None:
            sums, counts = -outputs.log_probs.detach().flatten(1).sum(1), outputs.label_mask.flatten(1).sum(1)
        elif kwargs.get("labels") is not None and getattr(outputs, "logits", None) is not None:
            labels = kwargs["labels"][:, 1:]
            logits = outputs.logits.detach()[:, :-1].float().transpose(1, 2)
            sums = torch.nn.functional.cross_entropy(logits, labels, reduction="none", ignore_index=IGNORED).sum(1)
            counts = (labels != IGNORED).sum(1)
        else:
            return
        rows = torch.stack([sums.float(), counts.float()], dim=1)
        self._losses.append(self._trainer.accelerator.gather_for_metrics(rows).cpu())

    def _watch_rewards(self) -> None:
        calculate = self._trainer._calculate_rewards

        def watched(*args, **kwargs) -> torch.Tensor:
            rewards = calculate(*args, **kwargs)  # (completions of all processes, rewards)
            if not self._trainer.model.training:
                self._rewards.append(rewards.detach().cpu())
            return rewards

        self._trainer._calculate_rewards = watched

    def _watch_shares(self) -> None:
        step = self._trainer.prediction_step

        def watched(model: torch.nn.Module, inputs: dict, *args, **kwargs) -> tuple:
            result = step(model, inputs, *args, **kwargs)
            metrics = getattr(self._trainer, "_metrics", {}).get("eval", {})
            found = next((metrics[name] for name in ACCURACIES if metrics.get(name)), None)
            if found:
                self._shares.append((found[-1], len(next(iter(inputs.values())))))
            return result

        self._trainer.prediction_step = watched


def in_words(metrics: dict[str, float | None]) -> str | None:
    """The held-out figure of a run record's metrics in one line; None where there is none.

    A run's own, such as the reward model's, has the same names.
    """
    for key, name in (
        ("reward_after", "reward"), ("reward", "reward"), ("accuracy", "accuracy"), ("loss", "loss"),
    ):  # fmt: skip
        value, low, high = (metrics.get(f"held_out_{key}{end}") for end in ("", "_low", "_high"))
        if value is None:
            continue
        unit = f" {UNITS[name]}" if name in UNITS else ""
        count = metrics.get("held_out_rows") or metrics.get("held_out_pairs") or metrics.get("held_out_answers")
        rows = f" on {int(count)} rows" if count else ""
        interval = f" (95% interval {low:.4g} to {high:.4g})" if low is not None and high is not None else ""
        before = metrics.get("held_out_reward_before") if key == "reward_after" else None
        was = f", {before:.4g} before" if before is not None else ""
        parts = _parts_in_words(metrics) if name == "reward" else ""
        return f"{name} {value:.4g}{unit}{interval}{rows}{was}{parts}"
    return None


def _parts_in_words(metrics: dict[str, float | None]) -> str:
    """The mean of each of several rewards, and of the parts of a sum (which a trainer logs without an interval)."""
    found: dict[str, float] = {}
    for key, value in metrics.items():
        start, _, name = key.partition("reward_parts/")
        if start in ("eval_", "held_out_") and value is not None and not name.endswith(("_low", "_high")):
            found[name] = value
    return "".join(f"; {name} {value:.4g}" for name, value in found.items())
