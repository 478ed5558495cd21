"""Learning rates of some of an optimizer's parameters."""

from collections.abc import Callable, Iterable

import torch


def split_groups(
    optimizer: torch.optim.Optimizer,
    parameters: Iterable[torch.nn.Parameter],
    learning_rate: Callable[[float], float],
) -> None:
    """Move ``parameters`` out of their groups into new ones that differ in the learning rate alone.

    Args:
        optimizer: changed in place.
        parameters: those to move; which group they are in, and so their weight decay, stays.
        learning_rate: of their group's learning rate, the new one.
    """
    moved = {id(parameter) for parameter in parameters}
    for group in list(optimizer.param_groups):
        found = [parameter for parameter in group["params"] if id(parameter) in moved]
        if found:
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in moved]
            optimizer.add_param_group({**group, "params": found, "lr": learning_rate(group["lr"])})
