"""Every stop rule on a case made by hand, and the sampler that follows it."""

import math

import pytest
import torch

from pipeline.inference.decoding import sample
from pipeline.inference.stopping import Signals, StoppedTextStreamer, Stops, Watch, cut_at, repeats, signals
from pipeline.runtime.errors import UserError
from tests.tiny_models import tiny_model, tiny_tokenizer

PROMPTS = ["a", "a b c d 1 2 3 4", "b = 1", "1 + 2 =", "d d d d d d d", "c"]


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


def test_the_signals_of_logits_made_by_hand():
    """Four tokens of p = (1/2, 1/4, 1/8, 1/8): H = 7/4 bits of 2, P(tokens 1 and 3) = 3/8; the logits -1, -2, -3, -3
    (in bits) have mean -9/4 and variance (25 + 1 + 9 + 9)/64 bits^2. Equal logits: H / log V = 1 and variance 0.
    """
    [first, flat] = signals(torch.tensor([[-1.0, -2, -3, -3], [5, 5, 5, 5]]) * math.log(2), [1, 3])
    assert first == pytest.approx((3 / 8, 7 / 8, 44 / 64 * math.log(2) ** 2))
    assert flat == pytest.approx((1 / 2, 1.0, 0.0))


def reasons(stops, entropies=(), variances=(), ids=()):
    """What a watch says after each step."""
    watch, length = Watch(stops), max(map(len, (entropies, variances, ids)))
    seen = [
        Signals(0.0, entropies[i] if entropies else 0.5, variances[i] if variances else 1.0) for i in range(length)
    ]
    return [watch.reason(ids[: i + 1] if ids else [i], seen[i]) for i in range(length)]


def test_entropy_must_hold_for_m_steps_in_a_row():
    high = reasons(Stops(high_entropy=(0.9, 3)), entropies=[0.9, 0.95, 0.5, 0.9, 1.0, 0.9])
    assert high == [None] * 5 + ["high_entropy"]
    low = reasons(Stops(low_entropy=(0.1, 2)), entropies=[0.05, 0.2, 0.1, 0.0])
    assert low == [None] * 3 + ["low_entropy"]


def test_variance_is_relative_to_its_running_median():
    """Medians of 4; 4, 1: 2.5; 4, 1, 1: 1; 4, 1, 1, 0.5: 1. At half of them: 1 <= 1.25 holds, 1 <= 0.5 does not, and
    0.5 <= 0.5 and then 0.5 <= 0.5 (median 1 of 4, 1, 1, 0.5, 0.5) do. The scale of the logits does not matter."""
    for scale in (1.0, 400.0):
        found = reasons(Stops(low_variance=(0.5, 2)), variances=[scale * v for v in (4, 1, 1, 0.5, 0.5)])
        assert found == [None] * 4 + ["low_variance"]


@pytest.mark.parametrize(
    ("ids", "longest", "times", "expected"),
    [
        ([7, 1, 2, 1, 2, 1, 2], 2, 3, True),
        ([7, 1, 2, 1, 2, 1, 2], 1, 3, False),  # its period is 2
        ([7, 1, 2, 1, 2, 1, 2], 2, 4, False),
        ([5, 5, 5], 4, 3, True),
        ([1, 2, 1, 2, 1], 2, 3, False),
        ([2, 1, 2, 1, 2, 9], 2, 2, False),  # it repeated, and went on
    ],
)
def test_a_suffix_repeats_exactly(ids, longest, times, expected):
    assert repeats(ids, longest, times) is expected
    assert reasons(Stops(repetition=(longest, times)), ids=ids)[-1] == ("repetition" if expected else None)


@pytest.mark.parametrize(
    ("text", "strings", "expected"),
    [
        ("Rome\nQ:", ["\n"], "Rome"),
        ("\n Rome\nQ:", ["\n"], "\n Rome"),  # the line break that it begins with is not searched
        ("a, b. c", [".", ","], "a"),
        ("a b", ["c"], None),
        ("\n\n", ["\n"], None),
    ],
)
def test_a_text_is_cut_at_the_first_stop_string(text, strings, expected):
    assert cut_at(text, strings) == expected


@pytest.mark.parametrize(
    "stops",
    [
        Stops(strings=("c", "4 4")),
        Stops(strings=("<|user|>",)),  # a special token, which no text shows
        Stops(eos_probability=0.2),
        Stops(high_entropy=(0.5, 2)),
        Stops(low_entropy=(0.45, 2)),
        Stops(low_variance=(0.9, 2)),
        Stops(repetition=(3, 2)),
    ],
)
def test_a_completion_is_the_unstopped_one_up_to_where_the_rule_first_holds(tokenizer, stops):
    """The rules read raw logits and draw no number: the tokens before a stop are those without it, whatever the batch.

    Where the rule holds is found here from the logits of one pass over prompt and completion.
    """
    model, options = tiny_model(eos_bias=1.0), {"n": 3, "max_new_tokens": 24, "seed": 5, "temperature": 1.5}
    free = [c for group in sample(model, tokenizer, PROMPTS, **options) for c in group]
    stopped = [c for group in sample(model, tokenizer, PROMPTS, **options, stops=stops, batch_size=4) for c in group]
    alone = [c for group in sample(model, tokenizer, PROMPTS, **options, stops=stops, batch_size=1) for c in group]
    assert stopped == alone
    kind = next((name for name, value in vars(stops).items() if value), "")
    kind = {"strings": "stop_string"}.get(kind, kind)
    assert {c.finish_reason for c in stopped} >= {kind, "eos"}
    for number, (whole, part) in enumerate(zip(free, stopped)):
        ids = tokenizer(PROMPTS[number // 3])["input_ids"]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids + whole.token_ids])).logits[0, len(ids) - 1 : -1]
        seen, watch, expected = signals(logits, [2]), Watch(stops), whole.finish_reason
        for step, token in enumerate(whole.token_ids):
            text = tokenizer.decode(whole.token_ids[: step + 1], skip_special_tokens=True)
            if stops.eos_probability and seen[step].eos_probability >= stops.eos_probability:
                expected = "eos_probability"
            elif tokenizer.decode([token]) in stops.strings or cut_at(text, stops.strings) is not None:
                expected = "stop_string"
            elif token != 2:
                expected = watch.reason(whole.token_ids[: step + 1], seen[step])
            if expected and (expected != whole.finish_reason or step + 1 == len(whole.token_ids)):
                break
            expected = whole.finish_reason
        kept = whole.token_ids[: step + 1]
        if expected == "eos_probability":
            kept[-1] = 2
        assert (part.finish_reason, part.token_ids) == (expected, kept)
        assert part.finished == (expected in ("eos", "stop_string", "eos_probability"))
        assert not any(word in part.text for word in stops.strings)


def test_an_end_more_likely_than_not_is_greedy_decoding_s_end(tokenizer):
    """With one end token P(EOS) > 1/2 makes it the argmax: the rule changes no token of a greedy completion, only the
    name of its reason. (eos_bias 4: the greedy completions of these prompts do end.)"""
    model = tiny_model(eos_bias=4.0)
    options = {"max_new_tokens": 20, "temperature": 0}
    greedy = [c for [c] in sample(model, tokenizer, PROMPTS, **options)]
    ruled = [c for [c] in sample(model, tokenizer, PROMPTS, **options, stops=Stops(eos_probability=0.5000001))]
    assert [c.token_ids for c in ruled] == [c.token_ids for c in greedy]
    assert "eos_probability" in {c.finish_reason for c in ruled}


def test_a_stream_shows_the_completion_s_text_and_nothing_after_it(tokenizer, capsys):
    """Text that may become a stop string is held back until it has or has not."""
    model, options = tiny_model(), {"max_new_tokens": 24, "temperature": 1.5}
    reached = set()
    for seed in range(12):
        stops = Stops(strings=("4 4", "c b"))
        streamer = StoppedTextStreamer(tokenizer, stops.strings)
        [[one]] = sample(model, tokenizer, ["a"], **options, seed=seed, stops=stops, streamer=streamer)
        assert capsys.readouterr().out == one.text + "\n"
        reached.add(one.finish_reason)
    assert "stop_string" in reached


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"strings": ("",)}, "empty string"),
        ({"eos_probability": 0.0}, "stop_eos_probability is 0"),
        ({"high_entropy": (1.5, 2)}, "stop_entropy is 1.5 2"),
        ({"low_entropy": (0.1, 0)}, "stop_low_entropy is 0.1 0"),
        ({"low_variance": (-1, 1)}, "stop_variance is -1 1"),
        ({"repetition": (3, 1)}, "stop_repetition is 3 1"),
    ],
)
def test_rules_out_of_range_are_named(options, words):
    with pytest.raises(UserError, match=words):
        Stops(**options)
