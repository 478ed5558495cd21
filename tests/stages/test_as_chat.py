"""Strings in a chat model: the turns that reach the loss and the sampler, in every stage and in what uses it."""

import json

import pytest

from pipeline import assess, continual, dpo, generate, grpo, ppo, reward_model, rsft, sft
from pipeline.data import check
from pipeline.model.chat import decide, never_trained
from pipeline.model.loading import load_tokenizer
from pipeline.model.tokens import encode_exchange
from pipeline.runtime.errors import UserError
from tests.stages.conftest import CHATML, flags, write_rows
from tests.stages.test_chat_rows import MORE, copy_with_template
from tests.stages.test_masks import learned, trainer_record

STAGES = pytest.mark.parametrize(
    "stage", [sft, continual, dpo, reward_model, grpo, ppo, rsft], ids=lambda stage: stage.__name__.split(".")[1]
)
ASKED, ANSWERED = "What is 1 plus 1?", "It is 2."
CHAT_PROMPT = "<|im_start|>user\nWhat is 1 plus 1?<|im_end|>\n<|im_start|>assistant\n"


def rows_of(stage):
    """Rows of strings, as most public data sets have them; the first is the same everywhere."""
    asked = [f"What is {i} plus 1?" for i in range(1, 9)]
    if stage in (dpo, reward_model):
        pairs = [{"chosen": f"It is {i}.", "rejected": "Nobody knows."} for i in range(2, 10)]
        return [{"prompt": question, **pair} for question, pair in zip(asked, pairs)]
    name = "answer" if stage in (grpo, ppo, rsft) else "completion"
    return [{"prompt": question, name: f"It is {i}."} for i, question in enumerate(asked, 2)]


def seen(trainer, stage):
    """(prompt, answer) of the first question as the trainer has it, decoded; of what is sampled from, the prompt."""
    tokenizer, data = trainer.processing_class, trainer.train_dataset
    if stage in (grpo, ppo, rsft):  # their rollouts render what the rows hold
        row = next(row for row in data if ASKED in str(row["prompt"]))
        if isinstance(row["prompt"], str):
            return row["prompt"], None
        return tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True), None
    if stage in (sft, continual):
        texts = [(tokenizer.decode(row["input_ids"]), answer) for row, answer in zip(data, learned(trainer))]
        whole, answer = next(pair for pair in texts if ASKED in pair[0])
        return whole[: whole.rindex(answer)], answer
    columns = ("prompt_ids", "chosen_ids") if stage is dpo else ("chosen_ids",)
    texts = ["".join(tokenizer.decode(row[name]) for name in columns) for row in data]
    whole = next(text for text in texts if ASKED in text)
    return whole[: whole.index(ANSWERED)], whole[whole.index(ANSWERED) :]


def built(trainer_of, monkeypatch, stage, model, **given):
    """The trainer of a stage, of rsft the prompts and the tokenizer that its candidates are sampled with."""
    more = {"eval_rows": 1 if stage is continual else 0, **MORE.get(stage, {}), **given}
    if stage is not rsft:
        return trainer_of(stage, model, rows_of(stage), **more)
    kept = {}

    def candidates(leg, rows, reward, own):
        kept.update(train_dataset=rows, processing_class=leg.tokenizer())
        return [[{"prompt": row["prompt"], "completion": "It is 2.", "reward": 1.0}] for row in rows]

    monkeypatch.setattr("pipeline.training.rounds.Round.candidates", candidates)
    trainer = trainer_of(stage, model, rows_of(stage), **more)
    trainer.train_dataset, trainer.processing_class = kept["train_dataset"], kept["processing_class"]
    return trainer


@STAGES
@pytest.mark.parametrize("as_chat", ["auto", "false"])
def test_strings_are_turns_of_a_chat_model(trainer_of, monkeypatch, foreign_model, stage, as_chat, capsys):
    """ChatML with the tokens that open and close a turn; as_chat false gives the text as it is, ended by the EOS."""
    trainer = built(trainer_of, monkeypatch, stage, foreign_model, as_chat=as_chat)
    chat = as_chat == "auto"
    prompt, answer = seen(trainer, stage)
    assert prompt == (CHAT_PROMPT if chat else ASKED)
    if answer is not None:
        end = "<|im_end|>" if chat else "<|endoftext|>"
        after = {dpo: "\n", reward_model: "\n"}.get(stage, "") if chat else ""  # TRL scores the complete rendering
        assert answer == ANSWERED + end + after
    out = capsys.readouterr().out
    name = stage.__name__.split(".")[1]
    line = "chat turns: the tokenizer has a chat template (--as_chat false for plain text)"
    assert out.count(f"{name}: prompts as {line if chat else 'plain text: --as_chat false'}") == 1
    assert trainer_record(trainer)["chat"] == {"as_chat": chat, "system": None, "template": None}
    learns = stage in (sft, continual)
    assert ("template was probably never trained: a turn ends with <|im_end|>" in out) == (chat and not learns)


@STAGES
def test_a_system_message_and_a_template_by_name(trainer_of, monkeypatch, foreign_model, stage, tmp_path, capsys):
    """A base without a template that is given ChatML by name: its strings are turns, each after the system message."""
    base = copy_with_template(foreign_model, tmp_path / "base", None)
    trainer = built(trainer_of, monkeypatch, stage, base, system="Be brief.", chat_template_path="chatml")
    prompt, _ = seen(trainer, stage)
    assert prompt == "<|im_start|>system\nBe brief.<|im_end|>\n" + CHAT_PROMPT
    out = capsys.readouterr().out
    assert "prompts as chat turns: --chat_template_path is given" in out
    count = len(rows_of(stage)) - (stage is continual)
    assert f"system message added to {count} of {count} rows: 'Be brief.'" in out
    assert trainer_record(trainer)["chat"] == {"as_chat": True, "system": "Be brief.", "template": "chatml"}


def test_a_base_without_a_template_is_given_text_unless_asked(trainer_of, foreign_model, tmp_path, capsys):
    base = copy_with_template(foreign_model, tmp_path / "base", None)
    assert learned(trainer_of(sft, base, rows_of(sft), eval_rows=0))[0].endswith("<|endoftext|>")
    assert "sft: prompts as plain text: the tokenizer has no chat template (--as_chat true" in capsys.readouterr().out
    assert learned(trainer_of(sft, base, rows_of(sft), eval_rows=0, as_chat=True))[0] == " It is 2.<|endoftext|>"
    assert "NarLM's chat template" in capsys.readouterr().out  # its turns end with the EOS


def test_the_eos_token_is_set_before_rows_are_written(trainer_of, foreign_model):
    """TRL's ``eos_token``: plain text ends with it too, what is saved names it, padding is another token."""
    trainer = trainer_of(sft, foreign_model, rows_of(sft), eval_rows=0, as_chat=False, eos_token="<|im_end|>")
    assert learned(trainer)[0] == "It is 2.<|im_end|>"
    assert trainer.processing_class.eos_token == "<|im_end|>"
    assert trainer.processing_class.pad_token != "<|im_end|>"
    with pytest.raises(UserError, match=r"eos_token: '<\|eot_id\|>' is no token of the tokenizer"):
        trainer_of(sft, foreign_model, rows_of(sft), eval_rows=0, eos_token="<|eot_id|>")


@pytest.mark.parametrize(
    ("rows", "given", "error"),
    [
        ([{"text": f"It is {i}."} for i in range(4)], {"as_chat": True}, "as_chat: the rows are running text"),
        ([{"text": f"It is {i}."} for i in range(4)], {"system": "Be brief."}, "system: the rows are no chats"),
        (rows_of(sft), {"system": "x", "as_chat": False}, "system: the rows are no chats"),
        (
            [{"messages": [{"role": "user", "content": str(i)}, {"role": "assistant", "content": "a"}]} for i in "12"],
            {"as_chat": False},
            "as_chat: the rows are chat messages",
        ),
    ],
)
def test_what_does_not_go_with_the_rows_is_refused(foreign_model, tmp_path, rows, given, error):
    file = write_rows(tmp_path / "rows.jsonl", rows)
    with pytest.raises(UserError, match=error):
        sft.main(
            flags(model_name_or_path=foreign_model, dataset_name=file, eval_rows=0, output_dir=tmp_path / "x", **given)
        )


def test_what_a_model_was_trained_on_decides_for_whatever_uses_it(foreign_model, tmp_path, capsys, monkeypatch):
    """Once with a system message and once on plain text: the next stage, generate, assess, the card and, of a reward
    model, its scores follow the run record."""
    file = write_rows(tmp_path / "rows.jsonl", rows_of(sft))
    held_out = write_rows(tmp_path / "held_out.jsonl", [{"prompt": "What is 7 plus 7?", "answer": "14"}])
    common = {"model_name_or_path": foreign_model, "dataset_name": file, "eval_rows": 0, "max_steps": 1}
    for name, given in {"chat": {"system": "Be brief."}, "plain": {"as_chat": False}}.items():
        sft.main(flags(output_dir=tmp_path / name, **common, **given))
        capsys.readouterr()
        generate.main(["--model_name_or_path", str(tmp_path / name), "--prompt", ASKED, "--max_new_tokens", "2"])
        said = capsys.readouterr()
        chat = name == "chat"
        form = "chat turns: the tokenizer has" if chat else f"plain text: {tmp_path / name} was trained on plain text"
        assert f"generate: prompts as {form}" in said.err
        assert ("system: 'Be brief.'" in said.err) == chat
        out, config = tmp_path / f"assess_{name}", tmp_path / "assess.yaml"
        task = {"name": "a", "type": "accuracy", "dataset": str(held_out), "reward": "exact", "max_new_tokens": 2}
        loss = {"name": "b", "type": "loss", "dataset": str(file), "split": "test"}
        config.write_text(json.dumps({"evaluations": [task, loss]}))
        monkeypatch.setattr("pipeline.evaluation.recorded.refuse_training_rows", lambda *_: None)
        assess.main(["--config", str(config), "--model_name_or_path", str(tmp_path / name), "--output_dir", str(out)])
        asked = json.loads((out / "samples.jsonl").read_text().splitlines()[0])["prompt"]
        turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 7 plus 7?"}]
        assert asked == (turns if chat else "What is 7 plus 7?")
        card = (tmp_path / name / "README.md").read_text()
        assert ("{'role': 'system', 'content': 'Be brief.'}" in card) == ("apply_chat_template" in card) == chat
        tokenizer = load_tokenizer(str(tmp_path / name))
        assert decide("auto", tokenizer, str(tmp_path / name), trains=True).as_chat == chat
        assert never_trained(tokenizer, str(tmp_path / name)) is None or not chat


@pytest.mark.parametrize("as_chat", ["auto", "false"])
def test_a_reward_model_reads_prompts_as_it_was_trained(foreign_model, tmp_path, as_chat):
    """Whatever form the policy has them in: the ids are those of its own training rows."""
    from pipeline.rewards import learned as learned_reward
    from pipeline.rewards.judging import score
    from pipeline.rewards.resolve import resolve
    from pipeline.runtime.messages import user_turn

    file = write_rows(tmp_path / "pairs.jsonl", rows_of(reward_model))
    out = tmp_path / "reward"
    reward_model.main(
        flags(
            model_name_or_path=foreign_model, dataset_name=file, eval_rows=0, max_steps=1, output_dir=out,
            as_chat=as_chat,
        )
    )  # fmt: skip
    read = []
    with pytest.MonkeyPatch.context() as patch:
        real = learned_reward.score_sequences
        patch.setattr(learned_reward, "score_sequences", lambda m, ids, *rest: read.append(ids) or real(m, ids, *rest))
        reward = resolve(str(out))
        scores = [score(reward, [{"prompt": prompt}], [ANSWERED])[0] for prompt in (ASKED, user_turn(ASKED))]
    tokenizer = load_tokenizer(str(out))
    prompt = ASKED if as_chat == "false" else user_turn(ASKED)
    assert read == [[encode_exchange(tokenizer, prompt, ANSWERED)]] * 2
    assert scores[0] == scores[1]


def test_a_reward_of_the_user_s_sees_the_form_of_the_rows(foreign_model, tmp_path, monkeypatch):
    """Strings of a file stay strings in GRPO, rejection sampling and assess: ``in`` on messages is always false."""
    seen_forms = set()

    def forms(prompts, completions, **columns):
        seen_forms.update((type(x).__name__, type(y).__name__, *sorted(columns)) for x, y in zip(prompts, completions))
        return [float(len(y)) for y in completions]

    monkeypatch.setattr("tests.stages.test_grpo.share_of_letters", forms)
    file = write_rows(tmp_path / "rows.jsonl", [{"prompt": f"What is {i} plus 1?", "n": i} for i in range(8)])
    path = "tests.stages.test_grpo:share_of_letters"
    common = {"model_name_or_path": foreign_model, "dataset_name": file, "reward": path, "max_completion_length": 4}
    grpo.main(flags(output_dir=tmp_path / "grpo", eval_rows=0, max_steps=1, num_generations=2, **common))
    rsft.main(flags(output_dir=tmp_path / "rsft", eval_rows=2, max_steps=1, num_candidates=2, **common))
    config = tmp_path / "assess.yaml"
    held_out = write_rows(tmp_path / "other.jsonl", [{"prompt": "Who?", "n": 1}])
    entry = {"name": "r", "type": "reward", "dataset": str(held_out), "reward": path, "max_new_tokens": 2}
    config.write_text(json.dumps({"evaluations": [entry]}))
    assess.main(
        ["--config", str(config), "--model_name_or_path", str(tmp_path / "rsft"), "--output_dir", str(tmp_path / "a")]
    )
    asked = json.loads((tmp_path / "a" / "samples.jsonl").read_text().splitlines()[0])["prompt"]
    assert asked == [{"role": "user", "content": "Who?"}]
    assert {form[:2] for form in seen_forms} == {("str", "str")}
    assert not any("given_as_text" in form for form in seen_forms)


def test_pretraining_alone_makes_no_chat_model(tiny_model, foreign_model, tmp_path, capsys):
    """NarLM's tokenizer brings a template from the start: text is generated from, and training past SFT is warned."""
    from pipeline.runtime.files import write_json

    folder = copy_with_template(tiny_model, tmp_path / "pretrained", CHATML)
    write_json(folder / "run.json", {"stage": "pretrain", "status": "completed", "parents": []})
    tokenizer = load_tokenizer(str(folder))
    assert decide("auto", tokenizer, str(folder))[:2] == (False, f"{folder} was pretrained on text")
    assert decide("auto", tokenizer, str(folder), trains=True).as_chat
    assert never_trained(tokenizer, str(folder)) == (
        "the model was pretrained on text, and no stage since then learned chats"
    )
    later = tmp_path / "sft"
    write_json(
        later / "run.json",
        {
            "stage": "sft",
            "status": "completed",
            "parents": [{"path": str(folder)}],
            "chat": {"as_chat": True, "system": "s"},
        },
    )
    assert decide("auto", tokenizer, str(later / "checkpoint-3")) == (True, "the tokenizer has a chat template", "s")
    assert never_trained(tokenizer, str(later)) is None


def test_tokens_that_nothing_has_trained_are_named(trainer_of, foreign_model, tmp_path):
    """Rows of zeros, as bases have them for the tokens that they reserve: named where an adapter cannot move them."""
    import torch
    from transformers import AutoModelForCausalLM

    from pipeline.training.session import warn_of_untrained_tokens

    base = copy_with_template(foreign_model, tmp_path / "base", CHATML)
    model = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        model.get_input_embeddings().weight[2] *= 0.01  # <|im_end|>
    model.save_pretrained(base)

    class Noted(dict):
        """A run as far as it is asked."""

        is_main, record = True, {"chat": {"as_chat": True}}

        def note(self, name, value):
            self[name] = value

        def warn(self, line):
            assert "<|im_end|>" in line

    for given, expected in ({"use_peft": True, "lora_target_modules": "all-linear"}, ["<|im_end|>"]), ({}, None):
        run = Noted()
        warn_of_untrained_tokens(run, trainer_of(sft, base, rows_of(sft), eval_rows=0, **given))
        assert run.get("untrained_tokens") == expected


def test_check_shows_strings_as_the_stages_read_them(foreign_model, tmp_path, capsys):
    """The line of the stages, and the row with its mask."""
    file = str(write_rows(tmp_path / "rows.jsonl", rows_of(sft)[:1]))
    for given, said, sample in (
        (["--system", "Be brief."], "chat turns: the tokenizer", "system\nBe brief.<|im_end|>\n" + CHAT_PROMPT),
        (["--as_chat", "false"], "plain text: --as_chat false", ASKED),
    ):
        check.main([file, "--tokenizer", str(foreign_model), *given])
        out = capsys.readouterr().out
        assert f"chat         prompts as {said}" in out
        assert f"{sample}[[{ANSWERED}<|" in out
