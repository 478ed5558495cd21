"""generate.py against eq. (10) by hand: the whole prefix through the model at every step, no cache, no batch."""

import io
import json
import subprocess
import sys

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from pipeline.generate import main
from pipeline.runtime.errors import UserError

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
    assert said(capsys, folder, "--prompt", "What is 1?", "--raw") == f"> What is 1?\n{by_hand(folder, ids)}\n"
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
        sft.main(flags(model_name_or_path=rm, dataset_name="none.jsonl", output_dir=tmp_path / "out"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "either --prompt .* or --chat"),
        (["--prompt", "a", "--chat"], "either --prompt .* or --chat"),
        (["--prompt", "a", "--temperature", "-1"], "temperature is -1"),
        (["--prompt", "a", "--top_p", "0"], "top_p is 0"),
        (["--prompt", "a", "--max_new_tokens", "0"], "max_new_tokens is 0"),
        (["--prompt", "a", "--raw", "--system", "b"], "--system needs a chat template"),
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
