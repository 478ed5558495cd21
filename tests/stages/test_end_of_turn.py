"""One end of a turn: generate, assess, the rollouts of GRPO and PPO, and anybody's generate() stop at the same token.

A chain model answers every chat with "A", then the end of turn, then would go on: "B", "B", "B", …
"""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from trl import GRPOConfig, GRPOTrainer

from pipeline import assess, continual, dpo, generate, grpo, ppo, rsft, sft
from pipeline.inference.stopping import stop_token_ids
from pipeline.model.dialogue_tokens import closing_token
from pipeline.model.loading import load_model, load_tokenizer
from pipeline.rewards.judging import call_arguments
from pipeline.training.candidates import read_candidates
from pipeline.training.rollouts import RolloutTrainer
from tests.stages.conftest import flags, write_rows

QUESTION = [{"role": "user", "content": "What is 1 plus 2?"}]


def chain(folder, out, tokens):
    """A copy of a model that answers any chat with ``tokens`` (ids) in turn, the last of them for ever.

    Layers add nothing, the embeddings of the generation prompt's last token and of ``tokens`` are 2 x orthogonal signs
    of mean 0 (so every norm leaves them as they are up to a factor), and the head maps each of them to the next token
    with logits of 40 or more above all others: greedy and sampled completions are the same.
    """
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    config = type(model.config).from_dict(model.config.to_dict() | {"tie_word_embeddings": False})
    model = type(model)(config)
    tokenizer.pad_token = tokenizer.pad_token or "\u0100"  # byte 0, which no text has
    last = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, return_dict=True)["input_ids"][-1]
    signs = torch.ones(1, 1)
    while (
        signs.size(0) < config.hidden_size
    ):  # Sylvester's Hadamard matrix: rows are orthogonal, all but one of mean 0
        signs = torch.cat([torch.cat([signs, signs], 1), torch.cat([signs, -signs], 1)])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(part in name for part in ("o_proj", "down_proj", "lm_head")):
                parameter.zero_()
        embeddings, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
        for row, (here, following) in enumerate(zip([last, *tokens], [*tokens, tokens[-1]]), 1):
            embeddings[here] = 2 * signs[row]
            head[following] += 3 * signs[row]
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return out


@pytest.fixture(scope="module", params=["tiny_model", "foreign_model"])
def talker(request, tmp_path_factory):
    """Folder of a chain model, and the ids of "A", of the end of turn and of "B"."""
    folder = request.getfixturevalue(request.param)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    end = {"tiny_model": "<|eos|>", "foreign_model": "<|im_end|>"}[request.param]
    a, stop, b = (tokenizer.convert_tokens_to_ids(token) for token in ("A", end, "B"))
    return chain(folder, tmp_path_factory.mktemp("chain") / "model", [a, stop, b]), [a, stop, b]


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    """Four chat prompts that differ."""
    rows = [{"prompt": [{"role": "user", "content": f"What is {a} plus 2?"}], "answer": "A"} for a in range(4)]
    return write_rows(tmp_path_factory.mktemp("prompts") / "prompts.jsonl", rows)


def declared(folder):
    """The end tokens that a folder's ``generation_config.json`` lists."""
    ids = GenerationConfig.from_pretrained(folder).eos_token_id
    return ids if isinstance(ids, list) else [ids]


def exact(prompts, completions, **columns):
    """A reward by dotted path: 1 for "A" alone."""
    return [float(completion[0]["content"].strip() == "A") for completion in completions]


EXACT = "tests.stages.test_end_of_turn:exact"


def test_generate_and_assess_end_at_the_end_of_turn(talker, prompts, tmp_path, capsys):
    folder, _ = talker
    generate.main(["--model_name_or_path", str(folder), "--prompt", "What is 1 plus 2?", "--max_new_tokens", "6"])
    assert capsys.readouterr().out.splitlines() == ["> What is 1 plus 2?", "A"]
    entry = {"type": "accuracy", "dataset": str(prompts), "reward": "exact", "max_new_tokens": 6}
    (tmp_path / "assess.yaml").write_text(json.dumps({"evaluations": [entry]}))
    words = ["--config", str(tmp_path / "assess.yaml"), "--model_name_or_path", str(folder)]
    assess.main([*words, "--output_dir", str(tmp_path / "out")])
    metrics = json.loads((tmp_path / "out" / "run.json").read_text())["metrics"]
    assert (metrics["accuracy/accuracy"], metrics["accuracy/finished"]) == (1, 1)


@pytest.mark.parametrize("stage", ["grpo", "ppo"])
def test_a_rollout_ends_with_the_end_of_turn_once(talker, prompts, tmp_path, monkeypatch, stage):
    """Of the 6 tokens allowed, ids and mask of every completion hold "A" and the end of turn, and no more; the reward
    sees "A", and the saved model stops there too.
    """
    folder, (a, stop, _) = talker
    seen, rollout = [], RolloutTrainer._generate_and_score_completions

    def watched(self, inputs):
        seen.append(rollout(self, inputs))
        return seen[-1]

    monkeypatch.setattr(RolloutTrainer, "_generate_and_score_completions", watched)
    own = {"critic": "none", "num_iterations": 1, "missing_eos_penalty": 1.0} if stage == "ppo" else {}
    {"grpo": grpo, "ppo": ppo}[stage].main(
        flags(
            model_name_or_path=folder, dataset_name=prompts, output_dir=tmp_path / "run", eval_rows=0, max_steps=1,
            reward=EXACT, guard_patience=0, num_generations=2, max_completion_length=6, beta=0.0, use_cpu=True,
            per_device_train_batch_size=8, save_steps=1, **own,
        )
    )  # fmt: skip
    [output] = seen
    assert output["completion_ids"].tolist() == [[a, stop]] * 8
    assert output["completion_mask"].tolist() == [[1, 1]] * 8
    history = json.loads((tmp_path / "run" / "trainer_state.json").read_text())["log_history"]
    assert history[0]["rewards/exact/mean"] == 1
    assert history[0]["completions/clipped_ratio"] == 0
    assert stop in declared(tmp_path / "run")


def test_candidates_of_rsft_end_there_too(talker, prompts, tmp_path):
    folder, (a, stop, _) = talker
    rsft.main(
        flags(
            model_name_or_path=folder, dataset_name=prompts, output_dir=tmp_path / "run", eval_rows=0, max_steps=1,
            reward=EXACT, num_candidates=2, max_completion_length=6, use_cpu=True, save_steps=1, learning_rate=1e-9,
        )
    )  # fmt: skip
    files = sorted((tmp_path / "run" / "candidates" / "round-1").glob("*.parquet"))
    assert [c["token_ids"] for group in read_candidates(files) for c in group] == [[a, stop]] * 8
    assert stop in declared(tmp_path / "run")


@pytest.mark.parametrize("use_peft", [False, True])
def test_sft_on_dialogues_writes_the_end_of_turn_for_everybody_s_generate(talker, tmp_path, use_peft):
    """At a learning rate near 0 the model stays a chain; its folder alone makes plain transformers stop at the end of
    turn. For an adapter transformers reads the base's generation config: ours is in the folder, to be passed by name.
    """
    folder, (a, stop, _) = talker
    chats = [{"prompt": QUESTION, "completion": [{"role": "assistant", "content": f"It is {i}."}]} for i in range(4)]
    rows, out = write_rows(tmp_path / "chats.jsonl", chats), tmp_path / "run"
    peft = {"use_peft": True, "lora_target_modules": "all-linear"} if use_peft else {}
    sft.main(
        flags(
            model_name_or_path=folder, dataset_name=rows, output_dir=out, eval_rows=0, max_steps=1, save_steps=1,
            learning_rate=1e-9, use_cpu=True, **peft,
        )
    )  # fmt: skip
    assert stop in declared(out)
    written = json.loads((out / "generation_config.json").read_text())
    assert not written.get("_from_model_config")  # some versions would replace such a one by the model's config
    model, tokenizer = AutoModelForCausalLM.from_pretrained(out), load_tokenizer(str(out))
    inputs = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    further = {"generation_config": GenerationConfig.from_pretrained(out)} if use_peft else {}
    written = model.generate(**inputs, max_new_tokens=5, do_sample=False, **further)
    assert written[0, inputs["input_ids"].shape[1] :].tolist() == [a, stop]
    assert stop in stop_token_ids(load_model(str(out)), tokenizer, chat=False)


def test_plain_text_does_not_end_at_the_end_of_turn_that_nothing_declares(talker, tmp_path):
    """SFT on text leaves the stops as they are: the tokenizer's eos, in NarLM the end of turn as well."""
    folder, _ = talker
    rows = write_rows(
        tmp_path / "text.jsonl", [{"prompt": "What is 1?", "completion": f"It is {i}."} for i in range(4)]
    )
    words = flags(model_name_or_path=folder, dataset_name=rows, output_dir=tmp_path / "run", eval_rows=0, max_steps=1)
    sft.main([*words, "--save_steps", "1", "--as_chat", "false"])
    model, tokenizer = load_model(str(tmp_path / "run")), load_tokenizer(str(tmp_path / "run"))
    assert stop_token_ids(model, tokenizer, chat=False) == [tokenizer.eos_token_id]
    assert stop_token_ids(model, tokenizer, chat=True) == sorted(
        {tokenizer.eos_token_id, closing_token(tokenizer, tokenizer.chat_template)}
    )


@pytest.mark.parametrize("stage", ["dpo", "continual"])
def test_further_stages_on_dialogues_declare_it(foreign_model, tmp_path, stage):
    end = AutoTokenizer.from_pretrained(foreign_model).convert_tokens_to_ids("<|im_end|>")
    answers = [[{"role": "assistant", "content": word}] for word in ("It is 3.", "Nobody knows.")]
    pairs = [
        {"prompt": [{"role": "user", "content": f"What is {i}?"}], "chosen": answers[0], "rejected": answers[1]}
        for i in range(6)
    ]
    rows, own = write_rows(tmp_path / "pairs.jsonl", pairs), {"dpo": {}, "continual": {"kind": "preference"}}[stage]
    {"dpo": dpo, "continual": continual}[stage].main(
        flags(
            model_name_or_path=foreign_model, dataset_name=rows, output_dir=tmp_path / "run", eval_rows=2, max_steps=1,
            save_steps=1, use_cpu=True, gradient_checkpointing=False, **own,
        )
    )  # fmt: skip
    assert end in declared(tmp_path / "run")


@pytest.mark.parametrize("base", ["tiny_model", "foreign_model"])
def test_every_end_token_that_the_generation_config_lists_ends_an_answer(base, request, tmp_path, capsys):
    """A model that answers A, B, B, … and lists B as a second end token: an answer is "AB", as chat and as text."""
    folder = request.getfixturevalue(base)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    a, b = (tokenizer.convert_tokens_to_ids(token) for token in "AB")
    chain(folder, tmp_path / "model", [a, b])
    eos = tokenizer.eos_token_id
    GenerationConfig(eos_token_id=[eos, b]).save_pretrained(tmp_path / "model")
    words = ["--model_name_or_path", str(tmp_path / "model"), "--max_new_tokens", "5", "--prompt"]
    generate.main([*words, "What is 1?"])
    text = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, tokenize=False)
    generate.main([*words, text, "--as_chat", "false"])
    assert [line for line in capsys.readouterr().out.splitlines() if line[:1] == "A"] == ["AB", "AB"]


def test_vllm_behind_the_rollouts_is_given_it(foreign_model, monkeypatch, tmp_path):
    """TRL's vLLM stops at what the served folder declares; ``stop_token_ids`` names the template's end of turn too."""
    model, tokenizer = load_model(str(foreign_model)), load_tokenizer(str(foreign_model))
    monkeypatch.setattr(GRPOTrainer, "__init__", lambda self, args, **_: (_ for _ in ()).throw(LookupError(args)))
    config = GRPOConfig(str(tmp_path), bf16=False, use_vllm=True, use_cpu=True, report_to="none")
    with pytest.raises(LookupError):
        RolloutTrainer(
            model=model, args=config, train_dataset=[{"prompt": QUESTION}], processing_class=tokenizer, reward_funcs=[]
        )
    ends = [tokenizer.convert_tokens_to_ids(token) for token in ("<|endoftext|>", "<|im_end|>")]
    assert config.generation_kwargs == {"stop_token_ids": ends}


def test_white_space_between_answer_and_end_of_turn_does_not_hide_it(foreign_model):
    """Some templates break the line before they end the turn; the token that ends it is the same."""
    tokenizer = load_tokenizer(str(foreign_model))
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert closing_token(tokenizer, tokenizer.chat_template) == end
    tokenizer.chat_template = tokenizer.chat_template.replace("'<|im_end|>", "'\\n<|im_end|>")
    assert "\n<|im_end|>" in tokenizer.apply_chat_template(QUESTION, tokenize=False)
    assert closing_token(tokenizer, tokenizer.chat_template) == end


def test_a_completion_known_as_text_ends_as_a_sampled_one_would(foreign_model):
    """Rewards that count tokens see the end of turn after a dialogue, and the tokenizer's eos after plain text."""
    tokenizer = load_tokenizer(str(foreign_model))
    rows = [{"prompt": QUESTION}, {"prompt": "What is 1?"}]
    ids = call_arguments(rows, ["AB", "AB"], tokenizer=tokenizer)["completion_ids"]
    a, b, turn, eos = (tokenizer.convert_tokens_to_ids(t) for t in ("A", "B", "<|im_end|>", "<|endoftext|>"))
    assert ids == [[a, b, turn], [a, b, eos]]
