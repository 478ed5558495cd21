"""Pretraining end to end on a few kilobytes: from nothing, going on from a model, streamed, and killed on the way."""

import json
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from pipeline.pretrain import main
from pipeline.runtime.errors import UserError
from tests.conftest import ROOT
from tests.stages.conftest import TINY, flags, read_metrics, write_rows

SHAPE = {
    "vocab_size": 300, "max_length": 32, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "initializer_range": 0.08, "attn_implementation": "eager", "tie_word_embeddings": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Two hundred short documents with an obvious regularity."""
    rows = [{"text": f"{word} {word} {i % 7} {word}."} for i in range(50) for word in ("red", "green", "blue", "grey")]
    rows = [row | {"text": f"{row['text']} {i}"} for i, row in enumerate(rows)]
    return write_rows(tmp_path_factory.mktemp("corpus") / "corpus.jsonl", rows)


def test_from_nothing_to_a_folder_that_generates(corpus, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import pipeline.model  # noqa: F401 - registers NarLM

    main(
        flags(
            dataset_name=corpus, output_dir=tmp_path / "run", eval_rows=20, max_steps=30, eval_strategy="steps",
            eval_steps=10, eval_on_start=True, save_steps=10, **SHAPE,
        )
    )  # fmt: skip
    metrics = read_metrics(tmp_path / "run")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run")
    # ln V is the loss of a model that knows nothing; random weights start a little above it.
    ln_v = torch.tensor(float(len(tokenizer))).log().item()
    assert metrics["first_eval_loss"] == pytest.approx(ln_v, abs=0.5)
    assert metrics["eval_loss"] < 0.6 * ln_v
    assert model.config.vocab_size == len(tokenizer) <= 300
    assert (model.config.hidden_size, model.config.tie_word_embeddings) == (32, True)
    assert model.lm_head.bias.abs().sum() > 0  # b_out of (7) is trained
    ids = tokenizer("red red", return_tensors="pt")
    assert model.generate(**ids, max_new_tokens=4).shape[1] > ids["input_ids"].shape[1]
    assert tokenizer.tokenize("12") == ["Ġ", "1", "2"]


def test_goes_on_from_another_model_with_its_own_tokenizer(tiny_model, corpus, tmp_path):
    main(
        flags(
            model_name_or_path=tiny_model, dataset_name=corpus, output_dir=tmp_path / "run", eval_rows=20, max_steps=4,
            max_length=32, eval_strategy="steps", eval_on_start=True, save_steps=4,
        )
    )  # fmt: skip
    metrics = read_metrics(tmp_path / "run")
    assert metrics["eval_loss"] < metrics["first_eval_loss"]
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["hidden_size"] == TINY["hidden_size"]
    assert (tmp_path / "run" / "tokenizer.json").read_text() == (tiny_model / "tokenizer.json").read_text()


def test_a_stream_s_bad_rows_are_in_the_run_record(tiny_model, tmp_path):
    """Two bad rows of 20; the stream passes over the file several times and counts each once."""
    rows = [{"text": f"red green {i} blue."} for i in range(18)] + [{"text": ""}, {"text": None}]
    main(
        flags(
            model_name_or_path=tiny_model, dataset_name=write_rows(tmp_path / "rows.jsonl", rows), max_length=16,
            dataset_streaming=True, skip_bad_rows=True, eval_rows=0, max_steps=4, output_dir=tmp_path / "run",
        )
    )  # fmt: skip
    (entry,) = json.loads((tmp_path / "run" / "run.json").read_text())["data"]
    assert (entry["bad_rows"], entry["streaming"]) == (2, True)


def test_streaming_resumes_on_the_very_block(corpus, tiny_model, tmp_path):
    """Six steps in one go, and four plus two with a fresh process' objects, end in the same weights."""
    common = {
        "model_name_or_path": tiny_model, "dataset_name": corpus, "dataset_streaming": True, "eval_rows": 10,
        "max_length": 32, "save_steps": 2, "use_cpu": True, "lr_scheduler_type": "constant",
    }  # fmt: skip
    main(flags(output_dir=tmp_path / "whole", max_steps=6, **common))
    main(flags(output_dir=tmp_path / "parts", max_steps=6, **common))
    record = json.loads((tmp_path / "parts" / "run.json").read_text()) | {"status": "interrupted"}
    for path in (tmp_path / "parts").glob("*"):
        if path.is_file():
            path.unlink()
    (tmp_path / "parts" / "run.json").write_text(json.dumps(record))
    shutil.rmtree(tmp_path / "parts" / "checkpoint-6")
    main(flags(output_dir=tmp_path / "parts", max_steps=6, **common))
    whole, parts = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


@pytest.mark.slow
def test_killed_and_started_again_equals_never_killed(corpus, tmp_path):
    """SIGKILL after the first checkpoint; the same command resumes, and the weights are bitwise those of one go."""
    words = flags(
        dataset_name=corpus, eval_rows=20, max_steps=200, save_steps=20, use_cpu=True, logging_steps=20, **SHAPE
    )
    main([*words, "--output_dir", str(tmp_path / "whole")])
    command = [
        sys.executable,
        str(ROOT / "pipeline" / "pretrain.py"),
        *words,
        "--output_dir",
        str(tmp_path / "killed"),
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (tmp_path / "killed" / "checkpoint-40").is_dir():  # the one before is whole
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert json.loads((tmp_path / "killed" / "run.json").read_text())["status"] in ("running", "completed")
    main([*words, "--output_dir", str(tmp_path / "killed")])
    record = json.loads((tmp_path / "killed" / "run.json").read_text())
    assert (record["status"], record["resumed"]) == ("completed", True)
    whole, killed = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "killed"))
    assert all(torch.equal(whole[name], killed[name]) for name in whole)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab_size": 100}, "vocab_size"),
        ({"num_attention_heads": 2, "num_key_value_heads": 3}, "num_key_value_heads"),
        ({"preset": "giant"}, "giant"),
        ({"max_length": 1}, "max_length"),
        ({"dataset_streaming": True, "max_steps": -1, "eval_rows": 10}, "max_steps"),
    ],
)
def test_mistakes_are_one_line(corpus, tmp_path, change, message):
    with pytest.raises(UserError, match=message) as caught:
        main(flags(**{"dataset_name": corpus, "output_dir": tmp_path / "run", "max_steps": 1} | SHAPE | change))
    assert "\n" not in str(caught.value)


def test_packed_documents_of_a_library_model_do_not_see_each_other(tmp_path):
    """The loss of two packed documents is the mean of their losses alone, for a Llama as for a NarLM.

    Document 2's tokens are the same in both rows; only what is packed before them differs, so their losses agree.
    """
    from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments

    from pipeline.training.pretraining import PackedTrainer

    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
    )
    trainer = PackedTrainer(model=model, args=TrainingArguments(str(tmp_path), report_to="none", use_cpu=True))
    second = torch.tensor([7, 8, 9, 10])
    losses = []
    for first in ([1, 2, 3, 4], [30, 31, 32, 33]):
        ids = torch.cat([torch.tensor(first), second])[None]
        labels = torch.cat([torch.full((5,), -100), second[1:]])[None]
        positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3]])
        inputs = {"input_ids": ids, "labels": labels, "position_ids": positions}
        losses.append(trainer.compute_loss(model.train(), inputs).item())
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
