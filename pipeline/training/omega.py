"""Omega of eq. (12): its terms with their lambdas, and what is remembered of earlier corpora for them."""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from pipeline.objectives import regularisers
from pipeline.runtime.files import Json, write_json


@dataclass
class Memory:
    """What is kept of earlier corpora, of a size that does not grow with their number.

    Saved beside the adapter as ``omega.json`` and, for EWC, ``omega.safetensors`` (the Fisher).

    Attributes:
        size: rows it may hold.
        rows: a uniform sample of all rows seen: the data of ``replay``, and the anchors of ``distillation`` where
            ``anchors`` has none.
        seen: how many rows have streamed past.
        fisher: EWC's diagonal Fisher by parameter.
        anchors: rows of text, the same from the first corpus to the last.
    """

    size: int
    rows: list[Json] = field(default_factory=list)
    seen: int = 0
    fisher: dict[str, torch.Tensor] = field(default_factory=dict)
    anchors: list[Json] = field(default_factory=list)

    def add(self, rows: Sequence[Json], seed: int) -> None:
        """Let rows stream past the reservoir."""
        draw = random.Random(f"{seed}/{self.seen}")
        self.rows, self.seen = regularisers.reservoir(self.rows, self.seen, rows, self.size, draw)

    def supersede(self, rows: Sequence[Json]) -> None:
        """Forget every row whose prompt a new row answers otherwise: what has changed must not pull back."""
        answers = {repr(row["prompt"]): row["completion"] for row in rows if "prompt" in row and "completion" in row}
        self.rows = [
            row
            for row in self.rows
            if "completion" not in row or answers.get(repr(row["prompt"]), row["completion"]) == row["completion"]
        ]

    def state_dict(self) -> dict[str, Any]:
        """All of it; ``fisher`` holds tensors, the rest is plain."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a saved memory, never more than ``size`` rows of it."""
        self.rows, self.seen = state["rows"][: self.size], state["seen"]
        self.fisher, self.anchors = state.get("fisher", {}), state.get("anchors", [])

    def save(self, folder: Path) -> None:
        """Write the state beside the adapter in ``folder``."""
        state = self.state_dict()
        fisher = state.pop("fisher")
        write_json(Path(folder) / "omega.json", state)
        if fisher:
            save_file({k: v.contiguous() for k, v in fisher.items()}, Path(folder) / "omega.safetensors")

    @classmethod
    def load(cls, folder: str | Path, size: int) -> "Memory":
        """The memory saved in a folder; an empty one where there is none."""
        memory, file, tensors = cls(size), Path(folder) / "omega.json", Path(folder) / "omega.safetensors"
        if file.is_file():
            state = json.loads(file.read_text(encoding="utf-8"))
            memory.load_state_dict(state | {"fisher": load_file(tensors) if tensors.is_file() else {}})
        return memory


@dataclass
class Omega:
    """The terms of Omega with their lambdas, as one corpus sees them.

    Attributes:
        weights: lambda of each term.
        memory: what is remembered.
        distill: which outputs ``distillation`` holds: ``hidden``, ``logits`` or ``both``.
        batch_size: rows per step of ``distillation`` and of ``replay``.
        seed: of the rows that a step draws.
        old_reads: the LoRA A matrices of earlier corpora, by module, for ``orthogonal``.
        written: rows that the model wrote itself, read in place of the memory's.
    """

    weights: dict[str, float]
    memory: Memory
    distill: str = "both"
    batch_size: int = 16
    seed: int = 0
    old_reads: dict[str, torch.Tensor] = field(default_factory=dict)
    written: list[Json] | None = None

    @property
    def rows(self) -> list[Json]:
        """What is replayed, and read where there are no anchors."""
        return self.memory.rows if self.written is None else self.written

    def uses(self, *terms: str) -> bool:
        """Whether one of these terms has a weight above 0."""
        return any(self.weights.get(term, 0.0) > 0 for term in terms)
