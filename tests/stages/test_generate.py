"""generate.py against eq. (10) by hand: the whole prefix through the model at every step, no cache, no batch."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from pipeline.generate import main
from pipeline.inference.batch_files import read_prompts
from pipeline.runtime.errors import UserError
from tests.stages.conftest import write_rows

LENGTH = 8


@pytest.fixture(scope="module", params=["tiny_model", "foreign_model"])
def folder(request):
    return request.getfixturevalue(request.param)


@torch.no_grad()
def by_hand(folder, ids, *, temperature=0.0, top_p=1.0, top_k=0, seed=42, model=None):
    """Token by token: argmax at tau = 0, else token number u of the cumulative distribution, u the generator's next
    number; of the tokens only the ``top_k`` likeliest, and of those the fewest whose share reaches ``top_p``.
    """
    model, tokenizer = model or AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ends = {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")}
    uniforms = torch.rand(LENGTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).tolist()
    drawn = []
    for u in uniforms:
        logits = model(input_ids=torch.tensor([[*ids, *drawn]])).logits[0, -1].double()
        if temperature == 0:
            drawn.append(int(logits.argmax()))
        else:
            law = (logits / temperature).softmax(0).tolist()
            ranked = sorted(range(len(law)), key=lambda token: -law[token])[: top_k or None]
            total, kept = sum(law[token] for token in ranked), []
            while sum(law[token] for token in kept) < top_p * total and len(kept) < len(ranked):
                kept.append(ranked[len(kept)])
            mass, below = sum(law[token] for token in kept), 0.0
            for token in sorted(kept):
                below += law[token]
                if below > u * mass:
                    break
            drawn.append(token)
        if drawn[-1] in ends:
            break
    return tokenizer.decode(drawn, skip_special_tokens=True)


def chat_ids(folder, *turns):
    """The conversation of user, assistant, user, … with the generation prompt, as the template writes it."""
    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]


def said(capsys, folder, *words):
    """What the command prints."""
    main(["--model_name_or_path", str(folder), "--max_new_tokens", str(LENGTH), *words])
    return capsys.readouterr().out


def test_at_temperature_0_a_chat_prompt_gets_the_argmax(folder, capsys):
    answers = [by_hand(folder, chat_ids(folder, prompt)) for prompt in ("What is 1?", "Good")]
    expected = f"> What is 1?\n{answers[0]}\n> Good\n{answers[1]}\n"
    assert said(capsys, folder, "--prompt", "What is 1?", "Good") == expected
    assert len(set(answers)) == 2


def test_raw_text_and_the_system_message(folder, capsys):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("What is 1?")["input_ids"]
    assert (
        said(capsys, folder, "--prompt", "What is 1?", "--as_chat", "false")
        == f"> What is 1?\n{by_hand(folder, ids)}\n"
    )
    messages = [{"role": "system", "content": "Be good."}, {"role": "user", "content": "What is 1?"}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    answer = by_hand(folder, ids)
    assert said(capsys, folder, "--prompt", "What is 1?", "--system", "Be good.") == f"> What is 1?\n{answer}\n"
    assert answer != by_hand(folder, chat_ids(folder, "What is 1?"))


@pytest.mark.parametrize(
    "options",
    [{"temperature": 1.0}, {"temperature": 0.3}, {"temperature": 2.0, "top_p": 0.4}, {"temperature": 2.0, "top_k": 3}],
)
def test_sampling_is_the_tempered_filtered_law_read_at_the_seed_s_numbers(folder, capsys, options):
    """Every answer of a call is a draw of its own: the second one by the next seed."""
    answers = [by_hand(folder, chat_ids(folder, "What is 1?"), seed=seed, **options) for seed in (7, 8)]
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    got = said(capsys, folder, "--seed", "7", "--prompt", "What is 1?", "What is 1?", *words)
    assert got == "".join(f"> What is 1?\n{answer}\n" for answer in answers)
    assert said(capsys, folder, "--seed", "7", "--prompt", "What is 1?", *words) == f"> What is 1?\n{answers[0]}\n"
    assert answers[0] != answers[1]


def test_a_chat_remembers_what_was_said(folder, capsys, monkeypatch):
    """The second answer continues question, first answer and second question; an empty line ends the conversation."""
    first = by_hand(folder, chat_ids(folder, "What is 1?"))
    second = by_hand(folder, chat_ids(folder, "What is 1?", first, "Good"))
    monkeypatch.setattr("sys.stdin", io.StringIO("What is 1?\nGood\n\nnever read\n"))
    assert said(capsys, folder, "--chat") == f"> {first}\n> {second}\n> "


def test_an_adapter_answers_as_base_and_adapter_together(folder, tmp_path, capsys):
    base = AutoModelForCausalLM.from_pretrained(folder)
    torch.manual_seed(0)
    model = get_peft_model(base, LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM", r=2))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight)
    model.save_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), tmp_path / "adapter").eval()
    ids = chat_ids(folder, "What is 1?")
    answer = by_hand(folder, ids, model=loaded)
    assert said(capsys, tmp_path / "adapter", "--prompt", "What is 1?") == f"> What is 1?\n{answer}\n"
    assert answer != by_hand(folder, ids)


@pytest.mark.parametrize("kind", ["folder", "adapter"])
def test_a_reward_model_is_refused(folder, tmp_path, kind):
    """transformers would give it a random output layer: as generate.py, so assess.py and every stage that trains."""
    from pipeline import assess, sft
    from tests.stages.conftest import flags

    classifier = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1)
    if kind == "adapter":
        config = LoraConfig(target_modules="all-linear", task_type="SEQ_CLS", r=2, modules_to_save=["score"])
        classifier = get_peft_model(classifier, config)
    classifier.save_pretrained(tmp_path / "rm")
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "rm")
    entries = [{"type": "samples", "prompts": ["a"], "max_new_tokens": 3}]
    (tmp_path / "assess.yaml").write_text(json.dumps({"evaluations": entries}))
    rm, refused = str(tmp_path / "rm"), pytest.raises(UserError, match=r"rm is a reward model \(.*: it scores text")
    with refused:
        main(["--model_name_or_path", rm, "--prompt", "a"])
    with refused:
        config = ["--config", str(tmp_path / "assess.yaml"), "--output_dir", str(tmp_path / "out")]
        assess.main([*config, "--model_name_or_path", rm])
    with refused:
        sft.main(flags(model_name_or_path=rm, dataset_name="world/sft", output_dir=tmp_path / "out"))


ROWS = [
    {"prompt": "What is 1?", "id": 1},
    {"prompt": [{"role": "user", "content": "Good"}], "id": "b"},
    {"prompt": "What is 2?", "seed": 7},
    {"prompt": "What is 1?", "id": None},
    {"prompt": "Good", "seed": 42},
]


def filed(folder, tmp_path, *words, rows=ROWS):
    """The rows that the command writes."""
    write_rows(tmp_path / "rows.jsonl", rows)
    main([
        "--model_name_or_path", str(folder), "--max_new_tokens", str(LENGTH), "--temperature", "1", "--prompt_file",
        str(tmp_path / "rows.jsonl"), "--output_file", str(tmp_path / "out.jsonl"), *words,
    ])  # fmt: skip
    return [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]


def test_a_file_a_batch_a_stream_and_a_prompt_alone_get_the_same_tokens(folder, tmp_path, capsys):
    """Row by row the completion of its own seed, else of 42 plus its place, as found by hand; the rows stay as they
    are."""
    found = filed(folder, tmp_path, "--n", "2", "--batch_size", "3")
    assert [{k: v for k, v in row.items() if k not in ("completions", "finish_reasons")} for row in found] == ROWS
    for place, row in enumerate(found):
        text = row["prompt"] if isinstance(row["prompt"], str) else row["prompt"][0]["content"]
        seed = row.get("seed", 42 + place)
        expected = by_hand(folder, chat_ids(folder, text), temperature=1.0, seed=seed)
        capsys.readouterr()
        alone = said(capsys, folder, "--prompt", text, "--temperature", "1", "--seed", str(seed))
        assert [row["completions"][0], alone] == [expected, f"> {text}\n{expected}\n"]
        assert set(row["finish_reasons"]) <= {"eos", "length"}
    assert all(row["completions"][0] != row["completions"][1] for row in found)


def test_a_killed_run_continues_and_another_one_is_refused(tiny_model, tmp_path, capsys, monkeypatch):
    from pipeline.inference import decoding

    (tmp_path / "whole").mkdir()
    expected = filed(tiny_model, tmp_path / "whole")
    real, calls = decoding.sample, []

    def killed(model, tokenizer, prompts, **options):
        calls.append(len(prompts))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(model, tokenizer, prompts, **options)

    monkeypatch.setattr(decoding, "sample", killed)
    with pytest.raises(KeyboardInterrupt):
        filed(tiny_model, tmp_path, "--batch_size", "2")
    with open(tmp_path / "out.jsonl", "a") as file:
        file.write('{"prompt": "half a li')
    assert filed(tiny_model, tmp_path, "--batch_size", "1") == expected
    assert calls == [2, 2, 1, 1]  # the half line's row, and no other, was drawn again
    assert "4 of 5 rows are there already" in capsys.readouterr().out
    monkeypatch.setattr("pipeline.model.loading.load_model", None)  # a finished file needs no model
    assert filed(tiny_model, tmp_path) == expected
    with pytest.raises(UserError, match=r"begun with other settings: top_k \(top_k was 0, is 5\).*--force"):
        filed(tiny_model, tmp_path, "--top_k", "5")
    with pytest.raises(UserError, match="other settings: prompts"):
        filed(tiny_model, tmp_path, rows=ROWS[:2])
    monkeypatch.undo()
    assert len(filed(tiny_model, tmp_path, "--force", rows=ROWS[:2])) == 2
    assert len(list(tmp_path.glob("out.jsonl*.old-*"))) == 2  # rows and settings of before
    (tmp_path / "out.jsonl.settings.json").unlink()
    with pytest.raises(UserError, match="did not write it"):
        filed(tiny_model, tmp_path)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "a"}, "row 2: prompt is missing; the row has question"),
        ({"prompt": 3}, "row 2: prompt is neither text nor messages"),
        ({"prompt": "a", "seed": "x"}, "row 2: seed is 'x'"),
    ],
)
def test_bad_rows_are_named_before_a_model_is_loaded(tiny_model, tmp_path, row, message, monkeypatch):
    monkeypatch.setattr("pipeline.model.loading.load_model", None)
    with pytest.raises(UserError, match=message):
        filed(tiny_model, tmp_path, rows=[{"prompt": "a"}, row])


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"question": "What is 1?", "answer": "1"}, "What is 1?"),
        ({"instruction": "Add.", "input": "1 and 2", "output": "3"}, "Add.\n\n1 and 2"),
        (
            {"id": "a", "system_prompt": "Be good.", "question": "What is 1?", "response": "1"},
            [{"role": "system", "content": "Be good."}, {"role": "user", "content": "What is 1?"}],
        ),
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
            [{"role": "user", "content": "a"}],
        ),
    ],
)
def test_rows_of_public_datasets_have_their_prompt(tmp_path, row, prompt):
    """GSM8K, Alpaca, OpenOrca and messages, as the stages that sample read them; the row's own columns stay."""
    path = write_rows(tmp_path / "rows.jsonl", [row, row])
    assert read_prompts(Path(path), "") == [row | {"prompt": prompt}] * 2


def test_stop_flags_end_answers_with_their_reason(folder, tmp_path, capsys):
    """A stop string that the first completion has; every law of a random model is nearly flat: its entropy is above
    0.5 log V. The terminal says why an answer was cut off."""
    [free] = filed(folder, tmp_path, rows=ROWS[:1])
    word = free["completions"][0][3:5]
    [cut] = filed(folder, tmp_path, "--stop", word, "--force", rows=ROWS[:1])
    assert (cut["completions"], cut["finish_reasons"]) == (
        [free["completions"][0].partition(word)[0]],
        ["stop_string"],
    )
    [flat] = filed(folder, tmp_path, "--stop_entropy", "0.5", "2", "--force", rows=ROWS[:1])
    assert flat["finish_reasons"] == ["high_entropy"]
    assert free["completions"][0].startswith(flat["completions"][0])
    capsys.readouterr()
    main(["--model_name_or_path", str(folder), "--prompt", "a", "--stop_variance", "1", "1", "--max_new_tokens", "4"])
    assert "ended by low_variance" in capsys.readouterr().err


def test_a_chat_forgets_its_oldest_turns(folder, capsys, monkeypatch):
    """Both models have 256 positions. The system message and the last turn stay: the answer is that to them alone."""
    messages = [{"role": "system", "content": "Be good."}, {"role": "user", "content": "What is 1?"}]
    ids = AutoTokenizer.from_pretrained(folder).apply_chat_template(
        messages, add_generation_prompt=True, return_dict=True
    )["input_ids"]
    long = next(text for k in range(99) if len(chat_ids(folder, text := "What is 1? " * k)) > 220)
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{long}\nWhat is 1?\n\n"))
    main(["--model_name_or_path", str(folder), "--max_new_tokens", str(LENGTH), "--chat", "--system", "Be good."])
    told = capsys.readouterr()
    assert told.out.endswith(f"> {by_hand(folder, ids)}\n> ")
    assert "forgotten: the 2 oldest messages" in told.err


def test_a_context_beyond_the_positions_is_cropped_when_asked(tiny_model, capsys):
    """Listing 4: the answer to the last 256 tokens, at each step; the count is said."""
    prompt = "What is 1 plus 2? " * 60
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_model), AutoTokenizer.from_pretrained(tiny_model)
    ids, drawn = tokenizer(prompt)["input_ids"], []
    with torch.no_grad():
        while len(drawn) < LENGTH and drawn[-1:] != [tokenizer.eos_token_id]:
            context = torch.tensor([[*ids, *drawn][-256:]])
            drawn.append(int(model(input_ids=context, use_cache=False).logits[0, -1].argmax()))
    main(
        [
            "--model_name_or_path",
            str(tiny_model),
            "--max_new_tokens",
            str(LENGTH),
            "--as_chat",
            "false",
            "--crop",
            "--prompt",
            prompt,
        ]
    )
    told = capsys.readouterr()
    assert told.out.partition("\n")[2] == tokenizer.decode(drawn, skip_special_tokens=True) + "\n"
    lost = len(ids) + len(drawn) - 1 - 256
    assert f"context cropped: 1 of 1 completions lost up to {lost} tokens" in told.err


def test_a_trace_prints_each_step(folder, capsys):
    """The first step's table: the likeliest token and its logit from a pass by hand, and the probabilities' sum 1."""
    ids = chat_ids(folder, "What is 1?")
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(folder)(input_ids=torch.tensor([ids])).logits[0, -1]
    best = int(logits.argmax())
    lines = said(capsys, folder, "--prompt", "What is 1?", "--trace").splitlines()
    entropy = torch.distributions.Categorical(logits=logits.double()).entropy().item()
    assert lines[1].startswith(f"step 1: H {entropy:.3f} nats")
    assert lines[1].endswith("sum of pi^tau 1.000000")
    marked, rank, logit, share, token, *_ = lines[3].split()
    assert (marked, rank, int(token)) == (">", "1", best)
    assert (float(logit), float(share)) == pytest.approx(
        (logits[best].item(), logits.softmax(-1)[best].item()), abs=2e-4
    )
    assert lines[-1] == by_hand(folder, ids)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "needs --prompt .*--prompt_file, or --chat"),
        (["--prompt", "a", "--chat"], "either --prompt .* or --chat"),
        (["--prompt", "a", "--prompt_file", "b.jsonl"], "either --prompt .* or --chat"),
        (["--chat", "--output_file", "b.jsonl"], "--output_file does not go with --chat"),
        (["--prompt", "a", "--n", "2"], "the same completion n times"),
        (["--prompt", "a", "--stop_entropy", "0.5"], "stop_entropy is .*two numbers"),
        (["--prompt", "a", "--stop_repetition", "0", "2"], "stop_repetition is 0 2"),
        (["--prompt_file", "nothing.jsonl"], "nothing.jsonl cannot be read"),
        (["--prompt", "a", "--temperature", "-1"], "temperature is -1"),
        (["--prompt", "a", "--top_p", "0"], "top_p is 0"),
        (["--prompt", "a", "--max_new_tokens", "0"], "max_new_tokens is 0"),
        (["--prompt", "a", "--as_chat", "false", "--system", "b"], "--system needs a chat: prompts as plain text"),
        (["--prompt", "a b", "--max_new_tokens", "400"], "the model takes 256 in all"),
    ],
)
def test_mistakes_are_named(tiny_model, words, message):
    with pytest.raises(UserError, match=message):
        main(["--model_name_or_path", str(tiny_model), *words])


def test_a_missing_folder_is_one_line():
    command = [sys.executable, "pipeline/generate.py", "--model_name_or_path", "runs/nothing/here", "--prompt", "a"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: model_name_or_path: there is no folder runs/nothing/here")
    assert "Traceback" not in done.stderr


def test_a_line_of_a_text_file_is_a_prompt(tmp_path):
    """Blank lines are none, and an end of line of Windows is no part of a prompt."""
    path = tmp_path / "prompts.txt"
    path.write_bytes("Where is the key?\r\n\nWho has it?\nÄh?".encode())
    assert [row["prompt"] for row in read_prompts(path, "")] == ["Where is the key?", "Who has it?", "Äh?"]
    path.write_bytes(b"good\n\xff\xfe\n")
    with pytest.raises(UserError, match=r"prompts.txt, row 2: "):
        read_prompts(path, "")
