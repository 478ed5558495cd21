"""The state of generation, saved to a file and continued anywhere: Part 3's S_t as a Markov state.

The keys and values of t tokens do not give the hidden state of the last one, so S_t alone does not fix what follows
(errata, line 14). A `Prefix` is (S_{t-1}, x_t): the last token is fed again, together with what continues it. A model
with those weights then gives, whatever process it is in, the distributions that it gives after the whole prefix.

Shapes: T tokens of the prefix, G key-value heads, S tokens kept (T - 1, or fewer in a window), K head dimension.
"""

import copy
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import DynamicCache, PreTrainedModel

from pipeline.model.batching import cache_argument, evaluating
from pipeline.runtime.errors import UserError


class Prefix(NamedTuple):
    """What a model has read: the cache of all tokens but the last, and the last token."""

    cache: DynamicCache
    last: int


def read_prefix(model: PreTrainedModel, ids: Sequence[int]) -> Prefix:
    """Read a prefix of at least one token."""
    cache = DynamicCache(config=model.config)
    if len(ids) > 1:
        advance(model, cache, ids[:-1])
    return Prefix(cache, ids[-1])


@torch.no_grad()
def advance(model: PreTrainedModel, cache: DynamicCache, ids: Sequence[int]) -> torch.Tensor:
    """Feed tokens after those in the cache, which takes them in: the logits of the last one, (V,)."""
    with evaluating(model):
        tokens = torch.tensor([list(ids)], device=model.device)
        output = model(input_ids=tokens, use_cache=True, logits_to_keep=1, **{cache_argument(model): cache})
    return output.logits[0, -1]


def branch(model: PreTrainedModel, prefix: Prefix, continuations: Sequence[Sequence[int]]) -> torch.Tensor:
    """log pi after the prefix and each continuation, (continuations, V), float32 on the CPU; the prefix stays."""
    logits = [advance(model, forked(prefix.cache), [prefix.last, *tokens]) for tokens in continuations]
    return torch.stack(logits).float().log_softmax(-1).cpu()


def forked(cache: DynamicCache) -> DynamicCache:
    """A cache that grows on its own. The tensors are shared: a layer never writes into those that it has."""
    other = copy.copy(cache)
    other.layers = [copy.copy(layer) for layer in cache.layers]
    return other


def save_prefix(path: str | Path, model: PreTrainedModel, prefix: Prefix) -> None:
    """Write a prefix to a safetensors file, with the shape and a checksum of the weights it was read by."""
    tensors = {}
    for number, layer in enumerate(prefix.cache.layers):
        if layer.get_seq_length():
            tensors |= {f"{number}.keys": layer.keys.contiguous(), f"{number}.values": layer.values.contiguous()}
    about = {"last": prefix.last, "tokens": prefix.cache.get_seq_length(), "weights": weights_checksum(model)}
    save_file(tensors, path, {"prefix": json.dumps(about)})


def load_prefix(path: str | Path, model: PreTrainedModel) -> Prefix:
    """A saved prefix, for the model that it was read by.

    Raises:
        UserError: the file holds no prefix, or one of a model with other weights.
    """
    try:
        with safe_open(path, framework="pt", device=str(model.device)) as file:
            about = json.loads((file.metadata() or {})["prefix"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception as error:
        raise UserError(f"{path} is no saved prefix ({' '.join(str(error).split())[:120]})") from error
    if about["weights"] != weights_checksum(model):
        raise UserError(f"{path} was read by a model with other weights: read the prefix again with this one")
    cache = DynamicCache(config=model.config)
    for number, layer in enumerate(cache.layers if tensors else ()):
        layer.update(tensors[f"{number}.keys"], tensors[f"{number}.values"])
        if hasattr(layer, "cumulative_length"):  # a window keeps its last tokens only, and counts all
            layer.cumulative_length = about["tokens"]
    return Prefix(cache, about["last"])


def weights_checksum(model: PreTrainedModel) -> str:
    """SHA-256 of the names, types, shapes and first 64 numbers of all weights: another training step changes it."""
    found = hashlib.sha256()
    for name, weight in model.named_parameters():
        head = weight.detach().flatten()[:64].float().cpu().numpy().tobytes()
        found.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode() + head)
    return found.hexdigest()
