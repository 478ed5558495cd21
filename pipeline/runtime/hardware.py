"""What this machine has, and what a run takes of it where nothing was given. Imports torch only where it is asked."""

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

from pipeline.runtime.distributed import processes
from pipeline.runtime.files import Json
from pipeline.runtime.formatting import counted, memory

SHARE_OF_MEMORY = 4  # activations are kept where they take at most one part in this many of the memory
PROMPT_TOKENS = 512  # of a prompt to sample from, whose length no argument states


def has_accelerator() -> bool:
    """Whether PyTorch finds a GPU or another accelerator here."""
    import torch

    return torch.accelerator.is_available()


def computes_bf16(use_cpu: bool) -> bool:
    """Whether mixed precision in bfloat16 is faster here; on a CPU and on GPUs before Ampere it is not."""
    import torch

    if use_cpu or not has_accelerator():
        return False
    return not torch.cuda.is_available() or torch.cuda.is_bf16_supported(including_emulation=False)


# ---------------------------------------------------------------------- threads


def local_processes() -> int:
    """Processes of this run on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def cores() -> int:
    """Physical cores that this process may run on."""
    import psutil

    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(allowed, psutil.cpu_count(logical=False) or allowed))


def threads() -> int | None:
    """Threads that PyTorch should compute with on a CPU: the cores, shared by the processes of this machine.

    None where the user has chosen them by OMP_NUM_THREADS or ``accelerate launch --num_cpu_threads_per_process``. Both
    launchers set OMP_NUM_THREADS to 1 where it is not set, which leaves most of the machine idle.
    """
    given = os.environ.get("OMP_NUM_THREADS")
    if given is not None and not (given == "1" and _set_by_launcher()):
        return None
    return max(1, cores() // local_processes())


def _set_by_launcher() -> bool:
    """Whether OMP_NUM_THREADS is the launcher's own: this process has it and the launcher was started without it."""
    import psutil

    if not ({"LOCAL_WORLD_SIZE", "ACCELERATE_MIXED_PRECISION"} & set(os.environ)):
        return False
    with contextlib.suppress(psutil.Error, OSError):
        launcher = psutil.Process().parent()
        if launcher is not None:
            words = " ".join(launcher.cmdline())
            return "OMP_NUM_THREADS" not in launcher.environ() and "num_cpu_threads_per_process" not in words
    return False


# ---------------------------------------------------------------------- memory


def free_memory(use_cpu: bool) -> int:
    """Bytes for one process: of its accelerator, else its share of what the machine (or its container) has free."""
    if not use_cpu and has_accelerator():
        import torch

        return torch.cuda.mem_get_info()[1] if torch.cuda.is_available() else 0
    import psutil

    free = psutil.virtual_memory().available
    with contextlib.suppress(OSError, ValueError):  # a container's limit; "max" where it has none
        limit, used = (int(Path(f"/sys/fs/cgroup/memory.{name}").read_text()) for name in ("max", "current"))
        free = min(free, max(limit - used, 0))
    return free // local_processes()


def activation_bytes(config: Mapping[str, object], values: Mapping[str, object], bytes_each: int) -> int | None:
    """What a transformer's layers keep for the backward pass of one batch, roughly; None where its shape is not known.

    Per token and layer: about 10 vectors of the width, 4 of the feed-forward width, and two rows of attention weights
    of every head (kernels that do not store them need less).

    Args:
        config: the model's ``config.json``.
        values: what was given of batch size and lengths, as text or numbers; else TRL's defaults.
        bytes_each: 4, or 2 under mixed precision.
    """
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings")
    try:
        width, layers, heads, positions = (int(config[name]) for name in names)
        inner = int(config.get("intermediate_size") or 4 * width)
        rows = int(values.get("per_device_train_batch_size", 8))
        if "max_completion_length" in values:
            length = PROMPT_TOKENS + int(values["max_completion_length"])
        else:
            length = int(values.get("max_length") or 1024)
    except (KeyError, TypeError, ValueError):
        return None
    length = min(length, positions)
    return bytes_each * rows * length * layers * (10 * width + 4 * inner + 2 * heads * length)


def keeps_activations(
    config: Mapping[str, object], values: Mapping[str, object], *, use_cpu: bool, bf16: bool
) -> bool:
    """Whether a step's activations fit easily, so that recomputing them (``gradient_checkpointing``) only costs time.

    False where the model's shape is not known: checkpointing is the default that runs everywhere.
    """
    needed = activation_bytes(config, values, 2 if bf16 else 4)
    return needed is not None and needed * SHARE_OF_MEMORY <= free_memory(use_cpu)


# ---------------------------------------------------------------------- in words


def settle(arguments: Mapping[str, object]) -> Json:
    """Let PyTorch compute with the threads that are there, and describe what the run computes on, for its record.

    Args:
        arguments: every argument of the stage, as parsed.
    """
    import torch

    on_cpu = bool(arguments.get("use_cpu")) or not has_accelerator()
    found: Json = {"device": "cpu" if on_cpu else torch.accelerator.current_accelerator().type}
    found["processes"] = processes()
    if on_cpu:
        chosen = threads()
        if chosen is not None:
            torch.set_num_threads(chosen)
        found |= {"cores": cores(), "threads": torch.get_num_threads(), "memory_bytes": free_memory(True)}
    elif torch.cuda.is_available():
        found |= {"name": torch.cuda.get_device_name(), "memory_bytes": free_memory(False)}
    found["precision"] = next((name for name in ("bf16", "fp16") if arguments.get(name)), "no mixed precision")
    return found


def in_words(hardware: Json) -> str:
    """The record's entry as a line says it, e.g. ``CPU, 2 threads, no mixed precision``."""
    each = " each" if hardware["processes"] > 1 else ""
    parts = [f"{hardware['processes']} processes"] if each else []
    if hardware["device"] == "cpu":
        parts.append(f"CPU with {counted(hardware['threads'], 'thread')}{each}")
    else:
        size = f" ({memory(hardware['memory_bytes'])}){each}" if hardware.get("memory_bytes") else each
        parts.append(hardware.get("name", hardware["device"]) + size)
    precision = hardware["precision"]
    return ", ".join([*parts, f"mixed precision {precision}" if precision != "no mixed precision" else precision])
