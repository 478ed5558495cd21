"""A checkpoint holds what a run must remember besides weights, optimizer and random states."""

import json
from itertools import islice
from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, TrainerControl, TrainingArguments, default_data_collator

from pipeline.data import streaming
from pipeline.data.sources import Source
from pipeline.data.streaming import DocumentStream, pack_stream
from pipeline.runtime.checkpoints import newest_checkpoint
from pipeline.training.guards import Guards
from pipeline.training.pretraining import PackedTrainer
from tests.data.test_packing import make_tokenizer

LENGTH = 6


class Killed(Exception):
    """In place of SIGKILL, in the same process."""


class Watched(PackedTrainer):
    """Notes the blocks it learns, and is killed where ``kill_at`` says."""

    kill_at = None

    def training_step(self, model, inputs, *args, **kwargs):
        if self.kill_at is not None and self.state.global_step == self.kill_at:
            raise Killed
        self.seen.extend(inputs["input_ids"].tolist())
        return super().training_step(model, inputs, *args, **kwargs)


@pytest.fixture
def corpus(tmp_path):
    """120 documents of different words in three files."""
    for number in range(3):
        texts = [" ".join(f"w{digit}" for digit in f"{n:03d}") for n in range(40 * number, 40 * number + 40)]
        lines = (json.dumps({"text": text}) + "\n" for text in texts)
        (tmp_path / f"train-{number}.jsonl").write_text("".join(lines))
    return tmp_path


def streamed(corpus):
    return pack_stream(DocumentStream([Source(name=str(corpus))], 0, window=8), make_tokenizer(), LENGTH, 6)


def run(corpus, folder, resume=None, kill_at=None, **others):
    """Six steps of 2 x 2 blocks: the blocks that were learned and the weights at the end."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=13, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    )
    args = TrainingArguments(
        output_dir=str(folder), max_steps=6, per_device_train_batch_size=2, gradient_accumulation_steps=2,
        logging_steps=1, report_to="none", disable_tqdm=True, use_cpu=True,
        **{"save_steps": 4, "learning_rate": 1e-2} | others,
    )  # fmt: skip
    held_out = [dict(block) for block in islice(streamed(corpus), 4)] if "eval_strategy" in others else None
    trainer = Watched(
        model=model, args=args, train_dataset=streamed(corpus), eval_dataset=held_out,
        data_collator=default_data_collator,
    )  # fmt: skip
    trainer.seen, trainer.kill_at = [], kill_at
    try:
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    except Killed:
        return None
    return trainer.seen, {name: value.clone() for name, value in model.state_dict().items()}


def test_a_killed_trainer_resumes_on_the_next_block(corpus, tmp_path, monkeypatch):
    """Killed in step 5 after a checkpoint at 4, the run learns blocks 16 to 23 as the uninterrupted one does, ends on
    the same weights, bit for bit, and does not read the first passage of the corpus again; without the state, or with
    that of another stream, the same by reading again.
    """
    read, encode = [], streaming.encode_documents

    def encode_and_note(tokenizer, texts):
        read.extend(texts)
        return encode(tokenizer, texts)

    monkeypatch.setattr(streaming, "encode_documents", encode_and_note)
    seen, weights = run(corpus, tmp_path / "whole")
    assert seen == [block["input_ids"].tolist() for block in islice(streamed(corpus), 24)]
    run(corpus, tmp_path / "killed", kill_at=4)
    checkpoint = tmp_path / "killed" / "checkpoint-4"
    state = json.loads((checkpoint / "state.json").read_text())
    assert state["trainer"]["position"]["wanted"] == 16
    documents = streamed(corpus).documents
    first_window = set(next(documents.windows(documents.start()))[0])
    other = {"trainer": state["trainer"] | {"stream": "another"}}
    for content, again in ((state, False), (other, True), (None, True)):
        if content is None:
            (checkpoint / "state.json").unlink()
        else:
            (checkpoint / "state.json").write_text(json.dumps(content))
        read.clear()
        learned, resumed = run(corpus, tmp_path / "killed", resume=checkpoint)
        assert learned == seen[16:]
        assert all(torch.equal(resumed[name], weights[name]) for name in weights)
        assert bool(set(read) & first_window) == again


def test_a_checkpoint_gets_its_name_when_all_of_it_is_on_the_disk(corpus, tmp_path, monkeypatch):
    """Killed at the last moment before the rename: no checkpoint, though the one of step 4 was written in full. The
    next process removes what is left, and its checkpoints list every file but the manifest itself, no pickle of the
    arguments among them, which may hold the Hub's token.
    """
    with monkeypatch.context() as context:
        context.setattr("pipeline.training.state.publish_checkpoint", lambda *_: (_ for _ in ()).throw(Killed))
        run(corpus, tmp_path / "run")
    assert not list((tmp_path / "run").glob("checkpoint-*"))
    assert (tmp_path / "run" / ".unfinished" / "checkpoint-4" / "model.safetensors").is_file()
    run(corpus, tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["checkpoint-4", "checkpoint-6"]
    checkpoint = newest_checkpoint(tmp_path / "run")
    assert checkpoint.name == "checkpoint-6"
    found = {path.relative_to(checkpoint).as_posix() for path in checkpoint.rglob("*") if path.is_file()}
    assert json.loads((checkpoint / "manifest.json").read_text())["files"].keys() == found - {"manifest.json"}
    assert {"state.json", "optimizer.pt", "trainer_state.json"} < found
    assert "training_args.bin" not in found


def test_the_best_checkpoint_is_named_where_it_is_and_outlives_the_limit(corpus, tmp_path):
    """A learning rate of 5 throws the loss up and lets it fall as it decays: by the greatest loss the best is one
    in the middle, and of six checkpoints it and the newest stay under a limit of 2.
    """
    run(
        corpus, tmp_path / "run", learning_rate=5.0, save_steps=1, eval_strategy="steps", eval_steps=1,
        metric_for_best_model="loss", greater_is_better=True, load_best_model_at_end=True, save_total_limit=2,
    )  # fmt: skip
    state = json.loads((tmp_path / "run" / "checkpoint-6" / "trainer_state.json").read_text())
    losses = {entry["step"]: entry["eval_loss"] for entry in state["log_history"] if "eval_loss" in entry}
    best = f"checkpoint-{max(losses, key=losses.get)}"
    assert best not in ("checkpoint-1", "checkpoint-6")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [best, "checkpoint-6"]
    assert state["best_model_checkpoint"] == str(tmp_path / "run" / best)


def test_guards_continue_their_counts_and_windows():
    """Two bad lines before the checkpoint and one after it are three in a row."""
    state, line = SimpleNamespace(global_step=1, is_world_process_zero=False), {"reward": 0.5, "reward_std": 0.0}
    first = Guards(grouped=False, patience=3)
    for _ in range(2):
        first.on_log(None, state, TrainerControl(), dict(line))
    resumed = Guards(grouped=False, patience=3)
    resumed.load_state_dict(json.loads(json.dumps(first.state_dict())))
    control = TrainerControl()
    resumed.on_log(None, state, control, dict(line))
    assert control.should_training_stop
    assert "3 log lines in a row" in resumed.message
