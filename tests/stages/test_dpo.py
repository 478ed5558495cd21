"""DPO end to end on a tiny model: what moves, what stays, what is saved, and how mistakes are told."""

import json

import pytest
import torch
from safetensors.torch import load_file

from pipeline.dpo import main
from pipeline.runtime.errors import UserError
from tests.stages.conftest import flags, read_metrics, write_rows


@pytest.fixture(scope="module")
def lora_run(tiny_model, preference_file, tmp_path_factory):
    """A LoRA run of eight steps with an evaluation before and after."""
    folder = tmp_path_factory.mktemp("dpo") / "run"
    main(
        flags(
            model_name_or_path=tiny_model, dataset_name=preference_file, output_dir=folder, eval_rows=8, max_steps=8,
            use_peft=True, lora_target_modules="all-linear", eval_strategy="steps", eval_steps=4, eval_on_start=True,
            save_steps=4,
        )
    )  # fmt: skip
    return folder


def test_loss_starts_at_log_2_and_falls_on_held_out_rows(lora_run):
    """At the start pi = pi_ref, every implicit reward is 0, so the loss is -log sigma(0) = log 2."""
    metrics = read_metrics(lora_run)
    assert metrics["first_eval_loss"] == pytest.approx(0.6931472, abs=1e-5)
    assert metrics["first_eval_rewards/accuracies"] == 0.5  # all ties: neither right nor wrong
    assert metrics["eval_loss"] < 0.6
    assert metrics["eval_rewards/accuracies"] == 1.0
    assert metrics["eval_rewards/margins"] > 0.2


def test_the_adapter_is_saved_trained_and_the_base_is_untouched(lora_run, tiny_model):
    adapter = load_file(lora_run / "adapter_model.safetensors")
    assert all(tensor.any() for name, tensor in adapter.items() if "lora_B" in name)
    assert not any("lm_head" in name or "embed" in name for name in adapter)
    record = json.loads((lora_run / "run.json").read_text())
    assert record["status"] == "completed"
    assert record["parents"][0]["path"] == str(tiny_model)
    from pipeline.runtime.files import weights_sha256

    assert record["parents"][0]["sha256"] == weights_sha256(tiny_model)
    assert not (lora_run / "training_args.bin").exists()


def test_the_adapter_loads_with_plain_peft_and_the_card_validates(lora_run):
    from huggingface_hub import ModelCard
    from peft import AutoPeftModelForCausalLM

    import pipeline.model  # noqa: F401 - the base is a NarLM

    model = AutoPeftModelForCausalLM.from_pretrained(lora_run)
    assert torch.isfinite(model(torch.tensor([[1, 5, 7]])).logits).all()
    card = ModelCard.load(lora_run / "README.md")
    assert card.data.library_name == "peft"
    assert {result.metric_type for result in card.data.eval_results} >= {"eval_loss", "eval_rewards/accuracies"}
    assert str(lora_run.parent) not in card.content


def test_a_finished_run_does_nothing_and_loads_nothing(lora_run, capsys):
    before = (lora_run / "run.json").stat().st_mtime_ns
    given = json.loads((lora_run / "run.json").read_text())["given"]
    main(flags(**given))
    assert "up to date" in capsys.readouterr().out
    assert (lora_run / "run.json").stat().st_mtime_ns == before


def test_full_fine_tuning_has_the_start_as_its_reference(tiny_model, preference_file, tmp_path):
    main(
        flags(
            model_name_or_path=tiny_model, dataset_name=preference_file, output_dir=tmp_path / "run", eval_rows=8,
            max_steps=3, eval_strategy="steps", eval_on_start=True, learning_rate="1e-3", save_steps=3,
        )
    )  # fmt: skip
    metrics = read_metrics(tmp_path / "run")
    assert metrics["first_eval_loss"] == pytest.approx(0.6931472, abs=1e-5)
    assert metrics["eval_loss"] < metrics["first_eval_loss"]
    old, new = (load_file(folder / "model.safetensors") for folder in (tiny_model, tmp_path / "run"))
    assert all(not torch.equal(old[name], new[name]) for name in old if "layers" in name)


@pytest.mark.parametrize("mode", ["continue", "merge", "stack"])
def test_an_adapter_as_the_start(lora_run, tiny_model, preference_file, tmp_path, mode):
    """In every mode pi_ref is base + adapter, so the first held-out loss is log 2 again, and the saved result scores
    a prompt as the trainer's own model did at its end (logits to 1e-4)."""
    from pipeline.model.loading import load_model

    extra = {} if mode == "continue" else {"use_peft": True, "lora_target_modules": "all-linear", "lora_r": 4}
    main(
        flags(
            model_name_or_path=lora_run, adapter_mode=mode, dataset_name=preference_file, output_dir=tmp_path / "run",
            eval_rows=8, max_steps=2, eval_strategy="steps", eval_on_start=True, save_steps=2, **extra,
        )
    )  # fmt: skip
    metrics = read_metrics(tmp_path / "run")
    assert metrics["first_eval_loss"] == pytest.approx(0.6931472, abs=1e-4)
    ids = torch.tensor([[1, 5, 7, 9]])
    start, end = (load_model(str(folder))(ids).logits for folder in (lora_run, tmp_path / "run"))
    assert (end - start).abs().max() > 1e-3
    config = json.loads((tmp_path / "run" / "adapter_config.json").read_text())
    if mode == "stack":
        assert config["base_model_name_or_path"] == str(tiny_model)
        assert config["r"] == 16 + 4  # the sum of the ranks
        # The sum of both adapters on the base is the new adapter alone on base + old one.
        from peft import PeftModel

        merged = load_model(str(lora_run))
        upper = PeftModel.from_pretrained(merged, tmp_path / "run" / "checkpoint-2")
        assert (upper(ids).logits - end).abs().max() < 1e-4
    elif mode == "merge":
        assert config["base_model_name_or_path"] == str(tmp_path / "run" / "start")
    else:
        assert config["base_model_name_or_path"] == str(tiny_model)


def test_merge_without_a_new_adapter_trains_every_weight(lora_run, preference_file, tmp_path):
    """What PEFT froze while it carried the adapter is free again, and pi_ref is the merged start."""
    main(
        flags(
            model_name_or_path=lora_run, adapter_mode="merge", dataset_name=preference_file, eval_rows=8, max_steps=2,
            output_dir=tmp_path / "run", eval_strategy="steps", eval_on_start=True, save_steps=2, learning_rate="1e-3",
        )
    )  # fmt: skip
    metrics = read_metrics(tmp_path / "run")
    assert metrics["first_eval_loss"] == pytest.approx(0.6931472, abs=1e-4)
    assert metrics["eval_loss"] < metrics["first_eval_loss"]
    start, end = (load_file(tmp_path / "run" / name) for name in ("start/model.safetensors", "model.safetensors"))
    assert all(not torch.equal(start[name], end[name]) for name in end if "layers" in name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_name_or_path": "./nowhere"}, "there is no folder ./nowhere"),
        ({"dataset_name": "./nowhere.jsonl"}, "nowhere.jsonl"),
        ({"adapter_mode": "glue"}, "adapter_mode"),
        ({"dataset_map": "question=prompt"}, "question"),
    ],
)
def test_mistakes_are_one_line(tiny_model, preference_file, tmp_path, change, message):
    given = {
        "model_name_or_path": tiny_model,
        "dataset_name": preference_file,
        "output_dir": tmp_path / "run",
    } | change
    with pytest.raises(UserError, match=message) as caught:
        main(flags(**given))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_an_empty_file_and_a_missing_column_are_named(tiny_model, tmp_path):
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    with pytest.raises(UserError, match=r"empty\.jsonl"):
        main(flags(model_name_or_path=tiny_model, dataset_name=empty, output_dir=tmp_path / "a"))
    rows = write_rows(tmp_path / "rows.jsonl", [{"prompt": "a", "chosen": "b"}])
    with pytest.raises(UserError, match="rejected"):
        main(flags(model_name_or_path=tiny_model, dataset_name=rows, output_dir=tmp_path / "b"))


@pytest.mark.parametrize("base", ["tiny_model", "foreign_model"])
def test_rows_of_other_lengths_are_no_alarm_and_a_fall_below_the_reference_is_one(request, base, tmp_path, capsys):
    """Answers of 1 to 40 words: log-likelihoods of the batches differ by a hundred nats while nothing is learned
    (learning rate 1e-12), which is no fall. TRL's ``apo_down`` lowers the chosen answers, which is.
    """
    model = request.getfixturevalue(base)
    rows = [
        {"prompt": f"What is {n} plus 1?", "chosen": "The answer is right. " * (1 + 10 * (n % 4)), "rejected": "Bad."}
        for n in range(16)
    ]
    data = write_rows(tmp_path / "pairs.jsonl", rows)
    common = {"model_name_or_path": model, "dataset_name": data, "eval_rows": 0, "max_length": 240}
    common |= {"per_device_train_batch_size": 1, "max_steps": 12, "save_steps": 100}
    main(flags(output_dir=tmp_path / "still", **common | {"learning_rate": 1e-12}))
    history = json.loads((tmp_path / "still" / "trainer_state.json").read_text())["log_history"]
    likelihoods = [entry["logps/chosen"] for entry in history if "logps/chosen" in entry]
    assert max(likelihoods) - min(likelihoods) > 50
    assert "less likely than under pi_ref" not in capsys.readouterr().out
    main(flags(output_dir=tmp_path / "down", loss_type="apo_down", **common | {"max_steps": 6}))
    said = capsys.readouterr().out
    assert said.count("nats less likely than under pi_ref") == 1


@pytest.mark.parametrize("model", ["tiny_model", "foreign_model"])
def test_the_shortest_command_runs_on_a_cpu_and_moves_an_adapter(model, preference_file, tmp_path, capsys, request):
    """The README's flags: no precision, no learning rate. AdamW's first steps are the learning rate's size: four of
    1e-5 with linear decay move an entry of B by up to 2.5e-5, TRL's 1e-6 by a tenth of that."""
    given = {
        "model_name_or_path": request.getfixturevalue(model), "dataset_name": preference_file, "use_peft": "true",
        "lora_target_modules": "all-linear", "output_dir": tmp_path / "run", "max_steps": 4, "report_to": "none",
    }  # fmt: skip
    main([str(word) for key, value in given.items() for word in (f"--{key}", value)])
    assert "dpo: not given: learning_rate 1e-05 (the default with LoRA)" in capsys.readouterr().out
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["arguments"]["learning_rate"] == 1e-5
    weights = load_file(tmp_path / "run" / "adapter_model.safetensors")
    moved = max(value.abs().max().item() for name, value in weights.items() if "lora_B" in name)
    assert moved == pytest.approx(2.5e-5, rel=0.1)
    if not torch.cuda.is_available():
        assert record["arguments"]["bf16"] is False
