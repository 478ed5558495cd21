"""How far is each method from the optimum? PPO, RLOO, DPO, RSFT and GRPO on a task whose every completion is known.

    python benchmarks/unified.py                     # 75 minutes of one core; resumes where it was stopped
    python benchmarks/unified.py --seeds 0 --betas 0.5 --methods ppo rloo     # some of it
    python benchmarks/unified_figures.py             # table and figures of docs/unified.md

The trainers are those of the stages and their settings are read from configs/unified, so this is that recipe repeated
over seeds and beta in one process. A seed is another start, another table of rewards and other samples. Each result is
one line of benchmarks/unified.jsonl; the laws themselves go to the work folder, for the figures.

Two shortcuts, neither of which changes a weight: DPO's pairs are handed over as token ids (TRL tokenizes one row at a
time), and rounds of rejection sampling stay in memory.
"""

import argparse
import contextlib
import dataclasses
import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from datasets import Dataset
from transformers import TrainerCallback
from trl import DPOConfig, DPOTrainer, GRPOConfig, SFTConfig, SFTTrainer

from pipeline import pretrain
from pipeline.evaluation.exact import exact_figures, exact_law, prefix_law
from pipeline.model import NarLMForCausalLM
from pipeline.objectives.divergences import tilted_law
from pipeline.rewards.registry import get_reward
from pipeline.training.candidates import read_candidates, sample_candidates, sft_rows
from pipeline.training.ppo import PPOTrainer
from pipeline.training.ppo_config import PPOConfig
from pipeline.training.rollouts import RolloutTrainer
from pipeline.training.selection import Selection
from pipeline.worlds import enumerable

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs" / "unified"
BEST_OF, BEST_GROUPS, BEST_EPOCHS = 16, 256, 8  # of rsft_best: N, groups of N a prompt, epochs (as in the recipe)
KEPT = (
    "reward", "kl", "objective", "optimum", "regret", "regret_nats", "regret_removed", "kl_to_optimum",
    "identity_gap", "mass",
)  # fmt: skip


@dataclasses.dataclass
class Task:
    """One seed at one beta: where everything starts, and what is known about it."""

    seed: int
    beta: float
    start: str  # pi_ref's folder
    work: Path
    changes: dict[str, Any]  # settings laid over a config's

    def __post_init__(self):
        self.words = enumerable.tokenizer()
        self.prompts = [self.words(prompt)["input_ids"] for prompt in enumerable.PROMPTS]
        self.rewards = enumerable.rewards(self.seed)
        self.reference = self.law(self.model())
        self.star = tilted_law(self.reference, self.rewards, self.beta)
        self.reward = get_reward(f"pipeline.worlds.enumerable:reward(seed={self.seed})")
        self.rows = Dataset.from_list(list(enumerable.rows("enumerable", "train")))

    def model(self) -> NarLMForCausalLM:
        """A fresh copy of pi_ref."""
        return NarLMForCausalLM.from_pretrained(self.start, attn_implementation="eager")

    def law(self, model: torch.nn.Module) -> torch.Tensor:
        """Exact log-probabilities, (P, Y)."""
        return exact_law(model, self.prompts, enumerable.COMPLETIONS)

    def figures(self, law: torch.Tensor) -> dict[str, float]:
        """Everything known about a policy; raises where J* - J = beta KL(pi || pi*) does not hold."""
        return exact_figures(law, self.reference, self.rewards, self.beta)

    def config(self, name: str, kind: type, **fixed: Any) -> Any:
        """A trainer's config from configs/unified/<name>.yaml."""
        given = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()) | {"seed": self.seed, "beta": self.beta}
        given |= fixed | self.changes | {"output_dir": str(self.work / "out"), "logging_steps": 10**9}
        known = {field.name for field in dataclasses.fields(kind)}
        return kind(**{key: value for key, value in given.items() if key in known}, disable_tqdm=True)

    def own(self, name: str) -> dict[str, Any]:
        """A config's YAML, for what is the stage's own."""
        return yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()) | self.changes


class Trajectory(TrainerCallback):
    """The exact figures of the policy at about twelve moments of a run, over the completions drawn so far."""

    def __init__(self, task: Task, drawn: Callable[[int], int], points: int = 12):
        self.task, self.drawn, self.points = task, drawn, points
        self.rows: list[dict[str, float]] = []

    def on_step_end(self, args, state, control, model=None, **kwargs) -> None:
        """Called by the trainer."""
        if state.global_step % max(1, state.max_steps // self.points) == 0 or state.global_step == state.max_steps:
            figures = self.task.figures(self.task.law(model))
            row = {name: figures[name] for name in ("reward", "kl", "objective", "regret_removed")}
            self.rows.append({"drawn": self.drawn(state.global_step)} | row)


class PairTrainer(DPOTrainer):
    """TRL's, on pairs that are token ids already."""

    def _prepare_dataset(self, dataset: Dataset, *args: Any) -> Dataset:
        return dataset


def rollouts(task: Task, name: str, trainer: type, kind: type, **fixed: Any) -> tuple[torch.Tensor, list]:
    """PPO, RLOO and GRPO: their trainers on the prompts in turn."""
    config = task.config(name, kind, **fixed)
    each = config.steps_per_generation * config.num_iterations  # optimizer steps on one rollout
    watch = Trajectory(task, lambda step: -(-step // each) * config.generation_batch_size)
    model = task.model()
    trainer(
        model=model, reward_funcs=task.reward, args=config, train_dataset=task.rows, processing_class=task.words,
        callbacks=[watch],
    ).train()  # fmt: skip
    return task.law(model), watch.rows


def dpo(task: Task) -> tuple[torch.Tensor, list]:
    """DPO on Bradley-Terry pairs of the task's rewards."""
    count = task.changes.get("pairs", enumerable.ENUMERABLE["enumerable_preferences"][1])
    columns = zip(*enumerable.preference_indices(count, task.seed))
    prompts, chosen, rejected = ([*column] for column in columns)
    pairs = Dataset.from_dict(
        {
            "prompt_ids": [task.prompts[i] for i in prompts],
            "chosen_ids": [enumerable.COMPLETIONS[i] for i in chosen],
            "rejected_ids": [enumerable.COMPLETIONS[i] for i in rejected],
        }
    )
    config = task.config("dpo", DPOConfig)
    watch = Trajectory(task, lambda step: 2 * step * config.per_device_train_batch_size)
    model = task.model()
    PairTrainer(
        model=model, ref_model=task.model(), args=config, train_dataset=pairs, processing_class=task.words,
        callbacks=[watch],
    ).train()  # fmt: skip
    return task.law(model), watch.rows


def imitate(task: Task, model: Any, rows: list[dict], name: str, watch: Trajectory, **fixed: Any) -> None:
    """SFT in place on token ids."""
    SFTTrainer(
        model=model, args=task.config(name, SFTConfig, completion_only_loss=True, **fixed),
        train_dataset=Dataset.from_list(rows), processing_class=task.words, callbacks=[watch],
    ).train()  # fmt: skip


def rsft(
    task: Task, rule: Selection, rounds: int, n: int, groups_a_prompt: int = 1, **fixed: Any
) -> tuple[torch.Tensor, list]:
    """Rejection sampling in rounds, each from the policy of the round before."""
    rows = [{"prompt": prompt} for _ in range(groups_a_prompt) for prompt in enumerable.PROMPTS]
    model, trajectory = task.model(), []
    for number in range(1, rounds + 1):
        folder = task.work / f"candidates-{task.seed}-{task.beta}-{rule.rule}-{number}"
        files = sample_candidates(
            folder, model, task.words, rows, task.reward, n=n, max_new_tokens=enumerable.LENGTH,
            reference=task.model() if rule.rule == "softmax" and number > 1 else None, prompts_per_file=len(rows),
            seed=task.seed + 100_003 * number, batch_size=task.own("rsft")["sample_batch_size"],
        )  # fmt: skip
        groups = list(read_candidates(files))
        files[0].unlink()
        before = len(rows) * n * number
        watch = Trajectory(task, lambda step, before=before: before, points=4)
        selected = sft_rows(groups, rule, task.words, task.seed + number)
        imitate(task, model, selected, "rsft", watch, **fixed)
        trajectory += watch.rows[-1:]
    return task.law(model), trajectory


def sft(task: Task) -> tuple[torch.Tensor, list]:
    """SFT on exact samples of pi*: what imitation of the answer itself would reach."""
    count = task.changes.get("samples", 8192)
    generator = torch.Generator().manual_seed(task.seed)
    drawn = torch.multinomial(task.star.exp(), count, replacement=True, generator=generator)  # (P, count)
    rows = []
    for x, indices in zip(task.prompts, drawn.tolist()):
        for ids in (enumerable.COMPLETIONS[i] for i in indices):
            rows.append({"input_ids": [*x, *ids], "completion_mask": [0] * len(x) + [1] * len(ids)})
    model = task.model()
    watch = Trajectory(task, lambda step: len(rows))
    imitate(task, model, rows, "sft", watch)
    return task.law(model), watch.rows[-1:]


def softmax_rule(task: Task) -> Selection:
    """Softmax selection at tau = beta, as many draws as candidates."""
    return Selection("softmax", tau=task.beta, draws=task.own("rsft")["draws"])


METHODS: dict[str, Callable[[Task], tuple[torch.Tensor, list]]] = {
    "ppo": lambda task: rollouts(task, "ppo", PPOTrainer, PPOConfig),
    "rloo": lambda task: rollouts(task, "rloo", PPOTrainer, PPOConfig),
    "grpo": lambda task: rollouts(task, "grpo", RolloutTrainer, GRPOConfig),
    "grpo_uncorrected": lambda task: rollouts(task, "grpo", RolloutTrainer, GRPOConfig, use_bias_correction_kl=False),
    "dpo": dpo,
    "rsft_softmax": lambda task: rsft(
        task, softmax_rule(task), task.own("rsft")["rounds"], task.own("rsft")["num_candidates"]
    ),
    "rsft_best": lambda task: rsft(task, Selection("best"), 1, BEST_OF, BEST_GROUPS, num_train_epochs=BEST_EPOCHS),
    "sft": sft,
}


def measure(task: Task, method: str) -> dict[str, Any]:
    """Train by one method and say where it ended."""
    torch.manual_seed(task.seed)
    started, cpu = time.perf_counter(), time.process_time()
    with contextlib.redirect_stdout(io.StringIO()):
        law, trajectory = METHODS[method](task)
    result = {"seed": task.seed, "beta": task.beta, "method": method}
    result |= {name: value for name, value in task.figures(law).items() if name in KEPT}
    group = task.own("grpo")["num_generations"]
    for corrected in (True, False):
        own = prefix_law(
            task.reference, task.rewards, enumerable.COMPLETIONS, task.beta, corrected=corrected, group=group
        )
        name = "corrected" if corrected else "uncorrected"
        result[f"kl_to_{name}_law"] = (law.exp() * (law - own)).sum(1).mean().item()
        result[f"{name}_law_removes"] = task.figures(own)["regret_removed"]
    seconds = {"cpu_seconds": round(time.process_time() - cpu, 1), "seconds": round(time.perf_counter() - started, 1)}
    torch.save({"law": law, "star": task.star, "reference": task.reference}, task.work / f"{tag(result)}.pt")
    return result | seconds | {"trajectory": trajectory}


def tag(result: dict[str, Any]) -> str:
    """A name for one result."""
    return f"{result['method']}-{result['seed']}-{result['beta']}"


def compact(value: Any) -> Any:
    """Floats with six digits, to keep the committed file small."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: compact(item) for key, item in value.items()}
    return [compact(item) for item in value] if isinstance(value, list) else value


def main() -> None:
    """Run what is not there yet, one line per result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2, 3, 4])
    parser.add_argument("--betas", type=float, nargs="*", default=[0.5, 0.1, 1.0])
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "unified.jsonl")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "unified_benchmark")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="try another setting")
    options = parser.parse_args()
    torch.set_num_threads(1)
    done = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.is_file() else []
    seen = {tag(result) for result in done}
    changes = {key: yaml.safe_load(value) for key, _, value in (text.partition("=") for text in options.set)}
    for seed in options.seeds:
        start = ["--output_dir", str(options.work / f"pi_ref-{seed}"), "--seed", str(seed)]
        pretrain.main(["--config", str(CONFIGS / "pretrain.yaml"), *start])
    for beta in options.betas:
        for seed in options.seeds:
            task = Task(seed, beta, str(options.work / f"pi_ref-{seed}"), options.work, changes)
            for method in options.methods:
                if tag({"seed": seed, "beta": beta, "method": method}) in seen:
                    continue
                result = measure(task, method)
                with options.out.open("a") as file:
                    file.write(json.dumps(compact(result)) + "\n")
                print(
                    f"seed {seed} beta {beta} {method:17s} removes {100 * result['regret_removed']:6.2f}% of the "
                    f"regret, KL {result['kl']:.3f}, {result['cpu_seconds']} s",
                    flush=True,
                )


if __name__ == "__main__":
    main()
