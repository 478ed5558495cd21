"""Memory and speed of PPO: one shared backbone, a separate critic, and TRL's last public PPOTrainer (1.12.0).

    python benchmarks/ppo.py                              # a small model on the CPU, all variants, table and JSON
    python benchmarks/ppo.py --hidden 1024 --layers 16 --vocabulary 32000 --completions 4096 --device cuda

Every variant starts from the same random Llama, optimises the same reward (a random LoRA reward model of the same
base; merged where it cannot be an adapter), samples the same number of completions in the same batches, and runs in a
process of its own, in turn. TRL 1.12.0 is in an environment of its own, which this script makes: the present one
with that one package laid over it. Weights are the bytes of every distinct parameter in memory, against those of DPO
with LoRA.
"""

import argparse
import itertools
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

VARIANTS = ("shared", "separate", "trl 1.12.0")
LENGTH = 16


def main() -> None:
    """Make the models, run each variant in its own process, print a table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocabulary", type=int, default=64)
    parser.add_argument("--completions", type=int, default=4096, help="in all; a rollout is 256")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--environment", type=Path, default=Path("runs/benchmarks/trl-1.12.0"))
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/ppo.json"))
    parser.add_argument("--worker", choices=VARIANTS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(worker(options)))
        return
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        floor = make_models(Path(folder), options)
        for variant in VARIANTS:
            python = environment(options.environment) if variant.startswith("trl") else sys.executable
            command = [str(python), __file__, "--worker", variant, "--folder", folder, "--device", options.device]
            done = subprocess.run(
                [*command, "--completions", str(options.completions)], capture_output=True, text=True, check=False
            )
            if done.returncode:
                raise SystemExit(f"{variant} failed:\n{done.stderr[-3000:]}")
            results[variant] = json.loads(done.stdout.strip().splitlines()[-1])
            results[variant]["weights_over_dpo"] = results[variant]["weight_bytes"] / floor
    target = min(smoothed(row["rewards"])[-1] for row in results.values())  # what every variant has reached
    for row in results.values():
        rollouts = next(n for n, reward in enumerate(smoothed(row["rewards"]), 2) if reward >= target)
        row["seconds_to_equal_reward"] = rollouts * 0.256 * row["seconds_per_1000"]
        row["reward_first"], row["reward_last"] = row["rewards"][0], smoothed(row["rewards"])[-1]
    columns = ("weights_over_dpo", "peak_memory_bytes", "seconds_per_1000", "reward_first", "reward_last")
    columns += ("seconds_to_equal_reward",)
    print(f"{'':12s}" + "".join(f"{name:>25s}" for name in columns))
    for variant, row in results.items():
        print(f"{variant:12s}" + "".join(f"{row[name]:25.4g}" for name in columns))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    machine = {"machine": platform.machine(), "python": platform.python_version(), "time": time.strftime("%Y-%m-%d")}
    settings = {key: str(value) for key, value in vars(options).items() if key not in ("worker", "folder")}
    options.out.write_text(json.dumps({"machine": machine, "settings": settings, "results": results}, indent=2) + "\n")


def smoothed(rewards: list[float]) -> list[float]:
    """Mean reward of each rollout and the one before it, from the second rollout on."""
    return [(a + b) / 2 for a, b in itertools.pairwise(rewards)]


def environment(folder: Path) -> Path:
    """The Python of an environment that is this one with trl 1.12.0 laid over it."""
    python = folder / "bin" / "python"
    if not (folder / "ready").is_file():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        here = next(path for path in sys.path if path.endswith("site-packages"))
        (next((folder / "lib").glob("python*")) / "site-packages" / "below.pth").write_text(here + "\n")
        subprocess.run([str(python), "-m", "pip", "install", "-q", "--no-deps", "trl==1.12.0"], check=True)
        (folder / "ready").touch()
    return python


def make_models(folder: Path, options: argparse.Namespace) -> int:
    """Base, reward adapter and merged reward model, with a tokenizer of whole words; the bytes of DPO with LoRA."""
    import torch
    from peft import get_peft_model
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        LlamaConfig,
        LlamaForCausalLM,
        PreTrainedTokenizerFast,
    )

    words = {token: i for i, token in enumerate(["<pad>", "<bos>", "<eos>", *map(str, range(options.vocabulary - 3))])}
    backend = Tokenizer(models.WordLevel(words, unk_token="0"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", padding_side="left"
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=options.vocabulary,
        hidden_size=options.hidden,
        intermediate_size=3 * options.hidden,
        num_hidden_layers=options.layers,
        num_attention_heads=4,
        max_position_embeddings=128,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    base = folder / "base"
    LlamaForCausalLM(config).save_pretrained(base)
    judge = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    reward = get_peft_model(judge, lora("SEQ_CLS", ["score"]))
    with torch.no_grad():  # scores of deviation one, by the last word above all: something that can be learned
        for name, parameter in reward.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.05)
            if "modules_to_save" in name:
                parameter.normal_(0, options.hidden**-0.5)
    reward.save_pretrained(folder / "adapter")
    reward.merge_and_unload().save_pretrained(folder / "merged")
    for name in ("base", "adapter", "merged"):
        tokenizer.save_pretrained(folder / name)
    return weight_bytes([get_peft_model(AutoModelForCausalLM.from_pretrained(base), lora("CAUSAL_LM"))])


def lora(task: str, modules_to_save: list[str] | None = None):
    """The one LoRA shape of all variants."""
    from peft import LoraConfig

    return LoraConfig(
        r=8, lora_alpha=16, target_modules=["q_proj", "v_proj", "up_proj", "down_proj"], task_type=task,
        modules_to_save=modules_to_save,
    )  # fmt: skip


def weight_bytes(models: list) -> int:
    """Bytes of every distinct parameter of some models."""
    found = {id(p): p.numel() * p.element_size() for model in models if model is not None for p in model.parameters()}
    return sum(found.values())


def worker(options: argparse.Namespace) -> dict[str, float]:
    """Train one variant; its weights, peak memory, seconds and rewards."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    folder, steps = options.folder, options.completions // 256
    tokenizer = AutoTokenizer.from_pretrained(folder / "base", padding_side="left")
    policy = AutoModelForCausalLM.from_pretrained(folder / "base")
    # The space at the end parts the prompt from an answer that is appended as text.
    prompts = [f"{i % 97} {i % 89} {i % 83} {i % 79} " for i in range(512)]
    shared = {
        "output_dir": str(folder / "run"), "per_device_train_batch_size": 64, "learning_rate": 1e-3, "gamma": 1.0,
        "lam": 0.95, "vf_coef": 0.1, "cliprange_value": 0.2, "report_to": "none", "logging_steps": 1,
        "save_strategy": "no", "bf16": False, "gradient_checkpointing": False, "use_cpu": options.device == "cpu",
        "disable_tqdm": True, "seed": 0,
    }  # fmt: skip
    build = trl_trainer if options.worker.startswith("trl") else our_trainer
    trainer, models = build(options, policy, tokenizer, prompts, shared, steps)
    weights = weight_bytes(models)
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    scores = [row["objective/scores"] for row in trainer.state.log_history if "objective/scores" in row]
    peak = (
        torch.cuda.max_memory_allocated()
        if options.device == "cuda"
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )
    return {
        "weight_bytes": weights,
        "peak_memory_bytes": peak,
        "seconds_per_1000": 1000 * seconds / (steps * 256),
        "rewards": scores,
    }


def our_trainer(options, policy, tokenizer, prompts, shared, steps):
    """PPOTrainer of this project: rollouts of 256 in four minibatches, four epochs."""
    from datasets import Dataset

    from pipeline.rewards.registry import get_reward
    from pipeline.training.ppo import AdapterReward, PPOTrainer
    from pipeline.training.ppo_config import PPOConfig

    adapter = options.worker == "shared"
    reward = (
        AdapterReward(str(options.folder / "adapter"))
        if adapter
        else get_reward(f"reward_model(model={str(options.folder / 'merged')!r})")
    )
    config = PPOConfig(
        **shared, critic="shared" if adapter else "separate", beta=0.05, num_iterations=4, steps_per_generation=4,
        gradient_accumulation_steps=1, max_completion_length=LENGTH, max_steps=16 * steps,
    )  # fmt: skip
    trainer = PPOTrainer(
        model=policy, reward_funcs=reward, args=config, train_dataset=Dataset.from_dict({"prompt": prompts}),
        processing_class=tokenizer, peft_config=lora("CAUSAL_LM"),
    )  # fmt: skip
    models = [trainer.model, trainer.ref_model]
    if not adapter:
        from pipeline.rewards.learned import load_reward_model

        models.append(load_reward_model(str(options.folder / "merged"))[0])
    return trainer, models


def trl_trainer(options, policy, tokenizer, prompts, shared, steps):
    """TRL 1.12.0's PPOTrainer at the same batches: it needs whole reward and value models."""
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    reward, value = (
        AutoModelForSequenceClassification.from_pretrained(options.folder / name, num_labels=1)
        for name in ("merged", "base")
    )
    read_at_eos(reward.model, tokenizer)
    config = PPOConfig(
        **shared, gradient_accumulation_steps=4, num_mini_batches=4, num_ppo_epochs=4, kl_coef=0.05,
        response_length=LENGTH, total_episodes=256 * steps, stop_token="eos", temperature=1.0,
        local_rollout_forward_batch_size=64, num_sample_generations=0,
    )  # fmt: skip
    dataset = Dataset.from_dict({"input_ids": [tokenizer(prompt)["input_ids"] for prompt in prompts]})
    trainer = PPOTrainer(
        args=config, processing_class=tokenizer, model=policy, ref_model=None, reward_model=reward,
        value_model=value, train_dataset=dataset, peft_config=lora("CAUSAL_LM"),
    )  # fmt: skip
    return trainer, [policy, trainer.model, reward, value]


def read_at_eos(backbone, tokenizer) -> None:
    """Let TRL's reward read what ours reads: the state at an eos after a completion that was cut off, too."""
    import torch

    forward = backbone.forward

    def ended(input_ids, attention_mask, position_ids, **kwargs):
        prompt = input_ids.size(1) - LENGTH
        real = (input_ids[:, prompt:] != tokenizer.pad_token_id).long().cumprod(1)  # up to the first pad, as in TRL
        last, rows = prompt + real.sum(1) - 1, torch.arange(len(input_ids), device=input_ids.device)
        end = last + (input_ids[rows, last] != tokenizer.eos_token_id)  # where the state is read
        longer = torch.nn.functional.pad(input_ids, (0, 1), value=tokenizer.pad_token_id)
        longer[rows, end] = tokenizer.eos_token_id
        mask = torch.arange(longer.size(1), device=input_ids.device) <= end[:, None]
        output = forward(longer, attention_mask=mask.long(), **kwargs)
        states = output.hidden_states[-1][:, :-1].clone()
        states[rows, last] = output.hidden_states[-1][rows, end]
        output.hidden_states = (*output.hidden_states[:-1], states)
        return output

    backbone.forward = ended


if __name__ == "__main__":
    main()
