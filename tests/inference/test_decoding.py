"""Sampling against slow, obvious references."""

import pytest
import torch

from pipeline.inference.decoding import sample
from pipeline.inference.filters import draw, filtered_probabilities
from pipeline.inference.stopping import stop_token_ids
from pipeline.model.dialogue_tokens import closing_token
from pipeline.model.tokens import encode_prompts
from pipeline.runtime.errors import UserError
from tests.tiny_models import tiny_model, tiny_tokenizer

PROMPTS = ["a", "a b c d 1 2 3 4", "b = 1", "1 + 2 =", "d d d d d d d", "c"]


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@torch.no_grad()
def greedy_without_cache(model, ids, steps, stop=()):
    """The definition of greedy decoding: the whole prefix through the model at every step."""
    prefix = list(ids)
    for _ in range(steps):
        prefix.append(int(model(input_ids=torch.tensor([prefix]), use_cache=False).logits[0, -1].argmax()))
        if prefix[-1] in stop:
            break
    return prefix[len(ids) :]


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("qwen2", {}),
        ("gpt2", {}),  # learned positions: wrong position ids under left padding change the result
        ("bloom", {}),  # takes no position ids at all
        ("mistral", {"sliding_window": 4}),  # a cache shorter than the prompt
    ],
)
def test_greedy_equals_the_uncached_loop_for_prompts_of_mixed_length(tokenizer, kind, options):
    model = tiny_model(kind, **options)
    got = sample(model, tokenizer, PROMPTS, max_new_tokens=12, temperature=0, batch_size=4)
    expected = [greedy_without_cache(model, tokenizer(p)["input_ids"], 12, stop=(2,)) for p in PROMPTS]
    assert [c[0].token_ids for c in got] == expected
    assert len({tuple(ids) for ids in expected}) > 1


def test_rows_that_end_leave_the_batch_without_touching_the_others(tokenizer):
    model = tiny_model(eos_bias=2.0)
    together = sample(model, tokenizer, PROMPTS, n=8, max_new_tokens=20, seed=3, batch_size=48)
    alone = sample(model, tokenizer, PROMPTS, n=8, max_new_tokens=20, seed=3, batch_size=1)
    assert together == alone
    lengths = {len(c.token_ids) for row in together for c in row}
    assert len(lengths) > 5  # many different ends, so rows did leave at many steps


def test_a_completion_keeps_its_stop_token_in_the_ids_and_not_in_the_text(tokenizer):
    """With an eos bias of 1000 the first token is eos; with -1000 no completion ends by itself."""
    [[ended]] = sample(tiny_model(eos_bias=1000.0), tokenizer, ["a"], max_new_tokens=5)
    assert (ended.text, ended.token_ids, ended.finished) == ("", [2], True)
    [[cut]] = sample(tiny_model(eos_bias=-1000.0), tokenizer, ["a"], max_new_tokens=5)
    assert len(cut.token_ids) == 5
    assert not cut.finished
    assert "<|eos|>" not in cut.text


def test_a_seed_decides_and_the_global_random_state_is_left_alone(tokenizer):
    model = tiny_model()
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    first = sample(model, tokenizer, PROMPTS, n=2, max_new_tokens=8, seed=1)
    assert torch.equal(torch.rand(3), expected)
    assert sample(model, tokenizer, PROMPTS, n=2, max_new_tokens=8, seed=1, batch_size=3) == first
    assert sample(model, tokenizer, PROMPTS, n=2, max_new_tokens=8, seed=2) != first
    assert any(a != b for a, b in first)  # two samples of one prompt are separate draws


@pytest.mark.parametrize(("kind", "options"), [("qwen2", {}), ("gpt2", {}), ("mistral", {"sliding_window": 4})])
def test_a_seed_per_prompt_decides_whatever_else_is_sampled(tokenizer, kind, options):
    """Cached, uncached, batched and alone, with more samples or more steps: the same tokens for the same seeds."""
    model, seeds = tiny_model(kind, eos_bias=1.0, **options), [3, 9, 3, -4, 2**62, 0]

    def tokens(prompts, seeds, n=2, steps=16, **other):
        drawn = sample(model, tokenizer, prompts, n=n, max_new_tokens=steps, seed=seeds, **other)
        return [[c.token_ids for c in group] for group in drawn]

    together = tokens(PROMPTS, seeds)
    assert tokens(PROMPTS, seeds, use_cache=False, batch_size=5) == together
    assert [tokens([prompt], [seed])[0] for prompt, seed in zip(PROMPTS, seeds)] == together
    assert [group[:2] for group in tokens(PROMPTS, seeds, n=3)] == together
    assert [[ids[:5] for ids in group] for group in together] == tokens(PROMPTS, seeds, steps=5)
    same, other = tokens(["a", "a", "a"], [3, 3, 4]), tokens(["a"], [3], n=4)[0]
    assert same[0] == same[1] != same[2]
    assert len({tuple(ids) for ids in other}) == 4  # samples of one seed are separate draws
    assert other[1] != tokens(["a"], [4])[0][0]  # nor is the next sample the first one of the next prompt's seed


@pytest.mark.parametrize("kind", ["qwen2", "gpt2", "mistral"])
def test_a_cropped_step_is_a_fresh_pass_over_the_last_delta_tokens(tokenizer, kind):
    """Listing 4: ``idx_cond = idx[:, -block_size:]``, positions from 0 again, in a batch of short and long rows; one
    row starts beyond the limit of 8. A window in the layers stays what it is. Row lengths 1, 4 and 10: after 12 tokens
    the last one of each was drawn without 12 + length - 1 - 8 of the first tokens."""
    window = {"sliding_window": 3} if kind == "mistral" else {}
    model = tiny_model(kind, max_position_embeddings=8, **window)
    prompts = ["a", "1 + 2 =", "a b c d 1 2 3 4 d d"]
    got = sample(model, tokenizer, prompts, max_new_tokens=12, temperature=0, crop=True)
    for prompt, [one] in zip(prompts, got):
        ids, by_hand = tokenizer(prompt)["input_ids"], []
        while len(by_hand) < 12 and by_hand[-1:] != [2]:
            context = torch.tensor([[*ids, *by_hand][-8:]])
            with torch.no_grad():
                by_hand.append(int(model(input_ids=context, use_cache=False).logits[0, -1].argmax()))
        assert one.token_ids == by_hand
        assert one.cropped == max(0, len(ids) + len(by_hand) - 1 - 8)
    assert got[2][0].cropped > 0
    with pytest.raises(UserError, match="the model takes 8 in all"):
        sample(model, tokenizer, prompts, max_new_tokens=12)


def test_each_step_of_the_first_completion_can_be_looked_at(tokenizer):
    steps, model = [], tiny_model(eos_bias=-50.0)
    [[one], _] = sample(model, tokenizer, ["a", "b c"], max_new_tokens=4, temperature=0.5, top_k=3, trace=steps.append)
    assert [step.token for step in steps] == one.token_ids
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([tokenizer("a")["input_ids"] + one.token_ids])).logits[0]
    for place, step in enumerate(steps):
        at = logits[len(tokenizer("a")["input_ids"]) - 1 + place]
        torch.testing.assert_close(step.logits, at, rtol=1e-5, atol=1e-5)
        kept = at.topk(3).indices
        expected = torch.zeros(24, dtype=torch.float64)
        expected[kept] = (at[kept].double() / 0.5).softmax(-1)
        torch.testing.assert_close(step.probabilities, expected, rtol=1e-4, atol=1e-6)


def test_sampled_frequencies_follow_the_tempered_softmax(tokenizer):
    """8,000 first tokens at tau = 2: every frequency within 4.5 binomial standard deviations of softmax(z / 2)."""
    model, count = tiny_model(), 8000
    [drawn] = sample(model, tokenizer, ["a b"], n=count, max_new_tokens=1, temperature=2.0, batch_size=count)
    frequency = torch.bincount(torch.tensor([c.token_ids[0] for c in drawn]), minlength=24).double() / count
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([tokenizer("a b")["input_ids"]])).logits[0, -1]
    expected = torch.softmax(logits.double() / 2.0, -1)
    assert ((frequency - expected).abs() <= 4.5 * (expected * (1 - expected) / count).sqrt()).all()


@pytest.fixture(scope="module")
def reader(tokenizer):
    """A model that was taught two habits, 10 digits each: "d D a =" is answered by the passage's D, "a =" alone by 0;
    and after "b D =" a chain of one token, D, comes before the answer D + 1, while "c D =" is answered at once, always
    by 0.
    """
    rows = []
    for digit in range(10):
        rows += [f"d {digit} a = {digit}", "a = 0", f"b {digit} = {digit} {(digit + 1) % 10}", f"c {digit} = 0"]
    model = tiny_model()
    coded = [tokenizer(row)["input_ids"] for row in rows]
    longest = max(map(len, coded))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in coded])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in coded])
    answers = [row.index(tokenizer.convert_tokens_to_ids("=")) + 1 for row in coded]
    place = torch.arange(longest)
    labels = ids.masked_fill((mask == 0) | (place < torch.tensor(answers)[:, None]), -100)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(150):
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.05
    return model


def words(drawn) -> list[list[str]]:
    return [[c.text.strip() for c in group] for group in drawn]


def test_retrieved_text_before_the_prompt_is_context_like_any_other(tokenizer, reader):
    """Eq. (11): with a passage z before the prompt x the next token is drawn after [z; x]: the reader answers with
    what the passage says, and without one by its prior, prompts of both lengths in one batch. RAG lowers Hall only
    where the passage is right (errata 22): a wrong one makes the answer wrong.

    A passage outside the receptive field has no effect: with a window of 2 two layers see 2 (2 - 1) + 1 = 3 tokens.
    """
    prompts = ["a =", "d 7 a =", "d 3 a ="]
    drawn = words(sample(reader, tokenizer, prompts, n=20, max_new_tokens=1, seed=1))
    assert [max(set(group), key=group.count) for group in drawn] == ["0", "7", "3"]
    assert all(group.count(answer) >= 17 for group, answer in zip(drawn, "073"))
    near = tiny_model("mistral", sliding_window=2)
    after = [sample(near, tokenizer, [f"{z} a b c"], n=50, max_new_tokens=1, seed=2) for z in ("d d 4", "1 2 3")]
    assert words(after[0]) == words(after[1])


def test_a_direct_answer_is_not_the_marginal_over_chains_of_thought(tokenizer, reader):
    """Part 5, section 2: asked for a chain ("b"), the answer's distribution is sum_r p(r | P, x) p(a | P, x, r), which
    the second tokens drawn follow; asked directly ("c") the same model says 0 to every question. No marginalising over
    r makes the one the other, for the two prompts condition differently.
    """
    with torch.no_grad():
        ids = tokenizer("b 4 =")["input_ids"]
        [chains] = reader(input_ids=torch.tensor([ids])).logits[:, -1].double().softmax(-1)
        after = reader(input_ids=torch.tensor([[*ids, r] for r in range(len(chains))])).logits[:, -1]
        marginal = chains @ after.double().softmax(-1)
        direct = reader(input_ids=torch.tensor([tokenizer("c 4 =")["input_ids"]])).logits[0, -1].double().softmax(-1)
    five, zero = tokenizer.convert_tokens_to_ids(["5", "0"])
    assert (marginal.argmax().item(), direct.argmax().item()) == (five, zero)
    assert (marginal - direct).abs().sum() / 2 > 0.8
    count = 2000
    [drawn] = sample(reader, tokenizer, ["b 4 ="], n=count, max_new_tokens=2, batch_size=count)
    second = torch.tensor([c.token_ids[1] for c in drawn if len(c.token_ids) > 1])
    frequency = torch.bincount(second, minlength=24).double() / count
    deviation = (marginal * (1 - marginal) / count).sqrt()
    assert ((frequency - marginal).abs() <= 4.5 * deviation + 1e-3).all()


def test_draw_reads_the_cumulative_distribution():
    """Masses (0, 1, 0, 3), total 4: u < 1/4 gives token 1, u >= 1/4 token 3, and tokens of no mass are never drawn."""
    masses = torch.tensor([[0.0, 1.0, 0.0, 3.0]], dtype=torch.float64).expand(5, -1)
    uniforms = torch.tensor([0.0, 0.2499, 0.25, 0.9, 1 - 2**-53], dtype=torch.float64)
    assert draw(masses.contiguous(), uniforms).tolist() == [1, 1, 3, 3, 3]


def test_filters_keep_what_they_should():
    """Probabilities (0.5, 0.3, 0.15, 0.05): the nucleus of 0.8 is the first two, of 0.81 the first three."""
    logits = torch.tensor([[0.15, 0.5, 0.05, 0.3]]).log()
    kept = [
        filtered_probabilities(logits, temperature=1.0, top_p=p, top_k=k)[0].gt(0).tolist()
        for p, k in ((1.0, 0), (0.79, 0), (0.81, 0), (0.01, 0), (1.0, 3), (0.9, 1))
    ]
    assert kept == [
        [True, True, True, True],
        [False, True, False, True],
        [True, True, False, True],
        [False, True, False, False],
        [True, True, False, True],
        [False, True, False, False],
    ]
    cold = filtered_probabilities(logits, temperature=0.5, top_p=1.0, top_k=0)[0]
    squares = torch.tensor([0.0225, 0.25, 0.0025, 0.09], dtype=torch.float64)  # p^(1/0.5), then normalised
    torch.testing.assert_close(cold, squares / squares.sum(), rtol=1e-6, atol=0)


def test_an_adapter_is_sampled_with_and_modes_are_left_as_found(tokenizer):
    from peft import LoraConfig, get_peft_model

    base = tiny_model()
    plain = sample(base, tokenizer, PROMPTS, max_new_tokens=8, temperature=0)
    adapted = get_peft_model(tiny_model(), LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM", r=2))
    adapted.train()
    assert sample(adapted, tokenizer, PROMPTS, max_new_tokens=8, temperature=0) == plain  # LoRA B starts at zero
    assert adapted.training
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=2.0)
    assert sample(adapted, tokenizer, PROMPTS, max_new_tokens=8, temperature=0) != plain


def test_chat_prompts_are_rendered_once_and_end_at_the_end_of_turn(tokenizer):
    """Template: <|bos|> <|user|> text <|assistant|> answer <|end|>; ids are positions in SPECIALS + WORDS."""
    user = [{"role": "user", "content": "a b"}]
    assert encode_prompts(tokenizer, [user]) == [[1, 3, 19, 20, 4]]
    begun = [*user, {"role": "assistant", "content": "c"}]
    assert encode_prompts(tokenizer, [begun]) == [[1, 3, 19, 20, 4, 21]]
    assert closing_token(tokenizer, tokenizer.chat_template) == 5
    model = tiny_model()
    assert stop_token_ids(model, tokenizer, chat=True) == [2, 5]
    assert stop_token_ids(model, tokenizer, chat=False) == [2]
    model.generation_config.eos_token_id = [2, 9]
    assert stop_token_ids(model, tokenizer, chat=False) == [2, 9]


def test_the_chat_end_of_turn_stops_a_chat_completion_only(tokenizer):
    model = tiny_model()
    head = model.get_output_embeddings()
    head.bias = torch.nn.Parameter(torch.zeros(head.out_features))
    head.bias.data[5] = 1000.0  # <|end|> always
    [[chat]] = sample(model, tokenizer, [[{"role": "user", "content": "a"}]], max_new_tokens=3)
    assert (chat.token_ids, chat.finished) == ([5], True)
    [[text]] = sample(model, tokenizer, ["a"], max_new_tokens=3)
    assert (text.token_ids, text.finished) == ([5, 5, 5], False)


@pytest.mark.parametrize(
    ("prompts", "options", "words"),
    [
        (["a"], {"temperature": -1.0}, "temperature is -1.0"),
        (["a"], {"temperature": float("nan")}, "temperature is nan"),
        (["a"], {"top_p": 0.0}, "top_p is 0.0"),
        (["a"], {"top_k": -1}, "top_k is -1"),
        (["a"], {"n": 0}, "n is 0"),
        (["a"], {"max_new_tokens": 0}, "max_new_tokens is 0"),
        (["a", "a b c"], {"max_new_tokens": 30}, "prompt 1 has 3 tokens and max_new_tokens is 30"),
    ],
)
def test_mistakes_are_told(tokenizer, prompts, options, words):
    model = tiny_model(max_position_embeddings=32)
    with pytest.raises(UserError, match=words):
        sample(model, tokenizer, prompts, **{"max_new_tokens": 4, **options})


def test_an_empty_prompt_starts_from_bos_or_is_an_error(tokenizer):
    assert encode_prompts(tokenizer, [""]) == [[1]]
    bare = tiny_tokenizer()
    bare.bos_token = None
    with pytest.raises(UserError, match="prompt 1 is empty"):
        encode_prompts(bare, ["a", ""])
    bare.chat_template = None
    with pytest.raises(UserError, match="no chat template"):
        encode_prompts(bare, [[{"role": "user", "content": "a"}]])
    assert sample(tiny_model(), tokenizer, [], max_new_tokens=3) == []
