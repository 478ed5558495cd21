"""Tiny NarLMs with large weights (standard deviation 0.3), so that a wrong mask or position shows in the logits."""

from collections.abc import Callable

import pytest
import torch

from pipeline.model import NarLMConfig, NarLMForCausalLM

SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA_LIKE = {"norm_type": "rmsnorm", "ffn_type": "swiglu", "mlp_bias": False, "num_key_value_heads": 2}
# One of each way to tell positions, with full, windowed and mixed layers.
KINDS = {
    "paper": {},
    "llama": {**LLAMA_LIKE, "tie_word_embeddings": True},
    "window": {**LLAMA_LIKE, "sliding_window": 4},
    "mixed": {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
    "learned": {"position_embedding_type": "learned", "attention_bias": True, "tie_word_embeddings": True},
    "sinusoidal": {"position_embedding_type": "sinusoidal", "sliding_window": 4},
}


def build(kind: str = "paper", attention: str = "eager", **options) -> NarLMForCausalLM:
    """A NarLM with random weights and biases, in evaluation mode."""
    torch.manual_seed(0)
    model = NarLMForCausalLM(NarLMConfig(**{**SIZES, **KINDS[kind], **options}, attn_implementation=attention))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):  # zero when made: give every one a part to play
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


@pytest.fixture
def narlm() -> Callable[..., NarLMForCausalLM]:
    return build


@pytest.fixture
def tokens() -> torch.Tensor:
    """(2, 12) token indices, none of them special."""
    return torch.randint(3, SIZES["vocab_size"], (2, 12), generator=torch.Generator().manual_seed(1))
