"""What a step of generation costs: FLOPs of its matrix products, bytes that it reads, and which of them limits it.

Shapes: P numbers in the matrices, L layers, H query heads, G key-value heads, K head dimension, n tokens in context,
Delta the window of a layer. FLOPs count 2 per multiply-add; norms, RoPE and softmax are left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import numpy as np
from transformers import DynamicCache, PreTrainedModel

from pipeline.runtime.errors import UserError

# Peak dense bf16 FLOP/s with float32 accumulation, and bytes per second of the memory: the vendor's data sheets.
DEVICES = {
    "A100": (312e12, 2.039e12),  # SXM, 80 GB
    "H100": (989e12, 3.35e12),  # SXM
    "H200": (989e12, 4.8e12),
    "B200": (2250e12, 8.0e12),
    "L4": (121e12, 0.3e12),
    "RTX 4090": (165e12, 1.008e12),
}
NUMBER_BYTES = 2  # of bf16, the type that the peaks are given for


def ridge_of(device: str) -> float:
    """FLOPs per byte at which a device's arithmetic and its memory take equally long.

    Raises:
        UserError: an unknown device.
    """
    if device not in DEVICES:
        raise UserError(f"device {device!r} is not known: choose one of {', '.join(DEVICES)}, or give its ridge")
    flops, bandwidth = DEVICES[device]
    return flops / bandwidth


@dataclass(frozen=True)
class Cost:
    """The shape that decides what a step costs; `cost_of` reads it from a model.

    Attributes:
        body: numbers in the matrices of all layers.
        head: numbers in W_out.
        read: numbers of all weights that a step reads: not the rows of an embedding of its own.
        heads: H. kv_heads: G. head_dim: K.
        windows: Delta of each layer, None for full attention.
    """

    body: int
    head: int
    read: int
    heads: int
    kv_heads: int
    head_dim: int
    windows: tuple[int | None, ...]

    def cached_flops(self, n: int) -> int:
        """Of feeding token n to a cache of n - 1: each layer compares it with min(n, Delta) keys."""
        attended = sum(n if window is None else min(n, window) for window in self.windows)
        return 2 * (self.body + self.head) + 4 * self.heads * self.head_dim * attended

    def uncached_flops(self, n: int) -> int:
        """Of reading n tokens anew for the last one's logits, as dense attention does: masked pairs are computed."""
        pairs = len(self.windows) * n * n
        return 2 * (self.body * n + self.head) + 4 * self.heads * self.head_dim * pairs

    def cache_numbers(self, n: int) -> int:
        """Keys and values of n tokens: 2 G K per layer and token, of which a window layer keeps Delta - 1."""
        kept = sum(n if window is None else min(n, window - 1) for window in self.windows)
        return 2 * self.kv_heads * self.head_dim * kept

    def intensity(self, n: int, batch: int) -> float:
        """FLOPs per byte of a cached step of ``batch`` sequences of n tokens in bf16; weights are read once."""
        return batch * self.cached_flops(n) / (NUMBER_BYTES * (self.read + batch * self.cache_numbers(n)))

    def batch_at(self, n: int, ridge: float) -> float | None:
        """The batch from which on a step is bound by arithmetic; None where reading the cache alone takes longer.

        B F / (w (P + B C)) = ridge, solved for B.
        """
        slope = self.cached_flops(n) - ridge * NUMBER_BYTES * self.cache_numbers(n)
        return ridge * NUMBER_BYTES * self.read / slope if slope > 0 else None


def cost_of(model: PreTrainedModel) -> Cost:
    """The cost of a dense causal LM with attention.

    Raises:
        UserError: a mixture of experts, whose step reads some of its weights only, or no attention.
    """
    config = model.config.get_text_config()
    parameters = list(model.parameters())
    heads = getattr(config, "num_attention_heads", None)
    if not heads or any(p.ndim == 3 for p in parameters) or getattr(config, "num_local_experts", None):
        raise UserError("the cost of a step is known for dense attention models, not for this one")
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    outside = {id(embedding), id(head)}
    for module in model.modules():
        if type(module).__name__ == "Embedding":
            outside.add(id(module.weight))
    own = [p for p in parameters if id(p) not in outside]
    return Cost(
        body=sum(p.numel() for p in own if p.ndim == 2),
        head=head.numel(),
        read=sum(p.numel() for p in own) + head.numel(),
        heads=heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        windows=tuple(
            layer.sliding_window if layer.is_sliding else None for layer in DynamicCache(config=model.config).layers
        ),
    )


class Fit(NamedTuple):
    """Coefficients, none of them negative, and the share of the variance that they explain."""

    coefficients: tuple[float, ...]
    r2: float


def fit_powers(n: Sequence[float], y: Sequence[float], degree: int) -> Fit:
    """y = a + b n + … by non-negative least squares, each residual relative to its y (timing noise is a factor).

    The minimum over a, b, … >= 0 is the ordinary least-squares solution on the columns that are not 0 in it, so of all
    subsets of the columns the best one with a non-negative solution is exact. R^2 is of y itself.

    Args:
        degree: of the polynomial: 1 for a + b n, 2 with c n^2.
    """
    n, y = np.asarray(n, dtype=np.float64), np.asarray(y, dtype=np.float64)
    columns = np.stack([(n / n.max()) ** power for power in range(degree + 1)], axis=1)
    best, least = np.zeros(degree + 1), np.inf
    for size in range(1, degree + 2):
        for chosen in map(list, combinations(range(degree + 1), size)):
            found = np.linalg.lstsq(columns[:, chosen] / y[:, None], np.ones_like(y), rcond=None)[0]
            error = float(((columns[:, chosen] @ found / y - 1) ** 2).sum())
            if (found >= 0).all() and error < least:
                best, least = np.zeros(degree + 1), error
                best[chosen] = found
    spread = float(((y - y.mean()) ** 2).sum())
    r2 = 1 - float(((columns @ best - y) ** 2).sum()) / spread if spread else 1.0
    return Fit(tuple(float(c / n.max() ** power) for power, c in enumerate(best)), r2)
