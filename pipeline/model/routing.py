"""One LoRA adapter per corpus on one frozen backbone, and a rule that chooses among them by the prompt.

A routed folder holds ``routes/1``, ``routes/2``, ...: PEFT adapters, each of which any stage loads by its own path;
``router.safetensors``: what the rule knows; and an ``adapter_config.json`` that says which backbone it is. Route 0 is
the backbone alone, for what was known before the first corpus.

The rule is linear discriminant analysis over features that no training changes: the backbone's own hidden states after
the embedding and after the last layer, averaged over the prompt's tokens. It keeps one mean per corpus and one
covariance for all of them, which take in a new corpus without the old ones' rows (Hayes & Kanan, arXiv:1909.01520).

`N` prompts, `K` routes, `F` features, `D` hidden.
"""

import contextlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.utils import ModelOutput

from pipeline.model.batching import Batch, forward_rows
from pipeline.runtime.adapter_kinds import NARLM_PEFT_TYPE
from pipeline.runtime.errors import UserError
from pipeline.runtime.files import write_json

if TYPE_CHECKING:
    from peft import PeftModel

SHRINK = 0.01  # of the covariance, towards a multiple of the identity: corpora may have fewer rows than features


@dataclass
class Router:
    """Numbers of the routes, their counts (K,), means (K, F) and the scatter within them (F, F), all float64."""

    routes: list[int]
    counts: torch.Tensor
    means: torch.Tensor
    scatter: torch.Tensor

    @classmethod
    def empty(cls, features: int) -> "Router":
        """A router that knows no route yet."""
        zeros = [torch.zeros(shape, dtype=torch.float64) for shape in ((0,), (0, features), (features, features))]
        return cls([], *zeros)

    def add(self, route: int, features: torch.Tensor) -> None:
        """Take in a route by the features of its prompts, (N, F)."""
        features = features.double()
        mean = features.mean(0)
        self.routes.append(route)
        self.counts = torch.cat([self.counts, self.counts.new_tensor([len(features)])])
        self.means = torch.cat([self.means, mean[None]])
        self.scatter = self.scatter + (features - mean).T @ (features - mean)

    def choose(self, features: torch.Tensor) -> list[int]:
        """The route of every prompt, (N, F): the nearest mean in the metric of the shared covariance."""
        covariance = self.scatter / self.counts.sum()
        spread = covariance.diagonal().mean().clamp(min=torch.finfo(torch.float64).tiny)
        covariance = (1 - SHRINK) * covariance + SHRINK * spread * torch.eye(len(covariance), dtype=torch.float64)
        weights = torch.linalg.solve(covariance, self.means.T)  # (F, K)
        scores = features.double() @ weights - 0.5 * (self.means.T * weights).sum(0)
        return [self.routes[i] for i in scores.argmax(1).tolist()]

    def save(self, folder: str | Path) -> None:
        """Write ``router.safetensors``."""
        tensors = {"routes": torch.tensor(self.routes), "counts": self.counts, "means": self.means}
        save_file(tensors | {"scatter": self.scatter}, Path(folder) / "router.safetensors")

    @classmethod
    def load(cls, folder: str | Path) -> "Router":
        """The router saved in a folder."""
        tensors = load_file(Path(folder) / "router.safetensors")
        return cls(tensors["routes"].tolist(), tensors["counts"], tensors["means"], tensors["scatter"])


def prompt_features(model: nn.Module, prompts: Sequence[Sequence[int]], batch_size: int = 64) -> torch.Tensor:
    """(N, 2 D) features of prompts (token ids) on the CPU; the model's adapter, if it has one, must be off."""

    def read(output: ModelOutput, batch: Batch) -> torch.Tensor:
        both = torch.cat([output.hidden_states[0], output.hidden_states[-1]], -1).float()
        return ((both * batch.mask[..., None]).sum(1) / batch.mask.sum(1, keepdim=True)).cpu()

    found = forward_rows(model, prompts, read, batch_size=batch_size, output_hidden_states=True, use_cache=False)
    return torch.stack(found)


def save_routed(folder: str | Path, earlier: str | Path | None, route: int, base: str, router: Router) -> None:
    """Make a folder that holds a freshly saved LoRA adapter a routed one: that adapter becomes its newest route.

    Args:
        folder: where the adapter lies.
        earlier: the routed folder whose routes are taken over.
        route: the new route's number.
        base: the backbone's name.
        router: as it is with the new route.
    """
    folder = Path(folder)
    if earlier is not None:
        shutil.copytree(Path(earlier) / "routes", folder / "routes", dirs_exist_ok=True)
    place = folder / "routes" / str(route)
    place.mkdir(parents=True, exist_ok=True)
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        (folder / name).replace(place / name)
    router.save(folder)
    config = {"peft_type": NARLM_PEFT_TYPE, "method": "routed", "base_model_name_or_path": base}
    write_json(folder / "adapter_config.json", config)


def load_routed(folder: str | Path, **kwargs: object) -> "tuple[PeftModel, Router]":
    """The backbone with every route's adapter, in evaluation mode with all of them off, and the router.

    Args:
        folder: a routed folder.
        kwargs: passed on to ``load_model``, e.g. ``trust_remote_code``.

    Raises:
        UserError: the folder is no routed one.
    """
    from pipeline.model.loading import adapter_config, attach_adapter, load_model

    config = adapter_config(str(folder))
    if not config or config.get("method") != "routed":
        raise UserError(f"{folder} is not a folder of routed adapters: it has no adapter_config.json of that method")
    model, router = load_model(config["base_model_name_or_path"], **kwargs), Router.load(folder)
    for place in sorted((Path(folder) / "routes").iterdir(), key=lambda path: int(path.name)):
        model = attach_adapter(model, str(place), adapter_name=place.name)
    return model.eval(), router


@contextlib.contextmanager
def on_route(model: "PeftModel", route: int) -> Iterator[None]:
    """Inside, a model from `load_routed` answers by one route; 0 is the backbone alone."""
    if route == 0:
        with model.disable_adapter():
            yield
    else:
        model.set_adapter(str(route))
        yield


def routed(router: Router, function: Callable[..., list], prompt_of: Callable[..., list[int]]) -> Callable[..., list]:
    """``function(model, rows, batch_size) -> one result per row``, with every row under the route of its prompt.

    ``prompt_of`` gives a row's prompt as token ids: the rule never sees an answer.
    """

    def run(model: "PeftModel", rows: Sequence, batch_size: int = 64) -> list:
        with on_route(model, 0):
            chosen = router.choose(prompt_features(model, [prompt_of(row) for row in rows], batch_size))
        result: list = [None] * len(rows)
        for route in sorted(set(chosen)):
            places = [i for i, other in enumerate(chosen) if other == route]
            with on_route(model, route):
                found = function(model, [rows[i] for i in places], batch_size)
            for place, value in zip(places, found, strict=True):
                result[place] = value
        return result

    return run
