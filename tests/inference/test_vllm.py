"""vLLM as a sampler, against a stand-in with vLLM's interface: what it is asked, what comes back, and the check of it.

vLLM itself needs a GPU and is not run here.
"""

import json
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from pipeline.inference.decoding import sample
from pipeline.inference.likelihood import answer_log_likelihoods
from pipeline.inference.vllm import vllm_sampler
from pipeline.model.loading import load_model, load_tokenizer
from pipeline.rsft import main
from pipeline.runtime.errors import UserError
from pipeline.training.candidates import read_candidates
from tests.stages.conftest import flags, foreign_model, tiny_model, write_rows  # noqa: F401 - fixtures


@pytest.fixture
def vllm(monkeypatch):
    """A module with vLLM's ``LLM`` and ``SamplingParams``, which samples with transformers and remembers the calls.

    ``shift`` is added to every log-probability that it tells, as an engine with other weights would.
    """
    import trl  # noqa: F401 - looks for vLLM when it is first imported, and must not find this one

    module = ModuleType("vllm")
    module.calls, module.shift = [], 0.0

    class LLM:
        def __init__(self, **options):
            module.calls.append(options)
            self.model, self.tokenizer = load_model(options["model"]), load_tokenizer(options["model"])

        def generate(self, requests, rule, use_tqdm):
            module.calls.append(rule)
            ids = [request["prompt_token_ids"] for request in requests]
            texts = self.tokenizer.batch_decode(ids)
            drawn = sample(
                self.model, self.tokenizer, texts, n=rule.n, max_new_tokens=rule.max_tokens,
                temperature=rule.temperature, seed=rule.seed,
            )  # fmt: skip
            return [
                SimpleNamespace(outputs=[self.output(prompt, one) for one in some]) for prompt, some in zip(ids, drawn)
            ]

        def output(self, prompt, one):
            scores, at = [], list(prompt)
            for token in one.token_ids:
                told = answer_log_likelihoods(self.model, [(at, [token])])[0] + module.shift
                scores.append({token: SimpleNamespace(logprob=told)})
                at.append(token)
            reason = "stop" if one.finished else "length"
            return SimpleNamespace(token_ids=tuple(one.token_ids), logprobs=scores, finish_reason=reason)

    module.LLM = LLM
    module.SamplingParams = lambda **options: SimpleNamespace(**options)
    monkeypatch.setitem(sys.modules, "vllm", module)
    return module


def test_completions_are_those_of_the_engine_with_its_log_probabilities(tiny_model, vllm):  # noqa: F811
    draw = vllm_sampler(str(tiny_model), dtype="float32", model_impl="transformers", tensor_parallel_size=2)
    options, model, tokenizer = vllm.calls[0], load_model(str(tiny_model)), load_tokenizer(str(tiny_model))
    assert (options["model_impl"], options["tensor_parallel_size"]) == ("transformers", 2)
    prompts = ["What is 1 plus 2?", "Good"]
    found = draw(model, tokenizer, prompts, n=2, max_new_tokens=4, temperature=1.0, batch_size=8, seed=3)
    expected = sample(model, tokenizer, prompts, n=2, max_new_tokens=4, seed=3)
    assert [[one.token_ids for one in some] for some in found] == [[o.token_ids for o in some] for some in expected]
    assert [[one.text for one in some] for some in found] == [[one.text for one in some] for some in expected]
    # Near-uniform over about 260 tokens: each of 4 tokens costs some log 260 = 5.6 nats.
    assert found[0][0].log_prob == pytest.approx(-4 * 5.6, abs=2)
    assert tokenizer.eos_token_id in vllm.calls[1].stop_token_ids


def test_it_stops_where_a_chat_template_ends_a_turn(foreign_model, vllm):  # noqa: F811
    """Plain ChatML over a base whose eos is another token: a chat ends at either, plain text at the eos alone."""
    draw = vllm_sampler(str(foreign_model), dtype="float32")
    model, tokenizer = load_model(str(foreign_model)), load_tokenizer(str(foreign_model))
    options = {"n": 1, "max_new_tokens": 2, "temperature": 1.0, "batch_size": 8, "seed": 3}
    draw(model, tokenizer, [[{"role": "user", "content": "What is 1?"}]], **options)
    draw(model, tokenizer, ["What is 1?"], **options)
    eos, end = (tokenizer.convert_tokens_to_ids(token) for token in ("<|endoftext|>", "<|im_end|>"))
    assert [rule.stop_token_ids for rule in vllm.calls[1:]] == [[eos, end], [eos]]


@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_rsft_samples_with_it_and_refuses_one_of_other_weights(tiny_model, vllm, tmp_path, shift):  # noqa: F811
    vllm.shift = shift
    rows = write_rows(tmp_path / "prompts.jsonl", [{"prompt": f"What is {a} plus 1?"} for a in range(6)])
    words = flags(
        model_name_or_path=tiny_model, dataset_name=rows, output_dir=tmp_path / "run", eval_rows=0, max_steps=1,
        reward="tests.stages.test_rsft:share_of_letters", num_candidates=2, max_completion_length=4, use_vllm=True,
        vllm_gpu_memory_utilization=0.5, use_cpu=True, save_steps=1,
    )  # fmt: skip
    if shift:
        with pytest.raises(UserError, match=r"differ from the model's by 0\.50 nats per token"):
            main(words)
        return
    main(words)
    assert vllm.calls[0]["gpu_memory_utilization"] == 0.5
    groups = list(read_candidates(sorted((tmp_path / "run" / "candidates" / "round-1").glob("*.parquet"))))
    assert [len(group) for group in groups] == [2] * 6
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "completed"


def test_without_vllm_the_way_to_get_it_is_told(tiny_model, monkeypatch):  # noqa: F811
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(UserError, match=r'pip install "narlm\[vllm\]"'):
        vllm_sampler(str(tiny_model), dtype=str(torch.float32))
