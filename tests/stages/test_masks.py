"""What is learned, through the stages' own `main`: the labels that reach the loss, decoded."""

import json
import shutil
from pathlib import Path

import pytest

from pipeline import continual, sft
from pipeline.data import check
from pipeline.runtime.errors import UserError
from tests.stages.conftest import CHATML, flags, write_rows

TURNS = ["What is 1 plus 2?", "It is 3.", "And 4 plus 4?", "It is 8."]
EVERY = {
    "tiny_model": " It is 3.<|eos|> It is 8.<|eos|>",  # NarLM's template marks content and EOS, with a space in front
    "foreign_model": "It is 3.<|im_end|>It is 8.<|im_end|>",  # ChatML without markers, <|im_end|> is not the EOS
}
MODELS = pytest.mark.parametrize("model", ["tiny_model", "foreign_model"])


def dialogue(*contents, **first_answer):
    """User and assistant in turn; ``first_answer`` adds keys to the first turn of the assistant."""
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]
    turns[1] |= first_answer
    return turns


def learned(trainer, dataset=None):
    """The learned tokens of every collated row, decoded."""
    rows = list(trainer.train_dataset if dataset is None else dataset)
    batch = trainer.data_collator(rows)
    labels = [row[row != -100] for row in batch["labels"]]
    return [trainer.processing_class.decode(row) for row in labels]


@MODELS
@pytest.mark.parametrize("stage", [sft, continual])
def test_of_messages_the_assistant_s_turns_and_nothing_else(trainer_of, model, stage, capsys):
    asked = [f"What is {number}?" for number in range(12)]  # so that no held-out row is one of training
    rows = [{"messages": dialogue(ask, *TURNS[1:], weight=i % 2)} for i, ask in enumerate(asked)]
    more = {"eval_rows": 1, "lora_target_modules": "all-linear"} if stage is continual else {"eval_rows": 0}
    trainer = trainer_of(stage, model, rows, **more)
    last = EVERY[model][len(EVERY[model]) // 2 :]
    assert set(learned(trainer)) == {EVERY[model], last}
    name = "corpus 1" if stage is continual else "train"
    stands = trainer_record(trainer)["learned"][name]
    assert stands["of"] == "the assistant's turns"
    tokens = sum(len(row["input_ids"]) for row in trainer.train_dataset)
    marks = sum(label != -100 for row in trainer.train_dataset for label in row["labels"])
    assert stands["share"] == round(marks / tokens, 4) < 0.6
    assert f"learning {marks / tokens:.0%} of the tokens: the assistant's turns" in capsys.readouterr().out


def trainer_record(trainer):
    """The run record beside what the trainer saves."""
    return json.loads((Path(trainer.args.output_dir) / "run.json").read_text())


@MODELS
@pytest.mark.parametrize("packing", [False, True])
def test_the_mask_survives_packing_truncation_workers_and_evaluation(trainer_of, model, packing):
    rows = [{"messages": dialogue(f"What is {i}?", *TURNS[1:])} for i in range(6)]
    trainer = trainer_of(
        sft, model, rows, eval_rows=2, packing=packing, max_length=128,
        dataset_num_proc=2, eval_strategy="steps", eval_steps=1,
    )  # fmt: skip
    assert "".join(learned(trainer)) == EVERY[model] * 4
    assert "".join(learned(trainer, trainer.eval_dataset)) == EVERY[model] * 2


@MODELS
def test_the_whole_dialogue_only_when_asked(trainer_of, model):
    rows = [{"messages": dialogue(*TURNS)}] * 2
    trainer = trainer_of(sft, model, rows, eval_rows=0, assistant_only_loss=False)
    first = trainer.train_dataset[0]
    assert first["labels"] == first["input_ids"]
    assert trainer.processing_class.decode(first["input_ids"]) == trainer.processing_class.apply_chat_template(
        rows[0]["messages"], tokenize=False
    )


@MODELS
def test_a_mixture_keeps_learning_only_the_answers(trainer_of, model, tmp_path):
    """Prompt + completion becomes messages beside messages; an earlier turn of the assistant stays prompt."""
    chats = write_rows(tmp_path / "chats.jsonl", [{"messages": dialogue(*TURNS)}])
    pairs = write_rows(tmp_path / "pairs.jsonl", [{"prompt": TURNS[0], "completion": TURNS[1]}])
    turns = dialogue(*TURNS)
    long = write_rows(tmp_path / "long.jsonl", [{"prompt": turns[:3], "completion": turns[3:]}])
    config = tmp_path / "mixture.yaml"
    config.write_text(json.dumps({"datasets": [{"path": str(p)} for p in (chats, pairs, long)]}))
    trainer = trainer_of(sft, model, None, config=config, eval_rows=0)
    half = len(EVERY[model]) // 2
    assert sorted(learned(trainer)) == sorted([EVERY[model], EVERY[model][:half], EVERY[model][half:]])


@MODELS
def test_prompt_and_completion_as_trl_cuts_them(trainer_of, model, tmp_path):
    """Plain text: ids and labels are those of TRL's own preparation."""
    from trl import SFTConfig, SFTTrainer

    from pipeline.data.loading import read_split

    rows = write_rows(tmp_path / "pairs.jsonl", [{"prompt": "What is 1 plus 2?", "completion": " It is 3."}] * 2)
    ours = trainer_of(sft, model, rows, eval_rows=0, as_chat=False)
    theirs = SFTTrainer(
        ours.model,
        SFTConfig(str(tmp_path / "x"), bf16=False, report_to="none", use_cpu=True),
        train_dataset=read_split(str(rows), "train", kind="sft"),
        processing_class=ours.processing_class,
    )
    for name in ("input_ids", "labels"):
        assert list(ours.train_dataset[name]) == list(theirs.train_dataset[name])
    assert learned(ours)[0] == " It is 3." + ours.processing_class.eos_token
    asked = trainer_of(sft, model, rows, eval_rows=0, completion_only_loss=False, as_chat=False)
    assert list(asked.train_dataset["labels"]) == list(asked.train_dataset["input_ids"])


@MODELS
def test_check_shows_the_figures_of_the_training(trainer_of, model, request, capsys, tmp_path):
    rows = write_rows(tmp_path / "chats.jsonl", [{"messages": dialogue(*TURNS)}, {"messages": dialogue(*TURNS[:2])}])
    trainer = trainer_of(sft, model, rows, eval_rows=0, max_length=40)
    share = trainer_record(trainer)["learned"]["train"]["share"]
    capsys.readouterr()
    check.main([str(rows), "--tokenizer", str(request.getfixturevalue(model)), "--max_length", "40"])
    said = capsys.readouterr().out
    assert f"supervised   {share:.1%} of the tokens that are kept: the assistant's turns" in said


THINKING = (  # what was thought is kept in the last turn only
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% set c = m['content'] %}"
    "{% if not loop.last and '</think>' in c %}{% set c = c.split('</think>')[1] %}{% endif %}{{ c }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_turns_that_cannot_be_told_are_refused_and_only_where_a_mask_is_needed(trainer_of, foreign_model, tmp_path):
    """The first answer is written otherwise once a second follows: no prefix says where it ends."""
    folder = tmp_path / "thinking"
    shutil.copytree(foreign_model, folder)
    (folder / "chat_template.jinja").write_text(THINKING)
    thought = dialogue(TURNS[0], "<think>1, 2, 3</think>It is 3.", *TURNS[2:])
    rows = write_rows(tmp_path / "rows.jsonl", [{"messages": dialogue(*TURNS)}, {"messages": thought}])
    given = {"model_name_or_path": folder, "dataset_name": rows, "eval_rows": 0, "output_dir": tmp_path / "run"}
    with pytest.raises(
        UserError, match=r"rows.jsonl, row 2: turn 2 cannot be separated .*--assistant_only_loss false"
    ):
        sft.main(flags(**given))
    thought[1]["weight"] = 0  # nobody asks for the place of a turn that is not learned
    trainer = trainer_of(sft, folder, [{"messages": thought}, {"messages": thought}], eval_rows=0)
    assert learned(trainer) == ["It is 8.<|im_end|>"] * 2


@pytest.mark.parametrize(
    ("model", "template"),
    [
        ("tiny_model", None),
        ("foreign_model", None),
        (
            "foreign_model",
            "{{ '<|im_start|>system\nBe brief.<|im_end|>\n' if messages[0].role != 'system' }}" + CHATML,
        ),
        ("foreign_model", CHATML.partition("{% if add")[0]),
        ("foreign_model", CHATML.replace("assistant\\n' }}", "assistant\\n<think>' }}")),
    ],
    ids=["NarLM", "ChatML", "default system turn", "no generation prompt", "thinking opened"],
)
def test_a_dialogue_that_the_assistant_opens(trainer_of, request, tmp_path, model, template):
    """Its turn is learned complete, whatever it begins with: the name of its role too."""
    folder = tmp_path / "opening"
    shutil.copytree(request.getfixturevalue(model), folder)
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    first = ["narlm asks.", " narlm asks.", "assistant\n asks."]
    turns = [[{"role": "assistant", "content": text}, *dialogue(*TURNS[:2], weight=0)] for text in first]
    trainer = trainer_of(sft, folder, [{"messages": messages} for messages in turns], eval_rows=0)
    end = EVERY[model].rpartition(".")[2]
    space = " " if model == "tiny_model" else ""
    assert learned(trainer) == [(text if text[0] == " " else space + text) + end for text in first]
