"""Each stage's loss is the pure function that its docstring names.

A stage's ``main`` builds its trainer on a NarLM and on a foreign base; its weights are then moved, so that pi is not
pi_ref, and the trainer's loss on a real batch is compared with the function of ``pipeline.objectives`` on
log-probabilities and scores that are read off the plain model, row by row and without padding.
"""

import copy
import importlib

import pytest
import torch

from pipeline.objectives.likelihood import negative_log_likelihood
from pipeline.objectives.policy_gradient import group_advantages, grpo_loss, ppo_clip_loss, token_rewards
from pipeline.objectives.preference import binary_reward_loss, bradley_terry_loss, dpo_loss, plackett_luce_loss
from pipeline.objectives.regularisers import l2
from pipeline.objectives.value import clipped_value_loss, gae
from tests.stages.conftest import flags, write_rows

MODELS = ["tiny_model", "foreign_model"]
CLOSE = {"rel": 2e-5, "abs": 1e-6}


class BuiltError(Exception):
    """Carries the trainer out of a stage that would train it now."""


@pytest.fixture(params=MODELS)
def base(request):
    """Folder of the start, a NarLM or a foreign model."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def build(monkeypatch, tmp_path):
    """The trainer that a stage's ``main`` builds, without training it."""

    def stop(run, trainer, *rest):
        raise BuiltError(trainer)

    for module in ("legs", "session"):  # in this order: legs imports it from session
        monkeypatch.setattr(f"pipeline.training.{module}.train_and_save", stop)

    def build(main, **given):
        folder = tmp_path / f"run-{len(list(tmp_path.iterdir()))}"
        options = {"use_cpu": True, "gradient_checkpointing": False, "eval_rows": 0, "max_steps": 4}
        options |= {"lora_dropout": 0.0} | given
        with pytest.raises(BuiltError) as caught:
            main(flags(output_dir=folder, **options))
        return caught.value.args[0]

    return build


def moved(model, scale: float = 0.1, seed: int = 0, part: str = "") -> None:
    """Add noise to every trained weight whose name holds ``part``: pi is not pi_ref any more."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and part in name:
                parameter += scale * torch.randn(parameter.shape, generator=generator)


def batch_of(trainer, rows: int = 4) -> dict:
    """The first rows as the trainer collates them."""
    return trainer._prepare_inputs(trainer.data_collator([trainer.train_dataset[i] for i in range(rows)]))


@torch.no_grad()
def log_likelihoods(model, ids, attention, counted) -> torch.Tensor:
    """Sum of log pi of the tokens that count, of every row by itself and without its padding, (B,)."""
    found = []
    for row, real, marks in zip(ids, attention.bool(), counted.bool()):
        row, marks = row[real], marks[real]
        logits = model(input_ids=row[None]).logits[0, :-1].double().log_softmax(-1)
        found.append(logits.gather(1, row[1:, None])[:, 0][marks[1:]].sum())
    return torch.stack(found)


@pytest.mark.parametrize("peft", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("beta", [0.3, 3.0])
def test_dpo(base, build, preference_file, beta, peft):
    """``dpo_loss`` at two betas, whose losses differ by far more than the tolerance; pi_ref is the start."""
    from pipeline.dpo import main
    from pipeline.model.loading import load_model

    adapter = {"use_peft": True, "lora_target_modules": "all-linear"} if peft else {}
    adapter["as_chat"] = False  # short answers: no loss is so near 0 that a tolerance would cover the other beta's
    trainer = build(main, model_name_or_path=base, dataset_name=preference_file, beta=beta, **adapter)
    moved(trainer.model)
    batch = batch_of(trainer)
    rows = batch["input_ids"], batch["attention_mask"], batch["completion_mask"]
    policy, reference = (log_likelihoods(model, *rows) for model in (trainer.model, load_model(str(base))))
    chosen, rejected = (policy - reference).chunk(2)
    assert (chosen - rejected).abs().min() > 0.05
    sides = [*policy.chunk(2), *reference.chunk(2)]
    losses = {b: dpo_loss(*sides, beta=b).mean().item() for b in (beta, 10 * beta)}
    assert abs(losses[beta] - losses[10 * beta]) > 0.02
    with torch.no_grad():
        found = trainer.compute_loss(trainer.model, batch).item()
    assert found == pytest.approx(losses[beta], **CLOSE)


def test_sft(base, build, tmp_path):
    """``negative_log_likelihood`` of the answers: the mean over a batch's tokens, and, of a step of two batches whose
    answers differ in length, the mean over the tokens of both (two means of a batch each would weigh them equally).
    """
    from pipeline.sft import main

    rows = [{"prompt": f"What is {a}?", "completion": " It is 7." * (1 + a % 4)} for a in range(8)]
    file = write_rows(tmp_path / "rows.jsonl", rows)
    trainer = build(main, model_name_or_path=base, dataset_name=file, per_device_train_batch_size=2)
    moved(trainer.model)
    batch = batch_of(trainer)
    with torch.no_grad():
        logits = trainer.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        expected = negative_log_likelihood(logits, batch["labels"]).item()
        assert trainer.compute_loss(trainer.model, dict(batch)).item() == pytest.approx(expected, **CLOSE)
        supervised = batch["labels"] != -100
        assert 0 < supervised[:, 1:].sum() < batch["attention_mask"][:, 1:].sum()
        prompts_too = negative_log_likelihood(logits, batch["input_ids"]).item()
        assert abs(prompts_too - expected) > 0.05
        halves = [trainer.data_collator([trainer.train_dataset[i] for i in part]) for part in ((0, 1), (2, 3))]
        both, tokens = trainer.get_batch_samples(iter(halves), 2, trainer.args.device)
        parts = [trainer.compute_loss(trainer.model, x, num_items_in_batch=tokens).item() for x in both]
    assert sum(parts) == pytest.approx(expected, **CLOSE)


def test_rsft(base, build, tmp_path):
    """``negative_log_likelihood`` of the selected completions, of two each the one of the higher reward."""
    from pipeline.rsft import main

    rows = [
        {"prompt": f"What is {a}?", "completion": f" It is {a + y}, or so.", "reward": y}
        for a in range(4)
        for y in (0, 1)
    ]
    file = write_rows(tmp_path / "rows.jsonl", rows)
    trainer = build(main, model_name_or_path=base, from_candidates=file, select="best")
    moved(trainer.model)
    batch = batch_of(trainer)
    learned = [trainer.processing_class.decode(row[row != -100]) for row in batch["labels"]]
    assert [f"It is {a + 1}, or so." in text and "What" not in text for a, text in enumerate(learned)] == [True] * 4
    with torch.no_grad():
        logits = trainer.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        expected = negative_log_likelihood(logits, batch["labels"]).item()
        assert trainer.compute_loss(trainer.model, batch).item() == pytest.approx(expected, **CLOSE)


def test_pretraining(tiny_model, build, tmp_path):
    """``negative_log_likelihood`` of every token of a packed block, documents apart."""
    from pipeline.pretrain import main

    texts = [{"text": f"What is {a} plus {b}? The answer is {a + b}."} for a in range(6) for b in range(6)]
    file = write_rows(tmp_path / "rows.jsonl", texts)
    trainer = build(main, model_name_or_path=tiny_model, dataset_name=file, max_length=32)
    moved(trainer.model)
    batch = batch_of(trainer)
    with torch.no_grad():
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        logits = trainer.model(**inputs, use_cache=False).logits
        found = trainer.compute_loss(trainer.model, batch).item()
    assert found == pytest.approx(negative_log_likelihood(logits, batch["labels"]).item(), **CLOSE)


@torch.no_grad()
def scores_of(trainer, batch) -> torch.Tensor:
    """The score of every row by itself, without its padding, (B,)."""
    pairs = zip(batch["input_ids"], batch["attention_mask"].bool())
    return torch.stack([trainer.model(input_ids=row[real][None]).logits.double().squeeze() for row, real in pairs])


def test_reward_model_of_pairs(base, build, preference_file):
    """``bradley_terry_loss`` of the scores."""
    from pipeline.reward_model import main

    trainer = build(main, model_name_or_path=base, dataset_name=preference_file)
    moved(trainer.model, 0.3)
    batch = batch_of(trainer)
    chosen, rejected = scores_of(trainer, batch).chunk(2)
    expected = bradley_terry_loss(chosen, rejected).mean().item()
    assert abs(expected - bradley_terry_loss(rejected, chosen).mean().item()) > 0.05
    with torch.no_grad():
        assert trainer.compute_loss(trainer.model, batch).item() == pytest.approx(expected, **CLOSE)


def test_reward_model_of_rankings(base, build, tmp_path):
    """``plackett_luce_loss`` of the scores, rows of two and of three candidates, one with a tie."""
    from pipeline.reward_model import main

    rows = [
        {"prompt": f"What is {a}?", "ranked": ["It is 1.", "It is 2, or so.", "No."][: 2 + a % 2], "ranks": ranks}
        for a, ranks in enumerate([[1, 2], [1, 1, 3], [1, 2], [1, 2, 3]])
    ]
    file = write_rows(tmp_path / "rows.jsonl", rows)
    trainer = build(main, model_name_or_path=base, dataset_name=file, objective="listwise")
    moved(trainer.model, 0.3)
    batch = batch_of(trainer)
    assert sorted(map(len, (r[r > 0] for r in batch["ranks"]))) == [2, 2, 3, 3]
    mask = batch["ranks"] > 0
    scores = torch.zeros(mask.shape, dtype=torch.float64).masked_scatter(mask, scores_of(trainer, batch))
    expected = plackett_luce_loss(scores, mask, batch["ranks"]).mean().item()
    with torch.no_grad():
        assert trainer.compute_loss(trainer.model, batch).item() == pytest.approx(expected, **CLOSE)


def test_reward_model_of_labels(base, build, tmp_path):
    """``binary_reward_loss`` of the scores, good and bad answers of different lengths."""
    from pipeline.reward_model import main

    rows = [{"prompt": f"What is {a}?", "completion": "It is 7." * (1 + a), "label": a % 3 == 0} for a in range(4)]
    file = write_rows(tmp_path / "rows.jsonl", rows)
    trainer = build(main, model_name_or_path=base, dataset_name=file, objective="binary")
    moved(trainer.model, 0.3)
    batch = batch_of(trainer)
    labels, scores = batch["labels"], scores_of(trainer, batch)
    assert sorted(labels.tolist()) == [0.0, 0.0, 1.0, 1.0]
    expected = binary_reward_loss(scores, labels).mean().item()
    assert abs(expected - binary_reward_loss(scores, 1 - labels).mean().item()) > 0.05
    with torch.no_grad():
        assert trainer.compute_loss(trainer.model, batch).item() == pytest.approx(expected, **CLOSE)


@pytest.fixture(scope="module")
def prompt_file(tmp_path_factory):
    rows = [{"prompt": f"What is {a} plus 1?", "answer": str(a + 1)} for a in range(8)]
    return write_rows(tmp_path_factory.mktemp("prompts") / "prompts.jsonl", rows)


def first_token(prompts, completions, completion_ids, **columns):
    """A reward of 0 to 3 by the first token."""
    return [float(ids[0] % 4) for ids in completion_ids]


ROLLOUT = {
    "num_generations": 4, "max_completion_length": 5, "per_device_train_batch_size": 8, "guard_patience": 0,
    "reward": "tests.stages.test_losses:first_token",
}  # fmt: skip


@torch.no_grad()
def completion_log_probs(model, batch) -> torch.Tensor:
    """Log-probabilities of the completions' tokens by the plain logits, (B, T)."""
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    width = batch["completion_ids"].size(1)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    logits = model(input_ids=ids, attention_mask=mask, position_ids=positions).logits[:, -width - 1 : -1]
    return logits.double().log_softmax(-1).gather(-1, batch["completion_ids"][..., None])[..., 0]


def rollout(trainer) -> dict:
    """One rollout of two prompts, sampled by weights that are not pi_ref; then the weights are moved once more."""
    moved(trainer.model, 0.05, seed=1)
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    inputs = [trainer.train_dataset[i // 4] for i in range(8)]
    batch = trainer._generate_and_score_completions(inputs)
    batch["sampled_by"] = completion_log_probs(trainer.model, batch)
    moved(trainer.model, 0.05, seed=2)
    return batch


def test_grpo(base, build, prompt_file):
    """``grpo_loss`` over a constant number of tokens, at beta 0, 0.5 and 5, with TRL's correction of k3 and without:
    each loss is its own function's and none of the others'.
    """
    from pipeline.grpo import main
    from pipeline.model.loading import load_model

    losses = {}
    for beta, corrected in ((0.0, True), (0.5, True), (0.5, False), (5.0, True)):
        trainer = build(
            main, model_name_or_path=base, dataset_name=prompt_file, beta=beta, use_bias_correction_kl=corrected,
            num_iterations=2, scale_rewards="none", loss_type="dr_grpo", **ROLLOUT,
        )  # fmt: skip
        batch = rollout(trainer)
        log_probs, reference = (completion_log_probs(m, batch) for m in (trainer.model, load_model(str(base))))
        rewards = torch.tensor(first_token(None, None, batch["completion_ids"].tolist())).view(2, 4)
        advantages = group_advantages(rewards, scale=False).flatten()[:, None]
        mask = batch["completion_mask"]
        with torch.no_grad():
            found = trainer._compute_loss(trainer.model, copy.copy(batch)).item()
        for other in (0.0, 0.5, 5.0):
            for with_ratio in (True, False):
                tokens = grpo_loss(log_probs, batch["sampled_by"], reference, advantages, other, corrected=with_ratio)
                losses[other, with_ratio] = ((tokens * mask).sum() / (8 * 5)).item()
        assert found == pytest.approx(losses[beta, corrected], **CLOSE)
        apart = [abs(found - losses[key]) for key in losses if key[0] != beta]
        apart += [abs(found - losses[beta, not corrected])] if beta else []
        assert min(apart) > 1e-3


def test_ppo(base, build, prompt_file):
    """``ppo_clip_loss`` on GAE's advantages of ``token_rewards`` plus vf_coef ``clipped_value_loss``, beta 0.5."""
    from pipeline.model.loading import load_model
    from pipeline.ppo import main

    trainer = build(
        main, model_name_or_path=base, dataset_name=prompt_file, beta=0.5, critic="separate", gamma=0.97, lam=0.9,
        whiten_advantages=False, vf_coef=0.7, epsilon=0.1, **ROLLOUT,
    )  # fmt: skip
    batch = rollout(trainer)
    mask = batch["completion_mask"]
    reference = completion_log_probs(load_model(str(base)), batch)
    scores = torch.tensor(first_token(None, None, batch["completion_ids"].tolist())).double()
    rewards = token_rewards(scores, batch["sampled_by"], reference, mask, beta=0.5)
    assert batch["old_values"].abs().max() > 0.05
    advantages, returns = gae(rewards, batch["old_values"].double(), mask, gamma=0.97, lam=0.9)
    with torch.no_grad():
        found = trainer._compute_loss(trainer.model, copy.copy(batch)).item()
        values = trainer._values(trainer.model, batch).double()
    clip = ppo_clip_loss(completion_log_probs(trainer.model, batch), batch["sampled_by"], advantages, 0.1, 0.1)
    value = clipped_value_loss(values, batch["old_values"].double(), returns, 0.2)
    expected = (clip * mask).sum() / (8 * 5) + 0.7 * (value * mask).sum() / mask.sum()
    assert found == pytest.approx(expected.item(), rel=1e-4)


def test_continual(base, build, sft_file):
    """``negative_log_likelihood`` plus lambda times ``l2`` of the trained parameters, lambda 0.3."""
    from pipeline.continual import main

    trainer = build(
        main, model_name_or_path=base, dataset_name=sft_file, method="lora", omega=["l2"], omega_weight=[0.3],
        eval_rows=4,
    )  # fmt: skip
    trainer.model.train()
    own = {name: p for name, p in trainer.model.named_parameters() if p.requires_grad}
    start = {name: p.detach().clone() for name, p in own.items()}
    moved(trainer.model)
    batch = batch_of(trainer)
    with torch.no_grad():
        logits = trainer.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        expected = negative_log_likelihood(logits, batch["labels"]) + 0.3 * l2(own, start)
        assert l2(own, start) > 1
        assert trainer.compute_loss(trainer.model, batch).item() == pytest.approx(expected.item(), **CLOSE)


STATED = {
    "pretrain": ("likelihood.negative_log_likelihood", "test_pretraining"),
    "sft": ("likelihood.negative_log_likelihood", "test_sft"),
    "reward_model": ("preference.bradley_terry_loss", "test_reward_model_of_pairs"),
    "dpo": ("preference.dpo_loss", "test_dpo"),
    "ppo": ("policy_gradient.ppo_clip_loss", "test_ppo"),
    "rsft": ("likelihood.negative_log_likelihood", "test_rsft"),
    "grpo": ("policy_gradient.grpo_loss", "test_grpo"),
    "continual": ("regularisers", "test_continual"),
}


@pytest.mark.parametrize("stage", STATED)
def test_the_docstring_names_the_function_and_its_test(stage):
    """Of every training stage: where its loss is stated, and which test above holds the trainer to it."""
    text = importlib.import_module(f"pipeline.{stage}").__doc__
    function, test = STATED[stage]
    assert f"objectives.{function}" in text
    assert f"tests/stages/test_losses.py::{test}" in " ".join(text.split())
    assert test in globals()
