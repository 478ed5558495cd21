"""A task small enough to enumerate: every completion of every prompt is known, with its reward.

The vocabulary is all that the model has (pad, bos, eos and letters). A completion ends with eos or is cut at LENGTH
tokens, so the probabilities of all completions of a prompt sum to 1 exactly; pad and bos are tokens like any other.
Rewards are a fixed table, so pi*, log Z and the regret of any policy are numbers (``evaluation/exact.py``).

Embedded datasets, served by ``load_world`` (train; test is the same prompts: there is nothing to generalise to):

============================  ==============================  ====================================================
name                          columns                         what it is
============================  ==============================  ====================================================
world/enumerable              prompt                          the prompts in turn, for sampling and for judging
world/enumerable_text         text                            prompt + completion of a random policy: makes pi_ref
world/enumerable_preferences  prompt, chosen, rejected,       two completions, good ones more often, and
                              reward_chosen, reward_rejected  ordered by Bradley-Terry on the known rewards
============================  ==============================  ====================================================

Rows repeat, and their frequency is the information: load with ``deduplicate: false`` and ``eval_rows: 0``. The text
forms append eos to a completion that was cut; ``max_length: 4`` (bos, prompt, LENGTH) takes it off again.
"""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pipeline.runtime.files import Json

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast

PAD, BOS, EOS = 0, 1, 2
LETTERS = "abcd"
SPECIALS = ["<pad>", "<bos>", "<eos>"]
TOKENS = [*SPECIALS, *LETTERS]
VOCABULARY = len(TOKENS)
LENGTH = 2
PROMPTS = ["a", "b", "c", "d"]


def completions() -> list[tuple[int, ...]]:
    """Every completion as token ids: those that end with eos, then those cut at LENGTH."""
    others = [token for token in range(VOCABULARY) if token != EOS]
    ended = [(*body, EOS) for size in range(LENGTH) for body in itertools.product(others, repeat=size)]
    return ended + list(itertools.product(others, repeat=LENGTH))


COMPLETIONS = completions()
INDEX = {ids: i for i, ids in enumerate(COMPLETIONS)}


def tokenizer() -> PreTrainedTokenizerFast:
    """One token per letter; bos in front of every text."""
    return word_tokenizer(LETTERS)


def word_tokenizer(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """One token per word, after pad, bos and eos; words are parted by spaces, bos is in front of every text."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: i for i, token in enumerate([*SPECIALS, *words])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=words[0]))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", BOS)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>")


def text_of(ids: Sequence[int]) -> str:
    """A completion as text that follows its prompt, eos written out."""
    return "".join(f" {TOKENS[token]}" for token in ids)


def ids_of(text: str) -> tuple[int, ...]:
    """The completion that a text is: up to its eos or LENGTH, with the eos that trainers strip put back."""
    ids = tuple(TOKENS.index(word) for word in text.replace("<", " <").split())
    ids = ids[: ids.index(EOS)] if EOS in ids else ids
    return ids[:LENGTH] if len(ids) >= LENGTH else (*ids, EOS)


@functools.cache
def rewards(seed: int = 0) -> torch.Tensor:
    """A fixed reward of every completion of every prompt, (prompts, completions), float64, of deviation 1 per prompt.

    The sum of a score of each token by prompt and position and of each pair of neighbours (half as large): hard enough
    that what comes first depends on what can follow, and within the reach of a model of two layers.
    """
    import torch

    generator = torch.Generator().manual_seed(1000 + seed)
    token = torch.randn(len(PROMPTS), LENGTH, VOCABULARY, generator=generator, dtype=torch.float64)
    pair = 0.5 * torch.randn(len(PROMPTS), VOCABULARY, VOCABULARY, generator=generator, dtype=torch.float64)
    table = torch.stack(
        [
            sum(token[:, t, ids[t]] for t in range(len(ids))) + sum(pair[:, a, b] for a, b in itertools.pairwise(ids))
            for ids in COMPLETIONS
        ],
        dim=1,
    )
    return (table - table.mean(1, keepdim=True)) / table.std(1, keepdim=True)


def reward(
    prompts: Sequence[str],
    completions: Sequence[str],
    completion_ids: Sequence[Sequence[int]] | None = None,
    seed: int = 0,
    **columns: object,
) -> list[float]:
    """The table as TRL's callable: ``reward: pipeline.worlds.enumerable:reward`` (``reward(seed=1)``: another table).

    Texts have lost the special tokens that were sampled, so the ids decide where they are given.
    """
    table = rewards(seed)
    keys = completion_ids if completion_ids is not None else [ids_of(text) for text in completions]
    return [table[PROMPTS.index(p), INDEX[tuple(ids)]].item() for p, ids in zip(prompts, keys)]


# --- rows ------------------------------------------------------------------------------------------------------------


def _prompts(seed: int, count: int) -> Iterator[Json]:
    return ({"prompt": PROMPTS[i % len(PROMPTS)]} for i in range(count))


def _text(seed: int, count: int) -> Iterator[Json]:
    """Completions of a distribution that depends on prompt, position and the token before: logits from N(0, 0.7^2)."""
    r = random.Random(f"enumerable text {seed}")
    logits = {
        key: [2.718281828 ** r.gauss(0, 0.7) for _ in TOKENS]
        for key in itertools.product(range(len(PROMPTS)), range(LENGTH), range(VOCABULARY))
    }
    for i in range(count):
        prompt, ids = i % len(PROMPTS), [BOS]
        while len(ids) <= LENGTH and ids[-1] != EOS:
            ids += r.choices(range(VOCABULARY), logits[prompt, len(ids) - 1, ids[-1]])
        yield {"text": PROMPTS[prompt] + text_of(ids[1:])}


def _preferences(seed: int, count: int) -> Iterator[Json]:
    table = rewards(seed).tolist()
    for prompt, chosen, rejected in preference_indices(count, seed):
        yield {
            "prompt": PROMPTS[prompt],
            "chosen": text_of(COMPLETIONS[chosen]),
            "rejected": text_of(COMPLETIONS[rejected]),
            "reward_chosen": table[prompt][chosen],
            "reward_rejected": table[prompt][rejected],
        }


def preference_indices(count: int, seed: int = 0) -> list[tuple[int, int, int]]:
    """(prompt, chosen, rejected) as indices: two different completions, ``P(chosen) = sigma(R_chosen - R_rejected)``.

    Each is drawn in proportion to exp(R): every completion occurs, for DPO says nothing about one that never does, and
    good ones more often, which is what a preference between two of them is most informative about.
    """
    import torch

    generator = torch.Generator().manual_seed(2000 + seed)
    prompt = torch.arange(count) % len(PROMPTS)
    table = rewards(seed)
    first, other = torch.empty(2, count, dtype=torch.long)
    for number, probabilities in enumerate(table.softmax(1)):
        rows = prompt == number
        pairs = probabilities.expand(int(rows.sum()), -1).multinomial(2, generator=generator)  # two different ones
        first[rows], other[rows] = pairs.T
    wins = torch.rand(count, generator=generator) < torch.sigmoid(table[prompt, first] - table[prompt, other])
    chosen, rejected = torch.where(wins, first, other), torch.where(wins, other, first)
    return list(zip(prompt.tolist(), chosen.tolist(), rejected.tolist()))


# name: (maker, rows of train, rows of test)
ENUMERABLE = {
    "enumerable": (_prompts, 1024, len(PROMPTS)),
    "enumerable_text": (_text, 4_000, 400),
    "enumerable_preferences": (_preferences, 200_000, 2_000),
}


NAMES = tuple(ENUMERABLE)


def rows(name: str, split: str, seed: int = 0) -> Iterator[Json]:
    """The rows of an embedded dataset of this task, always the same ones in the same order."""
    make, *counts = ENUMERABLE[name]
    test = split == "test"
    rows = make(seed, sum(counts))  # the test rows come after the train rows
    return itertools.islice(rows, counts[0], None) if test else itertools.islice(rows, counts[0])
