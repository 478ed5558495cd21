"""Every job of docs/jobs.md, run as it is written there: the commands are read from the page.

A working folder holds stand-ins under the names that the Hub has for models and data, so the commands need no change:
Llamas with a vocabulary of their own, and files with the columns and splits of the datasets. Only sizes are smaller:
batches, lengths, numbers of steps, and a rate at which a few steps show. What a job is for is checked on numbers and
tokens: what was learned, that the weights moved, that the result loads in plain PEFT or transformers.
"""

import importlib
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline.recipes.estimate import TRAINED
from pipeline.runtime.command_table import COMMANDS
from tests.conftest import ROOT
from tests.stages.conftest import CHATML, public_rows, read_metrics, write_rows

PAGE = (ROOT / "docs" / "jobs.md").read_text(encoding="utf-8")
SECTIONS = {int(number): text for number, text in re.findall(r"^## (\d+)\. .*?\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S)}
PROGRAM = "def add(x):\n return x+{}"
# A chat template that adds a system message of its own, as SmolLM2's and Qwen2.5's do.
SYSTEM = "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\nBe kind.<|im_end|>\\n' }}{% endif %}"
SMALL = {
    "per_device_train_batch_size": 4, "per_device_eval_batch_size": 8, "max_steps": 6, "learning_rate": 3e-3,
    "logging_steps": 1, "disable_tqdm": "true", "save_steps": 3,
}  # fmt: skip
LENGTH = {"max_length": 200}
SAMPLED = {"max_completion_length": 48, "max_steps": 2, "per_device_train_batch_size": 16, "learning_rate": 1e-3}
SMALLER = {
    "sft": LENGTH,
    "dpo": LENGTH,
    "reward_model": LENGTH,
    "grpo": SAMPLED | {"num_generations": 8},
    "ppo": SAMPLED | {"max_completion_length": 8},
    "rsft": LENGTH | {"max_completion_length": 48, "num_candidates": 8, "max_steps": 3},
    "continual": LENGTH | {"max_steps": 6},
    "generate": {"max_new_tokens": 16},
    "assess": {"max_new_tokens": 16},
}


def blocks(job: int, language: str) -> list[str]:
    """The fenced blocks of a job in one language."""
    return re.findall(rf"```{language}\n(.*?)```", SECTIONS[job], re.S)


def commands(job: int) -> list[list[str]]:
    """The words of each command of a job, as a shell would split them."""
    text = "\n".join(blocks(job, "bash")).replace("\\\n", " ")
    return [shlex.split(line) for line in text.splitlines() if line.strip()]


def smaller(words: list[str], **sizes: object) -> list[str]:
    """The words with these flags: a value that is there is replaced, others come at the end."""
    words = list(words)
    for name, value in sizes.items():
        flag = f"--{name}"
        if flag in words:
            words[words.index(flag) + 1] = str(value)
        else:
            words += [flag, str(value)]
    return words


# ---------------------------------------------------------------------------------------------------- stand-ins


def hub_data() -> dict[str, dict[str, list[dict]]]:
    """Splits of the datasets that the page names, with their columns."""

    def of(schema: str, **more: object) -> list[dict]:
        return [row | more for row in public_rows(schema, 24)]

    pairs = [{key: row[key] for key in ("chosen", "rejected", "score_chosen", "score_rejected")}
             for row in public_rows("ultrafeedback")]  # fmt: skip
    labelled = [
        {"prompt": [{"role": "user", "content": row["prompt"]}], "label": row["label"],
         "completion": [{"role": "assistant", "content": row["completion"]}]}
        for row in public_rows("kto")
    ]  # fmt: skip
    chats = [{"prompt": row["messages"][0]["content"], "prompt_id": str(n), **row}
             for n, row in enumerate(public_rows("messages"))]  # fmt: skip
    sums = [(f"Ann has {a} and gets {b} on day {day}.", a + b) for day in range(6) for a in (0, 1) for b in (1, 2)]
    programs = [
        {"task_id": n, "text": f"Task {n}: add {n % 2 + 1}.", "code": PROGRAM.format(n % 2 + 1),
         "test_list": [f"assert add(1) == {n % 2 + 2}", f"assert add(2) == {n % 2 + 3}"],
         "test_setup_code": "", "challenge_test_list": []}
        for n in range(24)
    ]  # fmt: skip
    maths = [{"problem": question, "level": "Level 1", "type": "Algebra", "solution": f"It is $\\boxed{{{number}}}$."}
             for question, number in sums]  # fmt: skip
    prompts = [{"prompt": [{"role": "user", "content": row["question"]}]} for row in public_rows("gsm8k")]

    def halves(rows: list[dict], train: str = "train", test: str = "test") -> dict[str, list[dict]]:
        return {train: rows[:-4], test: rows[-4:]}

    return {
        "mlabonne/FineTome-100k": {"train": of("sharegpt", source="x", score=5.0)},
        "HuggingFaceH4/ultrachat_200k": halves(chats, "train_sft", "test_sft"),
        "Open-Orca/OpenOrca": {"train": of("openorca")},
        "tatsu-lab/alpaca": {"train": of("alpaca")},
        "HuggingFaceH4/ultrafeedback_binarized": halves(of("ultrafeedback"), "train_prefs", "test_prefs"),
        "Anthropic/hh-rlhf": halves(of("hh")),
        "Intel/orca_dpo_pairs": {"train": of("orca_dpo")},
        "trl-lib/ultrafeedback_binarized": halves(pairs),
        "trl-lib/kto-mix-14k": halves(labelled),
        "trl-lib/ultrafeedback-prompt": halves(prompts),
        "openai/gsm8k": halves([{"question": asked, "answer": f"So.\n#### {number}"} for asked, number in sums]),
        "DigitalLearningGmbH/MATH-lighteval": halves(maths),
        "google-research-datasets/mbpp": halves(programs),
        "HuggingFaceTB/smol-smoltalk": halves(of("smoltalk")),
    }


def save_model(start: Path, folder: Path, template: str | None, eos: str | None, pad: str | None) -> None:
    """The foreign Llama under another chat template, end of text and padding; as bases and chat models differ."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(start)
    model = AutoModelForCausalLM.from_pretrained(start)
    tokenizer.chat_template = template
    tokenizer.eos_token, tokenizer.pad_token = eos or tokenizer.eos_token, pad
    model.config.eos_token_id = model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def tried(data: dict[str, dict[str, list[dict]]]) -> list[list[dict]]:
    """Dialogues of the jobs with a verifier, with right and wrong answers in the form that they ask for."""
    said = {job: words[words.index("--system") + 1] for job in (11, 12) for words in commands(job)}
    asked = {
        said[11]: [(row["question"], [f"#### {n}" for n in (1, 2, 3)]) for row in data["openai/gsm8k"]["train"]],
        said[12]: [
            (
                row["problem"],
                [thought + f"\\boxed{{{n}}}" for n in (1, 2, 3) for thought in ("", "<think>So.</think>")],
            )
            for row in data["DigitalLearningGmbH/MATH-lighteval"]["train"]
        ],
        None: [
            (row["text"], [PROGRAM.format(n) for n in (1, 2)])
            for row in data["google-research-datasets/mbpp"]["train"]
        ],
    }
    return [
        [*([{"role": "system", "content": system}] if system else []),
         {"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        for system, rows in asked.items() for question, answers in rows for answer in answers
    ]  # fmt: skip


def teach(folder: Path, dialogues: list[list[dict]], steps: int = 100) -> None:
    """Let the model answer like these dialogues, so that what it samples is right at times and wrong at times."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    texts = [tokenizer.apply_chat_template(dialogue, tokenize=False).rstrip("\n") for dialogue in dialogues]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    draws = torch.Generator().manual_seed(0)
    for _ in range(steps):
        rows = [texts[i] for i in torch.randint(len(texts), (8,), generator=draws)]
        batch = tokenizer(rows, return_tensors="pt", padding=True)
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)


@pytest.fixture(scope="session")
def hub(foreign_model, tmp_path_factory) -> Path:
    """A folder with the models and datasets of the page under the names that they have on the Hub."""
    folder = tmp_path_factory.mktemp("hub")
    text, turn = "<|endoftext|>", "<|im_end|>"
    save_model(foreign_model, folder / "HuggingFaceTB" / "SmolLM2-135M", None, text, None)
    save_model(foreign_model, folder / "HuggingFaceTB" / "SmolLM2-135M-Instruct", SYSTEM + CHATML, turn, turn)
    save_model(foreign_model, folder / "Qwen" / "Qwen2.5-0.5B", CHATML, text, text)
    save_model(foreign_model, folder / "Qwen" / "Qwen3-0.6B", CHATML, turn, text)
    save_model(foreign_model, folder / "Qwen" / "Qwen2.5-0.5B-Instruct", CHATML, turn, text)
    data = hub_data()
    teach(folder / "Qwen" / "Qwen2.5-0.5B-Instruct", tried(data))
    for name, splits in data.items():
        for split, rows in splits.items():
            (folder / name).mkdir(parents=True, exist_ok=True)
            write_rows(folder / name / f"{split}.jsonl", rows)
    return folder


@pytest.fixture
def work(hub, tmp_path, monkeypatch) -> Path:
    """The folder in which the jobs run: beside the stand-ins there is what the page says is the user's own."""
    for entry in hub.iterdir():
        (tmp_path / entry.name).symlink_to(entry)
    for name in ("accelerate_configs", "pipeline"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def trainers(monkeypatch) -> list:
    """The trainers that the stages of a job train, in order."""
    seen = []
    for module in ("legs", "session"):
        place = importlib.import_module(f"pipeline.training.{module}")
        train = place.train_and_save

        def keep(run, trainer, *rest, train=train):
            seen.append(trainer)
            return train(run, trainer, *rest)

        monkeypatch.setattr(place, "train_and_save", keep)
    return seen


def call(words: list[str], **sizes: object) -> None:
    """A command of ``narlm`` in this process; a training stage takes small steps."""
    name, given = words[1], words[2:]
    main = importlib.import_module(COMMANDS[name].module).main
    small = SMALL if name in TRAINED else {}
    main(smaller(given, **small | SMALLER.get(name, {}) | sizes))


def run(job: int, work: Path, **sizes: object) -> list[Path]:
    """Run the commands of a job; the output folders of those that train, each of a completed run."""
    for text in blocks(job, "python"):
        name = re.match(r"# (\w+\.py)\n", text)[1]
        (work / name).write_text(text)
    outputs = []
    for words in commands(job):
        if words[0] == "narlm":
            call(words, **sizes)
        else:
            given = smaller(words, **SMALL | LENGTH | sizes)
            environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
            launcher = [str(Path(sys.executable).with_name(given[0])), *given[1:]]
            done = subprocess.run(launcher, env=environment, capture_output=True, text=True, timeout=300)
            assert done.returncode == 0, done.stderr[-3000:]
        if "--output_dir" in words:
            outputs.append(work / words[words.index("--output_dir") + 1])
            read_metrics(outputs[-1])
    return outputs


def record(folder: Path) -> dict:
    """The run's record."""
    return json.loads((folder / "run.json").read_text())


def losses(folder: Path) -> list[float]:
    """The logged training losses."""
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


def learned(trainer) -> list[str]:
    """The learned tokens of every training row, decoded."""
    labels = trainer.data_collator(list(trainer.train_dataset))["labels"]
    return [trainer.processing_class.decode(row[row != -100]) for row in labels]


def adapter_moves(folder: Path) -> None:
    """The adapter loads in plain PEFT by what its folder says, was trained, and changes the model's answers."""
    from peft import AutoPeftModelForCausalLM

    weights = load_file(folder / "adapter_model.safetensors")
    assert all(bool(tensor.abs().max() > 0) for name, tensor in weights.items() if "lora_B" in name)
    model = AutoPeftModelForCausalLM.from_pretrained(folder)
    ids = torch.arange(20, 40)[None]
    with torch.no_grad():
        logits = model(ids).logits
        with model.disable_adapter():
            assert (model(ids).logits - logits).abs().max() > 1e-5


def weights_moved(folder: Path, start: str) -> None:
    """The saved model loads in plain transformers and differs from its start in every matrix that has a gradient."""
    from transformers import AutoModelForCausalLM

    before = AutoModelForCausalLM.from_pretrained(start).state_dict()
    after = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    same = [name for name in before if torch.equal(before[name], after[name])]
    assert before.keys() == after.keys()
    assert same == []


# --------------------------------------------------------------------------------------------------------- the page


def test_the_page_lists_its_jobs_and_names_data_that_has_a_stand_in(hub):
    """At least twenty, numbered; each is linked in the table at the top; nothing named is missing here."""
    assert list(SECTIONS) == list(range(1, len(SECTIONS) + 1))
    assert len(SECTIONS) >= 20
    titles = re.findall(r"^## (.*)$", PAGE, re.M)
    anchors = [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles]
    assert re.findall(r"\(#([\w-]+)\)", PAGE.partition("\n## ")[0]) == anchors
    named = {
        word for job in SECTIONS for words in commands(job) for word in words if re.fullmatch(r"[\w-]+/[\w.-]+", word)
    }
    named = {word for word in named if word.partition("/")[0] not in ("runs", "pipeline", "accelerate_configs")}
    assert len(named) >= 17
    assert all((hub / name).is_dir() for name in named)


# ------------------------------------------------------------------------------------------------------------- SFT

TURN, TEXT = r"It is \d+\.<\|im_end\|>", r"It is \d+\.<\|endoftext\|>"


@pytest.mark.parametrize(
    ("job", "each", "begins"),
    ids=[f"job {n}" for n in range(1, 6)],
    argvalues=[
        (1, TURN, "<|im_start|>user\nWhat is "),
        (2, TURN * 2, "<|im_start|>user\nWhat is "),
        (3, TURN, "<|im_start|>system\nBe short.<|im_end|>\n<|im_start|>user\nWhat is "),
        (4, TEXT, "Add the numbers.\n\n"),
        (5, TURN, "<|im_start|>user\nWhat is "),
    ],
)
def test_sft(work, trainers, job, each, begins):
    """The answers with the token that ends them are learned, of the right prompt; the loss falls; the result loads."""
    mine = [{"question": row["prompt"], "reply": row["chosen"][1]["content"]} for row in public_rows("ultrafeedback")]
    assert list(mine[0]) == list(json.loads(blocks(5, "json")[0]))
    write_rows(work / "my_rows.jsonl", mine)
    (folder,) = run(job, work)
    (trainer,) = trainers
    assert all(re.fullmatch(each, text) for text in learned(trainer))
    starts = [trainer.processing_class.decode(row["input_ids"]) for row in trainer.train_dataset]
    assert sum(text.startswith(begins) for text in starts) >= 15  # of OpenOrca's rows a fifth has no system prompt
    assert sum(losses(folder)[-2:]) < sum(losses(folder)[:2])
    if job in (2, 4):
        weights_moved(folder, "HuggingFaceTB/SmolLM2-135M")
    else:
        adapter_moves(folder)
    if job == 2:
        saved = json.loads((folder / "tokenizer_config.json").read_text())
        assert saved["eos_token"] == "<|im_end|>"
        assert {source["split"] for source in record(folder)["data"]} == {"train_sft", "test_sft"}


# ----------------------------------------------------------------------------------------------------- preferences


@pytest.mark.parametrize(
    ("job", "prompt"),
    ids=[f"job {n}" for n in range(6, 9)],
    argvalues=[
        (6, "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nWhat is 0 plus 0?"),
        (7, "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nWhat is 0 plus 0?"),
        (8, "<|im_start|>system\nBe short.<|im_end|>\n<|im_start|>user\nWhat is 1 plus 1?"),
    ],
)
def test_dpo(work, trainers, job, prompt):
    """The chosen answer gains on the rejected one; both are answers to the prompt as a chat's turn."""
    (folder,) = run(job, work)
    (trainer,) = trainers
    decode = trainer.processing_class.decode
    rows = list(trainer.train_dataset)
    turn = "<|im_end|>\n<|im_start|>assistant\n"
    assert prompt + turn in [decode(row["prompt_ids"]) for row in rows]
    assert all(re.match(TURN, decode(row["chosen_ids"])) for row in rows)
    assert {decode(row["rejected_ids"]).rstrip("\n") for row in rows} == {"Nobody knows.<|im_end|>"}
    history = [entry for entry in trainer.state.log_history if "rewards/margins" in entry]
    assert history[0]["rewards/margins"] == 0  # the start is pi_ref
    assert history[-1]["rewards/margins"] > 0.01
    adapter_moves(folder)


@pytest.mark.parametrize("job", [9, 10])
def test_reward_model(work, job):
    """The good answer scores above the bad one by the saved model, loaded in plain transformers."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    (folder,) = run(job, work, max_steps=20)
    metrics = read_metrics(folder)
    assert metrics["held_out_accuracy"] >= 0.5
    model, tokenizer = (
        AutoModelForSequenceClassification.from_pretrained(folder),
        AutoTokenizer.from_pretrained(folder),
    )
    scores = []
    for answer in ("It is 5.", "Nobody knows."):
        turns = [{"role": "user", "content": "What is 3 plus 2?"}, {"role": "assistant", "content": answer}]
        ids = tokenizer.apply_chat_template(turns, return_tensors="pt", return_dict=True)
        scores.append(model(**ids).logits.item())
    assert scores[0] > scores[1] + 0.1


# --------------------------------------------------------------------------------------------------------- rewards


@pytest.mark.parametrize("job", [11, 12, 13, 14])
def test_grpo(work, trainers, job):
    """Some answers are right and some wrong, so the adapter learns; every reward of the job is recorded."""
    (folder,) = run(job, work)
    (trainer,) = trainers
    entries = [entry for entry in trainer.state.log_history if "reward" in entry]
    assert all(0 < entry["reward"] < 1.2 and entry["frac_reward_zero_std"] < 1 for entry in entries)
    assert "nothing_learned" not in record(folder)
    adapter_moves(folder)
    if job == 12:
        parts = read_metrics(folder)
        assert 0 < parts["reward_parts/math"] < 1
        assert 0 < parts["reward_parts/think_format"] < 1


def test_rejection_sampling(work, trainers):
    """What is imitated are right answers and nothing else: their numbers are those of the rows."""
    (folder,) = run(15, work)
    (trainer,) = trainers
    right = {row["answer"].split()[-1] for row in hub_data()["openai/gsm8k"]["train"]}
    texts = learned(trainer)
    assert len(texts) >= 10
    assert all(re.search(r"#### (\d)", text)[1] in right for text in texts)
    adapter_moves(folder)


# -------------------------------------------------------------------------------------- several stages and processes


@pytest.mark.slow
def test_sft_then_a_reward_model_then_ppo(work, trainers):
    """Each adapter lies on the one base; PPO's start is the SFT adapter, its reward the second run's."""
    sft, reward, ppo = run(16, work)
    assert next(Path(parent["path"]).name for parent in record(ppo)["parents"]) == "sft"
    for folder in (sft, reward, ppo):
        base = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
        assert base.endswith("HuggingFaceTB/SmolLM2-135M-Instruct")
    adapter_moves(sft)
    adapter_moves(ppo)
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (sft, ppo))
    assert before.keys() == after.keys()
    assert not any(torch.equal(before[name], after[name]) for name in before if "lora_B" in name)
    metrics = read_metrics(ppo)
    assert metrics["first_objective/scores"] is not None
    assert read_metrics(reward)["held_out_accuracy"] >= 0.5


@pytest.mark.slow
def test_two_corpora(work):
    """Both corpora are evaluated after each, the second with rows of the first replayed."""
    rows = [{"prompt": f"What helps against {n}?", "completion": f"Tea {n}."} for n in range(24)]
    write_rows(work / "medicine.jsonl", rows)
    (folder,) = run(17, work)
    metrics = read_metrics(folder)
    first, second = (
        [metrics[f"after_{k}/{corpus}/loss"] for k in range(3)] for corpus in ("alpaca", "medicine.jsonl")
    )
    assert first[1] < first[0] - 0.1
    assert second[2] < second[1] - 0.1
    assert first[2] < first[0]  # replayed, so not forgotten
    assert (folder / "corpus-1" / "adapter_model.safetensors").is_file()
    adapter_moves(folder)


@pytest.mark.slow
@pytest.mark.parametrize("job", [18, 19])
def test_two_processes(work, job):
    """Both processes train one adapter, which is saved complete."""
    (folder,) = run(job, work)
    assert record(folder)["processes"] == 2
    adapter_moves(folder)


def test_tensorboard(work):
    """The event file holds the loss of every step, as the run logged it."""
    pytest.importorskip("tensorboard", reason="tensorboard is not installed: make venv")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (folder,) = run(20, work)
    (place,) = {file.parent for file in folder.rglob("events.out.tfevents.*")}
    events = EventAccumulator(str(place))
    events.Reload()
    assert [event.value for event in events.Scalars("train/loss")] == pytest.approx(losses(folder), rel=1e-5)


@pytest.mark.slow
def test_train_longer(work):
    """Four steps and four more are the eight steps of one run, to the bit."""
    shorter = {"500": "4", "1000": "8", "runs/short/checkpoint-500": "runs/short/checkpoint-4"}
    words = [[shorter.get(word, word) for word in command] for command in commands(21)]
    sft = importlib.import_module("pipeline.sft").main
    sizes = {name: value for name, value in (SMALL | LENGTH).items() if name != "max_steps"}
    for command in words:
        sft(smaller(command[2:], **sizes))
    straight = [word for word in words[1] if "resume" not in word and "checkpoint" not in word]
    sft(smaller(straight[2:], **sizes | {"output_dir": "runs/straight"}))
    long, whole = (load_file(work / "runs" / name / "adapter_model.safetensors") for name in ("long", "straight"))
    assert len(losses(work / "runs" / "long")) == 8
    assert all(torch.equal(long[name], whole[name]) for name in whole)


# -------------------------------------------------------------------------------------------------- use and measure


def test_answers_and_accuracy(work):
    """Every prompt gets its answers in the file; the accuracy is a share of the answers, inside its interval."""
    prompts = [{"id": n, "prompt": f"Ann has {n} and gets 1 on day 0."} for n in range(3)]
    write_rows(work / "my_prompts.jsonl", prompts)
    run(11, work)
    run(22, work)
    rows = [json.loads(line) for line in (work / "answers.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [0, 1, 2]
    assert all(len(row["completions"]) == 4 for row in rows)
    assert sum("####" in text for row in rows for text in row["completions"]) >= 6  # as its system message asks
    metrics = read_metrics(work / "runs" / "grpo-gsm8k-assessed")
    assert 0 < metrics["accuracy/pass@1"] < 1
    assert metrics["accuracy/pass@1_low"] < metrics["accuracy/pass@1"] < metrics["accuracy/pass@1_high"]
    assert (metrics["accuracy/pass@1"] * 32).is_integer()  # of eight answers to each of four questions


def test_the_readme_s_first_commands(work, capsys):
    """As they are written there, one after another on one model; the push (tests/stages/test_push.py) is left out."""
    block = re.search(r"## Your model, your data\n\n```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.S)[1]
    lines = [shlex.split(line, comments=True) for line in block.splitlines()]
    assert [words[1] for words in lines] == ["install", "check", "dpo", "generate", "assess", "push"]
    pairs = [{"prompt": row["question"], "chosen": row["chosen"], "rejected": row["rejected"]}
             for row in public_rows("orca_dpo")]  # fmt: skip
    write_rows(work / "my_pairs.jsonl", pairs)
    for words in lines[1:-1]:
        call(words)
    said = capsys.readouterr().out
    assert "24 good" in said
    metrics = read_metrics(work / "runs" / "my-dpo-assessed")
    assert 0 <= metrics["preference/accuracy"] <= 1
    adapter_moves(work / "runs" / "my-dpo")
