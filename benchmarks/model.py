"""Speed of NarLM against the library's model of the same shape: training and cached generation, tokens per second.

    python benchmarks/model.py                    # 5 interleaved runs of everything, table and JSON
    python benchmarks/model.py --device cuda --dtype bfloat16 --compile

The two models have the same shape and the same weights: Llama (RMSNorm, SwiGLU, RoPE, grouped queries) in three sizes,
and GPT-2 (LayerNorm, GELU, learned positions, biases) in the smallest. Runs alternate
between them, so that a machine that is busy with something else slows both; each pair gives a ratio, and the median
ratio is the figure. On a machine shared with other work ``--clock cpu`` counts this process's own time (with
OMP_NUM_THREADS=1). On a GPU the share of its peak FLOP/s is printed where ``--peak_tflops`` says what that is.
"""

import argparse
import copy
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from transformers import PreTrainedModel

from pipeline.model import NarLMConfig, NarLMForCausalLM
from pipeline.model.conversion import to_gpt2, to_llama
from pipeline.runtime.entry import keep_freed_memory

LLAMA = {"norm_type": "rmsnorm", "ffn_type": "swiglu", "mlp_bias": False, "output_bias": False}
GPT2 = {"position_embedding_type": "learned", "attention_bias": True, "output_bias": False}
# name -> (shape, batch and length of a training step, batch, prompt and new tokens of generation)
SIZES = {
    "nano": ({"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 3, "num_attention_heads": 4,
              "vocab_size": 640, **LLAMA}, (16, 128), (16, 32, 32)),
    "nano-gpt2": ({"hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4,
                   "vocab_size": 640, **GPT2}, (16, 128), (16, 32, 32)),
    "micro": ({"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 6, "num_attention_heads": 8,
               "num_key_value_heads": 4, "vocab_size": 4096, **LLAMA}, (4, 256), (8, 64, 32)),
    "small": ({"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8, "num_attention_heads": 8,
               "num_key_value_heads": 2, "vocab_size": 8192, **LLAMA}, (1, 256), (4, 64, 16)),
}  # fmt: skip


def pair(shape: dict, attention: str, device: str, dtype: torch.dtype) -> dict[str, PreTrainedModel]:
    torch.manual_seed(0)
    narlm = NarLMForCausalLM(NarLMConfig(**shape, pad_token_id=0))
    library = to_gpt2(narlm) if "position_embedding_type" in shape else to_llama(narlm)
    models = {"narlm": copy.deepcopy(narlm), "library": copy.deepcopy(library)}  # weights that lie in memory alike
    for model in models.values():
        model.set_attn_implementation(attention)
        model.to(device, dtype)
    return models


def train_step(model: PreTrainedModel, x: torch.Tensor) -> Callable[[], None]:
    def run() -> None:
        model.zero_grad(set_to_none=True)
        model(x, labels=x, use_cache=False).loss.backward()

    return run


def generation(model: PreTrainedModel, x: torch.Tensor, new_tokens: int) -> Callable[[], None]:
    def run() -> None:
        model.generate(x, max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False)

    return run


def seconds(run: Callable[[], None], device: str, clock: Callable[[], float]) -> float:
    if device != "cpu":
        torch.cuda.synchronize()
    start = clock()
    run()
    if device != "cpu":
        torch.cuda.synchronize()
    return clock() - start


def compare(
    runs: dict[str, Callable[[], None]],
    tokens: int,
    rounds: int,
    at_least: float,
    device: str,
    clock: Callable[[], float],
) -> dict:
    """Tokens a second of each (medians over the rounds) and the median ratio of NarLM to the library's model.

    In a round the two take turns, three or as many as fill ``at_least`` seconds; of each, the shortest run counts:
    what is longer is somebody else's work.
    """
    for run in runs.values():
        run()  # warm up
    times: dict[str, list[float]] = {name: [] for name in runs}
    for index in range(rounds):
        order = list(runs) if index % 2 == 0 else list(reversed(runs))
        taken: list[dict[str, float]] = []
        while len(taken) < 3 or sum(sum(turn.values()) for turn in taken) < at_least:
            taken.append({name: seconds(runs[name], device, clock) for name in order})
        for name in runs:
            times[name].append(min(turn[name] for turn in taken))
    speeds = {name: round(tokens / statistics.median(values)) for name, values in times.items()}
    ratios = [library / narlm for narlm, library in zip(times["narlm"], times["library"])]
    return {**speeds, "ratio": round(statistics.median(ratios), 3), "ratios": [round(r, 3) for r in ratios]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--attention", nargs="+", default=["eager", "sdpa"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5, help="a round takes at least; the shortest run counts")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--compile", action="store_true")
    parser.add_argument(
        "--peak_tflops", type=float, help="of the device at this dtype; prints the share that was used"
    )
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    keep_freed_memory()
    clock = time.perf_counter if arguments.clock == "wall" else time.process_time
    rows = []
    for name in arguments.sizes:
        shape, (batch, length), (prompts, prompt_length, new_tokens) = SIZES[name]
        for attention in arguments.attention:
            models = pair(shape, attention, arguments.device, getattr(torch, arguments.dtype))
            x = torch.randint(1, shape["vocab_size"], (batch, length), device=arguments.device)
            prompt = torch.randint(1, shape["vocab_size"], (prompts, prompt_length), device=arguments.device)
            forward = {k: torch.compile(m) if arguments.compile else m for k, m in models.items()}
            work = {
                "forward+backward": ({k: train_step(m, x) for k, m in forward.items()}, x.numel()),
                "generation": (
                    {k: generation(m, prompt, new_tokens) for k, m in models.items()},
                    prompts * new_tokens,
                ),
            }
            for what, (runs, tokens) in work.items():
                for model in models.values():
                    model.train(what == "forward+backward")
                row = {
                    "size": name,
                    "parameters": models["narlm"].num_parameters(),
                    "attention": attention,
                    "work": what,
                }
                row |= compare(runs, tokens, arguments.rounds, arguments.seconds, arguments.device, clock)
                if arguments.peak_tflops and what == "forward+backward":
                    flops = models["narlm"].config.flops_per_token(length, training=True)
                    row["share_of_peak"] = round(row["narlm"] * flops / arguments.peak_tflops / 1e12, 3)
                rows.append(row)
                print(
                    f"{name:9} {attention:6} {what:17} NarLM {row['narlm']:>8} tok/s"
                    f"  library {row['library']:>8} tok/s  ratio {row['ratio']:.3f}  {row['ratios']}",
                    flush=True,
                )
    versions = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(arguments).items() if k != "out"}
    record = {"settings": settings, "threads": torch.get_num_threads(), "versions": versions, "rows": rows}
    if arguments.out:
        arguments.out.write_text(json.dumps(record, indent=2) + "\n")
    worst = min(row["ratio"] for row in rows)
    print(f"lowest ratio {worst:.3f}")
    sys.exit(0 if worst >= 0.97 else 1)


if __name__ == "__main__":
    main()
