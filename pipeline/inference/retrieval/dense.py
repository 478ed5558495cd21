"""A dense retriever: texts as the mean of an encoder's last hidden states, compared by cosine.

The encoder is any folder or Hub id that transformers loads: a sentence encoder, or a causal model, an adapter
included, whose own hidden states are then averaged. Shapes: N texts, T time, D hidden.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.inference.retrieval.hits import Hits, best
from pipeline.runtime.errors import UserError
from pipeline.runtime.files import atomic

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from transformers.utils import ModelOutput

    from pipeline.inference.retrieval.index import IndexOptions
    from pipeline.model.batching import Batch

VECTORS = "vectors.npy"
MOST_TOKENS = 512  # of a text, where the encoder's config has no limit


@dataclass
class Encoder:
    """A model with its tokenizer, and what is written in front of a query and of a passage (E5's ``query: ``)."""

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    query_prefix: str = ""
    passage_prefix: str = ""

    def embed(self, texts: Sequence[str], batch_size: int = 64) -> np.ndarray:
        """Unit vectors of texts, (N, D) in float32: the mean of the last hidden states of a text's own tokens.

        A text is cut at the encoder's positions.
        """
        import torch

        from pipeline.model.batching import forward_rows
        from pipeline.model.loading import position_limit

        def pooled(output: "ModelOutput", batch: "Batch") -> Iterator["torch.Tensor"]:
            last = output.hidden_states[-1].float()
            return (last[row, :length].mean(0).cpu() for row, length in enumerate(batch.lengths))

        limit = position_limit(self.model.config) or MOST_TOKENS
        coded = self.tokenizer(list(texts), truncation=True, max_length=limit, verbose=False)["input_ids"]
        rows = [ids or [self.tokenizer.pad_token_id or 0] for ids in coded]
        found = forward_rows(
            self.model, rows, pooled, batch_size=batch_size, pad_token_id=self.tokenizer.pad_token_id or 0,
            output_hidden_states=True,
        )  # fmt: skip
        return torch.nn.functional.normalize(torch.stack(found), dim=-1).numpy()


def load_encoder(options: "IndexOptions") -> Encoder:
    """The encoder that the options name, on the CPU or the GPU if there is one.

    Raises:
        UserError: none is named, or it cannot be loaded.
    """
    from transformers import AutoModel

    from pipeline.model.loading import from_pretrained, load_model, load_tokenizer, model_config, on_accelerator
    from pipeline.runtime.checkpoints import require_model_folder

    if not options.encoder:
        raise UserError("dense: give an encoder, the folder or Hub id of a model (--encoder)")
    require_model_folder(options.encoder)
    try:
        kinds = model_config(options.encoder).architectures or []
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()
        raise UserError(f"encoder {options.encoder!r} cannot be loaded: {reason[0] if reason else error}") from None
    causal = any("CausalLM" in kind for kind in kinds)
    model = load_model(options.encoder) if causal else from_pretrained(AutoModel, options.encoder)
    words = load_tokenizer(options.encoder)
    return Encoder(on_accelerator(model), words, options.query_prefix, options.passage_prefix)


class Dense:
    """The dense retriever: exact search, every text compared with the query."""

    def __init__(self, vectors: np.ndarray, encoder: Encoder):
        self.vectors, self.encoder = vectors, encoder

    @classmethod
    def build(cls, texts: Sequence[str], options: "IndexOptions") -> "Dense":
        """Embed the texts by the encoder of the options."""
        return cls.of(texts, load_encoder(options))

    @classmethod
    def of(cls, texts: Sequence[str], encoder: Encoder) -> "Dense":
        """Embed the texts by an encoder that is loaded."""
        return cls(encoder.embed([encoder.passage_prefix + text for text in texts]), encoder)

    def save(self, folder: Path) -> None:
        """Write the vectors into a folder of its own; the encoder stays where it is."""
        folder.mkdir(parents=True, exist_ok=True)
        with atomic(folder / VECTORS) as temporary, open(temporary, "wb") as file:
            np.save(file, self.vectors)

    @classmethod
    def load(cls, folder: Path, size: int, options: "IndexOptions") -> "Dense":
        """The vectors of `save`, and their encoder."""
        return cls(np.load(folder / VECTORS, allow_pickle=False), load_encoder(options))

    def search(self, queries: Sequence[str], count: int) -> list[Hits]:
        """The ``count`` texts of the highest cosine with each query."""
        if not queries:
            return []
        asked = self.encoder.embed([self.encoder.query_prefix + query for query in queries])
        if asked.shape[1] != self.vectors.shape[1]:
            raise UserError(
                f"dense: the encoder has {asked.shape[1]} dimensions and the index {self.vectors.shape[1]}: it was "
                "built by another encoder; build it again"
            )
        return [best(scores, count) for scores in asked @ self.vectors.T]
