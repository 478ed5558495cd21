"""Memory by formula against memory used: stages on random models of two shapes, on the CPU in float32.

    python benchmarks/memory.py [CASE …]

Each case runs in a process of its own, and the first of its stage once more with a model of no size, whose peak is
that of Python and its libraries; the difference is beside the formula's sum (without its share for the runtime).
What is freed is given back at once, so that the peak is what is in use, as ``torch.cuda.max_memory_allocated`` has it
on a GPU; left to itself, glibc keeps freed memory and holes between what is in use.
The shapes: SmolLM2-135M's (30 narrow layers, tied head, grouped keys), and 6 wide layers with a head of their own.
"""

import json
import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

from pipeline.recipes.estimate import GIB, estimate
from pipeline.recipes.shapes import SHAPES, Shape

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
SAMPLED = {
    "per_device_train_batch_size": 8, "max_completion_length": 32, "use_peft": True, "beta": 0.1,
    "reward": "benchmarks.memory:length", "guard_patience": 0,
}  # fmt: skip
AUTOCAST = {"bf16": True, "gradient_checkpointing": True}  # as on a GPU
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
    "grpo, LoRA": ("grpo", SAMPLED | {"num_generations": 4}),
    "ppo, LoRA": ("ppo", SAMPLED),
    "ppo": ("ppo", SAMPLED | {"use_peft": False, "critic": "separate"}),
    "pretrain": ("pretrain", LONG),
    "sft, autocast": ("sft", LONG | AUTOCAST),
    "dpo, LoRA, autocast": ("dpo", PAIR | LORA | AUTOCAST),
}  # fmt: skip


# As `python pipeline/STAGE.py`, with every tensor of 64 KiB and more in pages of its own.
STAGE = """
import runpy, sys
from pipeline.runtime import entry
entry.keep_freed_memory = lambda: None
sys.argv.pop(0)
runpy.run_path(sys.argv[0], run_name="__main__")
"""
PAGES = {"MALLOC_MMAP_THRESHOLD_": str(2**16), "MALLOC_TRIM_THRESHOLD_": "0"}


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
    # In bfloat16, as models lie on the Hub: loaded in float32 every weight takes its place. A file of float32 would be
    # mapped into memory, and of the embedding only the rows that are looked up would be read.
    LlamaForCausalLM(config).bfloat16().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def peak(stage: str, given: dict, model: Path, folder: Path) -> float:
    """Peak memory of a run in bytes, from its record; every row is as long as the stage takes."""
    long = " ".join(map(str, range(400)))
    of_stage = {"sft": {"completion": long}, "pretrain": {"text": long}, "grpo": {}, "ppo": {}}
    # Rows that are too long are cut, but by the reward model dropped: two tokens per digit make 254 of 256.
    of_stage["reward_model"] = {"chosen": "7 " * 122 + "7", "rejected": "8 " * 122 + "8"}
    rows = [
        {"prompt": f"What is it? {i}"} | row
        for i in range(8)
        for row in [of_stage.get(stage, {"chosen": long, "rejected": "x" + long})]
    ]
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = COMMON | given | {"model_name_or_path": model, "dataset_name": data, "output_dir": folder / "run"}
    words = [
        str(w).lower() if isinstance(w, bool) else str(w) for kv in arguments.items() for w in (f"--{kv[0]}", kv[1])
    ]
    environment = os.environ | PAGES | {"PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    command = [sys.executable, "-c", STAGE, f"pipeline/{stage}.py", *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return json.loads((folder / "run" / "run.json").read_text())["peak_memory_bytes"]


def main() -> None:
    """Print one line per case: formula, measured, ratio."""
    with tempfile.TemporaryDirectory() as scratch:
        models = {
            shape: Path(scratch) / name for name, shape in (("nothing", NOTHING), ("deep", DEEP), ("wide", WIDE))
        }
        for shape, folder in models.items():
            save_model(shape, folder)
        print(f"{'case':22} {'formula':>8} {'measured':>9} {'ratio':>6}   GiB", flush=True)

        def peak_of(stage: str, given: dict, shape: Shape) -> float:
            return peak(stage, given, models[shape], Path(tempfile.mkdtemp(dir=scratch)))

        @cache
        def libraries(stage: str) -> float:
            return peak_of(stage, next(given for name, given, *_ in CASES.values() if name == stage), NOTHING)

        for case in sys.argv[1:] or CASES:
            stage, given, shape = (*CASES[case], DEEP)[:3]
            arguments = COMMON | given | ({"max_prompt_length": 7} if stage in ("grpo", "ppo") else {})
            formula = estimate(stage, arguments, shape).used / GIB
            measured = (peak_of(stage, given, shape) - libraries(stage)) / GIB
            print(f"{case:22} {formula:8.2f} {measured:9.2f} {measured / formula:6.2f}", flush=True)


if __name__ == "__main__":
    main()
