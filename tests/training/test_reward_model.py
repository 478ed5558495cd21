"""Listwise reward models: two candidates are TRL's Bradley-Terry, ties are summed, padding says nothing."""

import math

import pytest
import torch
from datasets import Dataset
from trl import RewardConfig, RewardTrainer

from pipeline.model import NarLMForSequenceClassification
from pipeline.training import trainers
from pipeline.training.reward_model import DataCollatorForRanking, RankedRewardTrainer, encode_rankings
from tests import enumerable_task as task

PAIRS = [("a b", "c", "d"), ("b", "c c d", "a"), ("c", "a b", "b b b"), ("d a", "d", "a c")]


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> str:
    """A random NarLM with the toy's tokenizer."""
    return task.saved_model(tmp_path_factory.mktemp("start") / "model")


def classifier(start: str) -> NarLMForSequenceClassification:
    torch.manual_seed(3)
    return NarLMForSequenceClassification.from_pretrained(start, num_labels=1, attn_implementation="eager")


def config(folder, **options) -> RewardConfig:
    return RewardConfig(
        **{
            "output_dir": str(folder), "per_device_train_batch_size": 4, "learning_rate": 1e-2, "max_steps": 3,
            "logging_steps": 1, "report_to": "none", "bf16": False, "gradient_checkpointing": False, "use_cpu": True,
            "save_strategy": "no", "disable_tqdm": True, "seed": 1, "center_rewards_coefficient": 0.1,
        }
        | options
    )  # fmt: skip


def ranked_trainer(start: str, folder, rows: dict, **options) -> RankedRewardTrainer:
    words = task.tokenizer()
    dataset = encode_rankings(Dataset.from_dict(rows), words, max_length=32)
    return RankedRewardTrainer(
        model=classifier(start),
        args=config(folder, remove_unused_columns=False, **options),
        train_dataset=dataset,
        data_collator=DataCollatorForRanking(words.pad_token_id),
        processing_class=words,
    )


def test_two_candidates_train_exactly_as_trl(start, tmp_path):
    """The same rows as pairs and as rankings of two: all logged figures and the weights after three steps agree."""
    pairs = {
        "prompt": [p for p, _, _ in PAIRS],
        "chosen": [f" {c}" for _, c, _ in PAIRS],
        "rejected": [f" {r}" for _, _, r in PAIRS],
    }
    theirs = RewardTrainer(
        model=classifier(start), args=config(tmp_path), train_dataset=Dataset.from_dict(pairs),
        processing_class=task.tokenizer(),
    )  # fmt: skip
    theirs.train()
    rankings = {"prompt": pairs["prompt"], "ranked": [list(pair) for pair in zip(pairs["chosen"], pairs["rejected"])]}
    ours = ranked_trainer(start, tmp_path, rankings)
    ours.train()
    for one, other in zip(theirs.state.log_history[:3], ours.state.log_history[:3]):
        for name in (
            "loss",
            "accuracy",
            "margin",
            "min_reward",
            "mean_reward",
            "max_reward",
            "num_tokens",
            "grad_norm",
        ):
            assert other[name] == pytest.approx(one[name], rel=1e-5, abs=1e-5), (
                name
            )  # float32, summed in another order
    mine = dict(ours.model.named_parameters())
    for name, parameter in theirs.model.named_parameters():
        torch.testing.assert_close(mine[name], parameter, atol=1e-6, rtol=1e-4)


def test_a_tie_is_half_right(start, tmp_path):
    """A head of zeros scores everything 0: of pairs and of rankings the accuracy of the first step is 1/2, not 0."""
    pairs = {
        "prompt": [p for p, _, _ in PAIRS],
        "chosen": [f" {c}" for _, c, _ in PAIRS],
        "rejected": [f" {r}" for _, _, r in PAIRS],
    }
    of_pairs = trainers.RewardTrainer(
        model=classifier(start), args=config(tmp_path, max_steps=1), train_dataset=Dataset.from_dict(pairs),
        processing_class=task.tokenizer(),
    )  # fmt: skip
    ranked = [list(pair) for pair in zip(pairs["chosen"], pairs["rejected"])]
    of_rankings = ranked_trainer(start, tmp_path, {"prompt": pairs["prompt"], "ranked": ranked}, max_steps=1)
    for trainer in (of_pairs, of_rankings):
        torch.nn.init.zeros_(trainer.model.score.weight)
        trainer.train()
        assert trainer.state.log_history[0]["accuracy"] == 0.5


def test_the_loss_is_that_of_the_scores(start, tmp_path):
    """Rows of three, two and three candidates, the last with a tie: -log of the product of softmaxes of the model's
    own scores, and for the tie of the first two the sum over both orders.
    """
    rows = {
        "prompt": ["a", "b", "c"],
        "ranked": [[" a", " b", " c d"], [" d", " c"], [" b", " d", " a a"]],
        "ranks": [[1, 2, 3], [1, 2], [1, 1, 3]],
    }
    trainer = ranked_trainer(start, tmp_path, rows, center_rewards_coefficient=None)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(3)])
    assert batch["input_ids"].shape[0] == 8
    assert batch["ranks"].tolist() == [[1, 2, 3], [1, 2, 0], [1, 1, 3]]
    trainer.model.eval()
    with torch.no_grad():
        loss, outputs = trainer.compute_loss(trainer.model, batch, return_outputs=True)
    w = outputs.logits.squeeze(-1).double().exp().tolist()
    first = w[0] / sum(w[:3]) * w[1] / (w[1] + w[2])
    second = w[3] / (w[3] + w[4])
    a, b, c = w[5:]
    tied = a / (a + b + c) * b / (b + c) + b / (a + b + c) * a / (a + c)
    assert loss.item() == pytest.approx(-math.log(first * second * tied) / 3, rel=1e-5)
    # Ordered pairs: three, one, and two in the tied row (the tie itself is none).
    logged = trainer._metrics["eval"]
    scores = [math.log(x) for x in w]
    ordered = [(0, 1), (0, 2), (1, 2), (3, 4), (5, 7), (6, 7)]
    assert logged["accuracy"][-1] == pytest.approx(sum(scores[i] > scores[j] for i, j in ordered) / 6)
    assert logged["margin"][-1] == pytest.approx(sum(scores[i] - scores[j] for i, j in ordered) / 6, rel=1e-4)


def test_long_rankings_are_left_out():
    """One candidate over the limit takes its whole row with it: a ranking with a hole is another ranking."""
    rows = Dataset.from_dict({"prompt": ["a", "b"], "ranked": [[" a", " b"], [" a b c d a b", " c"]]})
    kept = encode_rankings(rows, task.tokenizer(), max_length=5)
    assert len(kept) == 1
    # bos, prompt, answer, eos
    assert kept[0]["candidate_ids"] == [[1, 3, 3, 2], [1, 3, 4, 2]]
    assert kept[0]["ranks"] == [1, 2]
