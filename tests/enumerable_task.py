"""The task of ``pipeline.worlds.enumerable`` as tests want it: a saved pi_ref, rewards as functions, regret."""

from pathlib import Path

import torch
from datasets import Dataset

from pipeline.evaluation import exact
from pipeline.worlds.enumerable import (  # noqa: F401  (the tests' names of the task)
    BOS,
    COMPLETIONS,
    EOS,
    INDEX,
    LENGTH,
    PAD,
    PROMPTS,
    VOCABULARY,
    rewards,
    tokenizer,
)


def saved_model(folder: Path, seed: int = 0, layers: int = 2) -> str:
    """A random NarLM of this vocabulary, saved with its tokenizer: the pi_ref of the task."""
    from pipeline.model import NarLMConfig, NarLMForCausalLM

    torch.manual_seed(seed)
    config = NarLMConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=16,
        initializer_range=0.3,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )
    NarLMForCausalLM(config).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return str(folder)


def load(folder: str) -> torch.nn.Module:
    """The saved model, by eager attention, which is the quickest at this size."""
    from pipeline.model import NarLMForCausalLM

    return NarLMForCausalLM.from_pretrained(folder, attn_implementation="eager")


def reward_function(table: torch.Tensor):
    """A table of rewards, (prompts, completions), as TRL's callable."""

    def known_reward(prompts, completions, completion_ids, **columns):
        return [table[PROMPTS.index(p), INDEX[tuple(ids)]].item() for p, ids in zip(prompts, completion_ids)]

    return known_reward


def dataset(rows: int = 256) -> Dataset:
    """The prompts in turn, as many rows as a run needs."""
    return Dataset.from_dict({"prompt": [PROMPTS[i % len(PROMPTS)] for i in range(rows)]})


def exact_law(model: torch.nn.Module) -> torch.Tensor:
    """Exact log-probability of every completion of every prompt, (prompts, completions), in float64."""
    return exact.exact_law(model, [tokenizer()(prompt)["input_ids"] for prompt in PROMPTS], COMPLETIONS)


def regret_removed(log_law: torch.Tensor, log_reference: torch.Tensor, table: torch.Tensor, beta: float) -> float:
    """The share of pi_ref's regret to the analytic optimum that a policy has removed: 1 is optimal."""
    return exact.exact_figures(log_law, log_reference, table, beta)["regret_removed"]
