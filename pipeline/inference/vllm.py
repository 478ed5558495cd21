"""Sampling by vLLM, where it is installed (``pip install narlm[vllm]``): the same completions type as `decoding`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.inference.decoding import Completion
from pipeline.inference.stopping import stop_token_ids
from pipeline.model.tokens import encode_prompts
from pipeline.runtime.errors import UserError
from pipeline.runtime.messages import Turn

if TYPE_CHECKING:
    from vllm import CompletionOutput


def vllm_sampler(
    folder: str,
    *,
    dtype: str,
    trust_remote_code: bool = False,
    gpu_memory_utilization: float = 0.3,
    tensor_parallel_size: int = 1,
    max_model_length: int | None = None,
    model_impl: str = "vllm",
) -> Callable[..., list[list[Completion]]]:
    """A function that draws completions as `decoding.sample` does, from the weights in ``folder``.

    Each completion carries its log-probability under the engine (at temperature 1), to compare with the model's
    own. Options have TRL's names without the prefix ``vllm_``.

    Raises:
        UserError: vLLM is not installed.
    """
    try:
        from vllm import LLM, SamplingParams
    except ImportError as error:
        raise UserError('use_vllm needs vLLM, which is not installed: pip install "narlm[vllm]"') from error
    engine = LLM(
        model=folder, dtype=dtype, trust_remote_code=trust_remote_code, tensor_parallel_size=tensor_parallel_size,
        gpu_memory_utilization=gpu_memory_utilization, max_model_len=max_model_length, model_impl=model_impl,
    )  # fmt: skip

    def draw(
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[Turn],
        *,
        n: int,
        max_new_tokens: int,
        temperature: float,
        batch_size: int,  # unused: the engine schedules its batches itself
        seed: int,
    ) -> list[list[Completion]]:
        stop = stop_token_ids(model, tokenizer, chat=any(not isinstance(prompt, str) for prompt in prompts))
        rule = SamplingParams(
            n=n, temperature=temperature, max_tokens=max_new_tokens, seed=seed, stop_token_ids=list(stop), logprobs=0,
            detokenize=False,
        )  # fmt: skip
        requests = [{"prompt_token_ids": ids} for ids in encode_prompts(tokenizer, prompts)]
        answers = engine.generate(requests, rule, use_tqdm=False)
        return [[_completion(tokenizer, one) for one in answer.outputs] for answer in answers]

    return draw


def _completion(tokenizer: PreTrainedTokenizerBase, one: CompletionOutput) -> Completion:
    ids = list(one.token_ids)
    text = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    log_prob = sum(scores[token].logprob for token, scores in zip(ids, one.logprobs))
    return Completion(text, ids, "eos" if one.finish_reason == "stop" else "length", log_prob)
