"""The processes of one run: which of them this is, and what they agree on. Imports torch only where they talk."""

import os
from collections.abc import Iterable

from pipeline.runtime.errors import UserError


def rank() -> int:
    """Number of this process among those that train together; 0 is the main one."""
    return int(os.environ.get("RANK", 0))


def is_main() -> bool:
    """Whether this is the main process, which writes the files and speaks on the terminal."""
    return rank() == 0


def processes() -> int:
    """Processes that train together."""
    return int(os.environ.get("WORLD_SIZE", 1))


def require_one_world(parsed: Iterable[object]) -> None:
    """Refuse to train in several processes that do not know of each other: each would train another model.

    Raises:
        UserError: the launcher started several processes, and a trainer's config counts one.
    """
    count = processes()
    if count > 1 and any(getattr(part, "world_size", count) == 1 for part in parsed):
        raise UserError(
            f"{count} processes were started, and each would train alone into one folder: on CPUs set use_cpu: true, "
            "on GPUs see that accelerate's configuration has a distributed_type, such as MULTI_GPU"
        )


def agreed(found: bool) -> bool:
    """Whether ``found`` is true on any process; each must ask. If they acted differently they would wait forever."""
    import torch

    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return found
    flag = torch.tensor(float(found), device=_device())
    torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
    return bool(flag.item())


def mean_over_processes(value: float) -> float:
    """The mean of a number over all processes; each must ask."""
    import torch

    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return value
    total = torch.tensor(value, dtype=torch.float64, device=_device())
    torch.distributed.all_reduce(total)
    return total.item() / torch.distributed.get_world_size()


def _device() -> str:
    import torch

    return "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
