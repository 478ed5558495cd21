"""A task small enough to enumerate: every completion of every prompt, its exact probability, reward and optimum.

The vocabulary is the model's whole one (pad, bos, eos and the letters), a completion ends with eos or is cut at LENGTH
tokens, so the probabilities of all completions sum to 1 exactly.
"""

import itertools
from pathlib import Path

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from pipeline.objectives.divergences import log_partition

PAD, BOS, EOS = 0, 1, 2
LETTERS = "abcd"
VOCABULARY = 3 + len(LETTERS)
LENGTH = 3
PROMPTS = ["a b", "b c", "c d", "d a"]


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a letter; bos in front of every text."""
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<bos>", "<eos>", *LETTERS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="a"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", BOS)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>")


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


def completions() -> list[tuple[int, ...]]:
    """Every completion as token ids: those that end with eos, then those cut at LENGTH."""
    others = [token for token in range(VOCABULARY) if token != EOS]
    ended = [(*body, EOS) for size in range(LENGTH) for body in itertools.product(others, repeat=size)]
    return ended + list(itertools.product(others, repeat=LENGTH))


COMPLETIONS = completions()
INDEX = {ids: i for i, ids in enumerate(COMPLETIONS)}


def rewards(seed: int = 0) -> torch.Tensor:
    """A fixed reward of every completion of every prompt, (prompts, completions), in float64, of deviation 1 a prompt.

    The sum of a score of each token by prompt and position and of each pair of neighbours: hard enough that what comes
    first depends on what can follow, and within the reach of a model of two layers.
    """
    generator = torch.Generator().manual_seed(1000 + seed)
    token = torch.randn(len(PROMPTS), LENGTH, VOCABULARY, generator=generator, dtype=torch.float64)
    pair = torch.randn(len(PROMPTS), VOCABULARY, VOCABULARY, generator=generator, dtype=torch.float64)
    table = torch.stack(
        [
            sum(token[:, t, ids[t]] for t in range(len(ids))) + sum(pair[:, a, b] for a, b in itertools.pairwise(ids))
            for ids in COMPLETIONS
        ],
        dim=1,
    )
    return (table - table.mean(1, keepdim=True)) / table.std(1, keepdim=True)


def reward_function(table: torch.Tensor):
    """The table as TRL's callable."""

    def known_reward(prompts, completions, completion_ids, **columns):
        return [table[PROMPTS.index(p), INDEX[tuple(ids)]].item() for p, ids in zip(prompts, completion_ids)]

    return known_reward


def dataset(rows: int = 256) -> Dataset:
    """The prompts in turn, as many rows as a run needs."""
    return Dataset.from_dict({"prompt": [PROMPTS[i % len(PROMPTS)] for i in range(rows)]})


@torch.no_grad()
def exact_law(model: torch.nn.Module) -> torch.Tensor:
    """Exact log-probability of every completion of every prompt, (prompts, completions), in float64."""
    was_training = model.training
    model.eval()
    words = tokenizer()
    tree = torch.tensor(list(itertools.product(range(VOCABULARY), repeat=LENGTH)))
    position = {tuple(ids): i for i, ids in enumerate(tree.tolist())}
    rows = torch.tensor([position[(*ids, *[PAD] * (LENGTH - len(ids)))] for ids in COMPLETIONS])
    lengths = torch.tensor([len(ids) for ids in COMPLETIONS])
    law = []
    for prompt in PROMPTS:
        ids = torch.tensor(words(prompt)["input_ids"])
        inputs = torch.cat([ids.expand(len(tree), -1), tree], 1)
        logits = model(input_ids=inputs, attention_mask=torch.ones_like(inputs)).logits.double()
        log_probs = logits.log_softmax(-1)[:, len(ids) - 1 : -1].gather(-1, tree[..., None]).squeeze(-1)
        law.append(log_probs.cumsum(1)[rows, lengths - 1])
    model.train(was_training)
    return torch.stack(law)


def objective(log_law: torch.Tensor, log_reference: torch.Tensor, table: torch.Tensor, beta: float) -> float:
    """Exact `E[R] - beta KL(pi || pi_ref)`, the mean over the prompts."""
    law = log_law.exp()
    return (law * (table - beta * (log_law - log_reference))).sum(1).mean().item()


def regret_removed(log_law: torch.Tensor, log_reference: torch.Tensor, table: torch.Tensor, beta: float) -> float:
    """The share of pi_ref's regret to the analytic optimum that a policy has removed: 1 is optimal."""
    optimum = (beta * log_partition(log_reference, table, beta)).mean().item()
    start = objective(log_reference, log_reference, table, beta)
    return (objective(log_law, log_reference, table, beta) - start) / (optimum - start)
