"""Open question 1: can training keep a wrong context from spreading, without unlearning to read?

    python benchmarks/propagation.py                      # the arms of one seed; resumes where it was stopped
    python benchmarks/propagation.py --arms baseline corrupted --seeds 1 2 3

Arms, on the same documents of ``world/corpus-persistent``, in which a person's stated value persists:

    baseline    next-token loss
    corrupted   10% of the statements that are made again later get another value in the input; what follows is learned
                as it was, the replaced value is not learned (``world/corpus-persistent-10``); corrupted-30: 30%
    penalty     + PENALTY * E[q(delta) / |delta|^2] where a stated value of a known person is swapped: delta is the
                difference of the embeddings, q the Fisher form at the next token (``objectives.divergences``)
    leak        every layer is (1 - LEAK) h + block(h), in training and after it: a negative control, for the next
                norm undoes it

Each run is one line of benchmarks/propagation.jsonl: rho of the families of ``world/errors``, what is false after an
injection, held-out loss and reading accuracy.
"""

import argparse
import contextlib
import json
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from transformers import PreTrainedTokenizerBase

from pipeline.data.packing import pack
from pipeline.evaluation.tasks.accuracy import accuracy
from pipeline.evaluation.tasks.dynamics import dynamics
from pipeline.evaluation.tasks.loss import loss
from pipeline.inference.jacobian import decoder_layers, push_forward
from pipeline.model import NarLMConfig, NarLMForCausalLM
from pipeline.model.batching import pad_right
from pipeline.model.loading import load_tokenizer
from pipeline.model.tokenizer import train_tokenizer
from pipeline.model.tokens import encode_prompts
from pipeline.objectives.divergences import fisher_form
from pipeline.runtime.entry import keep_freed_memory
from pipeline.worlds.table import load_world

ROOT = Path(__file__).resolve().parents[1]
ARMS = ("baseline", "corrupted", "corrupted-30", "penalty", "leak")
CORPORA = {"corrupted": "corpus-persistent-10", "corrupted-30": "corpus-persistent-30"}
BATCH, STEPS, WARMUP, RATE, LENGTH, VOCABULARY = 16, 800, 100, 3e-3, 128, 768
PENALTY, SWAPS, LEAK = 1.0, 8, 0.1
SHAPE = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "position_embedding_type", "norm_type", "ffn_type", "tie_word_embeddings", "initializer_range",
)  # fmt: skip


class Swaps(NamedTuple):
    """Contexts whose last token comes before a value stated earlier: ids and mask (N, T), the same with another value
    stated, and the place of the last token, (N,).
    """

    ids: torch.Tensor
    mask: torch.Tensor
    swapped: torch.Tensor
    last: torch.Tensor


def swaps(tokenizer: PreTrainedTokenizerBase) -> Swaps:
    """The known people of the training split whose two values are equally many tokens."""
    rows = [row for row in load_world("errors", "train").to_list() if row["family"] == "known"]
    pairs = zip(*(encode_prompts(tokenizer, [row[name] for row in rows]) for name in ("prompt", "injected")))
    same = [(x, y) for x, y in pairs if len(x) == len(y)]
    ids, mask = pad_right([x for x, _ in same], "cpu")
    return Swaps(ids, mask, pad_right([y for _, y in same], "cpu")[0], mask.sum(1) - 1)


def penalty(model: NarLMForCausalLM, swaps: Swaps, chosen: torch.Tensor) -> torch.Tensor:
    """E[q(delta) / |delta|^2] at the last token of the chosen contexts, a scalar that can be minimised."""
    ids, mask, swapped, last = (tensor[chosen] for tensor in swaps)
    embed = model.get_input_embeddings()
    clean = embed(ids)
    delta = (embed(swapped) - clean).detach()
    pushed = push_forward(model, clean, mask, delta)
    rows = torch.arange(len(ids))
    q = fisher_form(pushed.logits[rows, last], pushed.logits_moved[rows, last])
    return (q / delta.square().sum((1, 2))).mean()


@contextlib.contextmanager
def leaking(model: NarLMForCausalLM, share: float) -> Iterator[None]:
    """Inside, every layer gives (1 - share) h + block(h) instead of h + block(h)."""
    hooks = [
        layer.register_forward_hook(lambda _, given, output: output - share * given[0])
        for layer in (decoder_layers(model) if share else ())
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def build(tokenizer: PreTrainedTokenizerBase, seed: int) -> NarLMForCausalLM:
    """The quickstart's model with random weights."""
    given = yaml.safe_load((ROOT / "configs" / "quickstart" / "pretrain.yaml").read_text())
    torch.manual_seed(seed)
    config = NarLMConfig(
        **{name: given[name] for name in SHAPE}, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    return NarLMForCausalLM._from_config(config, attn_implementation="eager")


def train(arm: str, tokenizer: PreTrainedTokenizerBase, seed: int, steps: int) -> NarLMForCausalLM:
    """An arm's model after ``steps`` batches of BATCH blocks of LENGTH tokens."""
    model = build(tokenizer, seed)
    blocks = pack(load_world(CORPORA.get(arm, "corpus-persistent")), tokenizer, LENGTH).with_format("torch")
    drawn = torch.Generator().manual_seed(seed)
    order = torch.cat([torch.randperm(len(blocks), generator=drawn) for _ in range(1 + steps * BATCH // len(blocks))])
    contexts = swaps(tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), RATE, betas=(0.9, 0.98), weight_decay=0.05, fused=True)
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / WARMUP, 0.515 + 0.485 * math.cos(math.pi * step / steps))
    )
    with leaking(model, LEAK if arm == "leak" else 0.0):
        for step in range(steps):
            batch = blocks[order[step * BATCH : (step + 1) * BATCH].tolist()]
            nats = objective = model(**batch, use_cache=False).loss
            if arm == "penalty":
                chosen = torch.randint(len(contexts.ids), (SWAPS,), generator=drawn)
                objective = nats + PENALTY * penalty(model, contexts, chosen)
            objective.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            rate.step()
            if step % 100 == 99:
                print(f"  {arm}, seed {seed}: step {step + 1}, loss {nats.item():.3f}", flush=True)
    return model.eval()


def measure(model: NarLMForCausalLM, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """rho of every family with what is false after the injection, held-out loss and reading, with their intervals."""
    errors = dynamics(model, tokenizer, dataset="world/errors", n=0, max_new_tokens=1, hold=1).metrics
    families: dict[str, dict[str, float]] = {}
    for name, value in errors.items():
        family, _, figure = name.partition("/exact_")
        if figure.startswith(("rho", "truth", "hall")):
            families.setdefault(family, {})[figure] = value
    held_out = loss(model, tokenizer, dataset="world/corpus-persistent", split="test", batch_size=64).metrics
    reading = accuracy(
        model, tokenizer, dataset="world/reading", where={"kind": "with passage"}, reward="exact", max_new_tokens=8
    ).metrics  # fmt: skip
    kept = ("", "_low", "_high")
    return {
        "families": families,
        **{f"loss{end}": held_out[f"loss{end}"] for end in kept},
        **{f"reading{end}": reading[f"accuracy{end}"] for end in kept},
    }


def run(arm: str, seed: int, folder: Path) -> dict[str, Any]:
    """One line: an arm is trained, unless its weights are there, and measured."""
    started = time.process_time()
    place = folder / "tokenizer"
    if not place.is_dir():
        train_tokenizer(load_world("corpus-persistent")["text"], VOCABULARY).save_pretrained(place)
    tokenizer, weights = load_tokenizer(str(place)), folder / f"{arm}-{seed}"
    if weights.is_dir():
        model = NarLMForCausalLM.from_pretrained(weights, attn_implementation="eager").eval()
    else:
        model = train(arm, tokenizer, seed, STEPS)
        model.save_pretrained(weights)
    with leaking(model, LEAK if arm == "leak" else 0.0):
        found = measure(model, tokenizer)
    spent = round(time.process_time() - started, 1)
    return {"arm": arm, "seed": seed, "steps": STEPS, **found, "cpu_seconds": spent}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The runs as a table of docs/experiments.md."""
    families = list(rows[0]["families"])
    heads = ["arm", "seed", *(f"rho, {family}" for family in families), "false after it, known", "loss", "reading"]
    lines = [heads, ["---"] * len(heads)]
    for row in sorted(rows, key=lambda row: (ARMS.index(row["arm"]), row["seed"])):
        known = row["families"]["known"]
        cells = [_cell(found, "rho") for found in row["families"].values()]
        lines.append(
            [row["arm"], str(row["seed"]), *cells, _cell(known, "hall"), _cell(row, "loss"), _cell(row, "reading")]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _cell(found: dict[str, float], name: str) -> str:
    return f"{found[name]:.3f} [{found[f'{name}_low']:.3f}, {found[f'{name}_high']:.3f}]"


def main() -> None:
    """Run what is not there yet, one line per run, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="*", default=[1])
    parser.add_argument("--arms", nargs="*", default=list(ARMS), choices=ARMS)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "propagation.jsonl")
    parser.add_argument("--models", type=Path, default=ROOT / "runs" / "propagation", help="where weights are kept")
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    rows = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.is_file() else []
    for arm in options.arms:
        for seed in options.seeds:
            if (arm, seed) in {(row["arm"], row["seed"]) for row in rows}:
                continue
            rows.append(run(arm, seed, options.models))
            with options.out.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
