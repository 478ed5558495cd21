"""The processes of one run: which of them this is, and what they agree on. Imports torch only where they talk."""

import os


def rank() -> int:
    """Number of this process among those that train together; 0 is the main one."""
    return int(os.environ.get("RANK", 0))


def is_main() -> bool:
    """Whether this is the main process, which writes the files and speaks on the terminal."""
    return rank() == 0


def processes() -> int:
    """Processes that train together."""
    return int(os.environ.get("WORLD_SIZE", 1))


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
