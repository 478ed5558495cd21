"""Rejection sampling fine-tuning: sample N answers per prompt, keep the best by a reward, imitate those; repeat.

    y_1..y_N ~ pi_k(.|x),  keep by R(x, y_i):  best | top_k | threshold | one drawn by softmax(R/tau + log pi_ref/pi_k)
    pi_{k+1} = argmax_pi  E[ log pi(y_kept | x) ]

    accelerate launch pipeline/rsft.py --config configs/quickstart/rsft.yaml

Data: prompt, and the columns that the reward reads (--reward and --reward_weights as in grpo.py and ppo.py); or
--from_candidates with prompt + completion (+ reward) rows made elsewhere. Candidates are kept in
<output_dir>/candidates; mine_pairs makes a preference dataset for dpo.py of them.

Paper: Part 2, section 2, with two corrections (docs/errata.md, 2 and 13). Best-of-N does not tend to
pi_ref exp(R/tau) as N grows but to the argmax; drawing one of N by softmax(R/tau) does. And a second round from pi_k
must weigh by R/tau + log pi_ref - log pi_k, or K rounds end at pi_ref exp(K R/tau).
Loss: `objectives.likelihood.negative_log_likelihood` of the selection (tests/stages/test_losses.py::test_rsft).
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from pipeline.runtime.arguments import RewardArguments
from pipeline.runtime.distributed import processes
from pipeline.runtime.entry import entry
from pipeline.runtime.errors import UserError
from pipeline.runtime.record import Run
from pipeline.training.mistakes import refuse_mistakes


@dataclass
class RSFTArguments(RewardArguments):
    """How candidates are made and chosen; everything else is TRL's ``SFTConfig``, used in every round."""

    reward_weights: list[float] | None = field(
        default=None, metadata={"help": "Weight of each reward [1]; one of weight 0 is only reported."}
    )
    select: Literal["best", "top_k", "threshold", "softmax"] = field(
        default="best", metadata={"help": "Which candidates of a prompt are imitated."}
    )
    num_candidates: int = field(default=8, metadata={"help": "N: completions sampled per prompt in each round."})
    rounds: int = field(default=1, metadata={"help": "K: number of rounds of sampling, selecting and training."})
    top_k: int = field(default=1, metadata={"help": "Candidates kept per prompt with --select top_k."})
    threshold: float | None = field(
        default=None, metadata={"help": "Lowest reward that is kept with --select threshold."}
    )
    tau: float | None = field(
        default=None, metadata={"help": "Temperature of --select softmax: the beta of the objective."}
    )
    draws: int = field(default=1, metadata={"help": "Candidates drawn per prompt with --select softmax."})
    max_completion_length: int = field(default=256, metadata={"help": "Maximum tokens per completion."})
    temperature: float = field(
        default=1.0, metadata={"help": "Sampling temperature; --select softmax corrects for it."}
    )
    sample_batch_size: int = field(default=64, metadata={"help": "Completions sampled together."})
    use_vllm: bool = field(default=False, metadata={"help": "Sample with vLLM, in one process."})
    vllm_gpu_memory_utilization: float = field(
        default=0.3, metadata={"help": "Share of the GPU memory that vLLM takes, from 0 to 1."}
    )
    vllm_tensor_parallel_size: int = field(
        default=1, metadata={"help": "Number of GPUs that vLLM splits the model over."}
    )
    vllm_max_model_length: int | None = field(
        default=None, metadata={"help": "Maximum tokens of prompt and completion together in vLLM."}
    )
    vllm_model_impl: Literal["vllm", "transformers"] = field(
        default="vllm",
        metadata={"help": "vLLM's model code; transformers for models that vLLM does not know, such as NarLM."},
    )
    from_candidates: str | None = field(
        default=None, metadata={"help": "File of prompt + completion (+ reward) rows to use instead of sampling."}
    )
    mine_pairs: bool = field(
        default=False,
        metadata={"help": "Also write the best and worst candidate of each prompt as pairs.jsonl, for dpo.py."},
    )


def main(argv: list[str] | None = None) -> None:
    """Run the stage; see the module's docstring."""
    with Run("rsft", argv) as run:
        if run.done:
            return
        refuse_mistakes(run, "prompt", RSFTArguments, check)
        from trl import SFTConfig

        from pipeline.data.arguments import ChatDataArguments
        from pipeline.data.loading import load_data
        from pipeline.data.preparation import templated, within_positions
        from pipeline.data.seen import refuse_images
        from pipeline.inference.retrieval.arguments import RetrievalArguments
        from pipeline.model.policy import ModelArguments, read_start
        from pipeline.rewards.resolve import record_reward, resolve
        from pipeline.training.candidates import external_candidates, mine_pairs, require_scores, sft_rows
        from pipeline.training.prompts import sampled_prompts
        from pipeline.training.rounds import Round, read_external
        from pipeline.training.selection import Selection

        own, data_args, retrieval, model_args, config = run.parse(
            RSFTArguments, ChatDataArguments, RetrievalArguments, ModelArguments, SFTConfig
        )
        if config.eval_strategy != "no":
            raise UserError("eval_strategy: the selection is new every round: it must be no; see held_out_reward_*")
        rule = Selection(own.select, own.top_k, own.threshold, own.tau, own.draws)
        weights, unsafe = own.reward_weights, own.allow_unsafe_code_execution
        reward = resolve(own.reward, weights, allow_unsafe_code_execution=unsafe) if own.reward else None
        base, tokenizer = read_start(
            model_args, trust_remote_code=config.trust_remote_code, eos_token=config.eos_token
        )
        within_positions(run, config, base)
        if own.from_candidates:
            data = read_external(own.from_candidates, data_args.dataset_map)
        else:
            data = load_data(data_args, "prompt", config.seed)
        run.add_data(data.sources)
        refuse_images(data, "rsft")
        data = templated(data, tokenizer, run, "prompt", data_args, config.chat_template_path)
        if not own.from_candidates:
            data = sampled_prompts(run, data, retrieval, tokenizer, base, own.max_completion_length)
        rows, held_out = list(data.train), list(data.evaluation or [])

        for number in range(1, own.rounds + 1):
            leg = Round(run, number, own.rounds, model_args, config, tokenizer.chat_template)
            if leg.done():
                continue
            if own.from_candidates:
                groups = external_candidates(rows, reward, leg.tokenizer())
            else:
                groups = leg.candidates(rows, reward, own)
            require_scores(groups, reward)
            leg.report(groups, rule)
            selected = sft_rows(groups, rule, leg.tokenizer(), config.seed + number)
            if own.mine_pairs:
                leg.write_pairs(mine_pairs(groups))
            policy = leg.policy()
            if reward is not None and leg.last:
                record_reward(run, reward)
            trainer = leg.imitation(policy, selected, example=rows[0])
            finish = partial(leg.finish, policy=policy, held_out=held_out, reward=reward, own=own)
            leg.train(trainer, own, finish)


def check(own: RSFTArguments) -> None:
    """Refuse what cannot be run, before anything is imported."""
    if own.rounds < 1 or own.num_candidates < 1:
        raise UserError("rounds and num_candidates must be at least 1")
    if own.from_candidates and own.rounds != 1:
        raise UserError("from_candidates: candidates made elsewhere are of one policy, so rounds must be 1")
    if not own.reward and not own.from_candidates:
        raise UserError("reward is missing: name a reward of the registry or a reward-model folder")
    if own.use_vllm and processes() > 1:
        raise UserError(
            "use_vllm: rsft samples with vLLM in one process only; sample with --num_processes 1, stop it, and "
            "continue with more: existing candidates are not sampled again"
        )


FLAGS = {
    "learning_rate": "peak learning rate of each round's SFT [2e-4 with LoRA, else 2e-5]",
    "max_length": "maximum tokens of prompt and answer; the rest is cut [1024]",
}

if __name__ == "__main__":
    entry(main, RSFTArguments, __doc__, flags=FLAGS)
