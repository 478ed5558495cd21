"""Chat rows in every stage: the template they need, rows that a template refuses, tools, and rows that are lost."""

import json
import shutil

import pytest

from pipeline import continual, dpo, grpo, ppo, pretrain, reward_model, rsft, sft
from pipeline.runtime.errors import UserError
from tests.stages.conftest import CHATML, flags, write_rows
from tests.stages.test_masks import MODELS, dialogue, learned, trainer_record

STRICT = (  # as Mistral's: turns must alternate
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Turns must alternate.') }}{% endif %}{{ m['role'] + ': ' + m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
TOOLS = CHATML.replace(
    "message['content'] +",
    "message['content'] + (message['tool_calls'] | tojson if message['tool_calls'] else '') +",
).replace("{% for", "{% if tools %}{{ tools | tojson }}{% endif %}{% for", 1)
SCHEMA = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


def copy_with_template(model, folder, template):
    """The model's folder with another chat template, or with none."""
    shutil.copytree(model, folder, dirs_exist_ok=True)
    file = folder / "chat_template.jinja"
    file.write_text(template) if template else file.unlink()
    return folder


def chat(text, i):
    return [{"role": "user", "content": f"What is {i} plus 1?"}], [{"role": "assistant", "content": text}]


def rows_of(stage):
    """Twelve chat rows of the kind that a stage reads."""
    answers = [chat(f"It is {i + 1}.", i) for i in range(12)]
    if stage in (sft, continual):
        return [{"messages": prompt + answer} for prompt, answer in answers]
    if stage in (dpo, reward_model):
        bad = [{"role": "assistant", "content": "Nobody knows."}]
        return [{"prompt": prompt, "chosen": answer, "rejected": bad} for prompt, answer in answers]
    return [{"prompt": prompt, "answer": str(i)} for i, (prompt, _) in enumerate(answers)]


MORE = {
    continual: {"lora_target_modules": "all-linear"},
    grpo: {"reward": "exact", "num_generations": 2, "max_completion_length": 2},
    ppo: {"reward": "exact", "use_peft": True, "lora_target_modules": "all-linear", "max_completion_length": 2},
    rsft: {"reward": "exact", "num_candidates": 2, "max_completion_length": 2},
}
STAGES = pytest.mark.parametrize(
    "stage", [sft, continual, dpo, reward_model, grpo, ppo, rsft], ids=lambda stage: stage.__name__.split(".")[1]
)


@STAGES
@pytest.mark.parametrize("given", [False, True])
def test_every_stage_installs_the_template_that_chats_need(
    trainer_of, stage, given, tiny_model, foreign_model, tmp_path, capsys
):
    """A base without one gets NarLM's; --chat_template_path takes another's."""
    from pipeline.model.loading import load_tokenizer

    base = copy_with_template(foreign_model, tmp_path / "base", None)
    flag = {"chat_template_path": foreign_model} if given else {}
    trainer = trainer_of(stage, base, rows_of(stage), eval_rows=2, **flag, **MORE.get(stage, {}))
    ours = load_tokenizer(str(tiny_model)).chat_template.split("\n", 1)[1]  # without the BOS that this base lacks
    assert trainer.processing_class.chat_template == (CHATML if given else ours)
    report = f"the chat template of {foreign_model}" if given else "has none; --chat_template_path names another"
    assert report in capsys.readouterr().out


@STAGES
def test_a_template_whose_end_of_turn_is_no_token_is_refused(stage, tiny_model, tmp_path):
    """ChatML over NarLM's vocabulary: the model would learn the letters of ``<|im_end|>`` and never stop."""
    template = tmp_path / "chatml.jinja"
    template.write_text(CHATML)
    rows = write_rows(tmp_path / "rows.jsonl", rows_of(stage))
    given = {"model_name_or_path": tiny_model, "dataset_name": rows, "output_dir": tmp_path / "run", "eval_rows": 1}
    message = r"chatml.jinja ends the assistant's turn with .* lacks <\|im_end\|>, <\|im_start\|>: .* narlm"
    with pytest.raises(UserError, match=message):
        stage.main(flags(chat_template_path=template, **given, **MORE.get(stage, {})))


def test_a_tokenizer_s_template_without_an_end_of_turn_is_not_trained_with(trainer_of, tiny_model, tmp_path):
    """Not in SFT, which learns the ends of turns; a template that ends the turn with the EOS is as good as any."""
    base = copy_with_template(tiny_model, tmp_path / "base", CHATML)
    rows = write_rows(tmp_path / "chats.jsonl", rows_of(sft))
    with pytest.raises(UserError, match="the chat template ends the assistant's turn with the plain text"):
        sft.main(flags(model_name_or_path=base, dataset_name=rows, output_dir=tmp_path / "run", eval_rows=0))
    base = copy_with_template(tiny_model, tmp_path / "base", CHATML.replace("<|im_end|>\\n", "<|im_end|><|eos|>"))
    assert set(learned(trainer_of(sft, base, rows, eval_rows=0))) >= {"It is 1.<|im_end|><|eos|>"}


@STAGES
@MODELS
def test_a_row_that_the_template_refuses_is_named(trainer_of, stage, model, request, tmp_path):
    """Two turns of the user in a row, in the file's third row; with --skip_bad_rows it is left out and counted."""
    base = copy_with_template(request.getfixturevalue(model), tmp_path / "strict", STRICT)
    rows = rows_of(stage)
    turns = rows[2]["messages" if stage in (sft, continual) else "prompt"]
    turns.insert(0, {"role": "user", "content": "Quickly."})
    file = write_rows(tmp_path / "rows.jsonl", rows)
    more = {"eval_rows": 1, **MORE.get(stage, {})}
    with pytest.raises(UserError, match=r"rows.jsonl, row 3: the chat template refuses it: Turns must alternate\. \("):
        stage.main(flags(model_name_or_path=base, dataset_name=file, output_dir=tmp_path / "run", **more))
    trainer = trainer_of(stage, base, rows, skip_bad_rows=True, **more)
    lost = trainer_record(trainer)["dropped"]
    assert list(lost.values()) == [{"refused by the chat template": 1}]


def tool_row(i):
    call = {"type": "function", "function": {"name": "weather", "arguments": {"town": i} if i % 2 else {"city": "x"}}}
    turns = dialogue(f"How warm is it in {i}?", "", "4 degrees", f"It is 4 in {i}.", tool_calls=[call])
    turns[1]["content"] = None
    turns[2] = {"role": "tool", "name": "weather", "content": "4 degrees"}
    return {"messages": turns, "tools": [SCHEMA]}


def test_tools_reach_the_template_and_calls_are_learned(trainer_of, foreign_model, tmp_path):
    """Arguments keep their keys: Arrow alone would give every call those of the others, empty."""
    base = copy_with_template(foreign_model, tmp_path / "tools", TOOLS)
    trainer = trainer_of(sft, base, [tool_row(i) for i in range(4)], eval_rows=0)
    texts = [trainer.processing_class.decode(row["input_ids"]) for row in trainer.train_dataset]
    assert all(text.startswith(json.dumps([SCHEMA])) for text in texts)
    assert learned(trainer)[0] == (
        '[{"type": "function", "function": {"name": "weather", "arguments": {"city": "x"}}}]<|im_end|>'
        "It is 4 in 0.<|im_end|>"
    )
    assert '{"town": 1}}}]<|im_end|>' in learned(trainer)[1]
    assert "city" not in learned(trainer)[1]


def test_tools_reach_dpo_too(trainer_of, foreign_model, tmp_path):
    base = copy_with_template(foreign_model, tmp_path / "tools", TOOLS)
    rows = [
        {"prompt": row["messages"][:3], "chosen": row["messages"][3:], "rejected": dialogue("", "Cold.")[1:]}
        | {"tools": json.dumps(row["tools"])}
        for row in map(tool_row, range(4))
    ]
    trainer = trainer_of(dpo, base, rows, eval_rows=0)
    text = trainer.processing_class.decode(trainer.train_dataset[1]["prompt_ids"])
    assert text.startswith(json.dumps([SCHEMA]))
    assert '{"town": 1}' in text
    assert "city" not in text


@MODELS
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda row: row["messages"][1].update(content="Let me look."),
            "tool_calls|tool calls",
        ),  # read past in silence
        (lambda row: row["messages"].insert(0, {"role": "robot", "content": ""}), "unknown role 'robot'"),
        (lambda row: row["messages"][3].update(content=[{"type": "image"}]), "empty turn of the assistant"),
        (lambda row: row["messages"][0].update(content=[{"type": "audio"}]), "part of type 'audio'"),
        (lambda row: row["messages"][3].update(weight=0.5), "learned .1. or not"),
    ],
)
def test_what_cannot_be_used_is_an_error_of_its_row(model, change, message, request, tmp_path):
    """Neither NarLM's template nor plain ChatML writes tool calls."""
    rows = [tool_row(i) for i in range(3)]
    change(rows[1])
    if "robot" in message or "tool" in message:
        for row in rows[:1]:
            row["messages"] = dialogue("What is it?", "It is 4.")
            del row["tools"]
    file = write_rows(tmp_path / "rows.jsonl", rows[:2])
    with pytest.raises(UserError, match=f"rows.jsonl, row 2: .*({message})"):
        sft.main(
            flags(
                model_name_or_path=request.getfixturevalue(model), dataset_name=file, output_dir=tmp_path / "run",
                eval_rows=0,
            )
        )  # fmt: skip


@MODELS
def test_parts_developer_and_keys_that_nobody_reads(trainer_of, model, capsys):
    turns = dialogue("What is 1 plus 2?", [{"type": "text", "text": "It is "}, {"type": "text", "text": "3."}])
    turns = [{"role": "developer", "content": "Be brief.", "id": 7}, *turns]
    trainer = trainer_of(sft, model, [{"messages": turns}] * 2, eval_rows=0)
    assert learned(trainer)[0].strip().startswith("It is 3.<|")
    assert "Be brief." in trainer.processing_class.decode(trainer.train_dataset[0]["input_ids"])
    assert "keys of messages that are not used: id (2 rows)" in capsys.readouterr().err
    assert trainer_record(trainer)["data"][0]["unused_message_keys"] == {"id": 2}


@pytest.mark.parametrize("stage", [sft, reward_model], ids=["renamed", "ranked"])
def test_unused_keys_are_counted_in_renamed_columns_and_in_rankings(trainer_of, foreign_model, stage, capsys):
    """Six dialogues that --dataset_map finds, and six rankings of dialogues, all with a key ``source``."""
    if stage is sft:
        rows = [{"chat": dialogue(f"What is {i}?", "It is 3.", source="x")} for i in range(6)]
        more = {"dataset_map": "chat=messages"}
    else:
        answers = [[{"role": "assistant", "content": text, "source": "x"}] for text in ("It is 3.", "Nobody knows.")]
        rows = [{"prompt": dialogue(f"What is {i}?", "")[:1], "ranked": answers} for i in range(6)]
        more = {"objective": "listwise"}
    trainer = trainer_of(stage, foreign_model, rows, eval_rows=0, **more)
    assert trainer_record(trainer)["data"][0]["unused_message_keys"] == {"source": 6}
    assert "keys of messages that are not used: source (6 rows)" in capsys.readouterr().err


REASONING = CHATML.replace(
    "message['content'] +", "('<think>' + message.reasoning_content if message.reasoning_content else '') + "
    "message['content'] +",
)  # fmt: skip


@MODELS
@pytest.mark.parametrize("stage", [sft, dpo, continual])
def test_reasoning_that_the_template_does_not_write_is_counted(trainer_of, model, stage, capsys):
    """Of twelve rows the even ones have reasoning; neither NarLM's template nor plain ChatML writes any."""
    rows = rows_of(stage)
    for row in rows[::2]:
        row["messages" if "messages" in row else "chosen"][-1]["reasoning_content"] = "Count on."
    more = {"lora_target_modules": "all-linear", "eval_rows": 1} if stage is continual else {"eval_rows": 0}
    record = trainer_record(trainer_of(stage, model, rows, **more))["unused_message_keys"]
    name = "corpus 1" if stage is continual else "train"
    assert sum(keys["reasoning_content"] for keys in record.values()) == 6
    said = capsys.readouterr().out
    count = record[name]["reasoning_content"]
    line = f"keys of messages that the chat template does not write ({name}): reasoning_content ({count} rows)"
    assert said.count(line) == 1


def test_reasoning_that_the_template_writes_is_learned(trainer_of, foreign_model, tmp_path, capsys):
    """transformers hands ``thinking`` to the template as ``reasoning_content``; empty reasoning is none."""
    base = copy_with_template(foreign_model, tmp_path / "reasoning", REASONING)
    turns = dialogue("What is 1 plus 2?", "It is 3.", reasoning_content="Count on.", reasoning="")
    more = dialogue("What is 1 plus 3?", "It is 4.", thinking="Count on.")
    trainer = trainer_of(sft, base, [{"messages": turns}, {"messages": more}], eval_rows=0)
    assert learned(trainer) == ["<think>Count on.It is 3.<|im_end|>", "<think>Count on.It is 4.<|im_end|>"]
    assert "unused_message_keys" not in trainer_record(trainer)
    assert "keys of messages" not in capsys.readouterr().out


# ---------------------------------------------------------------------- rows lost by max_length


LONG = "What is it? " * 20


def lossy(stage):
    """Six good rows; three whose prompt fills 24 tokens; two whose answers part only behind the 24th token."""
    if stage in (sft, continual):
        good = [{"prompt": f"{i}?", "completion": " 4."} for i in range(6)]
        return good + [{"prompt": f"{i}{LONG}", "completion": " 4."} for i in range(5)]
    good = [{"prompt": f"{i}?", "chosen": " 4.", "rejected": " 5."} for i in range(6)]
    good += [{"prompt": f"{i}{LONG}", "chosen": " 4.", "rejected": " 5."} for i in range(3)]
    return good + [{"prompt": f"{i}?", "chosen": f"{LONG}4.", "rejected": f"{LONG}5."} for i in range(2)]


@MODELS
@pytest.mark.parametrize(
    ("stage", "causes", "line"),
    [
        (sft, {"with nothing to learn within max_length": 5}, "rows are cut at 256"),
        (dpo, {"whose prompt fills max_length": 3, "whose answers are the same within max_length": 2}, "cut at 256"),
        (reward_model, {"longer than max_length": 5}, "rows are left out above 256"),
        (continual, {"with nothing to learn within max_length": 5}, "rows are cut at 256"),
    ],
)
def test_rows_are_cut_to_the_positions_of_the_model(trainer_of, stage, causes, line, model, capsys):
    """Prompts and answers of about 600 tokens, a model of 256 positions, the default max_length of 1024."""
    rows = json.loads(json.dumps(lossy(stage)).replace(LONG, "What is it? " * 100))
    more = {"lora_target_modules": "all-linear", "eval_rows": 1} if stage is continual else {"eval_rows": 0}
    trainer = trainer_of(stage, model, rows, **more)
    record, said = trainer_record(trainer), capsys.readouterr().out
    assert (trainer.args.max_length, record["max_length"]) == (256, 256)
    lost = record["dropped"].values()
    assert {cause: sum(split.get(cause, 0) for split in lost) for cause in causes} == causes
    name = stage.__name__.split(".")[1]
    assert f"{name}: max_length 1024 is above the model's 256 positions: " in said
    assert line in said


@MODELS
def test_blocks_of_pretraining_fit_into_the_positions_of_the_model(trainer_of, model, capsys):
    trainer = trainer_of(pretrain, model, [{"text": "What is it? " * 300}] * 2, eval_rows=0)
    assert {len(block["input_ids"]) for block in trainer.train_dataset} == {256}
    assert "pretrain: max_length 1024 is above the model's 256 positions: blocks have 256" in capsys.readouterr().out


@MODELS
@pytest.mark.parametrize(
    ("stage", "causes", "left"),
    [
        (sft, {"with nothing to learn within max_length": 5}, 6),
        (dpo, {"whose prompt fills max_length": 3, "whose answers are the same within max_length": 2}, 6),
        (reward_model, {"longer than max_length": 5}, 6),
    ],
)
def test_rows_lost_by_max_length_are_counted_by_cause(trainer_of, stage, causes, left, model, capsys):
    trainer = trainer_of(stage, model, lossy(stage), eval_rows=0, max_length=24)
    assert trainer_record(trainer)["dropped"] == {"train": causes}
    assert len(trainer.train_dataset) == left
    each = ", ".join(f"{count} {cause}" for cause, count in causes.items())
    assert f"dropped 5 of 11 rows (train): {each}" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["sft", "preference"])
def test_continual_counts_the_rows_of_each_corpus(trainer_of, kind):
    stage = sft if kind == "sft" else dpo
    trainer = trainer_of(
        continual, "tiny_model", lossy(stage), kind=kind, eval_rows=1, max_length=24, lora_target_modules="all-linear"
    )
    lost = trainer_record(trainer)["dropped"]
    assert sum(sum(causes.values()) for causes in lost.values()) == 5
    assert set(lost) <= {"corpus 1", "corpus 1, held out"}


@pytest.mark.parametrize("stage", [sft, dpo, reward_model])
def test_held_out_rows_are_needed_only_where_the_trainer_evaluates(trainer_of, stage, tiny_model, tmp_path):
    held_out = write_rows(tmp_path / "held_out.jsonl", lossy(stage)[6:8])
    given = {"eval_dataset_name": held_out, "max_length": 24}
    trainer = trainer_of(stage, "tiny_model", lossy(stage)[:6], **given)
    assert trainer.eval_dataset is None
    assert sum(trainer_record(trainer)["dropped"]["evaluation"].values()) == 2
    with pytest.raises(UserError, match="evaluation: no row is left of 2: 2 "):
        stage.main(
            flags(
                model_name_or_path=tiny_model, dataset_name=tmp_path / "rows.jsonl", output_dir=tmp_path / "second",
                eval_strategy="steps", eval_steps=1, **given,
            )
        )  # fmt: skip


@pytest.mark.parametrize("stage", [sft, dpo, reward_model])
def test_nothing_left_is_refused_by_cause(stage, tiny_model, tmp_path):
    rows = write_rows(tmp_path / "rows.jsonl", lossy(stage)[6:])
    with pytest.raises(UserError, match=r"no row is left of 5: .*max_length"):
        stage.main(
            flags(
                model_name_or_path=tiny_model, dataset_name=rows, output_dir=tmp_path / "run", eval_rows=0,
                max_length=24,
            )
        )  # fmt: skip
