"""What differs between the versions of transformers that a saved NarLM runs on.

This file is saved with every model, beside ``modeling_narlm.py``. transformers 5.24 renamed the key-value cache from
``past_key_values`` to ``cache`` in every signature and output. Callers may use either name on every version; the
library's own functions, layers and outputs get the name that the installed version uses.
"""

from dataclasses import fields
from typing import Any

import torch
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast

try:
    from transformers.modeling_utils import slice_logits_to_keep
except ImportError:  # transformers < 5.21

    def slice_logits_to_keep(hidden_states: torch.Tensor, logits_to_keep: int | torch.Tensor) -> torch.Tensor:
        """(B, T, D) -> the last ``logits_to_keep`` positions (0: all), or the positions that a tensor names."""
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        return hidden_states[:, kept, :]


CACHE_NAMES = ("cache", "past_key_values")
_OUTPUT_FIELDS = {field.name for field in fields(BaseModelOutputWithPast)}
# The name of the cache in the installed version, as in f(**{CACHE_NAME: cache}).
CACHE_NAME = next((name for name in CACHE_NAMES if name in _OUTPUT_FIELDS), None)
if CACHE_NAME is None:
    raise ImportError(
        "this version of transformers calls the key-value cache neither 'cache' nor 'past_key_values': NarLM's code "
        "files know no other name. Install an earlier version of transformers, or newer code files."
    )


def given_cache(past_key_values: Cache | None, cache: Cache | None, others: dict[str, Any]) -> Cache | None:
    """The cache of a call, by whichever name it came.

    Args:
        past_key_values: the argument of that name.
        cache: the argument of that name.
        others: the remaining keywords. A cache among them would be ignored, and with it every token it holds.

    Raises:
        TypeError: two different caches, or one under an unknown name.
    """
    unknown = [name for name, value in others.items() if isinstance(value, Cache)]
    if unknown:
        raise TypeError(
            f"forward() got a key-value cache under the unknown name {', '.join(map(repr, unknown))}: "
            f"pass it as {' or '.join(map(repr, CACHE_NAMES))}."
        )
    if past_key_values is not None and cache is not None and past_key_values is not cache:
        raise TypeError("forward() got two key-value caches, 'cache' and 'past_key_values': pass one.")
    return past_key_values if cache is None else cache
