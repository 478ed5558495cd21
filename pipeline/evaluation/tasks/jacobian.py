"""Do the maps from token to token pass on what carries a fact? Near-unit singular values alone cannot say so.

The paper's "Jacobians near the identity" are those of a token to itself, d h_{l+1,t} / d h_{l,t} = I + B/|h|: their
singular values tend to 1 as the stream grows, whatever the block does. From an earlier token, d s_t / d e_tau, there
is no residual path. What can say something is the *relative* gain in directions that carry meaning,

    kappa_l = (|J delta| / |delta|) / (|h_{l+1}| / |h_l|),    delta = e(x') - e(x),

of a context x' that differs from x in a value, a name or the wording, against random directions of the same norm at
the same tokens: log kappa(swapped) - log kappa(random), paired, with an interval over prompts. What a direction does
to the next token, in any basis of the residual stream and through every norm, is

    q(delta) = 1/2 delta' J' W_out' (diag pi - pi pi') W_out J delta = 1/2 Var_pi(d z),

the KL of the next-token distributions to second order, which is checked against the finite KL at EPS delta.

Rows: ``prompt``, a context, and ``swaps``: by what is swapped (``value``, ``name``, …), contexts that differ from
it in that. The first with as many tokens as the prompt and the same last token is taken. Swaps to random tokens at
the places of the first kind are added.

Figures: ``<kind>/same``, ``/last`` and ``/fisher``: the mean over prompts of log kappa (of the swapped tokens
themselves over all layers; from them to the last token), or of log q, minus its mean over random directions, with
a bootstrap interval; ``<kind>/pairs``; ``same/share_near_1`` and ``earlier/share_near_1`` (of d s_t / d e_tau),
the shares of singular values in [0.9, 1.1]; ``fisher_error``, the median relative difference of q and finite KL.
"""

from collections.abc import Sequence
from statistics import fmean, median
from typing import NamedTuple

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.evaluation.registry import Result
from pipeline.evaluation.rows import read_rows
from pipeline.evaluation.tasks.in_context import eager_attention
from pipeline.inference.jacobian import (
    EXACT_TO,
    LinearMap,
    Pushed,
    layer_calls,
    push_forward,
    spectrum,
    state_map,
)
from pipeline.model.batching import evaluating, pad_right
from pipeline.model.tokens import encode_prompts
from pipeline.objectives.divergences import fisher_form, full_kl
from pipeline.objectives.statistics import bootstrap_interval, with_interval
from pipeline.runtime.errors import UserError
from pipeline.runtime.files import Json
from pipeline.runtime.messages import is_dialogue, user_turn

EPS = 1e-2
UNIT = (0.9, 1.1)
TOKEN = "random token"  # the kind of swap that the evaluation makes itself
Spectra = dict[tuple[str, str], list[tuple[float, float, float]]]  # (map, layer) -> share near 1, median, largest


class Pair(NamedTuple):
    """Ids of a context, those of one with another content, and the places where they differ."""

    ids: list[int]
    other: list[int]
    places: list[int]


class Gain(NamedTuple):
    """Of one direction: log kappa by layer of the swapped tokens themselves (L), from them to the last token (L), and
    log q / |delta|^2 there.
    """

    same: list[float]
    last: list[float]
    fisher: float


def jacobian(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    directions: int = 4,
    maps: int = 8,
    exact_to: int = EXACT_TO,
    batch_size: int = 64,
    seed: int = 0,
    **data: object,
) -> Result:
    """Relative gain along counterfactual directions against random ones, and the spectra of the maps.

    Args:
        directions: random directions per swap.
        maps: prompts whose maps are taken apart; the map of the last token, and to it from the first swapped one.
        exact_to: hidden sizes up to which all singular values are computed, see ``inference.jacobian.spectrum``.
        batch_size: contexts per forward pass.
        seed: of the random directions and intervals.
        data: which rows, see ``rows.read_rows``.
    """
    if directions < 1 or maps < 0 or batch_size < 1:
        raise UserError(f"directions is {directions}, maps {maps}, batch_size {batch_size}: give 1 or more (maps: 0)")
    rows, source = read_rows(kind="prompt", **data)
    for number, row in enumerate(rows, 1):
        if not isinstance(row.get("swaps"), dict) or not row["swaps"]:
            raise UserError(f"row {number} has no swaps: give contexts by what is swapped, {{value: [text, …]}}")
    pairs = swapped_pairs(tokenizer, rows, seed)
    result, errors = Result({}, data=[source]), []
    table: list[Json] = []
    with evaluating(model), eager_attention(model):
        for kind, found in pairs.items():
            gains, error = paired_gains(model, found, directions, batch_size, seed)
            errors += error if kind != TOKEN else []
            figures, by_layer = gain_figures(gains, seed)
            result.metrics |= {f"{kind}/{name}": value for name, value in figures.items()}
            table += [{"swapped": kind} | row for row in by_layer]
        if maps:
            _add_spectra(result, _spectra(model, next(iter(pairs.values()))[:maps], exact_to, seed))
    result.metrics["fisher_error"] = median(errors)
    result.tables["relative gain by layer"] = table
    for name in ("same", "last"):
        result.curves[f"relative gain by layer, {name} token"] = [
            {"layer": layer} | {row["swapped"]: row[name] for row in table if row["layer"] == layer}
            for layer in sorted({row["layer"] for row in table})
        ]
    return result


# --- swaps -----------------------------------------------------------------------------------------------------------


def swapped_pairs(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Json], seed: int) -> dict[str, list[Pair]]:
    """Of each kind the pairs of equal length whose last token is the same.

    Raises:
        UserError: a kind without any.
    """
    kinds = list(dict.fromkeys(kind for row in rows for kind in row["swaps"]))
    pairs: dict[str, list[Pair]] = {kind: [] for kind in kinds}
    for row in rows:
        ids = encode_prompts(tokenizer, [row["prompt"]])[0]
        for kind, texts in row["swaps"].items():
            others = [texts] if isinstance(texts, str) else texts or ()
            prompt = row["prompt"]
            if is_dialogue(prompt):
                others = [[*prompt[:-1], *user_turn(o)] if isinstance(o, str) else o for o in others]
            fitting = (
                o for o in encode_prompts(tokenizer, others) if len(o) == len(ids) and o[-1] == ids[-1] and o != ids
            )
            if other := next(fitting, None):
                pairs[kind].append(Pair(ids, other, [i for i, (a, b) in enumerate(zip(ids, other)) if a != b]))
    for kind, found in pairs.items():
        if not found:
            raise UserError(
                f"swaps: no {kind} has as many tokens as its prompt and ends with the same one; give several of each"
            )
    drawn = torch.Generator().manual_seed(seed)
    ordinary = [i for i in range(len(tokenizer)) if i not in tokenizer.all_special_ids]
    pairs[TOKEN] = []
    for pair in pairs[kinds[0]]:
        other = list(pair.ids)
        for place in pair.places:
            choice = [ordinary[i] for i in torch.randint(len(ordinary), (2,), generator=drawn).tolist()]
            other[place] = choice[0] if choice[0] != pair.ids[place] else choice[1]
        if other != pair.ids:
            pairs[TOKEN].append(Pair(pair.ids, other, [i for i in pair.places if other[i] != pair.ids[i]]))
    return pairs


# --- gains -----------------------------------------------------------------------------------------------------------


def paired_gains(
    model: PreTrainedModel, pairs: Sequence[Pair], directions: int, batch_size: int, seed: int
) -> tuple[list[tuple[Gain, list[Gain]]], list[float]]:
    """Of each pair the gain of the swap and those of random directions, and the relative error of the swap's q."""
    gains: list[tuple[Gain, list[Gain]]] = []
    errors: list[float] = []
    embed = model.get_input_embeddings()
    drawn = torch.Generator().manual_seed(seed)
    for start in range(0, len(pairs), batch_size):
        batch = pairs[start : start + batch_size]
        ids, mask = pad_right([pair.ids for pair in batch], embed.weight.device)
        others, _ = pad_right([pair.other for pair in batch], embed.weight.device)
        with torch.no_grad():
            clean = embed(ids)
            delta = (embed(others) - clean) * mask[..., None]
            here = (delta != 0).any(-1, keepdim=True)
            swapped = _gains(push_forward(model, clean, mask, delta), batch)
            errors += _fisher_errors(model, clean, mask, delta, [gain.fisher for gain in swapped], batch)
            controls = []
            for _ in range(directions):
                noise = torch.randn(delta.shape, generator=drawn).to(delta) * here
                noise *= (delta.flatten(1).norm(dim=1) / noise.flatten(1).norm(dim=1))[:, None, None]
                controls.append(_gains(push_forward(model, clean, mask, noise), batch))
        gains += [(gain, list(random)) for gain, random in zip(swapped, zip(*controls))]
    return gains, errors


def _gains(pushed: Pushed, batch: Sequence[Pair]) -> list[Gain]:
    found = []
    for row, pair in enumerate(batch):
        last = len(pair.ids) - 1
        h, moved = (torch.stack([x[row].double() for x in layers]) for layers in (pushed.hidden, pushed.moved))
        size, gain = (x[:, pair.places].norm(dim=(1, 2)).log() for x in (h, moved))  # (L + 1) at the swapped tokens
        end, reached = (x[1:, last].norm(dim=1).log() for x in (h, moved))  # (L) at the last token
        q = fisher_form(pushed.logits[row, last].double(), pushed.logits_moved[row, last].double())
        found.append(
            Gain(
                (gain.diff() - size.diff()).tolist(),
                ((reached - gain[0]) - (end - size[0])).tolist(),
                float(q.log() - 2 * gain[0]),
            )
        )
    return found


def _fisher_errors(
    model: PreTrainedModel,
    clean: torch.Tensor,
    mask: torch.Tensor,
    delta: torch.Tensor,
    fisher: Sequence[float],
    batch: Sequence[Pair],
) -> list[float]:
    """|KL / EPS^2 - q| / q, with the mean of both signs, in which odd orders cancel."""
    rows, last = range(len(batch)), [len(pair.ids) - 1 for pair in batch]
    here, up, down = (
        model(inputs_embeds=clean + step * delta, attention_mask=mask, use_cache=False).logits[rows, last].double()
        for step in (0.0, EPS, -EPS)
    )
    finite = (full_kl(here, up) + full_kl(here, down)) / (2 * EPS**2)
    q = torch.tensor(fisher, dtype=torch.float64).exp() * delta.flatten(1).double().square().sum(1).cpu()
    return ((finite.cpu() - q).abs() / q).tolist()


def gain_figures(gains: Sequence[tuple[Gain, list[Gain]]], seed: int) -> tuple[dict[str, float], list[Json]]:
    """Paired log differences with intervals over prompts: over all layers, and by layer."""

    def difference(of) -> list[float]:
        return [of(swapped) - fmean(map(of, random)) for swapped, random in gains]

    figures: dict[str, float] = {"pairs": len(gains)}
    for name, of in (("same", lambda g: sum(g.same)), ("last", lambda g: g.last[-1]), ("fisher", lambda g: g.fisher)):
        values = difference(of)
        figures |= with_interval(name, fmean(values), bootstrap_interval(values, seed=seed))
    by_layer = []
    for layer in range(len(gains[0][0].same)):
        row: Json = {"layer": layer + 1}
        for name in ("same", "last"):
            values = difference(lambda g: getattr(g, name)[layer])  # noqa: B023
            row |= with_interval(name, fmean(values), bootstrap_interval(values, seed=seed))
        by_layer.append(row)
    return figures, by_layer


# --- spectra ---------------------------------------------------------------------------------------------------------


def _spectra(model: PreTrainedModel, pairs: Sequence[Pair], exact_to: int, seed: int) -> Spectra:
    """Of every layer, the map of the last token to itself and from the first swapped token to the last; and of the
    complete model d s_t / d e_tau.
    """
    found: Spectra = {}
    device = next(model.parameters()).device

    def add(name: str, layer: str, linear: LinearMap) -> None:
        values = spectrum(linear, exact_to=exact_to, seed=seed)
        found.setdefault((name, layer), []).append((values.within(*UNIT), values.median, float(values.values[-1])))

    for pair in pairs:
        ids = torch.tensor([pair.ids], device=device)
        source, target = pair.places[0], len(pair.ids) - 1
        for layer, call in enumerate(layer_calls(model, ids), 1):
            add("same token, one layer", str(layer), call.map(target, target))
            add("one layer, from an earlier token", str(layer), call.map(source, target))
        with torch.no_grad():
            embeddings = model.get_input_embeddings()(ids)
        add("earlier token to the last state", "all", state_map(model, embeddings, source, target))
    return found


def _add_spectra(result: Result, spectra: Spectra) -> None:
    """The mean over prompts of every map's figures, and the two shares near 1."""
    result.tables["singular values"] = [
        {"map": name, "layer": layer} | dict(zip(("share near 1", "median", "largest"), map(fmean, zip(*values))))
        for (name, layer), values in spectra.items()
    ]
    for name in ("same", "earlier"):
        shares = [value[0] for (kind, _), values in spectra.items() if kind.startswith(name) for value in values]
        result.metrics[f"{name}/share_near_1"] = fmean(shares)
