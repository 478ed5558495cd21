"""Rules inferred from examples: seen rules, held-out rules and another family, against the exact reader.

    python benchmarks/rules.py --model_dir runs/rules      # some five minutes of a core per seed; resumes by seed

A NarLM learns the values of eight pairs of ``world/modular`` (y = (a x + b) mod 11, 87 of the 110 rules). Trained on
all at once it stays for thousands of steps where values already shown are left out and nothing is inferred, so the
rules come in by and by: STEP times as many whenever the loss after three examples is below LOW. It stops COOL steps
after the last rules are learned, or at MAX_STEPS. What is measured is the evaluation ``prompting``, whose table has
the share of the exact Bayes predictor and the baseline 1/(11 - k). Each seed is one line of benchmarks/rules.jsonl.
"""

import argparse
import json
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from pipeline.evaluation.tasks.prompting import prompting
from pipeline.model import NarLMConfig, NarLMForCausalLM
from pipeline.worlds import modular

ROOT = Path(__file__).resolve().parents[1]
BATCH, MAX_STEPS, WARMUP, COOL = 64, 8_000, 200, 1_000
FIRST, STEP, LOW = 8, 1.5, 0.25  # rules at first; how their number grows; nats per value after three examples
RATE, DECAY, MEMORY = 1.5e-3, 0.02, 0.98  # Adam's peak rate, weight decay, of the running mean of the loss
SHOTS = list(range(modular.PAIRS))
KEPT = ("group", "shots", "n", "accuracy", "accuracy_low", "accuracy_high", "ideal", "baseline", "share_of_ideal")


def build() -> NarLMForCausalLM:
    """A NarLM of two layers with random weights."""
    config = NarLMConfig(
        vocab_size=len(modular.tokenizer()), hidden_size=128, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=512, position_embedding_type="learned", max_position_embeddings=2 * modular.PAIRS + 1,
        initializer_range=0.08, attn_implementation="eager",
    )  # fmt: skip
    return NarLMForCausalLM(config)


def draw(rules: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """BATCH sequences of the given rules, (R, 2): token ids with bos in front, and the ids of their values, (B, P)."""
    rule = rules[torch.randint(len(rules), (BATCH,), generator=generator)]
    x = torch.rand(BATCH, modular.MODULUS, generator=generator).argsort(1)[:, : modular.PAIRS]
    y = (rule[:, :1] * x + rule[:, 1:]) % modular.MODULUS
    first = modular.tokenizer().convert_tokens_to_ids("0")
    return F.pad(torch.stack((x, y), 2).flatten(1) + first, (1, 0), value=1), y + first


def train(model: NarLMForCausalLM, seed: int) -> dict:
    """Train until all rules are learned and COOL steps longer: steps, and when how many rules were in."""
    rules = torch.tensor(modular.rules("seen"))[torch.randperm(len(modular.rules("seen")))]
    generator = torch.Generator().manual_seed(10_000 + seed)
    optimizer = torch.optim.AdamW(model.parameters(), RATE, betas=(0.9, 0.98), weight_decay=DECAY, fused=True)
    count, mean, last, grown = FIRST, 3.0, None, [{"step": 0, "rules": FIRST}]
    for step in range(1, MAX_STEPS + 1):
        left = 1.0 if last is None else max(0.02, 1 - (step - last) / COOL)
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(step / WARMUP, 1) * left
        ids, values = draw(rules[:count], generator)
        losses = F.cross_entropy(model(ids, use_cache=False).logits[:, 1::2].transpose(1, 2), values, reduction="none")
        losses.mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        mean = MEMORY * mean + (1 - MEMORY) * losses[:, 3:].mean().item()
        if mean < LOW and count < len(rules):
            count, mean = min(len(rules), int(count * STEP) + 1), 1.5
            grown.append({"step": step, "rules": count})
        elif mean < LOW and last is None:
            last = step
        if last is not None and step == last + COOL:
            break
    return {"steps": step, "learned": last is not None, "loss_after_three": round(mean, 4), "grown": grown}


def measure(seed: int, folder: Path | None) -> dict:
    """One run: training, and accuracy by the number of examples for each kind of rule."""
    torch.manual_seed(seed)
    started = time.process_time()
    model = build()
    result = {"seed": seed, "parameters": model.num_parameters()} | train(model.train(), seed)
    if folder is not None:
        model.save_pretrained(folder / f"seed-{seed}")
        modular.tokenizer().save_pretrained(folder / f"seed-{seed}")
    return result | {"table": table_of(model.eval()), "cpu_seconds": round(time.process_time() - started, 1)}


def table_of(model: NarLMForCausalLM) -> list[dict]:
    """Accuracy by the number of examples for each kind of rule, with the ideal and the baseline."""
    found = prompting(
        model, modular.tokenizer(), dataset="world/modular", reward="exact", max_new_tokens=1, shots=SHOTS,
        methods={"direct": "{prompt}"}, example_template="{prompt} {completion} ", by="kind", as_chat=False,
    )  # fmt: skip
    return [
        {k: round(v, 4) if isinstance(v, float) else v for k, v in row.items() if k in KEPT}
        for row in found.tables["accuracy by shots"]
        if row["group"] != "all"
    ]


def main() -> None:
    """Run the seeds that are not there yet, one line per seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--model_dir", type=Path, default=None)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "rules.jsonl")
    options = parser.parse_args()
    torch.set_num_threads(1)
    done = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.is_file() else []
    for seed in options.seeds:
        if seed in {row["seed"] for row in done}:
            continue
        result = measure(seed, options.model_dir)
        with options.out.open("a") as file:
            file.write(json.dumps(result) + "\n")
        at = {row["group"]: row for row in result["table"] if row["shots"] == SHOTS[-1]}
        shown = ", ".join(f"{kind} {row['accuracy']:.3f}" for kind, row in at.items())
        print(f"seed {seed}: {result['steps']} steps; after 7 examples {shown}; {result['cpu_seconds']} s", flush=True)


if __name__ == "__main__":
    main()
