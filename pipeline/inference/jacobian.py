"""Derivatives of hidden states and next-token distributions by what was read, without a matrix where none is needed.

Two maps that are often confused: d h_{l+1,t} / d h_{l,t}, from a token to itself, holds the identity of the residual
path; d s_t / d e_tau, from an earlier token, has no such path, only attention carries it (errata, line 21).

Shapes: B batch, T time, D hidden, V vocabulary, L layers.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel


class Pushed(NamedTuple):
    """A forward pass and its directional derivative.

    Attributes:
        hidden: L + 1 tensors (B, T, D): the embeddings and every layer's output, before the final norm.
        moved: of each the derivative along the direction.
        logits: (B, T, V).
        logits_moved: their derivative, J_z delta.
    """

    hidden: list[torch.Tensor]
    moved: list[torch.Tensor]
    logits: torch.Tensor
    logits_moved: torch.Tensor


def push_forward(
    model: PreTrainedModel, embeddings: torch.Tensor, mask: torch.Tensor, direction: torch.Tensor
) -> Pushed:
    """J delta of every layer and of the logits by forward-mode differentiation, in one pass.

    Differentiable in the parameters. Attention has to be eager: fused kernels have no forward mode.

    Args:
        model: any causal LM.
        embeddings: e = W_emb[x], (B, T, D).
        mask: (B, T).
        direction: delta of the embeddings, (B, T, D).
    """

    def run(e: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        outputs: list[torch.Tensor] = []
        handles = [
            layer.register_forward_hook(lambda _, __, output: outputs.append(first_of(output)))
            for layer in decoder_layers(model)
        ]
        try:
            logits = model(inputs_embeds=e, attention_mask=mask, use_cache=False).logits
        finally:
            for handle in handles:
                handle.remove()
        return [e, *outputs], logits

    (hidden, logits), (moved, logits_moved) = torch.func.jvp(run, (embeddings,), (direction,))
    return Pushed(hidden, moved, logits, logits_moved)


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The layers of any decoder, behind whatever wraps it.

    Raises:
        ValueError: there is no list of ``num_hidden_layers`` modules.
    """
    count = model.config.get_text_config().num_hidden_layers
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise ValueError(f"{type(model).__name__} has no list of its {count} layers")


def first_of(output: torch.Tensor | tuple) -> torch.Tensor:
    """A layer's hidden states: some layers return them with other things."""
    return output[0] if isinstance(output, tuple) else output


class LinearMap:
    """The Jacobian at 0 of a function of rows, (N, D) -> (N, D'), each row by itself, as products.

    Args:
        function: displacements (N, D) to values (N, D'); attention in it has to be eager.
        size: D.
        like: a tensor of the dtype and device of what it takes.
    """

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor], size: int, like: torch.Tensor):
        self.function, self.size, self.like = function, size, like

    def apply(self, v: torch.Tensor) -> torch.Tensor:
        """J v of each row, (N, D) -> (N, D')."""
        v = v.to(self.like)
        return torch.func.jvp(self.function, (torch.zeros_like(v),), (v,))[1]

    def adjoint(self, u: torch.Tensor) -> torch.Tensor:
        """J' u of each row, (N, D') -> (N, D)."""
        with torch.enable_grad():
            at = self.like.new_zeros(len(u), self.size, requires_grad=True)
            return torch.autograd.grad(self.function(at), at, u.to(self.like))[0]

    def matrix(self) -> torch.Tensor:
        """J of a square map, (D, D)."""
        return self.adjoint(torch.eye(self.size))


class Spectrum(NamedTuple):
    """Singular values, ascending, and the share of all that each stands for; both float64."""

    values: torch.Tensor
    shares: torch.Tensor

    def within(self, low: float, high: float) -> float:
        """The share of singular values in [low, high]."""
        return float(self.shares[(self.values >= low) & (self.values <= high)].sum())

    @property
    def median(self) -> float:
        """The value below which half of them are."""
        return float(self.values[(self.shares.cumsum(0) >= 0.5 - 1e-9).nonzero()[0, 0]])


EXACT_TO = 256  # dimensions up to which every singular value is computed


def spectrum(
    linear: LinearMap, *, exact_to: int = EXACT_TO, probes: int = 8, steps: int = 48, seed: int = 0
) -> Spectrum:
    """Singular values of a square map: all, or beyond ``exact_to`` dimensions by stochastic Lanczos quadrature.

    From each random vector ``steps`` Lanczos iterations on J'J give nodes and weights whose sums are, in expectation,
    those of the spectrum (Golub and Meurant 2010; Ubaru, Chen and Saad 2017). The largest nodes are its largest
    values; shares of narrow intervals are estimates.

    Args:
        probes: random vectors.
        steps: iterations, at most D.
    """
    if linear.size <= exact_to:
        values = torch.linalg.svdvals(linear.matrix().double().cpu()).flip(0)
        return Spectrum(values, torch.full_like(values, 1 / len(values)))
    steps = min(steps, linear.size)
    q = torch.randn(probes, linear.size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    basis = [q / q.norm(dim=1, keepdim=True)]
    tridiagonal = torch.zeros(probes, steps, steps, dtype=torch.float64)
    for j in range(steps):
        w = linear.adjoint(linear.apply(basis[j])).double().cpu()
        tridiagonal[:, j, j] = (w * basis[j]).sum(1)
        for _ in range(2):  # against all earlier ones, twice: else rounding brings back what was found
            for earlier in basis:
                w = w - (w * earlier).sum(1, keepdim=True) * earlier
        beta = w.norm(dim=1, keepdim=True)
        if j + 1 < steps:
            found = beta > 1e-6 * tridiagonal[:, 0, 0, None].abs()  # the rest of the space is not reached
            tridiagonal[:, j, j + 1] = tridiagonal[:, j + 1, j] = torch.where(found, beta, 0.0)[:, 0]
            basis.append(torch.where(found, w / beta, 0.0))
    nodes, vectors = torch.linalg.eigh(tridiagonal)
    values, order = nodes.clamp(min=0).sqrt().flatten().sort()
    return Spectrum(values, (vectors[:, 0].square() / probes).flatten()[order])


class LayerCall(NamedTuple):
    """One call of a layer in a forward pass: the hidden states (1, T, D) that it got, and everything else."""

    layer: nn.Module
    hidden: torch.Tensor
    rest: tuple
    options: dict

    def map(self, source: int, target: int) -> LinearMap:
        """d h_{l+1,target} / d h_{l,source}, the other tokens as they are."""

        def run(moved: torch.Tensor) -> torch.Tensor:
            hidden = displaced(self.hidden, moved, source)
            return first_of(self.layer(hidden, *self.rest, **self.options))[:, target]

        return LinearMap(run, self.hidden.shape[-1], self.hidden)


def layer_calls(model: PreTrainedModel, ids: torch.Tensor) -> list[LayerCall]:
    """What every layer was given when the model read the ids, (1, T)."""
    calls: list[LayerCall] = []

    def record(layer: nn.Module, given: tuple, options: dict) -> None:
        hidden = given[0] if given else options["hidden_states"]
        others = {name: value for name, value in options.items() if name != "hidden_states"}
        calls.append(LayerCall(layer, hidden.detach(), given[1:], others))

    hooks = [layer.register_forward_pre_hook(record, with_kwargs=True) for layer in decoder_layers(model)]
    try:
        with torch.no_grad():
            model(input_ids=ids, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def state_map(model: PreTrainedModel, embeddings: torch.Tensor, source: int, target: int) -> LinearMap:
    """d s_target / d e_source, s = F_theta(e) after the final norm; embeddings (1, T, D)."""

    def run(moved: torch.Tensor) -> torch.Tensor:
        output = model(inputs_embeds=displaced(embeddings, moved, source), output_hidden_states=True, use_cache=False)
        return output.hidden_states[-1][:, target]

    return LinearMap(run, embeddings.shape[-1], embeddings)


def displaced(hidden: torch.Tensor, moved: torch.Tensor, place: int) -> torch.Tensor:
    """Copies of (1, T, D), one per row of ``moved`` (N, D), which is added at one place."""
    here = torch.nn.functional.one_hot(torch.tensor(place), hidden.shape[1]).to(hidden)
    return hidden + here[None, :, None] * moved[:, None, :]
