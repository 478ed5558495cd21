"""``reward_model``: a sequence classifier as a reward."""

import pytest
import torch

from pipeline.model.tokens import encode_exchange
from pipeline.rewards.learned import score_sequences
from pipeline.rewards.registry import get_reward
from pipeline.rewards.resolve import reward_spec
from pipeline.runtime.errors import UserError
from pipeline.runtime.messages import user_turn


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny NarLM classifier of one output, saved with its tokenizer."""
    from pipeline.model import NarLMConfig, NarLMForSequenceClassification
    from pipeline.model.tokenizer import train_tokenizer

    path = tmp_path_factory.mktemp("reward_model")
    tokenizer = train_tokenizer(["a good answer", "a bad answer", "what is it?"] * 20, vocab_size=300)
    torch.manual_seed(0)
    config = NarLMConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_labels=1, pad_token_id=tokenizer.pad_token_id, initializer_range=0.5,
    )  # fmt: skip
    model = NarLMForSequenceClassification(config)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


def test_batched_scores_are_those_of_one_row_at_a_time(folder):
    """Padding must not reach the score: rows of different lengths in one batch, and each alone."""
    from pipeline.rewards.learned import load_reward_model

    reward = get_reward("reward_model", model=folder, batch_size=4)
    prompts = ["what is it?", "what?", [{"role": "user", "content": "what is it?"}]]
    completions = [" a good answer", " bad", [{"role": "assistant", "content": "a bad answer"}]]
    scores = reward(prompts, completions)
    assert len({round(score, 4) for score in scores}) == 3
    model, tokenizer = load_reward_model(folder)
    texts = [" a good answer", " bad", "a bad answer"]
    for prompt, text, score in zip(prompts, texts, scores, strict=True):
        prompt = user_turn(prompt) if isinstance(prompt, str) else prompt  # its tokenizer has a chat template
        ids = torch.tensor([encode_exchange(tokenizer, prompt, text)])
        with torch.no_grad():
            assert model(input_ids=ids).logits[0, 0].item() == pytest.approx(score, abs=1e-5)


def test_verdicts_and_sums(folder):
    reward = get_reward(f"exact + 2*reward_model(model={folder!r})")
    graded = get_reward("reward_model", model=folder)
    assert [j.verdict for j in graded.judge(["a", None], ["b", "b"])] == ["scored", "unscorable"]
    total = reward(["a", None], ["b", "b"], answer=["b", "b"])
    assert total == [pytest.approx(1 + 2 * graded(["a"], ["b"])[0]), None]


def test_a_score_that_is_no_number_is_no_score(folder, monkeypatch):
    monkeypatch.setattr("pipeline.rewards.learned.score_sequences", lambda *given: [float("nan")])
    judgement = get_reward("reward_model", model=folder).judge(["a"], ["b"])[0]
    assert judgement[:2] == ("error", None)


@pytest.mark.parametrize(
    ("options", "message"),
    [({}, "needs its model"), ({"model": "./nosuch"}, "no folder"), ({"batch": 3}, "batch_size")],
)
def test_mistakes_are_named_before_anything_loads(options, message):
    with pytest.raises(UserError, match=message):
        get_reward("reward_model", **options)


def test_reward_spec_takes_a_folder_for_a_reward_model(folder):
    assert reward_spec(folder) == f"reward_model(model={folder!r})"
    assert reward_spec("numeric") == "numeric"


def test_scores_come_back_in_the_order_of_the_rows():
    """A stand-in that scores a row by its number of tokens: batches of 2, sorted inside, give the lengths back."""

    class Length(torch.nn.Linear):
        def forward(self, input_ids, attention_mask):
            return type("Output", (), {"logits": attention_mask.sum(1, keepdim=True)})

    assert score_sequences(Length(1, 1), [[1], [1, 2, 3], [1, 2]], pad_token_id=0, batch_size=2) == [1.0, 3.0, 2.0]
