"""SFT end to end on a tiny model: answers are learned, prompts are masked, all-masked data is refused."""

import json

import pytest
import torch
from safetensors.torch import load_file

from pipeline.runtime.errors import UserError
from pipeline.sft import main
from tests.stages.conftest import flags, read_metrics, write_rows


def test_held_out_loss_falls_and_the_folder_loads(tiny_model, sft_file, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    main(
        flags(
            model_name_or_path=tiny_model, dataset_name=sft_file, output_dir=tmp_path / "run", eval_rows=8,
            max_steps=12, eval_strategy="steps", eval_steps=6, eval_on_start=True, save_steps=6, max_length=64,
        )
    )  # fmt: skip
    metrics = read_metrics(tmp_path / "run")
    card = (tmp_path / "run" / "README.md").read_text()
    assert f"Learned (train): {metrics['learned_share']:.0%} of the tokens, the completions." in card
    assert metrics["eval_loss"] < 0.7 * metrics["first_eval_loss"]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run")
    assert "generation" in tokenizer.chat_template
    assert tokenizer.pad_token_id not in (tokenizer.eos_token_id, tokenizer.bos_token_id, None)
    assert model.config.pad_token_id == tokenizer.pad_token_id


def test_chat_rows_are_masked_to_the_assistant_s_turns(tiny_model, tmp_path):
    """The only supervised tokens are the assistant's, so a row's user text can change without changing the update."""
    weights = []
    for number, user in enumerate(("What is it?", "Who is he ?")):
        chat = [{"role": "user", "content": user}, {"role": "assistant", "content": "The answer is 4."}]
        rows = write_rows(tmp_path / f"{number}.jsonl", [{"messages": chat}, {"messages": [*chat, *chat]}])
        from trl import SFTConfig, SFTTrainer

        from pipeline.data.loading import read_split
        from pipeline.model.loading import load_model, load_tokenizer

        trainer = SFTTrainer(
            load_model(str(tiny_model)),
            args=SFTConfig(str(tmp_path / "x"), bf16=False, report_to="none", assistant_only_loss=True, use_cpu=True),
            train_dataset=read_split(str(rows), "train", kind="sft"),
            processing_class=load_tokenizer(str(tiny_model)),
        )
        batch = trainer.data_collator([trainer.train_dataset[0]])
        supervised = batch["labels"][batch["labels"] != -100]
        weights.append(trainer.processing_class.decode(supervised))
    assert weights[0] == weights[1] == " The answer is 4.<|eos|>"


def test_lora_of_every_kind_leaves_the_base_alone(tiny_model, sft_file, tmp_path):
    """DoRA, rsLoRA and LoRA+ at once: the adapter says so, and has a magnitude beside each pair of matrices."""
    before = load_file(tiny_model / "model.safetensors")
    main(
        flags(
            model_name_or_path=tiny_model, dataset_name=sft_file, output_dir=tmp_path / "run", eval_rows=0,
            max_steps=2, use_peft=True, lora_target_modules=["q_proj", "v_proj"], use_rslora=True, use_dora=True,
            loraplus_lr_ratio=4.0, save_steps=2,
        )
    )  # fmt: skip
    after = load_file(tiny_model / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)
    config = json.loads((tmp_path / "run" / "adapter_config.json").read_text())
    assert (config["use_dora"], config["use_rslora"]) == (True, True)
    names = load_file(tmp_path / "run" / "adapter_model.safetensors")
    parts = {tuple(name.partition(".self_attn.")[2].split(".")[:2]) for name in names}
    kinds = ("lora_A", "lora_B", "lora_magnitude_vector")
    assert parts == {(module, kind) for module in ("q_proj", "v_proj") for kind in kinds}


def test_answers_beyond_max_length_are_an_error_not_a_nan(tiny_model, tmp_path):
    rows = write_rows(tmp_path / "long.jsonl", [{"prompt": "What is it? " * 30, "completion": "4."}] * 8)
    with pytest.raises(UserError, match="max_length"):
        main(
            flags(
                model_name_or_path=tiny_model, dataset_name=rows, output_dir=tmp_path / "run", eval_rows=0,
                deduplicate=False, max_steps=1, max_length=16,
            )
        )  # fmt: skip


def test_a_quote_that_is_never_closed_trains_nothing(tiny_model, tmp_path):
    """Row 3 of 9 (line 4) opens the quote: six rows would be the text of one answer."""
    lines = [f"What is {n}+1?,It is {n + 1}." for n in range(9)]
    lines[2] = 'What is 2+1?,"It is 3.'
    (tmp_path / "rows.csv").write_text("prompt,completion\n" + "\n".join(lines) + "\n")
    with pytest.raises(UserError, match=r"rows\.csv, row 3, which begins at line 4: a quote opens a cell"):
        main(
            flags(
                model_name_or_path=tiny_model, dataset_name=tmp_path / "rows.csv", output_dir=tmp_path / "run",
                max_steps=1, skip_bad_rows=True,
            )
        )  # fmt: skip
    assert not list((tmp_path / "run").glob("*.safetensors"))


def test_early_stopping_needs_to_know_what_better_means(tiny_model, sft_file, tmp_path):
    with pytest.raises(UserError, match="load_best_model_at_end"):
        main(
            flags(
                model_name_or_path=tiny_model, dataset_name=sft_file, output_dir=tmp_path / "run",
                early_stopping_patience=2,
            )
        )  # fmt: skip
