"""When does learning in context appear? Depth, width, number of training maps, and whether keys come again.

    python benchmarks/in_context.py                  # some 15 minutes of a quiet core; resumes where it was stopped
    python benchmarks/in_context.py --cells depth-1 depth-2 --seeds 0         # some of it
    python benchmarks/in_context_figures.py          # tables and figure of docs/experiments.md

A NarLM learns the values of sequences of ``world/maps`` (``pipeline/worlds/maps.py``) until its loss on new sequences
of its own training data is within CLOSE nats of the exact floor, what a reader who knows how they were drawn would
have, or for MAX_STEPS. So cells are compared at equal distance to their floors, not at equal steps. What is measured
then is the evaluation ``in_context`` on maps that no training sequence had, and on the training maps where there are
finitely many. A seed is another start and other sequences. Each run is one line of benchmarks/in_context.jsonl.
"""

import argparse
import dataclasses
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from pipeline.evaluation.tasks.in_context import in_context
from pipeline.model import NarLMConfig, NarLMForCausalLM
from pipeline.worlds import maps

ROOT = Path(__file__).resolve().parents[1]
BATCH, MAX_STEPS, WARMUP, EVERY = 32, 1200, 100, 100
CLOSE = 0.1  # nats per value above the floor
TESTED, CHECKED = 300, 256  # rows of the evaluation; sequences of the stopping rule
HEAD_DIM = 16
MEASURED = (
    "accuracy", "accuracy_low", "accuracy_high", "copy_baseline", "over_copy", "loss", "induction",
    "induction_uniform",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Cell:
    """One cell of the grid: L, d, how many training maps (None: a new one per sequence), and whether keys recur."""

    depth: int = 2
    width: int = 64
    count: int | None = None
    once: bool = False

    @property
    def learning_rate(self) -> float:
        """Peak rate of Adam, smaller for wider models; it falls to 0 over MAX_STEPS."""
        return 0.004 * math.sqrt(64 / self.width)


CELLS = {  # by what is most wanted, should time run out
    "depth-1": Cell(depth=1),
    "depth-2": Cell(),
    "maps-4": Cell(count=4),
    "once": Cell(once=True),
    "depth-3": Cell(depth=3),
    "maps-64": Cell(count=64),
    "width-32": Cell(width=32),
    "maps-16": Cell(count=16),
    "maps-4-once": Cell(count=4, once=True),
    "depth-4": Cell(depth=4),
    "maps-256": Cell(count=256),
    "width-128": Cell(width=128),
    "depth-1-width-128": Cell(depth=1, width=128),
}


def build(cell: Cell) -> NarLMForCausalLM:
    """A NarLM of the cell's shape with random weights. Learned positions: a head for the token before forms sooner."""
    config = NarLMConfig(
        vocab_size=maps.VOCABULARY, hidden_size=cell.width, num_hidden_layers=cell.depth,
        num_attention_heads=cell.width // HEAD_DIM, intermediate_size=2 * cell.width,
        position_embedding_type="learned", max_position_embeddings=2 * maps.PAIRS + 1, initializer_range=0.1,
    )  # fmt: skip
    return NarLMForCausalLM(config)


def value_losses(model: NarLMForCausalLM, sequences: maps.Sequences) -> torch.Tensor:
    """-log p of every value, (N, P), in nats; bos is in front, as in the world's texts."""
    tokens = F.pad(sequences.tokens, (1, 0), value=1)
    logits = model(tokens, use_cache=False).logits[:, 1::2]  # at the keys
    return F.cross_entropy(logits.transpose(1, 2), tokens[:, 2::2], reduction="none")


def train(cell: Cell, model: NarLMForCausalLM, seed: int) -> dict[str, Any]:
    """Train to the floor or for MAX_STEPS: loss and floor on new sequences of the training data, steps, trajectory."""
    known = None if cell.count is None else maps.training_maps(cell.count)
    drawn = torch.Generator().manual_seed(10_000 + seed)
    check = maps.draw(CHECKED, torch.Generator().manual_seed(20_000 + seed), maps=known, once=cell.once)
    floor = -maps.ideal_log_probs(check, known).mean().item()
    optimizer = torch.optim.AdamW(
        model.parameters(), cell.learning_rate, betas=(0.9, 0.99), weight_decay=0, fused=True
    )
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min((step + 1) / WARMUP, 1 - step / MAX_STEPS))
    trajectory = []
    for step in range(1, MAX_STEPS + 1):
        value_losses(model, maps.draw(BATCH, drawn, maps=known, once=cell.once)).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        rate.step()
        if step % EVERY == 0:
            with torch.no_grad():
                loss = value_losses(model, check).mean().item()
            trajectory.append({"step": step, "loss": loss})
            if loss < floor + CLOSE:
                break
    return {"steps": step, "reached": loss < floor + CLOSE, "loss": loss, "floor": floor, "trajectory": trajectory}


def measure(cell: Cell, seed: int) -> dict[str, Any]:
    """One run: what was trained, and what it does on new maps and on its own."""
    torch.manual_seed(seed)
    started = time.process_time()
    model = build(cell)
    result = {"seed": seed, "parameters": model.num_parameters()} | train(cell, model, seed)
    splits = {"new": ("maps", "test")} | ({} if cell.count is None else {"own": (f"maps-{cell.count}", "train")})
    for name, (world, split) in splits.items():
        found = in_context(model, maps.tokenizer(), dataset=f"world/{world}", split=split, limit=TESTED)
        result[name] = {key: found.metrics[key] for key in MEASURED}
        result[name]["showings"] = found.curves["accuracy over showings"]
    return result | {"cpu_seconds": round(time.process_time() - started, 1)}


def compact(value: Any) -> Any:
    """Floats with four digits, to keep the committed file small."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: compact(item) for key, item in value.items()}
    return [compact(item) for item in value] if isinstance(value, list) else value


def main() -> None:
    """Run what is not there yet, one line per run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--cells", nargs="*", default=list(CELLS), choices=list(CELLS))
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "in_context.jsonl")
    options = parser.parse_args()
    torch.set_num_threads(1)
    done = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.is_file() else []
    seen = {(row["cell"], row["seed"]) for row in done}
    for name in options.cells:
        for seed in options.seeds:
            if (name, seed) in seen:
                continue
            result = {"cell": name} | dataclasses.asdict(CELLS[name]) | measure(CELLS[name], seed)
            with options.out.open("a") as file:
                file.write(json.dumps(compact(result)) + "\n")
            new = result["new"]
            print(
                f"seed {seed} {name:18s} {result['steps']} steps, loss {result['loss']:.3f} (floor "
                f"{result['floor']:.3f}); new maps: accuracy {new['accuracy']:.3f}, copying "
                f"{new['copy_baseline']:.3f}, induction {new['induction']:.2f}; {result['cpu_seconds']} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
