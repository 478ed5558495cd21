"""The learned reward: a reward model's score of prompt and completion, R_phi of the paper's Part 2.

In the registry it is ``reward_model(model='<folder or Hub id>')``, and so may be a term of a weighted sum. A folder is
a full sequence classifier of one output or an adapter with a score head, as ``reward_model.py`` saves them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from pipeline.rewards.judging import Judgement, Sample, error, scored, unscorable
from pipeline.runtime.checkpoints import require_model_folder
from pipeline.runtime.errors import UserError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from transformers.utils import ModelOutput

    from pipeline.model.batching import Batch


def judge(samples: Sequence[Sample], model: str = "", batch_size: int = 64) -> list[Judgement]:
    """Scores of a batch, prompts in the form that the model was trained on; without a prompt there is no score.

    Raises:
        UserError: no model is named, or none can be loaded from it.
    """
    from pipeline.model.chat import as_trained
    from pipeline.model.tokens import encode_exchange
    from pipeline.model.vision import images_of, pixels_of

    classifier, tokenizer = load_reward_model(model)
    known = [i for i, sample in enumerate(samples) if sample.prompt is not None]
    prompts = as_trained([samples[i].prompt for i in known], tokenizer, model)
    ids = [encode_exchange(tokenizer, prompt, samples[i].text) for i, prompt in zip(known, prompts)]
    judgements = [unscorable("a reward model needs the prompt")] * len(samples)
    pixels = [pixels_of(tokenizer, images) if (images := images_of(prompt)) else None for prompt in prompts]
    for i, score in zip(known, score_sequences(classifier, ids, tokenizer.pad_token_id, batch_size, pixels)):
        judgements[i] = scored(score) if math.isfinite(score) else error(f"the reward model gave {score}")
    return judgements


def check(model: str = "", batch_size: int = 64) -> None:
    """Before anything loads: is a model named, and does a path that looks like one exist? Raises UserError."""
    if not model:
        raise UserError("reward 'reward_model' needs its model: reward_model(model='runs/quickstart/reward_model')")
    require_model_folder(model, "reward 'reward_model'")
    if batch_size < 1:
        raise UserError(f"reward 'reward_model': batch_size must be at least 1, got {batch_size}")


@lru_cache(maxsize=4)
def load_reward_model(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A reward model for use, its adapter merged, on the GPU if there is one, and its tokenizer; loaded once.

    Raises:
        UserError: no name, no such model, or one that was saved without a score head: transformers would give it a
            random one.
    """
    if not name:
        raise UserError("reward 'reward_model' needs its model: reward_model(model='runs/quickstart/reward_model')")
    from transformers import AutoModelForSequenceClassification

    from pipeline.model.loading import adapter_config, load_for_use, load_tokenizer

    classifier = load_for_use(name, auto_class=AutoModelForSequenceClassification, num_labels=1)
    adapter = adapter_config(name)
    kinds = classifier.config.architectures or [] if adapter is None else [adapter.get("task_type") or ""]
    if kinds and not any(kind == "SEQ_CLS" or kind.endswith("ForSequenceClassification") for kind in kinds):
        raise UserError(
            f"reward_model: {name} was saved without a score head ({', '.join(kinds)}), it is no reward model"
        )
    tokenizer = load_tokenizer(name)
    # A score is read off the last token that is no padding.
    classifier.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    return classifier, tokenizer


def score_sequences(
    model: PreTrainedModel,
    rows: Sequence[Sequence[int]],
    pad_token_id: int,
    batch_size: int = 64,
    pixels: Sequence[torch.Tensor | None] | None = None,
) -> list[float]:
    """Scores of token sequences by a sequence classifier of one output, in input order.

    Args:
        pixels: of each row's images, as `forward_rows` takes them.
    """
    from pipeline.model.batching import forward_rows

    def read(output: ModelOutput, batch: Batch) -> list[float]:
        return output.logits[:, 0].float().tolist()

    return forward_rows(model, rows, read, batch_size=batch_size, pad_token_id=pad_token_id, pixels=pixels)
