"""Memory by formula against memory used: stages on random models of two shapes, on the CPU in float32.

    python benchmarks/memory.py [CASE …]

Each case runs in a process of its own, once with a model of no size, whose peak is that of Python and its libraries,
and once with the real shape; the difference stands beside the formula's sum (without its share for the runtime).
The shapes: SmolLM2-135M's (30 narrow layers, tied head, grouped keys), and 6 wide layers with a head of their own.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from pipeline.runtime.estimate import GIB, SHAPES, Shape, estimate

DEEP = SHAPES["HuggingFaceTB/SmolLM2-135M"]
WIDE = Shape(32000, 1024, 2816, 6, 16, 16, 64, tied=False)
NOTHING = Shape(DEEP.vocab_size // 64, 64, 128, 2, 2, 1, 32, True)
COMMON = {
    "bf16": False, "use_cpu": True, "max_steps": 2, "eval_rows": 0, "save_strategy": "no", "report_to": "none",
    "disable_tqdm": True, "optim": "adamw_torch", "gradient_checkpointing": False, "lora_target_modules": "all-linear",
}  # fmt: skip
LONG = {"per_device_train_batch_size": 2, "max_length": 256}
PAIR = {"per_device_train_batch_size": 1, "max_length": 256}
LORA = {"use_peft": True}
CASES = {
    "sft": ("sft", LONG),
    "sft, checkpointing": ("sft", LONG | {"gradient_checkpointing": True}),
    "sft, LoRA": ("sft", LONG | LORA),
    "dpo": ("dpo", PAIR),
    "dpo, LoRA": ("dpo", PAIR | LORA),
    "dpo, LoRA, two pairs": ("dpo", PAIR | LORA | {"per_device_train_batch_size": 2}),
    "reward_model, LoRA": ("reward_model", PAIR | LORA),
    "sft, wide": ("sft", LONG, WIDE),
    "dpo, LoRA, wide": ("dpo", PAIR | LORA, WIDE),
    "grpo, LoRA": (
        "grpo",
        {
            "per_device_train_batch_size": 8, "max_completion_length": 32, "num_generations": 4, "use_peft": True,
            "reward": "benchmarks.memory:length", "guard_patience": 0, "beta": 0.1,
        },
    ),
}  # fmt: skip


def length(prompts: list, completions: list, **columns) -> list[float]:
    """A reward that costs nothing."""
    return [float(len(text)) for text in completions]


def save_model(shape: Shape, folder: Path) -> None:
    """A Llama of a shape with random weights, and a tokenizer of NarLM's."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from pipeline.model.tokenizer import train_tokenizer

    tokenizer = train_tokenizer(["What is it? " + " ".join(map(str, range(200)))] * 4, 400)
    config = LlamaConfig(
        vocab_size=shape.vocab_size, hidden_size=shape.hidden_size, intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_hidden_layers, num_attention_heads=shape.num_attention_heads,
        num_key_value_heads=shape.num_key_value_heads, tie_word_embeddings=shape.tied, bos_token_id=1, eos_token_id=2,
        pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def peak(stage: str, given: dict, model: Path, folder: Path) -> float:
    """Peak memory of a run in bytes, from its record; every row is as long as the stage takes."""
    long = " ".join(map(str, range(400)))
    rows = [
        {"prompt": f"What is it? {i}"} | row
        for i in range(8)
        for row in [{"sft": {"completion": long}, "grpo": {}}.get(stage, {"chosen": long, "rejected": "x" + long})]
    ]
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = COMMON | given | {"model_name_or_path": model, "dataset_name": data, "output_dir": folder / "run"}
    words = [
        str(w).lower() if isinstance(w, bool) else str(w) for kv in arguments.items() for w in (f"--{kv[0]}", kv[1])
    ]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    command = [sys.executable, f"pipeline/{stage}.py", *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return json.loads((folder / "run" / "run.json").read_text())["peak_memory_bytes"]


def main() -> None:
    """Print one line a case: formula, measured, ratio."""
    with tempfile.TemporaryDirectory() as scratch:
        models = {
            shape: Path(scratch) / name for name, shape in (("nothing", NOTHING), ("deep", DEEP), ("wide", WIDE))
        }
        for shape, folder in models.items():
            save_model(shape, folder)
        print(f"{'case':22} {'formula':>8} {'measured':>9} {'ratio':>6}   GiB", flush=True)
        for number, case in enumerate(sys.argv[1:] or CASES):
            stage, given, shape = (*CASES[case], DEEP)[:3]
            used = {}
            for which in (NOTHING, shape):
                folder = Path(scratch) / f"{number}-{models[which].name}"
                folder.mkdir()
                used[which] = peak(stage, given, models[which], folder)
            told = COMMON | given | ({"max_prompt_length": 16} if stage == "grpo" else {})
            formula = estimate(stage, told, shape).used / GIB
            measured = (used[shape] - used[NOTHING]) / GIB
            print(f"{case:22} {formula:8.2f} {measured:9.2f} {measured / formula:6.2f}", flush=True)


if __name__ == "__main__":
    main()
