"""How much memory a stage needs on each device, by formula, before anything is started.

    total = weights + reference + optimizer + head + accumulated + max(activations + logits, gradients, rollout)

in bytes, from the shape of the model and the stage's own arguments: what stays, and the largest of what comes and
goes. The backward pass starts with all activations and no gradient and ends the other way round; gradients that are
accumulated over several passes stay. B rows a device, T tokens a row, V vocabulary, D hidden, F feed-forward, L
layers, n processes; H K and H_kv K are the widths of queries and of keys. Each term says what it counts;
docs/scaling.md compares the sum with what runs used. Imports nothing heavy.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline.runtime.errors import UserError

GIB = 2**30
Sharding = Literal["none", "zero2", "zero3"]  # fsdp2 shards as zero3 does
# Which accelerate config shards how; the files stand in accelerate_configs/.
CONFIGS: dict[str, Sharding] = {"ddp": "none", "zero2": "zero2", "fsdp2": "zero3", "zero3": "zero3"}
TRAINED = ("pretrain", "sft", "dpo", "reward_model", "rsft", "ppo", "grpo", "continual")
NF4_BYTES = 0.5 + 4 / 64  # a nibble a weight, and one float32 scale for each block of 64
RUNTIME = 1.0 * GIB  # CUDA's context, kernels and the allocator's slack; a process on the CPU needs about as much


@dataclass(frozen=True)
class Shape:
    """A decoder-only transformer, by the names of its config.

    Attributes:
        gated: the feed-forward block has three matrices instead of two.
        positions: rows of a learned position table (GPT-2), 0 where positions are rotated.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    tied: bool
    gated: bool = True
    positions: int = 0

    @property
    def block_weights(self) -> int:
        """Weights of one layer's matrices: queries, keys, values, output, feed-forward."""
        queries, keys = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        attention = self.hidden_size * (2 * queries + 2 * keys)
        return attention + (3 if self.gated else 2) * self.hidden_size * self.intermediate_size

    @property
    def embedding_weights(self) -> int:
        """Weights of the embedding and of the head, which may be one matrix."""
        return (1 if self.tied else 2) * self.vocab_size * self.hidden_size + self.positions * self.hidden_size

    @property
    def parameters(self) -> int:
        """All weights; norms are counted, biases (a few parts in a thousand) are not."""
        norms = (2 * self.num_hidden_layers + 1) * self.hidden_size
        return self.embedding_weights + self.num_hidden_layers * self.block_weights + norms

    @property
    def backbone_weights(self) -> int:
        """All weights but those of a head of its own."""
        return self.parameters - (0 if self.tied else self.vocab_size * self.hidden_size)

    def lora_parameters(self, rank: int) -> int:
        """Weights of a LoRA adapter on all linear layers but the head."""
        queries, keys = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        attention = 2 * (self.hidden_size + queries) + 2 * (self.hidden_size + keys)
        feed_forward = (3 if self.gated else 2) * (self.hidden_size + self.intermediate_size)
        return rank * self.num_hidden_layers * (attention + feed_forward)


SHAPES = {
    "HuggingFaceTB/SmolLM2-135M": Shape(49152, 576, 1536, 30, 9, 3, 64, True),
    "HuggingFaceTB/SmolLM2-360M": Shape(49152, 960, 2560, 32, 15, 5, 64, True),
    "Qwen/Qwen3-0.6B-Base": Shape(151936, 1024, 3072, 28, 16, 8, 128, True),
    "Qwen/Qwen3-1.7B-Base": Shape(151936, 2048, 6144, 28, 16, 8, 128, True),
    "Qwen/Qwen3-4B-Base": Shape(151936, 2560, 9728, 36, 32, 8, 128, True),
    "Qwen/Qwen3-8B-Base": Shape(151936, 4096, 12288, 36, 32, 8, 128, False),
    "Qwen/Qwen3-14B-Base": Shape(151936, 5120, 17408, 40, 40, 8, 128, False),
    "Qwen/Qwen3-32B": Shape(151936, 5120, 25600, 64, 64, 8, 128, False),
    "meta-llama/Llama-3.1-70B": Shape(128256, 8192, 28672, 80, 64, 8, 128, False),
}


@dataclass(frozen=True)
class Estimate:
    """Bytes on one device, by what they are for.

    Attributes:
        gradients: of a pass that is a step.
        accumulated: the gradients in their place, where they stay from one pass to the next.
        reference: pi_ref where it is a model of its own, and a separate critic's backbone.
        head: the head's gradient, which stands before any other does and, at last, beside that of the embedding.
    """

    weights: float
    reference: float
    gradients: float
    accumulated: float
    optimizer: float
    activations: float
    logits: float
    rollout: float
    head: float

    @property
    def used(self) -> float:
        """The most that stands at one time."""
        stays = self.weights + self.reference + self.optimizer + self.head + self.accumulated
        return stays + max(self.activations + self.logits, self.gradients, self.rollout)

    @property
    def total(self) -> float:
        """What one device must have, the runtime's own share included."""
        return self.used + RUNTIME


def estimate(
    stage: str, given: Mapping[str, Any], shape: Shape, *, processes: int = 1, sharding: Sharding = "none"
) -> Estimate:
    """The memory of a training stage on each device.

    Args:
        stage: one of ``TRAINED``.
        given: the stage's arguments, by TRL's names; what is absent has TRL's default.
        shape: of the model it starts from.
        processes: n, devices that share the work.
        sharding: what is split over them: nothing, gradients and optimizer (zero2), or the weights too (zero3).

    Raises:
        UserError: not a stage that trains.
    """
    if stage not in TRAINED:
        raise UserError(f"{stage} does not train: there is nothing to estimate")
    four_bit = bool(given.get("load_in_4bit"))
    lora = bool(given.get("use_peft")) or four_bit  # nobody trains NF4 weights themselves
    word = 2 if given.get("dtype") in ("bfloat16", "float16") else 4  # TRL loads float32 unless told otherwise
    mixed = bool(given.get("bf16", stage != "pretrain") or given.get("fp16"))
    compute = 2 if mixed or word == 2 else 4
    cast = mixed and word == 4 and sharding == "none"  # autocast's copies; DeepSpeed and FSDP2 hold bf16 instead
    word = 2 if mixed and sharding != "none" else word
    split = processes if sharding == "zero3" else 1
    split_optimizer = processes if sharding != "none" else 1
    trained = shape.lora_parameters(int(given.get("lora_r", 16))) if lora else shape.parameters
    critic = _critic(stage, given, lora)
    if critic != "none":  # trained like the policy, but for the head that it has not
        trained += trained if lora else shape.backbone_weights

    in_blocks = shape.num_hidden_layers * shape.block_weights
    blocks = in_blocks * (NF4_BYTES if four_bit else word)
    weights = (blocks + (shape.parameters - in_blocks) * word) / split + (trained * 4 if lora else 0)
    if split > 1:  # two matrices' worth is whole at a time: the block that computes, and the one that is fetched
        weights += 2 * compute * max(shape.block_weights, shape.vocab_size * shape.hidden_size)
    trained_word = 4 if lora else word
    # DeepSpeed keeps float32 masters of weights that are not float32; torch's Adam keeps moments in the weights' type.
    masters = 4 if sharding != "none" and trained_word == 2 else 0
    moments = 8 if masters else 2 * trained_word
    gradients = trained * trained_word / split_optimizer
    accumulates = int(given.get("gradient_accumulation_steps", 1)) > 1
    return Estimate(
        weights=weights,
        reference=(
            shape.parameters * _has_reference(stage, given, lora) + shape.backbone_weights * (critic == "separate")
        )
        * word
        / split,
        gradients=0 if accumulates else gradients,
        accumulated=gradients if accumulates else 0,
        optimizer=trained * (moments + masters) / split_optimizer,
        activations=_activations(stage, given, shape, word, compute, lora)
        + cast * _autocast_copies(stage, given, shape, lora),
        logits=_logits(stage, given, shape, compute),
        rollout=_rollout(stage, given, shape, compute, processes),
        head=0 if lora or stage == "reward_model" else 4 * shape.vocab_size * shape.hidden_size,
    )


def _has_reference(stage: str, given: Mapping[str, Any], lora: bool) -> bool:
    """Whether pi_ref is a model of its own: with an adapter it is the same backbone, adapter off."""
    with_kl = stage in ("ppo", "grpo") and given.get("beta", 0.05 if stage == "ppo" else 0)
    return not lora and bool(stage == "dpo" or with_kl)


def _critic(stage: str, given: Mapping[str, Any], lora: bool) -> str:
    """PPO's: ``shared`` (an adapter of the policy's backbone, which must be frozen), ``separate`` or ``none``."""
    critic = given.get("critic", "shared") if stage == "ppo" else "none"
    return "separate" if critic == "shared" and not lora else critic


def _rows(stage: str, given: Mapping[str, Any]) -> tuple[int, int]:
    """Rows that one forward pass holds, and tokens a row at most."""
    batch = int(given.get("per_device_train_batch_size", 8))
    if stage in ("grpo", "ppo"):
        return batch, int(given.get("max_completion_length", 256)) + _prompt_length(given)
    return batch * (2 if stage in ("dpo", "reward_model") else 1), int(given.get("max_length") or 1024)


def _prompt_length(given: Mapping[str, Any]) -> int:
    return int(given.get("max_prompt_length") or 256)


def _activations(stage: str, given: Mapping[str, Any], shape: Shape, word: int, compute: int, lora: bool) -> float:
    """What the forward pass keeps for the backward one.

    With checkpointing a layer keeps its input, in the weights' type, and one layer at a time the rest.
    """
    rows, length = _rows(stage, given)
    tokens = rows * length
    layer = tokens * _kept_by_a_layer(stage, given, shape, word, compute, lora)
    if given.get("attn_implementation") == "eager":  # T x T weights: the softmax's in float32, and as they are used
        layer += rows * shape.num_attention_heads * length**2 * (4 if compute == 4 else 4 + compute)
    graphs = _graphs(stage, given, lora)
    if _checkpoints(stage, given):
        return graphs * shape.num_hidden_layers * tokens * shape.hidden_size * word + layer
    return graphs * shape.num_hidden_layers * layer


def _graphs(stage: str, given: Mapping[str, Any], lora: bool) -> int:
    """How many forward passes come before one backward pass: PPO's policy and critic."""
    return 1 if _critic(stage, given, lora) == "none" else 2


def _checkpoints(stage: str, given: Mapping[str, Any]) -> bool:
    return bool(given.get("gradient_checkpointing", stage != "pretrain"))


def _autocast_copies(stage: str, given: Mapping[str, Any], shape: Shape, lora: bool) -> float:
    """Weights in bfloat16 beside the float32 ones: of what is trained until the forward pass is over, of what is
    frozen as long as anything that was computed with it is kept, with checkpointing a block at a time."""
    frozen = lora and _checkpoints(stage, given)
    return 2 * (shape.block_weights if frozen else shape.parameters * _graphs(stage, given, lora))


def _kept_by_a_layer(stage: str, given: Mapping[str, Any], shape: Shape, word: int, compute: int, lora: bool) -> float:
    """Bytes a token, by what its operations save (counted in tests with autograd's own hooks).

    Both norms: their input in float32, and what they multiply by a weight that is trained. Attention: queries and keys
    as rotated, values, output. Feed-forward: gate, its activation, the other branch. Matrices: their inputs; the same
    tensor for all that read it, unless each one casts it for itself (autocast, LoRA's float32), or each LoRA matrix
    has dropped some of it, which keeps a mask too (a byte on a GPU, a number on the CPU).
    """
    hidden, ffn = shape.hidden_size, shape.intermediate_size
    queries, keys = shape.num_attention_heads * shape.head_dim, shape.num_key_value_heads * shape.head_dim
    norms = 2 * hidden * (4 if lora else 4 + word)
    attention = (2 * queries + 2 * keys) * compute
    feed_forward = (3 if shape.gated else 1) * ffn * compute
    dropout = lora and not given.get("disable_dropout", stage in ("dpo", "reward_model", "ppo"))
    dropout = dropout and float(given.get("lora_dropout", 0.05)) > 0
    readers = (5 if shape.gated else 4) * hidden + ffn  # queries, keys, values; up, and gate; down
    if dropout or (lora and compute == 2):
        inputs = (readers + queries) * (compute + (0 if not dropout else 4 if given.get("use_cpu") else 1))
    elif compute < word:
        inputs = readers * compute
    else:
        inputs = (2 * hidden + ffn) * compute
    return norms + attention + feed_forward + inputs


def _logits(stage: str, given: Mapping[str, Any], shape: Shape, compute: int) -> float:
    """The head's outputs and their gradient in the backward pass.

    Whole in pretraining, with two copies in float32. In TRL's trainers a tile of 4,096 tokens (of completions, where
    these are sampled) and 32,768 words, in place on a GPU; on the CPU eight float32 tiles and a mask stand at once.
    """
    if stage == "reward_model":
        return 0.0
    rows, length = _rows(stage, given)
    if stage == "pretrain":
        return rows * length * shape.vocab_size * (compute + 8)
    if stage in ("grpo", "ppo"):
        length -= _prompt_length(given)
    tokens = min(rows * length, 4096)
    if given.get("use_cpu"):
        return 8.25 * 4 * tokens * min(shape.vocab_size, 32768)
    return tokens * 32768 * compute


def _rollout(stage: str, given: Mapping[str, Any], shape: Shape, compute: int, processes: int) -> float:
    """The KV cache of sampling, ``2 L H_kv K`` numbers a token, for all sequences that are sampled together."""
    if stage not in ("grpo", "ppo", "rsft"):
        return 0.0
    cache = 2 * shape.num_hidden_layers * shape.num_key_value_heads * shape.head_dim * compute
    if stage == "rsft":
        together = int(given.get("sample_batch_size", 64))
    else:
        a_step = int(given.get("per_device_train_batch_size", 8))
        steps = int(given.get("steps_per_generation") or given.get("gradient_accumulation_steps", 1))
        together = int(given.get("generation_batch_size") or a_step * steps * processes) / processes
    return together * (int(given.get("max_completion_length", 256)) + _prompt_length(given)) * cache


# ---------------------------------------------------------------------- shapes


def shape_of(config: Mapping[str, Any]) -> Shape:
    """A model's shape from its ``config.json``, whatever family's names it uses.

    Raises:
        UserError: it is not a decoder whose sizes are known by these names.
    """
    config = config.get("text_config", config)
    try:
        hidden = config.get("hidden_size") or config["n_embd"]
        heads = config.get("num_attention_heads") or config["n_head"]
        old = "n_embd" in config  # GPT-2
        return Shape(
            vocab_size=config["vocab_size"],
            hidden_size=hidden,
            intermediate_size=config.get("intermediate_size") or config.get("n_inner") or 4 * hidden,
            num_hidden_layers=config.get("num_hidden_layers") or config["n_layer"],
            num_attention_heads=heads,
            num_key_value_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or hidden // heads,
            tied=bool(config.get("tie_word_embeddings", True)),
            gated=not old and config.get("ffn_type", "swiglu") in ("swiglu", "geglu"),
            positions=config.get("n_positions", 0) if old else 0,
        )
    except (KeyError, TypeError) as error:
        raise UserError(f"the model's config.json does not say its {error}: its memory cannot be estimated") from error


def shape_by_name(name: str) -> Shape:
    """The shape of a model folder, an adapter folder (its base's), or a model of the Hub.

    Raises:
        UserError: neither here, nor in the cache, nor reachable.
    """
    if name in SHAPES:
        return SHAPES[name]
    folder = Path(name)
    if (folder / "adapter_config.json").is_file():
        return shape_by_name(json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"])
    if (folder / "config.json").is_file():
        return shape_of(json.loads((folder / "config.json").read_text()))
    from huggingface_hub import hf_hub_download

    try:
        return shape_of(json.loads(Path(hf_hub_download(name, "config.json")).read_text()))
    except (OSError, ValueError) as error:
        raise UserError(f"{name}: its config.json is neither here nor on a Hub that can be reached") from error


# ---------------------------------------------------------------------- what fits


def fitting(stage: str, given: Mapping[str, Any], shape: Shape, device_bytes: float) -> tuple[str, int] | None:
    """The simplest accelerate config and the least number of devices (1 to 64, powers of two) that hold a stage."""
    for processes in (1, 2, 4, 8, 16, 32, 64):
        for config, sharding in CONFIGS.items() if processes > 1 else {"single_gpu": "none"}.items():
            if estimate(stage, given, shape, processes=processes, sharding=sharding).total <= device_bytes:
                return config, processes
    return None


def table(rows: list[tuple[str, str, Mapping[str, Any], Shape]]) -> str:
    """(name, stage, arguments, shape) of each entry as text: GiB on one device, and what GPUs of three sizes need."""
    terms = [term.name for term in dataclasses.fields(Estimate)]
    header = ["stage", "parameters", *terms, "total", "24 GB", "40 GB", "80 GB"]
    lines = [header]
    for name, stage, given, shape in rows:
        one = estimate(stage, given, shape)
        cells = [name, _count(shape.parameters), *(f"{getattr(one, term) / GIB:.2f}" for term in terms)]
        cells.append(f"{one.total / GIB:.1f}")
        for size in (24, 40, 80):
            found = fitting(stage, given, shape, 0.95 * size * 1e9)
            cells.append(f"{found[0]} x{found[1]}" if found else "no")
        lines.append(cells)
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines)


def _count(parameters: int) -> str:
    return f"{parameters / 1e9:.2f}B" if parameters >= 1e9 else f"{parameters / 1e6:.1f}M"
