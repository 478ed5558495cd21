"""Reward model end to end on a tiny model: what it learns, and that the saved head is the trained one."""

import json

import pytest
import torch
from safetensors.torch import load_file

from pipeline.model.tokens import encode_exchange
from pipeline.reward_model import main
from pipeline.rewards.learned import load_reward_model
from pipeline.rewards.registry import get_reward
from pipeline.rewards.resolve import reward_spec
from pipeline.runtime.errors import UserError
from pipeline.runtime.messages import user_turn
from tests.stages.conftest import flags, read_metrics, write_rows


def likes_sums(prompts, completions):
    """A known reward: 1 for an answer with a digit, else 0."""
    return [float(any(c.isdigit() for c in text)) for text in completions]


@pytest.fixture(scope="module")
def ranked_file(tmp_path_factory):
    """Rankings of three: a sum, then two answers without one, tied."""
    rows = [
        {
            "prompt": f"What is {a} plus {b}?",
            "ranked": [f"The answer is {a + b}.", "Bad.", "wrong, wrong"],
            "ranks": [1, 2, 2],
        }
        for a in range(8)
        for b in range(4)
    ]
    return write_rows(tmp_path_factory.mktemp("ranked") / "ranked.jsonl", rows)


@pytest.fixture(scope="module")
def pair_run(tiny_model, preference_file, tmp_path_factory):
    """A LoRA run of twelve steps on pairs."""
    folder = tmp_path_factory.mktemp("reward") / "run"
    main(
        flags(
            model_name_or_path=tiny_model, dataset_name=preference_file, output_dir=folder, eval_rows=8, max_steps=12,
            use_peft=True, lora_target_modules="all-linear", save_steps=6,
            true_reward="tests.stages.test_reward_model:likes_sums",
        )
    )  # fmt: skip
    return folder


def test_held_out_figures_are_those_of_a_model_that_tells_them_apart(pair_run):
    """Chosen answers hold a digit and rejected ones do not: accuracy 1, as the true reward's, and the plot is there.
    All chosen answers are longer by the same number of tokens, so there is no correlation with length to report.
    """
    metrics = read_metrics(pair_run)
    assert metrics["held_out_accuracy"] == metrics["held_out_bayes_accuracy"] == 1.0
    assert metrics["held_out_accuracy_low"] < 1.0
    assert metrics["held_out_margin"] > 1.0
    assert metrics["held_out_pairs"] == 8
    assert 0 <= metrics["held_out_ece"] < 0.35
    assert (pair_run / "plots" / "reliability.png").stat().st_size > 5000


def test_the_head_survives_save_merge_and_reload(pair_run):
    """The saved adapter holds the score head; merged, unmerged by PEFT, and through the registry the score is the
    same, and it is not that of an untrained head.
    """
    from peft import AutoPeftModelForSequenceClassification

    saved = load_file(pair_run / "adapter_model.safetensors")
    assert any(name.endswith("score.weight") for name in saved)
    merged, tokenizer = load_reward_model(str(pair_run))
    prompt, answers = "What is 2 plus 3?", ["The answer is 5.", "Bad."]
    ids = [torch.tensor([encode_exchange(tokenizer, user_turn(prompt), answer)]) for answer in answers]
    plain = AutoPeftModelForSequenceClassification.from_pretrained(pair_run, num_labels=1).eval()
    with torch.no_grad():
        by_merged = [merged(x).logits.item() for x in ids]
        by_peft = [plain(x).logits.item() for x in ids]
    by_registry = get_reward(reward_spec(str(pair_run)))(prompts=[prompt] * 2, completions=answers)
    assert by_merged == pytest.approx(by_peft, abs=1e-4)
    assert by_registry == pytest.approx(by_merged, abs=1e-4)
    assert by_merged[0] - by_merged[1] > 1.0


def test_rankings_with_ties_and_their_rank_correlation(tiny_model, ranked_file, tmp_path):
    """After twelve steps the sum is told from the other two everywhere: two ordered pairs a row, the tie is none.
    Against the true reward (1, 0, 0) the ranks of three different scores give Spearman sqrt(3)/2.
    """
    main(
        flags(
            model_name_or_path=tiny_model, dataset_name=ranked_file, output_dir=tmp_path / "run", eval_rows=6,
            max_steps=12, objective="listwise", save_steps=12,
            true_reward="tests.stages.test_reward_model:likes_sums", ranked_dataset_name=ranked_file,
        )
    )  # fmt: skip
    metrics = read_metrics(tmp_path / "run")
    assert metrics["held_out_pairs"] == 12
    assert metrics["held_out_accuracy"] == 1.0
    assert metrics["held_out_true_reward_spearman"] == pytest.approx(3**0.5 / 2, abs=1e-6)


def test_rows_that_are_all_too_long_are_refused(tiny_model, preference_file, tmp_path):
    """RewardTrainer drops them in silence; a run on nothing must not look like one on something."""
    with pytest.raises(UserError, match="no row is left"):
        main(
            flags(
                model_name_or_path=tiny_model, dataset_name=preference_file, output_dir=tmp_path / "run",
                max_length=4, max_steps=1,
            )
        )  # fmt: skip


def test_the_card_says_what_it_is(pair_run):
    """A sequence classifier on an adapter, with its figures and without a local path."""
    card = (pair_run / "README.md").read_text()
    assert "pipeline_tag: text-classification" in card
    assert "held_out_accuracy" in card
    assert str(pair_run.parent) not in card
    assert json.loads((pair_run / "run.json").read_text())["stage"] == "reward_model"


@pytest.mark.parametrize("start", ["tiny_model", "foreign_model"])
@pytest.mark.parametrize("chat", [False, True], ids=["text", "chat"])
def test_labels_of_single_answers(request, tmp_path, start, chat):
    """A sum is good, "Bad." is not: after 16 steps the saved model has every held-out answer on its side of 0."""
    rows = []
    for a in range(8):
        for b in range(4):
            question, good = f"What is {a} plus {b}?", b % 2 == 0
            prompt = [{"role": "user", "content": question}] if chat else question
            rows.append({"prompt": prompt, "completion": f"It is {a + b}." if good else "Bad.", "label": int(good)})
    file = write_rows(tmp_path / "rows.jsonl", rows)
    main(
        flags(
            model_name_or_path=request.getfixturevalue(start), dataset_name=file, output_dir=tmp_path / "run",
            objective="binary", eval_rows=8, max_steps=16, save_steps=16, eval_strategy="steps", eval_steps=16,
        )
    )  # fmt: skip
    metrics = read_metrics(tmp_path / "run")
    assert metrics["held_out_answers"] == 8
    assert (metrics["held_out_accuracy"], metrics["held_out_auc"]) == (1.0, 1.0)
    assert metrics["held_out_majority"] < 1
    assert metrics["eval_loss"] < 0.5


def test_labels_go_with_no_true_reward(tiny_model, tmp_path):
    rows = [{"prompt": "a", "completion": "b", "label": 1}, {"prompt": "a", "completion": "c", "label": 3}]
    file = write_rows(tmp_path / "rows.jsonl", rows)
    common = {"model_name_or_path": tiny_model, "dataset_name": file, "objective": "binary", "eval_rows": 0}
    with pytest.raises(UserError, match="leave them out of binary"):
        main(flags(output_dir=tmp_path / "a", true_reward="tests.stages.test_reward_model:likes_sums", **common))
    with pytest.raises(UserError, match="center_rewards_coefficient"):
        main(flags(output_dir=tmp_path / "b", center_rewards_coefficient=0.1, **common))
    with pytest.raises(UserError, match=r"row 2.*label.*true or false"):
        main(flags(output_dir=tmp_path / "c", **common))
