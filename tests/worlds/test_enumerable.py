"""The enumerable task: its completions, texts, rewards, and that its data follow the laws they claim."""

import itertools
import math
from collections import Counter

import pytest
import torch

from pipeline.data.arguments import DataArguments
from pipeline.data.loading import load_data
from pipeline.runtime.errors import UserError
from pipeline.worlds import enumerable
from pipeline.worlds.enumerable import COMPLETIONS, EOS, INDEX, LENGTH, PROMPTS, VOCABULARY, ids_of, rewards, text_of
from pipeline.worlds.table import load_world


def test_the_completions_are_all_there_are():
    """V = 7: with 6 tokens that are not eos, 1 + 6 that end within 2 tokens and 6^2 = 36 that are cut: 43.

    Under any tokenwise law their masses sum to 1: an even law has 7^-len.
    """
    assert (VOCABULARY, LENGTH, len(COMPLETIONS)) == (7, 2, 43)
    assert len(set(COMPLETIONS)) == 43
    assert sum(ids[-1] == EOS for ids in COMPLETIONS) == 1 + 6
    assert sum(7.0 ** -len(ids) for ids in COMPLETIONS) == pytest.approx(1.0)


def test_texts_and_ids_are_the_same_thing():
    """Every completion survives its text, and the tokenizer reads the text as those very ids behind its prompt."""
    words = enumerable.tokenizer()
    for ids in COMPLETIONS:
        assert ids_of(text_of(ids)) == ids
        assert words(PROMPTS[1] + text_of(ids))["input_ids"] == [1, 4, *ids]
    assert ids_of(" a") == (3, EOS)  # a trainer's text: the eos is stripped
    assert ids_of(" a<eos>") == (3, EOS)
    assert ids_of(" a b<eos>") == (3, 4)  # an eos that was appended to what had been cut
    assert ids_of("") == (EOS,)


def test_rewards_are_fixed_and_of_deviation_one():
    """Mean 0, deviation 1 a prompt; another seed is another table; the callable reads ids before texts."""
    table = rewards()
    assert table.shape == (4, 43)
    torch.testing.assert_close(table.mean(1), torch.zeros(4, dtype=torch.float64))
    torch.testing.assert_close(table.std(1), torch.ones(4, dtype=torch.float64))
    assert not torch.equal(table, rewards(1))
    ids = (3, 0)  # its pad is lost in the text
    assert enumerable.reward([PROMPTS[2]], ["a"], completion_ids=[ids]) == [table[2, INDEX[ids]].item()]
    assert enumerable.reward([PROMPTS[2]], ["a"]) == [table[2, INDEX[3, EOS]].item()]
    assert enumerable.reward([PROMPTS[0]], ["b"], seed=1) == [rewards(1)[0, INDEX[4, EOS]].item()]


def test_preferences_are_bradley_terry_on_the_rewards():
    """By margin, the share whose better completion is chosen is sigma(margin), within four deviations."""
    data = list(itertools.islice(enumerable.rows("enumerable_preferences", "train"), 50_000))
    gaps = [row["reward_chosen"] - row["reward_rejected"] for row in data]
    for low, high in ((0.2, 0.6), (0.6, 1.2), (1.2, 2.0)):
        margins = [abs(gap) for gap in gaps if low <= abs(gap) < high]
        won = sum(low <= gap < high for gap in gaps)
        expected = sum(1 / (1 + math.exp(-margin)) for margin in margins)
        assert len(margins) > 1000
        assert abs(won - expected) < 4 * math.sqrt(len(margins) / 4)
    assert len(set(map(str, data))) < len(data)  # pairs repeat: their frequency is the information
    row = data[0]
    assert row["reward_chosen"] == rewards()[PROMPTS.index(row["prompt"]), INDEX[ids_of(row["chosen"])]].item()


def test_texts_are_completions_of_a_law_that_the_test_split_shares():
    """Every text is a prompt and one of the 43 completions; the commonest of train are common in test too."""
    counts = {}
    for split in ("train", "test"):
        rows = [row["text"] for row in load_world("world/enumerable_text", split)]
        assert all(ids_of(text[1:]) in INDEX for text in rows)
        counts[split] = Counter(rows)
    common = [text for text, _ in counts["train"].most_common(20)]
    assert sum(counts["test"][text] for text in common) / 400 == pytest.approx(
        sum(counts["train"][text] for text in common) / 4000, abs=0.12
    )


def test_rows_keep_their_frequency_when_told_to():
    """deduplicate: false and eval_rows: 0 leave all rows; the prompts come in turn."""
    arguments = DataArguments(dataset_name="world/enumerable", deduplicate=False, eval_rows=0)
    data = load_data(arguments, "prompt", 0)
    assert data.evaluation is None
    assert data.train["prompt"][:5] == [*PROMPTS, PROMPTS[0]]
    assert len(data.train) == 1024
    with pytest.raises(UserError, match="world/enumerable_text"):
        load_world("world/nothing")
