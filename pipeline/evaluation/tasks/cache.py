"""What the KV cache saves, and that it is the state of generation: Part 3, section 1 and the summary's experiment 2.

Three parts. Times of a step with and without the cache over the length of the context, with the polynomial that fits
them, beside the exact FLOPs and the bytes of the cache's tensors, for full and for windowed attention. Where a step is
bound by memory rather than by arithmetic, by formula. And the Markov property: a prefix is saved, loaded in a fresh
process and continued by two tokens, which must give the distributions of reading everything anew.
"""

import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from pipeline.evaluation.cost import NUMBER_BYTES, Cost, Fit, cost_of, fit_powers, ridge_of
from pipeline.evaluation.registry import Result
from pipeline.inference.state import advance, branch, forked, load_prefix, read_prefix, save_prefix
from pipeline.model.batching import evaluating
from pipeline.model.conversion import narlm_shape
from pipeline.model.loading import load_model, position_limit
from pipeline.model.narlm.modeling_narlm import NarLMForCausalLM
from pipeline.runtime.errors import UserError
from pipeline.runtime.files import Json

CACHED_STEPS = 5  # timed per round: a cached step is much shorter than an uncached one
BATCHES = (1, 8, 64, 256, 1024)
PREFIX = 32  # tokens of the saved prefix
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
FORMS = ("a + b n", "a + b n + c n^2")


def cache(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    lengths: Sequence[int] = (256, 512, 1024, 2048, 4096),
    window: int = 256,
    rounds: int = 5,
    clock: str = "wall",
    device: str = "H200",
    ridge: float | None = None,
    loading: Json | None = None,
    seed: int = 0,
) -> Result:
    """Step times and their fits, FLOPs, bytes and FLOPs per byte, and a saved prefix continued in a fresh process.

    Times do not depend on the weights, so contexts are random tokens and may be longer than those that the model was
    trained on, where its positions are rotated. Windowed attention is timed on a NarLM of the same shape with random
    weights, where the model is a NarLM, a Llama or a Mistral without windows of its own. A time is the median over
    rounds, each of which goes through all lengths, so that the ratio of two is not that of two moments.

    ``full/...`` and ``window/...`` metrics are ``cached_r2`` (of a + b n), ``uncached_r2`` (of a + b n + c n^2) and
    ``speedup`` (uncached over cached time at the longest context). ``markov/difference`` is the largest difference of
    log-probabilities between the continued prefix and reading everything anew, ``markov/apart`` the total variation
    between the two branches, without which the first would say nothing.

    Args:
        lengths: tokens in context at which a step is timed, ascending.
        window: Delta of the windowed variant.
        rounds: timings per length.
        clock: wall, or cpu: processor time, for a machine that others use too (run with one thread).
        device: whose peak and bandwidth give the ridge of the table, see ``cost.DEVICES``.
        ridge: FLOPs per byte, instead of a device's.
        loading: options of ``load_model`` for the fresh process; without them the prefix is loaded in this one.
        seed: random seed of the tokens.

    Raises:
        UserError: options out of range, positions that are learned for too few tokens, or a model that is no dense
            attention model.
    """
    lengths = sorted(set(lengths))
    _check(lengths, window, rounds, clock)
    limit_of_compute = ridge if ridge is not None else ridge_of(device)
    variants = _variants(model, window, lengths[-1])
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(len(tokenizer), (lengths[-1] + 1,), generator=generator).tolist()
    metrics, times, fits = {}, [], []
    for name, variant in variants.items():
        cost = cost_of(variant)
        steps = time_steps(variant, cost, tokens, lengths, rounds, clock)
        found = fit_rows(cost, steps)
        times += [{"attention": name, **row} for row in steps]
        fits += [{"attention": name, **row} for row in found]
        metrics |= {f"{name}/{key}": value for key, value in step_figures(steps, found).items()}
    metrics |= {f"markov/{key}": value for key, value in markov(model, tokens[: PREFIX + 2], loading).items()}
    curves = {
        f"seconds per step, {name} attention": [_curve_row(row) for row in times if row["attention"] == name]
        for name in variants
    }
    limits = bandwidth_table(cost_of(model), lengths, limit_of_compute)
    return Result(metrics, curves=curves, tables={"steps": times, "fits": fits, "FLOPs per byte": limits})


def _check(lengths: Sequence[int], window: int, rounds: int, clock: str) -> None:
    if len(lengths) < 4 or lengths[0] < 2 or rounds < 1 or window < 2:
        raise UserError("lengths: give four or more numbers above 1; rounds 1 or more, window 2 or more")
    if clock not in CLOCKS:
        raise UserError(f"clock is {clock!r}: choose one of {', '.join(CLOCKS)}")


def step_figures(steps: Sequence[Json], fits: Sequence[Json]) -> dict[str, float]:
    """How well time grows as it should by n, cached and uncached, and what the cache saves at the longest context."""
    r2 = {(row["step"], row["form"]): row["r2"] for row in fits}
    return {
        "cached_r2": r2["cached", FORMS[0]],
        "uncached_r2": r2["uncached", FORMS[1]],
        "speedup": steps[-1]["uncached_s"] / steps[-1]["cached_s"],
    }


def time_steps(
    model: PreTrainedModel, cost: Cost, tokens: Sequence[int], lengths: Sequence[int], rounds: int, clock: str
) -> list[Json]:
    """Median seconds of a step at each length, cached and uncached, with exact FLOPs and the cache's bytes."""
    waiting = {}
    for n in lengths:
        waiting[n] = DynamicCache(config=model.config)
        advance(model, waiting[n], tokens[: n - 1])
    cached, uncached = ({n: [] for n in lengths} for _ in range(2))
    for number in range(rounds + 1):
        for n in lengths:
            last = tokens[n - 1 : n]
            steps = [_seconds(clock, model, advance, forked(waiting[n]), last) for _ in range(CACHED_STEPS)]
            anew = _seconds(clock, model, read_anew, tokens[:n])
            if number:  # the first round warms up
                cached[n] += steps
                uncached[n].append(anew)
    rows = []
    for n in lengths:
        advance(model, waiting[n], tokens[n - 1 : n])
        rows.append(
            {
                "n": n,
                "cached_s": statistics.median(cached[n]),
                "uncached_s": statistics.median(uncached[n]),
                "cached_flops": cost.cached_flops(n),
                "uncached_flops": cost.uncached_flops(n),
                "cache_bytes": tensor_bytes(waiting[n]),
            }
        )
    return rows


@torch.no_grad()
def read_anew(model: PreTrainedModel, tokens: Sequence[int]) -> torch.Tensor:
    """The logits after all tokens, (V,), without a cache."""
    with evaluating(model):
        ids = torch.tensor([list(tokens)], device=model.device)
        return model(input_ids=ids, use_cache=False, logits_to_keep=1).logits[0, -1]


def tensor_bytes(cache: DynamicCache) -> int:
    """Bytes of the keys and values that a cache holds."""
    return sum(
        tensor.numel() * tensor.element_size()
        for layer in cache.layers
        if layer.get_seq_length()
        for tensor in (layer.keys, layer.values)
    )


def fit_rows(cost: Cost, rows: Sequence[Json]) -> list[Json]:
    """a + b n and a + b n + c n^2 for cached and uncached times, in seconds, and beside each the exact FLOPs'.

    The FLOPs of a cached step are linear in n (up to the windows), those of an uncached one quadratic: where a form
    fits them with R^2 1 it is the right one.
    """
    lengths, found = [row["n"] for row in rows], []
    for step in ("cached", "uncached"):
        for degree, form in enumerate(FORMS, 1):
            times = fit_powers(lengths, [row[f"{step}_s"] for row in rows], degree)
            flops = fit_powers(lengths, [row[f"{step}_flops"] for row in rows], degree)
            fits = {"step": step, "form": form, **_named(times, "s"), "r2": times.r2}
            found.append(fits | _named(flops, "flops") | {"r2_flops": flops.r2})
    return found


def bandwidth_table(cost: Cost, lengths: Sequence[int], ridge: float) -> list[Json]:
    """FLOPs per byte of a cached step in bf16 over batch and context, and which of the two limits it."""
    table = []
    for n in (1, *lengths):
        threshold = cost.batch_at(n, ridge)
        for batch in BATCHES:
            intensity = cost.intensity(n, batch)
            table.append(
                {
                    "n": n,
                    "batch": batch,
                    "flops": batch * cost.cached_flops(n),
                    "bytes": NUMBER_BYTES * (cost.read + batch * cost.cache_numbers(n)),
                    "flops_per_byte": intensity,
                    "ridge": ridge,
                    "bound_by": "bandwidth" if intensity < ridge else "compute",
                    "compute_from_batch": threshold,
                }
            )
    return table


def markov(model: PreTrainedModel, tokens: Sequence[int], loading: Json | None) -> dict[str, float]:
    """A prefix saved, loaded and continued by each of the last two tokens, against reading prefix and token anew."""
    *prefix, first, second = tokens
    branches = [[first], [second]]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "prefix.safetensors"
        save_prefix(path, model, read_prefix(model, prefix))
        if loading is None:
            found = branch(model, load_prefix(path, model), branches)
        else:
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as fresh:
                found = torch.tensor(fresh.submit(branch_saved, loading, str(model.device), path, branches).result())
    anew = torch.stack([read_anew(model, [*prefix, *tail]) for tail in branches]).float().log_softmax(-1).cpu()
    return {
        "difference": (found - anew).abs().max().item(),
        "apart": 0.5 * (found[0].exp() - found[1].exp()).abs().sum().item(),
        "fresh_process": float(loading is not None),
    }


def branch_saved(loading: Json, device: str, path: Path, continuations: list[list[int]]) -> list[list[float]]:
    """What a fresh process does: load the model and the prefix, and continue it (see ``state.branch``)."""
    model = load_model(**loading).to(device)
    return branch(model, load_prefix(path, model), continuations).tolist()


def _variants(model: PreTrainedModel, window: int, longest: int) -> dict[str, PreTrainedModel]:
    """The model, and a NarLM of its shape with a window in each layer, where there is one."""
    text = model.config.get_text_config()
    limit = position_limit(model.config)
    if not getattr(text, "rope_parameters", None) and limit is not None and longest > limit:
        raise UserError(f"lengths goes to {longest}, but the model has learned {limit} positions: give shorter ones")
    shape, windows = narlm_shape(model.config), cost_of(model).windows
    if shape is None or any(windows):
        return {"full" if not any(windows) else "window" if all(windows) else "mixed": model}
    fields = shape.to_diff_dict() | {"sliding_window": window, "layer_types": None}
    config = type(shape)(**fields)
    with torch.device(model.device):
        other = NarLMForCausalLM._from_config(config, attn_implementation=model.config._attn_implementation)
    return {"full": model, "window": other.to(model.dtype)}


def _seconds(clock: str, model: PreTrainedModel, step: Callable[..., torch.Tensor], *given: object) -> float:
    started = CLOCKS[clock]()
    step(model, *given)
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return CLOCKS[clock]() - started


def _named(fit: Fit, unit: str) -> dict[str, float]:
    return {f"{name}_{unit}": value for name, value in zip("abc", (*fit.coefficients, 0.0)[:3])}


def _curve_row(row: Json) -> Json:
    return {"n": row["n"], "cached": row["cached_s"], "uncached": row["uncached_s"]}
