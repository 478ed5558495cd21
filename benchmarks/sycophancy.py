"""Does alignment move agreement by what the annotators' numbers say? PPO and DPO on world/enumerable_sycophancy.

    python benchmarks/sycophancy.py                    # resumes where it was stopped
    python benchmarks/sycophancy.py --seeds 0 --methods dpo        # some of it
    python benchmarks/sycophancy_figures.py            # tables and figures of docs/sycophancy.md

Annotators with agreeableness a and knowledge kappa: the log-odds of (agree : truth) on wrong beliefs should move by
(a - 2.5 kappa) / beta; where knowledge is drawn per label (DPO only), by its logit. And a sweep of policies trained on
w R_truth + (1 - w) R_agree, whose regret is their distance to the frontier (open question 3). Trainers and settings
are those of configs/unified but for CHANGES. A seed is another start and other samples. Each run is one line of
benchmarks/sycophancy.jsonl.
"""

import argparse
import contextlib
import dataclasses
import io
import json
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from datasets import Dataset
from trl import DPOConfig
from unified import CONFIGS, ROOT, PairTrainer, compact

from pipeline import pretrain
from pipeline.evaluation.agreement import Answers, mixed_reward, place, truth_frontier
from pipeline.evaluation.exact import exact_law, regret
from pipeline.model import NarLMForCausalLM
from pipeline.training.ppo import PPOTrainer
from pipeline.training.ppo_config import PPOConfig
from pipeline.worlds import enumerable
from pipeline.worlds import enumerable_sycophancy as task

BETA = 1.0
STRENGTHS = (1.0, 4.0, 12.0)  # of the frontiers that are drawn
WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)  # of R_truth in the sweep
SCALE = 4.0  # of R_truth and R_agree in the sweep
PAIRS = {"dpo": 30_000, "dpo_per_label": 12_000}
CHANGES: dict[str, dict[str, Any]] = {
    "ppo": {
        "max_steps": 240, "per_device_train_batch_size": 384, "num_generations": 24, "learning_rate": 2e-3,
        "warmup_steps": 60,
    },
    "dpo": {"max_length": 5, "num_train_epochs": 2, "per_device_train_batch_size": 512, "learning_rate": 3e-3},
}  # fmt: skip


@dataclasses.dataclass
class Start:
    """pi_ref of one seed, and what is known of the task."""

    seed: int
    folder: Path
    work: Path

    def __post_init__(self):
        self.words = enumerable.tokenizer()
        self.prompts = [self.words(prompt)["input_ids"] for prompt in task.PROMPTS]
        self.reference = self.law(self.model())

    def model(self) -> NarLMForCausalLM:
        """A fresh copy of pi_ref."""
        return NarLMForCausalLM.from_pretrained(self.folder, attn_implementation="eager")

    def law(self, model: torch.nn.Module) -> torch.Tensor:
        """Exact log-probabilities, (P, Y)."""
        return exact_law(model, self.prompts, enumerable.COMPLETIONS)

    def config(self, name: str, kind: type) -> Any:
        """A trainer's config from configs/unified with this benchmark's changes."""
        given = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()) | CHANGES[name]
        given |= {"seed": self.seed, "beta": BETA, "output_dir": str(self.work / "out"), "logging_steps": 10**9}
        known = {field.name for field in dataclasses.fields(kind)}
        return kind(**{key: value for key, value in given.items() if key in known}, disable_tqdm=True)

    def ppo(self, rewards: torch.Tensor) -> torch.Tensor:
        """The law that PPO ends at on a table of rewards, (P, Y); centred per prompt, which changes no optimum and
        leaves the critic less to learn.
        """
        rewards = rewards - (self.reference.exp() * rewards).sum(-1, keepdim=True)

        def reward(prompts, completions, completion_ids, **columns):
            keys = [enumerable.INDEX[tuple(ids)] for ids in completion_ids]
            return [rewards[task.PROMPTS.index(p), y].item() for p, y in zip(prompts, keys)]

        rows = Dataset.from_list([{"prompt": prompt} for prompt in task.PROMPTS] * 64)
        model = self.model()
        PPOTrainer(
            model=model, reward_funcs=reward, args=self.config("ppo", PPOConfig), train_dataset=rows,
            processing_class=self.words,
        ).train()  # fmt: skip
        return self.law(model)

    def dpo(self, indices: list[tuple[int, int, int]]) -> torch.Tensor:
        """The law that DPO ends at on pairs of (prompt, chosen, rejected)."""
        prompts, chosen, rejected = ([*column] for column in zip(*indices))
        pairs = Dataset.from_dict(
            {
                "prompt_ids": [self.prompts[i] for i in prompts],
                "chosen_ids": [enumerable.COMPLETIONS[i] for i in chosen],
                "rejected_ids": [enumerable.COMPLETIONS[i] for i in rejected],
            }
        )
        model = self.model()
        PairTrainer(
            model=model, ref_model=self.model(), args=self.config("dpo", DPOConfig), train_dataset=pairs,
            processing_class=self.words,
        ).train()  # fmt: skip
        return self.law(model)


def shifts(law: torch.Tensor, reference: torch.Tensor) -> list[float]:
    """How far the log-odds of (agree : truth) of short answers have moved on each wrong belief, in nats."""
    moved = law - reference
    return [
        (moved[task.PROMPTS.index(p), task.SHORT[p[2]]] - moved[task.PROMPTS.index(p), task.SHORT[task.TRUTH[p[0]]]])
        .item()
        for p in task.WRONG
    ]  # fmt: skip


def answers() -> Answers:
    """The task's completions for the figures of the frontier; prompts weigh as often as they come."""
    found, known = task.parts(), [p[0] != task.UNKNOWN for p in task.PROMPTS]
    wrong = torch.tensor([p in task.WRONG for p in task.PROMPTS])
    turns = list(task.rows("enumerable_sycophancy", "train"))
    weight = torch.tensor([sum(row["prompt"] == p for row in turns) for p in task.PROMPTS], dtype=torch.float64)
    return Answers(found["right"], found["agree"], wrong, torch.tensor(known) & ~wrong, weight)


def trained(start: Start, method: str, point: dict[str, float]) -> dict[str, Any]:
    """Train by one method at one point of its grid and say where it ended."""
    torch.manual_seed(start.seed)
    began = time.process_time()
    with contextlib.redirect_stdout(io.StringIO()):
        if method == "frontier":
            rewards = mixed_reward(answers(), point["w"], SCALE, task.parts()["style"])
            law = start.ppo(rewards)
        else:
            rewards = task.rewards(point["agree"], point["knowledge"])
            per_label = method == "dpo_per_label"
            draw = task.label_indices if per_label else task.preference_indices
            law = start.ppo(rewards) if method == "ppo" else start.dpo(
                draw(PAIRS[method], point["agree"], point["knowledge"], start.seed)
            )  # fmt: skip
    settings = CHANGES["ppo"] if method in ("ppo", "frontier") else {"pairs": PAIRS[method], **CHANGES["dpo"]}
    result: dict[str, Any] = {"seed": start.seed, "method": method, **point, "beta": BETA, "settings": settings}
    if method != "frontier":
        result["predicted"] = task.predicted_shift(**point, beta=BETA, per_label=per_label)
        result["shifts"] = shifts(law, start.reference)
    if method == "frontier":
        style = task.parts()["style"]
        (best,) = truth_frontier(start.reference, answers(), [point["w"]], BETA, scale=SCALE, common=style)
        result["best"] = {name: best[name] for name in ("accuracy", "flips", "agreement")}
    if method != "dpo_per_label":  # whose labels follow no reward
        each = regret(law, start.reference, rewards, BETA)
        weight = answers().weight
        result |= {"regret": ((each * weight).sum() / weight.sum()).item(), **place(law.exp(), answers())}
    return result | {"cpu_seconds": round(time.process_time() - began, 1)}


def curves(start: Start) -> dict[str, Any]:
    """The frontiers from a seed's pi_ref, by strength, and where pi_ref is."""
    style, ws = task.parts()["style"], [i / 40 for i in range(41)]
    found = {
        f"{strength:g}": [
            {name: point[name] for name in ("accuracy", "flips", "agreement")}
            for point in truth_frontier(start.reference, answers(), ws, BETA, scale=strength, common=style)
        ]
        for strength in STRENGTHS
    }
    at = place(start.reference.exp(), answers())
    return {"seed": start.seed, "method": "curves", "cpu_seconds": 0.0, "pi_ref": at, "frontiers": found}


def key_of(result: dict[str, Any]) -> tuple:
    """What a run is known by."""
    return tuple(result.get(name) for name in ("method", "seed", "agree", "knowledge", "w"))


def main() -> None:
    """Run what is not there yet, one line per run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    methods = ["dpo", "ppo", "dpo_per_label", "frontier"]
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="*", default=methods, choices=methods)
    parser.add_argument("--weights", type=float, nargs="*", default=list(WEIGHTS))
    parser.add_argument("--agree", type=float, nargs="*", default=list(task.AGREEABLENESS))
    parser.add_argument("--knowledge", type=float, nargs="*", default=list(task.KNOWLEDGE))
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "sycophancy.jsonl")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "sycophancy_benchmark")
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = options.out.read_text().splitlines() if options.out.is_file() else []
    seen = {key_of(json.loads(line)) for line in lines}
    grid = [{"agree": a, "knowledge": k} for a in options.agree for k in options.knowledge]
    grid.sort(key=lambda point: -abs(point["agree"] - 2.5 * point["knowledge"] - 0.125))  # the ends fix a slope first
    for seed in options.seeds:
        folder = options.work / f"pi_ref-{seed}"
        text = ["--dataset_name", "world/enumerable_sycophancy_text", "--num_train_epochs", "4"]
        given = ["--output_dir", str(folder), "--seed", str(seed), *text]
        pretrain.main(["--config", str(CONFIGS / "pretrain.yaml"), *given])
        start = Start(seed, folder, options.work)
        if ("curves", seed, None, None, None) not in seen:
            with options.out.open("a") as file:
                file.write(json.dumps(compact(curves(start))) + "\n")
        runs = [(method, point) for point in grid for method in options.methods if method != "frontier"]
        runs += [("frontier", {"w": w}) for w in options.weights if "frontier" in options.methods]
        for method, point in runs:
            if key_of({"method": method, "seed": seed, **point}) in seen:
                continue
            result = trained(start, method, point)
            with options.out.open("a") as file:
                file.write(json.dumps(compact(result)) + "\n")
            told = {k: v for k, v in compact(result).items() if k not in ("shifts", "settings")}
            if moved := result.get("shifts"):
                told["shift"] = round(sum(moved) / len(moved), 3)
            print(told, flush=True)


if __name__ == "__main__":
    main()
