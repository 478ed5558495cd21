"""In-context learning on sequences of keys and values, and the attention that carries it: open question 4.

A row is a text that states pairs, as those of ``world/maps``: a key, then its value, again and again. Once a key has
been shown its value can be read from the context; the head that does it attends, where the value is predicted, to the
value behind the earlier showing of the same key (an induction head, Olsson et al. 2022).
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import CausalLMOutput

from pipeline.evaluation.registry import Result
from pipeline.evaluation.rows import read_rows
from pipeline.model.batching import Batch, forward_rows
from pipeline.objectives.statistics import bootstrap_interval, mean_interval, with_interval
from pipeline.runtime.errors import UserError
from pipeline.runtime.files import Json


class Coded(NamedTuple):
    """A row's token ids, and the places of each value's tokens among them."""

    ids: list[int]
    values: list[list[int]]


class Seen(NamedTuple):
    """What a model did with the P values of a row: which are right, -log p in nats, and `induction_scores`.

    ``even`` is the score of a head that attends to all places alike.
    """

    right: list[bool]
    losses: list[float]
    induction: torch.Tensor
    even: torch.Tensor


def in_context(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    batch_size: int = 32,
    **data: object,
) -> Result:
    """How often the value of a key is right when the context has stated it, against copying any earlier value.

    A value is right if each of its tokens is the likeliest one. ``accuracy`` is over the pairs that come after every
    key of their row has been shown: earlier few values have occurred, and a guess among them is no learning.
    ``copy_baseline`` is the expected accuracy, on the same pairs, of repeating an earlier value of the row drawn at
    random; ``over_copy`` is the difference, with an interval over rows. ``induction`` is the best head's score, the
    attention from where a value is predicted to the values behind earlier showings of its key (``induction_uniform``:
    what even attention would pay). ``loss`` is nats per value, over all pairs.

    Args:
        batch_size: rows per forward pass, with the attention weights of every layer.
        data: which rows, see ``rows.read_rows``: ``text`` that holds ``keys`` and ``values`` (lists) in turn.

    Raises:
        UserError: rows without pairs, no key that comes again, or a model that gives no attention weights.
    """
    rows, source = read_rows(kind="text", columns=("keys", "values"), **data)
    for number, row in enumerate(rows, 1):
        _check_pairs(row, number)
    if not any(any(all_shown(row["keys"])) for row in rows):
        raise UserError("no key comes again after every key of its row was shown: there is nothing to read in context")
    coded = [encode_pairs(tokenizer, row) for row in rows]
    seen = read_pairs(model, coded, [earlier_showings(row["keys"]) for row in rows], batch_size)
    metrics, curve, heads = figures(rows, seen)
    return Result(
        metrics, data=[source], curves={"accuracy over showings": curve}, tables={"induction by head": heads}
    )


def figures(rows: Sequence[Json], seen: Sequence[Seen]) -> tuple[dict[str, float], list[Json], list[Json]]:
    """Metrics, the curve over showings and the table of heads, from what the model did with each row."""
    counted = []  # per row: (share right, copy baseline) of the pairs after all keys were shown
    showings: dict[int, list[tuple[bool, float]]] = {}
    for row, found in zip(rows, seen, strict=True):
        earlier, copies = earlier_showings(row["keys"]), copy_baseline(row["values"])
        late = [pair for pair, known in enumerate(all_shown(row["keys"])) if known]
        counted.append([(found.right[pair], copies[pair]) for pair in late])
        for pair in late:
            showings.setdefault(len(earlier[pair]) + 1, []).append((found.right[pair], copies[pair]))
    counted = [pairs for pairs in counted if pairs]
    pooled = [pair for pairs in counted for pair in pairs]
    right, copied = (sum(column) / len(pooled) for column in zip(*pooled))
    size = len(pooled) / len(counted)
    # Rows have different numbers of pairs: the spread of the ratio by its linear approximation.
    accuracies = [right + sum(r - right for r, _ in pairs) / size for pairs in counted]
    gains = [right - copied + sum(r - c - right + copied for r, c in pairs) / size for pairs in counted]
    metrics = with_interval("accuracy", right, mean_interval(accuracies))
    metrics["copy_baseline"] = copied
    metrics |= with_interval("over_copy", right - copied, bootstrap_interval(gains))
    losses = [loss for found in seen for loss in found.losses]
    metrics |= {"loss": sum(losses) / len(losses), "pairs": len(pooled)}
    curve = [
        {"showing": k, "accuracy": sum(r for r, _ in at) / len(at), "copy_baseline": sum(c for _, c in at) / len(at)}
        for k, at in sorted(showings.items())
    ]
    scores, even = (
        torch.stack([part for part in parts if part.numel()]).mean(0)  # (layers, H)
        for parts in zip(*((found.induction, found.even) for found in seen))
    )
    heads = [
        {"layer": layer, "head": head, "induction": score}
        for layer, row in enumerate(scores.tolist())
        for head, score in enumerate(row)
    ]
    metrics |= {"induction": scores.max().item(), "induction_uniform": even.item()}
    return metrics, curve, heads


def earlier_showings(keys: Sequence[str]) -> list[list[int]]:
    """The earlier pairs with the same key, of each pair."""
    return [[earlier for earlier in range(pair) if keys[earlier] == key] for pair, key in enumerate(keys)]


def all_shown(keys: Sequence[str]) -> list[bool]:
    """Of each pair: whether every key of the row has been shown before it."""
    return [set(keys[:pair]) == set(keys) for pair in range(len(keys))]


def copy_baseline(values: Sequence[str]) -> list[float]:
    """Of each pair: the share of the earlier values of the row that equal its own; 0 for the first."""
    return [list(values[:pair]).count(value) / max(pair, 1) for pair, value in enumerate(values)]


def encode_pairs(tokenizer: PreTrainedTokenizerBase, row: Json) -> Coded:
    """The row's text as token ids, and where its values are. A tokenizer that knows where its tokens come from.

    Raises:
        UserError: the text does not hold the keys and values in turn, or a token belongs to a value and its key.
    """
    coded = tokenizer(row["text"], return_offsets_mapping=True, return_attention_mask=False, verbose=False)
    place, values = 0, []
    for key, value in zip(row["keys"], row["values"], strict=True):
        after_key = row["text"].index(str(key), place) + len(str(key))
        start = row["text"].index(str(value), after_key)
        place = start + len(str(value))
        tokens = [i for i, (a, b) in enumerate(coded["offset_mapping"]) if a < place and b > start]
        if not tokens or coded["offset_mapping"][tokens[0]][0] < after_key:
            raise UserError(f"the tokenizer joins {key!r} and {value!r} of {row['text'][:60]!r}: part them by a space")
        values.append(tokens)
    return Coded(coded["input_ids"], values)


def read_pairs(
    model: PreTrainedModel, coded: Sequence[Coded], earlier: Sequence[Sequence[Sequence[int]]], batch_size: int
) -> list[Seen]:
    """What the model predicts for every value, and where it attends to, in the order of the rows.

    Args:
        earlier: of each row's pairs, the earlier pairs with the same key.

    Raises:
        UserError: the model gives no attention weights.
    """

    def read(output: CausalLMOutput, batch: Batch) -> Iterator[Seen]:
        if not output.attentions or output.attentions[0] is None:
            raise UserError("the model gives no attention weights: in_context measures attention models only")
        for row, place in enumerate(batch.places):
            ids, values = coded[place]
            log_probs = output.logits[row].float().log_softmax(-1)
            right, losses = [], []
            for tokens in values:
                before, wanted = [i - 1 for i in tokens], torch.tensor([ids[i] for i in tokens])
                found = log_probs[before].cpu()
                right.append(bool((found.argmax(-1) == wanted).all()))
                losses.append(-float(found.gather(1, wanted[:, None]).sum()))
            attention = torch.stack([layer[row].float().cpu() for layer in output.attentions])
            firsts = [tokens[0] for tokens in values]
            even = torch.ones_like(attention[:1, :1]).tril()
            even /= even.sum(-1, keepdim=True)
            scores = [induction_scores(weights, firsts, earlier[place]) for weights in (attention, even)]
            yield Seen(right, losses, *scores)

    with eager_attention(model):
        return forward_rows(
            model, [c.ids for c in coded], read, batch_size=batch_size, output_attentions=True, use_cache=False
        )


def induction_scores(attention: torch.Tensor, values: Sequence[int], earlier: Sequence[Sequence[int]]) -> torch.Tensor:
    """Attention paid, where a value is predicted, to the values behind the earlier showings of its key.

    The mean over the pairs whose key was shown before; (layers, H), or empty where there is none. A head that copies
    from the earlier showings has 1.

    Args:
        attention: weights, (layers, H, T, S).
        values: the place of each pair's value (its first token); it is predicted one place before.
        earlier: of each pair, the earlier pairs with the same key.
    """
    scores = [
        attention[:, :, values[pair] - 1, [values[other] for other in others]].sum(-1)
        for pair, others in enumerate(earlier)
        if others
    ]
    return torch.stack(scores).mean(0) if scores else torch.empty(0)


@contextlib.contextmanager
def eager_attention(model: PreTrainedModel) -> Iterator[None]:
    """Inside, the model computes its attention weights one by one and can return them; its own way after it."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _check_pairs(row: Json, number: int) -> None:
    keys, values, text = row.get("keys"), row.get("values"), row["text"]
    if not (isinstance(keys, list) and isinstance(values, list) and 0 < len(keys) == len(values)):
        raise UserError(
            f"row {number} has no lists keys and values of one length: each pair of the text has one of each"
        )
    place = 0
    for word in (str(word) for pair in zip(keys, values) for word in pair):
        place = text.find(word, place)
        if place < 0:
            raise UserError(f"row {number}: the text does not hold its keys and values in turn ({word!r} is missing)")
        place += len(word)
