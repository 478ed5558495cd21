"""Eq. (12) on TRL's trainers: lambda 0 is the trainer itself, every term pulls its own way, on answers and pairs."""

import datasets
import pytest
import torch
from peft import LoraConfig
from trl import DPOConfig, SFTConfig, SFTTrainer

from pipeline.model.adapters import attach, backbone_sha256
from pipeline.training.omega import Memory, Omega
from pipeline.training.regularised import ContinualDPOTrainer, ContinualSFTTrainer
from tests.tiny_models import tiny_model, tiny_tokenizer

NEW = [{"prompt": f"{a} + {b} =", "completion": f" {(a + b) % 10}"} for a in range(4) for b in range(4)]
OLD = [{"prompt": f"{word} =", "completion": f" {other}"} for word in "abcde" for other in "ab"]
PAIRS = [{"prompt": f"{a} + 1 =", "chosen": f" {a + 1} e", "rejected": " 0"} for a in range(8)]


def config(folder, kind=SFTConfig, **options):
    """A few quick steps in float32 on the CPU."""
    given = {
        "max_steps": 6, "per_device_train_batch_size": 4, "learning_rate": 3e-2, "lr_scheduler_type": "constant",
        "bf16": False, "use_cpu": True, "report_to": "none", "save_strategy": "no", "logging_steps": 1, "seed": 3,
        "disable_tqdm": True, "gradient_checkpointing": False, "max_length": 32,
    }  # fmt: skip
    return kind(str(folder), **given | options)


def trained(folder, weights, *, rows=NEW, memory=OLD, old_reads=None, kind=ContinualSFTTrainer, steps=6, **options):
    """A trainer after its steps, LoRA on every linear layer."""
    omega = Omega(weights, Memory(32, list(memory), len(memory)), batch_size=8, seed=0, old_reads=old_reads or {})
    torch.manual_seed(0)
    trainer = kind(
        model=tiny_model(),
        args=config(
            folder, DPOConfig if kind is ContinualDPOTrainer else SFTConfig, max_steps=max(steps, 1), **options
        ),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tiny_tokenizer(),
        peft_config=LoraConfig(r=2, lora_alpha=4, target_modules="all-linear"),
        omega=omega,
    )
    if steps:
        trainer.train()
    return trainer


def adapter(trainer) -> dict[str, torch.Tensor]:
    """What was trained."""
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}


def test_lambda_zero_is_plain_lora_bit_for_bit(tmp_path):
    """Every term at weight 0, with a memory and old adapters there to be used: the weights of TRL's own SFTTrainer."""
    zero = trained(tmp_path / "a", dict.fromkeys(("l2", "ewc", "distillation", "orthogonal", "replay"), 0.0))
    torch.manual_seed(0)
    plain = SFTTrainer(
        model=tiny_model(),
        args=config(tmp_path / "b"),
        train_dataset=datasets.Dataset.from_list(NEW),
        processing_class=tiny_tokenizer(),
        peft_config=LoraConfig(r=2, lora_alpha=4, target_modules="all-linear"),
    )
    plain.train()
    expected = adapter(plain)
    assert expected.keys() == adapter(zero).keys()
    assert all(torch.equal(value, expected[name]) for name, value in adapter(zero).items())
    assert any(value.any() for name, value in expected.items() if "lora_B" in name)


@pytest.mark.parametrize(
    ("term", "weight"), [("l2", 100.0), ("ewc", 100.0), ("distillation", 300.0), ("replay", 10.0)]
)
def test_a_large_lambda_brings_the_penalty_near_its_minimum(term, weight, tmp_path):
    """Measured on all of the memory by a trainer that has learned with lambda and one that has learned without."""
    found = []
    for value in (1e-9, weight):
        trainer = trained(tmp_path, {term: value}, steps=12)
        trainer.omega.batch_size = 100
        trainer.model.eval()
        found.append(trainer.penalties(trainer.model)[term].item())
    assert found[1] < 0.35 * found[0]
    assert found[1] >= 0


def test_orthogonal_turns_the_new_reads_away_from_the_old(tmp_path):
    """The old adapter read along the first coordinate of every module's input; the new A's first column dies out."""
    probe = trained(tmp_path, {}, steps=0)
    reads = {}
    for name, value in adapter(probe).items():
        if ".lora_A." in name:
            reads[name.partition(".lora_A.")[0]] = torch.eye(value.shape[1])[:1]
    first = {}
    for weight in (1e-9, 30.0):
        trainer = trained(tmp_path, {"orthogonal": weight}, old_reads=reads, steps=12)
        first[weight] = sum(v[:, 0].norm().item() for n, v in adapter(trainer).items() if ".lora_A." in n)
    assert first[30.0] < 0.35 * first[1e-9]


@pytest.mark.parametrize("kind", [ContinualSFTTrainer, ContinualDPOTrainer])
def test_distillation_is_zero_at_the_start(kind, tmp_path):
    """Omega(theta_k, theta_k) = 0 on answers and on pairs (whose rows are chosen, then rejected ones), for l2 too; and
    it is not 0 once the adapter is moved.
    """
    rows = PAIRS if kind is ContinualDPOTrainer else NEW
    memory = rows if kind is ContinualDPOTrainer else OLD
    trainer = trained(tmp_path, {"distillation": 1.0, "l2": 1.0}, rows=rows, memory=memory, kind=kind, steps=0)
    trainer.model.eval()
    start = trainer.penalties(trainer.model)
    assert start["distillation"].item() == pytest.approx(0, abs=1e-5)
    assert start["l2"].item() == 0
    with torch.no_grad():
        for name, parameter in trainer.model.named_parameters():
            if "lora_B" in name and parameter.requires_grad:
                parameter += 0.1
    moved = trainer.penalties(trainer.model)
    assert moved["distillation"].item() > 0.01
    assert moved["l2"].item() > 0


def test_it_trains_on_pairs_with_every_term(tmp_path):
    weights = {"l2": 0.1, "ewc": 0.1, "distillation": 0.1, "replay": 0.1}
    trainer = trained(tmp_path, weights, rows=PAIRS, memory=PAIRS[:3], kind=ContinualDPOTrainer, steps=3)
    logged = {key for entry in trainer.state.log_history for key in entry}
    assert {"omega/l2", "omega/ewc", "omega/distillation", "omega/replay", "rewards/margins"} <= logged


def test_accumulated_steps_see_lambda_once(tmp_path):
    """Two half batches make the update of one whole batch: Omega is not counted twice. Plain gradient descent, where
    a doubled lambda would show; the memory is as large as its batch, so both see all of it.
    """
    options = {"optim": "sgd", "learning_rate": 0.05, "max_grad_norm": 1e9, "steps": 4}
    weights, rows = {"l2": 5.0, "replay": 1.0}, NEW[:8]
    whole = trained(tmp_path, weights, rows=rows, memory=OLD[:8], per_device_train_batch_size=8, **options)
    halves = trained(
        tmp_path, weights, rows=rows, memory=OLD[:8], per_device_train_batch_size=4, gradient_accumulation_steps=2,
        **options,
    )  # fmt: skip
    for name, value in adapter(whole).items():
        assert torch.allclose(value, adapter(halves)[name], atol=1e-5), name


def test_the_memory_is_saved_and_never_grows(tmp_path):
    memory = Memory(4)
    memory.add(NEW, seed=0)
    memory.fisher = {"a": torch.tensor([1.0, 2.0])}
    memory.save(tmp_path)
    loaded = Memory.load(tmp_path, 4)
    assert (loaded.rows, loaded.seen) == (memory.rows, 16)
    assert loaded.fisher["a"].tolist() == [1.0, 2.0]
    assert len(memory.rows) == 4 == len({row["prompt"] for row in memory.rows})
    loaded.add(OLD, seed=0)
    assert (len(loaded.rows), loaded.seen) == (4, 26)
    assert Memory.load(tmp_path / "nowhere", 4).rows == []


def test_what_a_new_row_answers_otherwise_is_forgotten():
    """Of four rows the one whose prompt has a new answer goes; the same answer again, another prompt and a row without
    a prompt stay, in their order. How many were seen stays too: the sample is of all rows.
    """
    chat = [{"role": "user", "content": "b"}]
    rows = [{"prompt": "a", "completion": "1"}, {"prompt": chat, "completion": "2"}, {"text": "c"}]
    memory = Memory(9, [*rows, {"prompt": "d", "completion": "4"}], seen=40)
    memory.supersede(
        [{"prompt": "a", "completion": "1"}, {"prompt": "d", "completion": "5"}, {"prompt": "e", "completion": "6"}]
    )
    assert (memory.rows, memory.seen) == (rows, 40)
    memory.supersede([{"prompt": list(chat), "completion": "3"}])
    assert memory.rows == [rows[0], rows[2]]


def test_distillation_reads_the_anchors_and_replay_the_memory(tmp_path):
    """With anchors of text distillation needs no memory, and replay has its own rows: both are 0 or the loss at the
    start and move with the adapter. Anchors are kept with the memory.
    """
    memory = Memory(4, OLD[:4], 4, anchors=[{"text": f"{a} e {a} d"} for a in range(3)])
    memory.save(tmp_path / "saved")
    assert Memory.load(tmp_path / "saved", 4).anchors == memory.anchors
    for rows, terms in ((memory.rows, {"distillation", "replay"}), ([], {"distillation"})):
        torch.manual_seed(0)
        trainer = ContinualSFTTrainer(
            model=tiny_model(),
            args=config(tmp_path),
            train_dataset=datasets.Dataset.from_list(NEW),
            processing_class=tiny_tokenizer(),
            peft_config=LoraConfig(r=2, lora_alpha=4, target_modules="all-linear"),
            omega=Omega(
                {"distillation": 1.0, "replay": 1.0}, Memory(4, rows, 4, anchors=memory.anchors), batch_size=8
            ),
        )
        assert [len(states[0]) for states in trainer.start_hidden] == [
            len(r["input_ids"]) for r in trainer.anchor_rows
        ]
        trainer.model.eval()
        start = trainer.penalties(trainer.model)
        assert start.keys() == terms
        assert start["distillation"].item() == pytest.approx(0, abs=1e-5)
        trainer.train()
        assert trainer.penalties(trainer.model)["distillation"].item() > 1e-4


def test_ewc_remembers_a_normalised_fisher(tmp_path):
    """Before the first corpus the Fisher is of the memory's rows; after it the corpus's joins, each of mean 1. At the
    start the gradient of every A is 0, for B is 0: their Fisher is 0.
    """
    trainer = trained(tmp_path, {"ewc": 1.0}, steps=0)
    fisher = trainer.omega.memory.fisher
    assert torch.cat([v.flatten() for v in fisher.values()]).mean().item() == pytest.approx(1.0, rel=1e-4)
    assert all(not value.any() for name, value in fisher.items() if "lora_A" in name)
    trainer.train()
    new = trainer.fisher(trainer.train_dataset)
    trainer.remember(NEW, decay=0.5)
    joined = trainer.omega.memory.fisher
    name = next(name for name in new if "lora_B" in name)
    assert torch.allclose(joined[name], 0.5 * fisher[name] + new[name], rtol=1e-4)  # the old one decays
    assert not torch.allclose(joined[name], fisher[name] + 0.5 * new[name], rtol=1e-2)
    assert torch.cat([v.flatten() for v in joined.values()]).mean().item() == pytest.approx(1.5, rel=1e-4)
    assert any(value.any() for name, value in joined.items() if "lora_A" in name)
    assert trainer.omega.memory.seen == len(OLD) + len(NEW)


def test_an_adapter_of_our_own_is_checkpointed_alone_and_resumes(tmp_path):
    """Six steps at once, and three, a checkpoint, and three more: the same deltas; the backbone stays as it was."""

    def run(folder, steps, resume=None):
        model = attach(tiny_model(), "bias", base="x")
        trainer = ContinualSFTTrainer(
            model=model,
            args=config(folder, max_steps=steps, save_strategy="steps", save_steps=3),
            train_dataset=datasets.Dataset.from_list(NEW),
            processing_class=tiny_tokenizer(),
            omega=Omega({"l2": 0.1}, Memory(4)),
        )
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    whole = run(tmp_path / "a", 6)
    run(tmp_path / "b", 3)
    checkpoint = tmp_path / "b" / "checkpoint-3"
    assert not (checkpoint / "model.safetensors").exists()
    parts = run(tmp_path / "b", 6, resume=str(checkpoint))
    assert all(torch.equal(value, adapter(parts)[name]) for name, value in adapter(whole).items())
    assert any(value.any() for value in adapter(whole).values())
    assert backbone_sha256(parts.model) == backbone_sha256(tiny_model())


def test_distillation_holds_the_head_as_it_was(tmp_path):
    """All weights are trained, and only the head is moved: the hidden states are the same, so the penalty is the KL of
    theta_k's next-token distributions to the moved ones, over the memory's real tokens. A head that was not copied
    would move along, and the penalty would stay 0.
    """
    trainer = ContinualSFTTrainer(
        model=tiny_model(),
        args=config(tmp_path),
        train_dataset=datasets.Dataset.from_list(NEW),
        processing_class=tiny_tokenizer(),
        omega=Omega({"distillation": 1.0}, Memory(4, OLD[:4], 4), batch_size=8),
    )
    trainer.model.eval()
    batch = trainer._collated(trainer.anchor_rows, range(4))
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    with torch.no_grad():
        old = trainer.model(**inputs).logits.log_softmax(-1)
        head = trainer.model.get_output_embeddings().weight
        head += 0.3 * torch.randn(head.shape, generator=torch.Generator().manual_seed(0))
        new = trainer.model(**inputs).logits.log_softmax(-1)
        found = trainer.penalties(trainer.model)["distillation"].item()
    mask = batch["attention_mask"]
    expected = ((old.exp() * (old - new)).sum(-1) * mask).sum() / mask.sum()
    assert found == pytest.approx(expected.item(), rel=1e-3)
    assert found > 0.05


def test_what_the_model_wrote_is_replayed_in_place_of_the_memory(tmp_path):
    """Three rows written, four remembered: the three are replayed, and distilled where there are no anchors."""
    written = [{"prompt": f"{word} =", "completion": " 9 9"} for word in "abc"]
    trainer = ContinualSFTTrainer(
        model=tiny_model(),
        args=config(tmp_path),
        train_dataset=datasets.Dataset.from_list(NEW),
        processing_class=tiny_tokenizer(),
        omega=Omega({"replay": 1.0, "distillation": 1.0}, Memory(4, OLD[:4], 4), written=written),
    )
    nine = tiny_tokenizer().convert_tokens_to_ids("9")
    assert [row["input_ids"].count(nine) for row in trainer.memory_rows] == [2, 2, 2]
    assert len(trainer.anchor_rows) == 3
