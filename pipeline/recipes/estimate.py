"""How much memory a stage needs on each device, by formula, before anything is started.

    total = weights + reference + optimizer + head + accumulated + max(activations + logits, gradients, rollout)

in bytes, from the shape of the model and the stage's own arguments: what stays, and the largest of what comes and
goes. The backward pass starts with all activations and no gradient and ends the other way round; gradients that are
accumulated over several passes stay. B rows per device, T tokens per row, V vocabulary, D hidden, F feed-forward, L
layers, n processes; H K and H_kv K are the widths of queries and of keys. Each term says what it counts;
docs/scaling.md compares the sum with what runs used. What a recipe does not give has the default of the stage's own
config classes.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline.recipes.recipe import Entry
from pipeline.recipes.shapes import Shape, new_shape, shape_by_name
from pipeline.runtime.coercion import plain
from pipeline.runtime.defaults import given_checkpointing
from pipeline.runtime.errors import UserError
from pipeline.runtime.hardware import computes_bf16, has_accelerator, keeps_activations
from pipeline.runtime.registry import import_function

Given = Mapping[str, Any]  # a stage's arguments, by TRL's names
GIB = 2**30
Sharding = Literal["none", "zero2", "zero3"]  # fsdp2 shards as zero3 does
# Which accelerate config shards how; the files are in accelerate_configs/.
CONFIGS: dict[str, Sharding] = {"ddp": "none", "zero2": "zero2", "fsdp2": "zero3", "zero3": "zero3"}
# The stages that train -> the dataclasses of their arguments; by name, since no room imports a stage.
TRAINED: dict[str, tuple[str, ...]] = {
    "pretrain": ("transformers:TrainingArguments", "pipeline.pretrain:PretrainArguments"),
    "sft": ("trl:ModelConfig", "trl:SFTConfig"),
    "dpo": ("trl:ModelConfig", "trl:DPOConfig"),
    "reward_model": ("trl:ModelConfig", "trl:RewardConfig"),
    "rsft": ("trl:ModelConfig", "trl:SFTConfig", "pipeline.rsft:RSFTArguments"),
    "ppo": ("trl:ModelConfig", "pipeline.training.ppo_config:PPOConfig"),
    "grpo": ("trl:ModelConfig", "trl:GRPOConfig"),
    "continual": ("trl:ModelConfig", "trl:SFTConfig"),
}
NF4_BYTES = 0.5 + 4 / 64  # half a byte per weight, and one float32 scale for each block of 64
PROMPT_TOKENS = 256  # assumed where the rows' own limit is not given: prompts have no limit of their own
UNLIMITED_TOKENS = 1024  # assumed for a row where max_length is null
RUNTIME = 1.0 * GIB  # CUDA's context, kernels and the allocator's slack; a process on the CPU needs about as much


@dataclass(frozen=True)
class Estimate:
    """Bytes on one device, by what they are for.

    Attributes:
        gradients: of a pass that is a step.
        accumulated: the gradients in their place, where they stay from one pass to the next.
        reference: pi_ref where it is a model of its own, and a separate critic's backbone.
        head: the head's gradient, which comes before any other and is, at last, beside that of the embedding.
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
        """The most that is held at one time."""
        stays = self.weights + self.reference + self.optimizer + self.head + self.accumulated
        return stays + max(self.activations + self.logits, self.gradients, self.rollout)

    @property
    def total(self) -> float:
        """What one device must have, the runtime's own share included."""
        return self.used + RUNTIME


def estimate(stage: str, given: Given, shape: Shape, *, processes: int = 1, sharding: Sharding = "none") -> Estimate:
    """The memory of a training stage on each device.

    Args:
        stage: one of ``TRAINED``.
        given: the stage's arguments, by TRL's names; what is absent has its default (see ``defaults``).
        shape: of the model it starts from.
        processes: n, devices that share the work.
        sharding: what is split over them: nothing, gradients and optimizer (zero2), or the weights too (zero3).

    Raises:
        UserError: not a stage that trains.
    """
    if stage not in TRAINED:
        raise UserError(f"{stage} does not train: there is nothing to estimate")
    given = {**defaults(stage), **given}
    four_bit = bool(given.get("load_in_4bit"))
    lora = bool(given.get("use_peft")) or four_bit  # nobody trains NF4 weights themselves
    word = 2 if given.get("dtype") in ("bfloat16", "float16") else 4  # TRL loads float32 by default
    # TRL's configs turn a bf16 that is not given into True.
    mixed = bool(given["fp16"] or (given["bf16"] is None or given["bf16"]))
    compute = 2 if mixed or word == 2 else 4
    cast = mixed and word == 4 and sharding == "none"  # autocast's copies; DeepSpeed and FSDP2 hold bf16 instead
    word = 2 if mixed and sharding != "none" else word
    split = processes if sharding == "zero3" else 1
    split_optimizer = processes if sharding != "none" else 1
    trained = shape.lora_parameters(int(given["lora_r"])) if lora else shape.parameters
    critic = _critic(stage, given, lora)
    if critic != "none":  # trained like the policy, but for the head that it has not
        trained += trained if lora else shape.backbone_weights

    in_blocks = shape.num_hidden_layers * shape.block_weights
    blocks = in_blocks * (NF4_BYTES if four_bit else word)
    weights = (blocks + (shape.parameters - in_blocks) * word) / split + (trained * 4 if lora else 0)
    if split > 1:  # two matrices' worth is gathered at a time: the block that computes, and the one that is fetched
        weights += 2 * compute * max(shape.block_weights, shape.vocab_size * shape.hidden_size)
    trained_word = 4 if lora else word
    # DeepSpeed keeps float32 masters of weights that are not float32; torch's Adam keeps moments in the weights' type.
    masters = 4 if sharding != "none" and trained_word == 2 else 0
    moments = 8 if masters else 2 * trained_word
    gradients = trained * trained_word / split_optimizer
    accumulates = int(given["gradient_accumulation_steps"]) > 1
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


@functools.cache
def defaults(stage: str) -> Given:
    """The defaults of a stage's arguments, as its config classes declare them."""
    found: dict = {}
    for path in TRAINED[stage]:
        fields = dataclasses.fields(import_function(path, "stage"))
        found |= {f.name: f.default for f in fields if f.default is not dataclasses.MISSING}
    return found


def _has_reference(stage: str, given: Given, lora: bool) -> bool:
    """Whether pi_ref is a model of its own: with an adapter it is the same backbone, adapter off."""
    with_kl = stage in ("ppo", "grpo") and float(given["beta"])
    return not lora and bool(stage == "dpo" or with_kl)


def _critic(stage: str, given: Given, lora: bool) -> str:
    """PPO's: ``shared`` (an adapter of the policy's backbone, which must be frozen), ``separate`` or ``none``."""
    critic = given["critic"] if stage == "ppo" else "none"
    return "separate" if critic == "shared" and not lora else critic


def _rows(stage: str, given: Given) -> tuple[int, int]:
    """Rows that one forward pass holds, and the most tokens per row."""
    batch = int(given["per_device_train_batch_size"])
    if stage in ("grpo", "ppo"):
        return batch, int(given["max_completion_length"]) + _prompt_length(given)
    return batch * (2 if stage in ("dpo", "reward_model") else 1), int(given["max_length"] or UNLIMITED_TOKENS)


def _prompt_length(given: Given) -> int:
    return int(given.get("max_prompt_length") or PROMPT_TOKENS)


def _activations(stage: str, given: Given, shape: Shape, word: int, compute: int, lora: bool) -> float:
    """What the forward pass keeps for the backward one.

    With checkpointing a layer keeps its input, in the weights' type, and one layer at a time the rest.
    """
    rows, length = _rows(stage, given)
    tokens = rows * length
    layer = tokens * _kept_by_a_layer(stage, given, shape, word, compute, lora)
    if given.get("attn_implementation") == "eager":  # T x T weights: the softmax's in float32, and as they are used
        layer += rows * shape.num_attention_heads * length**2 * (4 if compute == 4 else 4 + compute)
    graphs = _graphs(stage, given, lora)
    if given["gradient_checkpointing"]:
        return graphs * shape.num_hidden_layers * tokens * shape.hidden_size * word + layer
    return graphs * shape.num_hidden_layers * layer


def _graphs(stage: str, given: Given, lora: bool) -> int:
    """How many forward passes come before one backward pass: PPO's policy and critic."""
    return 1 if _critic(stage, given, lora) == "none" else 2


def _autocast_copies(stage: str, given: Given, shape: Shape, lora: bool) -> float:
    """Weights in bfloat16 beside the float32 ones: of what is trained until the forward pass is over, of what is
    frozen as long as anything that was computed with it is kept, with checkpointing a block at a time."""
    frozen = lora and given["gradient_checkpointing"]
    return 2 * (shape.block_weights if frozen else shape.parameters * _graphs(stage, given, lora))


def _kept_by_a_layer(stage: str, given: Given, shape: Shape, word: int, compute: int, lora: bool) -> float:
    """Bytes per token, by what its operations save (counted in tests with autograd's own hooks).

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
    dropout = lora and not given.get("disable_dropout") and float(given["lora_dropout"]) > 0
    readers = (5 if shape.gated else 4) * hidden + ffn  # queries, keys, values; up, and gate; down
    if dropout or (lora and compute == 2):
        inputs = (readers + queries) * (compute + (0 if not dropout else 4 if given.get("use_cpu") else 1))
    elif compute < word:
        inputs = readers * compute
    else:
        inputs = (2 * hidden + ffn) * compute
    return norms + attention + feed_forward + inputs


def _logits(stage: str, given: Given, shape: Shape, compute: int) -> float:
    """The head's outputs and their gradient in the backward pass.

    All of them in pretraining, with two copies in float32. In TRL's trainers a tile of 4,096 tokens (of completions,
    where these are sampled) and 32,768 words, in place on a GPU; on the CPU eight float32 tiles and a mask are held at
    once.
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


def _rollout(stage: str, given: Given, shape: Shape, compute: int, processes: int) -> float:
    """The KV cache of sampling, ``2 L H_kv K`` numbers per token, for all sequences that are sampled together."""
    if stage not in ("grpo", "ppo", "rsft"):
        return 0.0
    cache = 2 * shape.num_hidden_layers * shape.num_key_value_heads * shape.head_dim * compute
    if stage == "rsft":
        together = int(given["sample_batch_size"])
    else:
        per_step = int(given["per_device_train_batch_size"])
        steps = int(given["steps_per_generation"] or given["gradient_accumulation_steps"])
        together = int(given["generation_batch_size"] or per_step * steps * processes) / processes
    return together * (int(given["max_completion_length"]) + _prompt_length(given)) * cache


def fitting(stage: str, given: Given, shape: Shape, device_bytes: float) -> tuple[str, int] | None:
    """The simplest accelerate config and the least number of devices (1 to 64, powers of two) that hold a stage."""
    for processes in (1, 2, 4, 8, 16, 32, 64):
        for config, sharding in CONFIGS.items() if processes > 1 else {"single_gpu": "none"}.items():
            if estimate(stage, given, shape, processes=processes, sharding=sharding).total <= device_bytes:
                return config, processes
    return None


def table(rows: list[tuple[str, str, Given, Shape]]) -> str:
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


def checkpoints_here(given: Given, shape: Shape) -> bool:
    """Whether a run without gradient_checkpointing would recompute its activations here, as the stages decide it."""
    use_cpu = bool(given.get("use_cpu")) or not has_accelerator()
    bf16 = computes_bf16(use_cpu) if given.get("bf16") is None else bool(given["bf16"])
    config = dataclasses.asdict(shape) | {"max_position_embeddings": 1 << 30}  # max_length is the limit
    return not keeps_activations(config, given, use_cpu=use_cpu, bf16=bf16)


def memory_table(entries: Sequence[Entry], chosen: Sequence[Entry]) -> str:
    """The memory that the chosen entries which train will need, by formula; checkpointing that no entry states is as
    this machine would choose it.

    Raises:
        UserError: a model's shape is not known, or nothing of it trains.
    """
    shapes: dict[str, Shape] = {}
    adapters: set[str] = set()
    rows = []
    for item in entries:
        if item.stage not in TRAINED:
            continue
        given = {name: plain(value) for name, value in item.given.items()}
        start = item.given.get("model_name_or_path")
        if start is None:
            shape = new_shape(given)
        else:
            shape = shapes.get(str(start)) or shape_by_name(str(start))
        shapes[str(item.output)] = shape
        from_adapter = str(start) in adapters or (Path(str(start)) / "adapter_config.json").is_file()
        if from_adapter and given.get("adapter_mode", "continue") == "continue":
            given = {**given, "use_peft": True}
        if given.get("use_peft"):
            adapters.add(str(item.output))
        if not given_checkpointing(given):
            given["gradient_checkpointing"] = checkpoints_here(given, shape)
        if item in chosen:
            rows.append((item.name, item.stage, given, shape))
    if not rows:
        raise UserError("no entry of these trains a model: there is nothing to estimate")
    return "GiB on one device, and what holds it (docs/scaling.md says what is counted)\n" + table(rows)
