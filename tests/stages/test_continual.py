"""Continual learning end to end on a tiny model: every method, both ways to add up adapters, resuming, the errors."""

import json

import pytest
import torch
import yaml

from pipeline.continual import main
from pipeline.data.arguments import DataArguments
from pipeline.data.loading import load_data
from pipeline.evaluation.tasks.forgetting import score
from pipeline.model.adapters import backbone_sha256
from pipeline.model.chat import as_noted
from pipeline.model.loading import load_model, load_tokenizer
from pipeline.model.routing import load_routed
from pipeline.runtime.errors import UserError
from pipeline.runtime.messages import user_text
from tests.stages.conftest import flags, read_metrics, write_rows


@pytest.fixture
def sequence(tmp_path):
    """Writes the YAML of a sequence of three small corpora (or pairs, or text) and returns its path."""

    def write(kind: str = "sft", count: int = 3, **options) -> str:
        entries = []
        for k in range(count):
            rows = []
            for a in range(12):
                prompt, answer = f"What is {a} plus {k}?", f"The answer is {a + k}."
                rows.append(
                    {"text": f"{prompt} {answer}"} if kind == "text"
                    else {"prompt": prompt, "completion": answer} if kind == "sft"
                    else {"prompt": prompt, "chosen": answer, "rejected": "Bad."}
                )  # fmt: skip
            entries.append({"path": str(write_rows(tmp_path / f"{kind}-{k}.jsonl", rows))})
        config = tmp_path / f"{kind}.yaml"
        config.write_text(yaml.safe_dump({"datasets": entries, "kind": kind, "eval_rows": 3, **options}))
        return str(config)

    return write


def write_config(folder, *files, **options) -> str:
    """The YAML of a sequence of corpora that are there already."""
    config = folder / "sequence.yaml"
    config.write_text(yaml.safe_dump({"datasets": [{"path": file} for file in files], "eval_rows": 3, **options}))
    return str(config)


def run(model, config, folder, **options) -> None:
    """The stage, quickly."""
    given = {"max_steps": 3, "max_length": 64, "use_cpu": True, "save_strategy": "no", "gradient_checkpointing": False}
    main(["--config", config, *flags(model_name_or_path=model, output_dir=folder, **given | options)])


@pytest.mark.parametrize("method", ["lora", "bias", "layernorm", "bottleneck", "full", "osf"])
def test_a_method_learns_and_loads_back_as_what_was_measured(method, tiny_model, sequence, tmp_path):
    """The folder alone gives the model whose scores stand in the last row of R; theta_frozen is the start's."""
    run(tiny_model, sequence(count=2), tmp_path / "run", method=method, omega="l2", omega_weight=0.01)
    metrics = read_metrics(tmp_path / "run")
    model, tokenizer = load_model(str(tmp_path / "run")), load_tokenizer(str(tmp_path / "run"))
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    rows = json.loads((tmp_path / "run" / "forgetting.json").read_text())["rows"]
    assert len(rows) == 3
    cells = [cell for row in rows for cell in row["scores"]]
    table = record["tables"]["forgetting"]["scores"]
    assert [(row["after"], row["corpus"]) for row in table[:3]] == [
        (0, "sft-0.jsonl"), (0, "sft-1.jsonl"), (1, "sft-0.jsonl"),
    ]  # fmt: skip
    assert [row["loss"] for row in table] == [cell["loss"] for cell in cells]
    start = load_model(str(tiny_model))
    assert rows[2]["scores"][1]["loss"] < rows[1]["scores"][1]["loss"]
    data = load_data(DataArguments(dataset_name=str(tmp_path / "sft-1.jsonl"), eval_rows=3), "sft", 42)
    again = score(model, tokenizer, as_noted(data.evaluation, "sft", record["chat"]))
    assert again["loss"] == pytest.approx(metrics["after_2/sft-1.jsonl/loss"], rel=1e-4)
    frozen = method not in ("full", "osf")
    if method in ("bias", "bottleneck"):
        assert backbone_sha256(model) == backbone_sha256(start)
    weights = (tmp_path / "run" / "adapter_model.safetensors").is_file()
    assert weights == frozen
    assert 0 <= metrics["after_2/gradient_overlap"] <= 1
    assert metrics["after_2/drift"] > 0
    [path] = record["tables"]["forgetting"]["path interference"]
    assert (path["after"], path["corpus"]) == (2, "sft-0.jsonl")
    assert path["rise"] == rows[2]["scores"][0]["loss"] - rows[1]["scores"][0]["loss"]
    assert path["path_interference"] == metrics["after_2/sft-0.jsonl/path_interference"] != 0
    card = (tmp_path / "run" / "README.md").read_text()
    assert "forgetting" in card
    assert str(tmp_path) not in card


def test_stacked_adapters_are_one_plain_lora_that_peft_loads(tiny_model, sequence, tmp_path):
    """Two corpora at rank 2 are one adapter of rank 4 on the start; the sum is the model that was measured."""
    from peft import AutoPeftModelForCausalLM

    run(
        tiny_model, sequence(count=2), tmp_path / "run", adapters="stacked", omega=["orthogonal", "l2"],
        omega_weight=[1.0, 0.0], lora_r=2, lora_alpha=2, lora_target_modules="all-linear",
    )  # fmt: skip
    config = json.loads((tmp_path / "run" / "adapter_config.json").read_text())
    assert config["r"] == 4
    model = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "run")
    assert backbone_sha256(model) == backbone_sha256(load_model(str(tiny_model)))
    history = json.loads((tmp_path / "run" / "trainer_state.json").read_text())["log_history"]
    assert any(entry.get("omega/orthogonal", 0) > 0 for entry in history)


def test_routed_adapters_answer_each_for_its_own_corpus(tiny_model, tmp_path):
    """Corpora that ask in other words: the second adapter changes nothing of what the first one says, bit for bit, nor
    of what was known before, which the backbone alone answers. The routes are plain adapters on an unharmed backbone.
    """
    asks = {"old": "Good {}, bad or right?", "one": "What is {} plus 1?", "two": "wrong answer {} {} wrong"}
    files = {
        name: str(write_rows(
            tmp_path / f"{name}.jsonl",
            [{"prompt": ask.format(a, a), "completion": f"{a} {name}."} for a in range(60)],
        ))
        for name, ask in asks.items()
    }  # fmt: skip
    run(
        tiny_model, write_config(tmp_path, files["one"], files["two"]), tmp_path / "run", adapters="routed",
        old_dataset_name=files["old"], lora_target_modules="all-linear", learning_rate=1e-2, max_steps=8,
    )  # fmt: skip
    rows = json.loads((tmp_path / "run" / "forgetting.json").read_text())["rows"]
    assert [row["scores"][0] for row in rows] == [rows[0]["scores"][0]] * 3
    assert rows[2]["scores"][1] == rows[1]["scores"][1]
    assert rows[2]["drift"] == 0.0
    for k in (1, 2):  # and each was learned when its turn came
        assert rows[k]["scores"][k]["loss"] < rows[k - 1]["scores"][k]["loss"] - 0.5
    model, router = load_routed(tmp_path / "run")
    assert router.routes == [0, 1, 2]
    assert backbone_sha256(model) == backbone_sha256(load_model(str(tiny_model)))
    first, kept = (tmp_path / "run" / f / "routes" / "1" / "adapter_model.safetensors" for f in ("corpus-1", "."))
    assert first.read_bytes() == kept.read_bytes()
    alone = score(
        load_model(str(tmp_path / "run" / "routes" / "2")),
        load_tokenizer(str(tmp_path / "run")),
        as_noted(
            load_data(DataArguments(dataset_name=files["two"], eval_rows=3), "sft", 42).evaluation,
            "sft",
            {"as_chat": True, "system": None},
        ),
    )
    assert alone["loss"] == pytest.approx(rows[2]["scores"][2]["loss"], rel=1e-4)


@pytest.mark.parametrize("kind", ["text", "preference"])
def test_text_and_pairs(kind, tiny_model, sequence, tmp_path):
    options = {"beta": 0.1} if kind == "preference" else {}
    run(
        tiny_model, sequence(kind, 2, **options), tmp_path / "run", method="bottleneck",
        omega=["distillation", "replay"], omega_weight=[1.0, 0.5], memory_rows=6,
    )  # fmt: skip
    rows = json.loads((tmp_path / "run" / "forgetting.json").read_text())["rows"]
    assert [len(row["scores"]) for row in rows] == [2, 2, 2]
    assert ("margin" in rows[0]["scores"][0]) == (kind == "preference")
    memory = json.loads((tmp_path / "run" / "omega.json").read_text())
    assert (len(memory["rows"]), memory["seen"]) == (6, 18)  # nine training rows of each corpus streamed past


def test_an_interrupted_sequence_resumes_at_the_right_corpus(tiny_model, sequence, tmp_path, monkeypatch, capsys):
    """Killed while the second of three corpora is learned: the first is not learned again, and the end is bit for bit
    that of a run which was never stopped.
    """
    from pipeline.training import corpora as continual

    options = {"omega": ["ewc", "replay"], "omega_weight": [1.0, 1.0], "memory_rows": 5}
    config = sequence()
    run(tiny_model, config, tmp_path / "whole", **options)
    train = continual.Corpus.train

    def stopped(self, *args):
        if self.number == 2:
            raise KeyboardInterrupt
        train(self, *args)

    monkeypatch.setattr(continual.Corpus, "train", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(tiny_model, config, tmp_path / "run", **options)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "interrupted"
    first = tmp_path / "run" / "corpus-1" / "adapter_model.safetensors"
    written = first.stat().st_mtime_ns
    monkeypatch.setattr(continual.Corpus, "train", train)
    capsys.readouterr()
    run(tiny_model, config, tmp_path / "run", **options)
    out = capsys.readouterr().out
    assert "after corpus 1" not in out
    assert "after corpus 2" in out
    assert first.stat().st_mtime_ns == written
    for name in ("adapter_model.safetensors", "omega.safetensors", "omega.json"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    tables = [json.loads((tmp_path / f / "forgetting.json").read_text()) for f in ("run", "whole")]
    assert tables[0] == tables[1]
    records = [json.loads((tmp_path / f / "run.json").read_text()) for f in ("run", "whole")]
    assert records[0]["parents"] == records[1]["parents"]
    assert len(records[0]["parents"]) == 1


def test_a_corpus_learned_with_other_settings_is_not_taken_over(tiny_model, sequence, tmp_path, monkeypatch):
    """A failed run without a checkpoint may be started anew with other flags: its finished corpora are moved aside
    with it, and one that stays is refused.
    """
    from pipeline.training import corpora as continual

    def broken(self, *args):
        raise ValueError("disk")

    monkeypatch.setattr(continual.Corpus, "train", broken)
    with pytest.raises(ValueError, match="disk"):
        run(tiny_model, sequence(count=2), tmp_path / "run", method="bias")
    folder = tmp_path / "run" / "corpus-1"
    folder.mkdir(exist_ok=True)
    (folder / "leg.json").write_text(json.dumps({"given": {"memory_rows": 5}}))
    with pytest.raises(ValueError, match="disk"):
        run(tiny_model, sequence(count=2), tmp_path / "run", method="bias", memory_rows=3)
    assert not (folder / "leg.json").exists()
    assert (next(tmp_path.glob("run.old-*")) / "corpus-1" / "leg.json").is_file()
    folder.mkdir(exist_ok=True)
    (folder / "leg.json").write_text(json.dumps({"given": {"memory_rows": 5}}))
    with pytest.raises(UserError, match=r"learned with other settings \("):
        run(tiny_model, sequence(count=2), tmp_path / "run", method="bias", memory_rows=3)


def test_an_adapter_of_another_method_is_refused(tiny_model, sft_file, sequence, tmp_path):
    run(tiny_model, sequence(count=1), tmp_path / "one", method="bias")
    with pytest.raises(UserError, match="an adapter of method bias, to be trained by lora"):
        run(tmp_path / "one", sequence(count=1), tmp_path / "two", method="lora")
    with pytest.raises(UserError, match="adapters routed starts from a full model: merge"):
        run(tmp_path / "one", sequence(count=1), tmp_path / "three", adapters="routed")


def test_the_next_corpus_goes_on_from_the_last_output_and_its_memory(tiny_model, sft_file, sequence, tmp_path):
    """One corpus at a time: the second run starts with the rows that the first one's memory kept."""
    options = {"omega": ["replay"], "omega_weight": [1.0], "memory_rows": 4, "eval_rows": 3}
    run(tiny_model, sequence(count=1), tmp_path / "one", **options)
    given = flags(
        model_name_or_path=tmp_path / "one", dataset_name=sft_file, output_dir=tmp_path / "two", max_steps=2,
        use_cpu=True, save_strategy="no", max_length=64, **options,
    )  # fmt: skip
    main(given)
    memory = json.loads((tmp_path / "two" / "omega.json").read_text())
    assert memory["seen"] == 9 + 37
    history = json.loads((tmp_path / "two" / "trainer_state.json").read_text())["log_history"]
    assert any("omega/replay" in entry for entry in history)
    assert torch.isfinite(torch.tensor(read_metrics(tmp_path / "two")["plasticity_loss"]))


def test_anchors_of_text_are_drawn_once_and_kept(tiny_model, sequence, tmp_path):
    """Five of eight documents, the same ones for both corpora, saved with the memory and named in the record."""
    text = write_rows(tmp_path / "anchors.jsonl", [{"text": f"Row {i} says {i * i}."} for i in range(8)])
    run(
        tiny_model, sequence(count=2), tmp_path / "run", omega="distillation", omega_weight=1.0, memory_rows=4,
        anchor_dataset_name=text, anchor_rows=5,
    )  # fmt: skip
    first, last = (json.loads((tmp_path / "run" / f / "omega.json").read_text()) for f in ("corpus-1", "."))
    assert first["anchors"] == last["anchors"]
    assert len({row["text"] for row in first["anchors"]}) == 5
    sources = json.loads((tmp_path / "run" / "run.json").read_text())["data"]
    assert [source["name"] for source in sources if source.get("role") == "anchors"] == [str(text)]


def test_alignment_is_judged_before_and_after(tiny_model, sequence, preference_file, tmp_path):
    """``retained`` runs any evaluation of assess.py around every corpus: the DPO margin to the start is 0 at first."""
    entry = {"name": "pairs", "type": "preference", "dataset": str(preference_file), "split": "train"}
    run(tiny_model, sequence(count=1, retained=[entry]), tmp_path / "run", method="bias")
    metrics = read_metrics(tmp_path / "run")
    assert metrics["after_0/pairs/margin"] == pytest.approx(0, abs=1e-6)
    assert abs(metrics["after_1/pairs/margin"]) > 1e-4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"omega": "l3", "omega_weight": 1.0}, "omega: there is no term 'l3'"),
        ({"omega": "function", "omega_weight": 1.0}, "function is now called distillation"),
        ({"omega": ["l2", "ewc"], "omega_weight": 1.0}, "must have the same length"),
        ({"omega": "l2", "omega_weight": -1.0}, "below 0"),
        ({"omega": "orthogonal", "omega_weight": 1.0}, "use lora and --adapters stacked"),
        ({"omega": "ewc", "omega_weight": 1.0, "adapters": "stacked"}, "use --adapters shared"),
        ({"adapters": "stacked", "method": "bias"}, "use shared"),
        ({"adapters": "routed", "omega": "l2", "omega_weight": 1.0}, "nothing for omega to hold"),
        ({"adapters": "routed", "kind": "text"}, "chooses by the prompt"),
        ({"adapters": "routed", "push_to_hub": True}, "take one model"),
        ({"memory_rows": 0}, "memory_rows"),
        ({"memory_rows": 1, "anchor_dataset_name": "x.jsonl"}, "only distillation reads anchors"),
        (
            {"kind": "preference", "omega": "distillation", "omega_weight": 1.0, "anchor_dataset_name": "x.jsonl"},
            "pairs",
        ),
        ({"eval_rows": 0}, "held-out rows to evaluate on"),
    ],
)
def test_what_cannot_be_run_is_refused(options, message, tiny_model, sft_file, tmp_path):
    with pytest.raises(UserError, match=message):
        main(flags(model_name_or_path=tiny_model, dataset_name=sft_file, output_dir=tmp_path / "run", **options))


def test_corpora_of_different_columns_are_refused(tiny_model, tmp_path):
    one = write_rows(tmp_path / "a.jsonl", [{"text": f"{i} a"} for i in range(5)])
    two = write_rows(tmp_path / "b.jsonl", [{"prompt": f"{i}", "completion": "x"} for i in range(5)])
    config = tmp_path / "c.yaml"
    config.write_text(yaml.safe_dump({"datasets": [{"path": str(one)}, {"path": str(two)}], "eval_rows": 1}))
    with pytest.raises(UserError, match="must have the same columns"):
        run(tiny_model, str(config), tmp_path / "run")


@pytest.mark.slow
def test_the_model_replays_what_it_writes_itself(tiny_model, foreign_model, tmp_path, monkeypatch):
    """Two corpora: before the second the model answers the prompts of the first one anew, and these rows, not the
    remembered ones, are replayed; the memory that is saved holds the rows as they were.
    """
    from pipeline.training import corpora as continual
    from pipeline.training import self_replay

    files = []
    for k in range(2):
        rows = [{"prompt": f"What is {a} plus {k}?", "completion": f"It is {a + k}."} for a in range(12)]
        files.append(str(write_rows(tmp_path / f"part-{k}.jsonl", rows)))
    for name, start in (("tiny", tiny_model), ("foreign", foreign_model)):
        replayed = []

        def kept(*args, replayed=replayed, **kwargs):
            replayed.append((list(args[2]), self_replay.written_by(*args, **kwargs)))
            return replayed[-1][1]

        monkeypatch.setattr(continual, "written_by", kept)
        config = write_config(
            tmp_path, *files, omega=["replay"], omega_weight=[1.0], replay_source="model", replay_max_new_tokens=16
        )
        run(start, config, tmp_path / name, max_steps=30, learning_rate="2e-2", lora_dropout=0.0)
        (none, nothing), (asked, written) = replayed
        assert (none, nothing) == ([], [])
        assert read_metrics(tmp_path / name)["corpus_2/self_replay_rows"] == len(written) > 0
        assert {user_text(row["prompt"]) for row in written} <= {user_text(row["prompt"]) for row in asked}
        assert [row["completion"] for row in written] != [row["completion"] for row in asked][: len(written)]
        saved = json.loads((tmp_path / name / "corpus-1" / "omega.json").read_text())["rows"]
        assert saved == asked


def test_self_replay_needs_a_term_that_reads_it(tiny_model, sequence, tmp_path):
    for change, message in (({"omega": ["l2"]}, "no term of omega reads it"), ({"kind": "preference"}, "pairs")):
        given = {"kind": "sft", "omega": ["replay"], "omega_weight": [1.0], "replay_source": "model"} | change
        with pytest.raises(UserError, match=message):
            run(tiny_model, sequence(**given), tmp_path / "run")
