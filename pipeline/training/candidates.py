"""Candidates of rejection sampling: sampled, scored, kept in files, and turned into SFT rows or preference pairs.

Candidates are written as parquet while they come, scored, one file per batch of prompts: what was sampled is never
sampled again. ``training.selection`` chooses among them.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.inference.decoding import Completion, sample
from pipeline.inference.likelihood import Pair, answer_log_likelihoods, pairs_of
from pipeline.model.tokens import encode_prompts
from pipeline.rewards.judging import Judgement, Reward, judge_rows
from pipeline.runtime.distributed import processes, rank
from pipeline.runtime.errors import UserError
from pipeline.runtime.files import Json, atomic
from pipeline.runtime.messages import Turn, as_answer, text_of
from pipeline.training.selection import Candidate, Selection, reward_tensors, select, selection_probabilities


def require_scores(groups: Sequence[Sequence[Candidate]], reward: Reward | None = None) -> None:
    """Refuse candidates of which none has a score, with the reward's reason where it scored them in this process.

    Raises:
        UserError: no candidate has a score.
    """
    every = [candidate for group in groups for candidate in group]
    if every and all(candidate["reward"] is None for candidate in every):
        why = reward.no_scores() if hasattr(reward, "no_scores") else None
        raise UserError(
            f"nothing to select from: {why or f'none of {len(every)} candidates has a score'}; see the data's gold "
            "answers and what the reward returns"
        )


def sample_candidates(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Json],
    reward: Reward,
    *,
    n: int,
    max_new_tokens: int,
    temperature: float = 1.0,
    reference: PreTrainedModel | None = None,
    sampler: Callable[..., list[list[Completion]]] = sample,
    seed: int = 0,
    prompts_per_file: int = 64,
    batch_size: int = 64,
) -> list[Path]:
    """Sample and score N completions per row's prompt into ``folder``; files that are there already are kept.

    With several processes each writes every world-size-th file, and all return the complete list once it is complete.

    Args:
        rows: ``prompt`` and whatever columns the reward reads.
        reward: TRL's callable.
        reference: pi_ref, where its ratio to the sampling distribution is wanted (``log_ratio``): the sampling model
            is no longer pi_ref, or ``temperature`` is not 1.
        sampler: draws the completions (`decoding.sample`, or an engine with the same weights as ``model``).
        seed: of the samples; the file's number is added, so that every file can be made on its own.

    Raises:
        UserError: the reward needs a column that the rows lack.
    """
    own_rank, world = rank(), processes()
    starts = range(0, len(rows), prompts_per_file)
    files = [folder / f"candidates-{number:05d}.parquet" for number in range(len(starts))]
    folder.mkdir(parents=True, exist_ok=True)
    for number, (start, file) in enumerate(zip(starts, files)):
        if number % world != own_rank or file.is_file():
            continue
        part = rows[start : start + prompts_per_file]
        prompts = [row["prompt"] for row in part]
        drawn = sampler(
            model, tokenizer, prompts, n=n, max_new_tokens=max_new_tokens, temperature=temperature,
            batch_size=batch_size, seed=seed + number,
        )  # fmt: skip
        flat = [(i, completion) for i, completions in enumerate(drawn) for completion in completions]
        encoded = encode_prompts(tokenizer, prompts)
        if number == own_rank:
            check_sampler(model, encoded, flat[:16])
        texts, ids = [c.text for _, c in flat], [c.token_ids for _, c in flat]
        judgements = judge_rows(reward, [part[i] for i, _ in flat], texts, ids)
        ratios: list[float | None] = [None] * len(flat)
        if reference is not None:
            ratios = log_ratios(reference, model, pairs_of(encoded, drawn), temperature, batch_size)
        found = zip(flat, judgements, ratios, strict=True)
        write_candidates(file, [_candidate(start + i, prompts[i], c, *figures) for (i, c), *figures in found])
    if world > 1:
        from accelerate import PartialState

        PartialState().wait_for_everyone()
    return files


def log_ratios(
    reference: PreTrainedModel, model: PreTrainedModel, pairs: Sequence[Pair], temperature: float, batch_size: int
) -> list[float]:
    """``log pi_ref(y|x) - log pi(y|x)`` in nats, the second at the temperature that was sampled at."""
    at_reference = answer_log_likelihoods(reference, pairs, batch_size=batch_size)
    at_sampling = answer_log_likelihoods(model, pairs, batch_size=batch_size, temperature=temperature)
    return [a - b for a, b in zip(at_reference, at_sampling, strict=True)]


def _candidate(
    row: int, prompt: Turn, completion: Completion, judgement: Judgement, log_ratio: float | None
) -> Candidate:
    return {
        "row": row,
        "prompt": prompt,
        "completion": completion.text,
        "token_ids": completion.token_ids,
        "finished": completion.finished,
        "reward": judgement.score,
        "parts": judgement.parts,
        "log_ratio": log_ratio,
    }


def check_sampler(
    model: PreTrainedModel, prompts: Sequence[list[int]], drawn: Sequence[tuple[int, Completion]]
) -> None:
    """Refuse a sampler whose log-probabilities are not the model's; one that reports none is not checked.

    Raises:
        UserError: they differ by more than 0.1 nats per token.
    """
    reported = [(prompts[i], completion) for i, completion in drawn if completion.log_prob is not None]
    model_scores = answer_log_likelihoods(model, [(prompt, completion.token_ids) for prompt, completion in reported])
    tokens = sum(len(completion.token_ids) for _, completion in reported)
    gap = sum(abs(a - completion.log_prob) for a, (_, completion) in zip(model_scores, reported)) / max(tokens, 1)
    if gap > 0.1:
        raise UserError(
            f"the sampler's log-probabilities differ from the model's by {gap:.2f} nats per token: it serves other "
            "weights or another dtype"
        )


def write_candidates(file: Path, candidates: Sequence[Candidate]) -> None:
    """A parquet file that is complete or absent; prompts are stored as JSON, be they text or dialogue."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema(
        {
            "row": pa.int64(),
            "prompt": pa.string(),
            "completion": pa.string(),
            "token_ids": pa.list_(pa.int32()),
            "finished": pa.bool_(),
            "reward": pa.float64(),
            "parts": pa.map_(pa.string(), pa.float64()),  # of a sum: the score of each reward in it
            "log_ratio": pa.float64(),
        }
    )
    plain = [
        c | {"prompt": json.dumps(c["prompt"], ensure_ascii=False), "parts": list((c.get("parts") or {}).items())}
        for c in candidates
    ]
    with atomic(file) as temporary:
        pq.write_table(pa.Table.from_pylist(plain, schema=schema), temporary)


def read_candidates(files: Sequence[Path]) -> Iterator[list[Candidate]]:
    """The candidates of one prompt after another, in the order of the rows."""
    import pyarrow.parquet as pq

    for file in files:
        groups: dict[int, list[Candidate]] = {}
        for candidate in pq.read_table(file).to_pylist():
            candidate |= {"prompt": json.loads(candidate["prompt"]), "parts": dict(candidate.get("parts") or ())}
            groups.setdefault(candidate["row"], []).append(candidate)
        yield from groups.values()


def external_candidates(
    rows: Sequence[Json], reward: Reward | None, tokenizer: PreTrainedTokenizerBase | None = None
) -> list[list[Candidate]]:
    """Candidates made elsewhere, grouped by prompt: rows of ``prompt`` + ``completion``, scored where ``reward`` is
    missing from them.

    Args:
        rows: the candidates and the columns that the reward reads.
        reward: TRL's callable; needed only where a row has no ``reward``.
        tokenizer: counts the tokens of a completion for the rewards that read them.

    Raises:
        UserError: a row has no completion, or no reward and none is given.
    """
    missing = [row for row in rows if row.get("reward") is None]
    judgements: Iterator[Judgement] = iter(())
    if missing:
        if reward is None:
            raise UserError("from_candidates: rows without a reward column need --reward to be scored")
        columns = [{name: value for name, value in row.items() if name != "reward"} for row in missing]
        texts = [text_of(row["completion"]) for row in missing]
        judgements = iter(judge_rows(reward, columns, texts, None, tokenizer))
    groups: dict[str, list[Candidate]] = {}
    for row in rows:
        candidate = {"prompt": row["prompt"], "completion": text_of(row["completion"]), "reward": row.get("reward")}
        if candidate["reward"] is None:
            judgement = next(judgements)
            candidate |= {"reward": judgement.score, "parts": judgement.parts}
        groups.setdefault(json.dumps(row["prompt"], sort_keys=True), []).append(candidate)
    return list(groups.values())


# ---------------------------------------------------------------------- what the candidates become


def sft_rows(
    groups: Sequence[Sequence[Candidate]], rule: Selection, tokenizer: PreTrainedTokenizerBase, seed: int = 0
) -> list[Json]:
    """The selection as SFT rows.

    Candidates that carry their tokens give ``input_ids`` and ``completion_mask``: SFT then raises the likelihood of
    exactly what was drawn, and a completion that was cut off is not learned as an end. Candidates made elsewhere
    give ``prompt`` and ``completion``.

    Raises:
        UserError: nothing is selected at all.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for group in groups:
        rewards, log_ratio = reward_tensors(group)
        chosen = select(selection_probabilities(rewards, rule, log_ratio), rule, generator)
        if not chosen:
            continue
        prompt = group[0]["prompt"]
        prompt_ids = encode_prompts(tokenizer, [prompt])[0] if "token_ids" in group[0] else []
        for index in chosen:
            candidate = group[index]
            if "token_ids" in candidate:
                ids = candidate["token_ids"]
                rows.append({"input_ids": prompt_ids + ids, "completion_mask": [0] * len(prompt_ids) + [1] * len(ids)})
            else:
                rows.append({"prompt": prompt, "completion": as_answer(prompt, candidate["completion"])})
    if not rows:
        raise UserError(
            "no candidate of any prompt is acceptable: lower the threshold, or sample more (num_candidates)"
        )
    return rows


def mine_pairs(groups: Sequence[Sequence[Candidate]]) -> list[Json]:
    """The best and the worst candidate of each prompt as a preference pair for DPO; prompts where all are equal give
    none.
    """
    pairs = []
    for group in groups:
        known = [c for c in group if c["reward"] is not None]
        best, worst = (max(known, key=_reward), min(known, key=_reward)) if known else (None, None)
        if best is None or best["reward"] == worst["reward"] or best["completion"] == worst["completion"]:
            continue
        pairs.append(
            {
                "prompt": best["prompt"],
                "chosen": as_answer(best["prompt"], best["completion"]),
                "rejected": as_answer(best["prompt"], worst["completion"]),
                "reward_chosen": best["reward"],
                "reward_rejected": worst["reward"],
            }
        )
    return pairs


def _reward(candidate: Candidate) -> float:
    return candidate["reward"]
