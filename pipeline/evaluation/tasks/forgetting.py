"""What a sequence of corpora left of what was known: the matrix R, its summaries, gradient overlap and drift.

    R[i][j] = score on corpus j after learning corpus i              (i = 0: before the first, j = 0: what was known)

Everything here is by teacher forcing, one forward pass per row: a completion counts as right if each of its tokens is
the likeliest given those before it, which is the case exactly when greedy decoding writes it.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from pipeline.inference.likelihood import last_hidden_states, predict_tokens
from pipeline.model.batching import evaluating, pad_right, padded_batches
from pipeline.model.dialogue_tokens import Coded
from pipeline.model.tokens import encode_answer, encode_row
from pipeline.objectives.regularisers import hidden_distillation, span_share
from pipeline.runtime.files import Json, write_json

Scored = Coded  # token ids, and which of them count


# ---------------------------------------------------------------------- one model, one corpus


@torch.no_grad()
def score(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Mapping],
    *,
    batch_size: int = 64,
    max_length: int | None = None,
    through: Callable[..., list] | None = None,
) -> dict:
    """``loss`` and ``accuracy`` of a model on rows of any kind.

    ``loss`` is in nats per token that counts (of a pair: of the chosen answer). ``accuracy`` is, of prompt +
    completion and messages, the share of rows whose every such token is the likeliest; of text, the share of such
    tokens; of preference pairs, the share whose chosen answer has the higher log-likelihood, and ``margin`` the mean
    difference. ``through`` runs the model in place of `forward`, e.g. every row under the adapter of its corpus.
    """
    rows, through = list(rows), through or forward
    if rows and "chosen" in rows[0]:
        return _score_pairs(model, tokenizer, rows, batch_size, max_length, through)
    coded = [_cut(encode_row(tokenizer, dict(row)), max_length) for row in rows]
    found = [result for result in through(model, coded, batch_size) if len(result[0])]
    tokens = sum(len(logs) for logs, _ in found)
    as_rows = "text" not in rows[0]
    right = sum(float(hits.all()) for _, hits in found) if as_rows else sum(float(hits.sum()) for _, hits in found)
    return {
        "loss": -sum(float(logs.sum()) for logs, _ in found) / max(tokens, 1),
        "accuracy": right / max(len(found) if as_rows else tokens, 1),
    }


def _score_pairs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: list,
    batch_size: int,
    max_length: int | None,
    through: Callable[..., list],
) -> dict:
    coded = []
    for row in rows:
        for side in ("chosen", "rejected"):
            prompt, answer = encode_answer(tokenizer, row["prompt"], row[side])
            coded.append(_cut((prompt + answer, [False] * len(prompt) + [True] * len(answer)), max_length))
    found = through(model, coded, batch_size)
    totals = [float(logs.sum()) for logs, _ in found]
    margins = [chosen - rejected for chosen, rejected in zip(totals[::2], totals[1::2], strict=True)]
    tokens = sum(len(logs) for logs, _ in found[::2])
    return {
        "loss": -sum(totals[::2]) / max(tokens, 1),
        "accuracy": sum((margin > 0) + 0.5 * (margin == 0) for margin in margins) / len(margins),
        "margin": fmean(margins),
    }


def _cut(coded: Scored, max_length: int | None) -> Scored:
    return coded[0][:max_length], coded[1][:max_length]


def prompt_ids(coded: Scored) -> list[int]:
    """The tokens before the first that counts: what a row asks."""
    ids, counted = coded
    return ids[: counted.index(True)] if True in counted else ids


def forward(
    model: PreTrainedModel, coded: Sequence[Scored], batch_size: int
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Of every row the log-likelihoods of the tokens that count, and whether each is the likeliest."""
    predicted = predict_tokens(model, [ids for ids, _ in coded], batch_size=batch_size)
    counted = (torch.tensor(marks[1:], dtype=torch.bool) for _, marks in coded)
    return [(found.log_probs[mask].double(), found.likeliest[mask]) for found, mask in zip(predicted, counted)]


def supervised(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[Mapping], max_length: int | None = None
) -> list[Scored]:
    """Rows of any kind as ids with the tokens that count; of a preference pair the chosen answer."""
    plain = [{**row, "completion": row["chosen"]} if "chosen" in row else dict(row) for row in rows]
    return [_cut(encode_row(tokenizer, row), max_length) for row in plain]


# ---------------------------------------------------------------------- the matrix


def summarise(matrix: Sequence[Sequence[float]], first: int = 1) -> dict[str, float]:
    """The figures of a matrix R whose rows are the model before (0) and after corpora 1..K.

    Args:
        matrix: R, higher is better (negate losses); K + 1 rows.
        first: what its first column is: 0 where old knowledge is evaluated too, 1 where it is the first corpus.

    Returns:
        ``average`` of the last row; ``plasticity``, the mean R[j][j] over corpora (what was learned when its turn
        came); and where anything could be forgotten ``backward_transfer`` (mean R[K][j] - R[j][j] over what was
        learned before K; old knowledge counts as learned at 0), ``forgetting`` (mean of the best score so far minus
        the last) and ``forward_transfer`` (mean R[j-1][j] - R[0][j] over corpora 2..K).
    """
    last = len(matrix) - 1
    learned = {j: column for column, j in enumerate(range(first, last + 1))}
    corpora = [j for j in learned if j >= 1]
    earlier = [j for j in learned if j < last]
    final = [matrix[last][column] for column in learned.values()]
    figures = {
        "average": fmean(final),
        "plasticity": fmean([matrix[j][learned[j]] for j in corpora]),
    }
    if earlier:
        gained = [matrix[last][learned[j]] - matrix[j][learned[j]] for j in earlier]
        best = [max(matrix[i][learned[j]] for i in range(j, last)) for j in earlier]
        figures["backward_transfer"] = fmean(gained)
        figures["forgetting"] = fmean([top - matrix[last][learned[j]] for top, j in zip(best, earlier, strict=True)])
    if later := [j for j in corpora if j >= 2]:
        figures["forward_transfer"] = fmean([matrix[j - 1][learned[j]] - matrix[0][learned[j]] for j in later])
    return figures


class Matrix:
    """R of losses and accuracies, kept in ``forgetting.json`` of a run's folder from one row to the next.

    Args:
        folder: the run's output folder; rows that are there already are kept.
        names: the columns' names.
        columns: the held-out rows of every column.
        first: as in `summarise`.
        score: rows -> figures, of the model at hand; see ``forgetting.score``.
    """

    def __init__(self, folder: Path, names: Sequence[str], columns: Sequence[Sequence[Mapping]], first: int):
        self.path, self.columns, self.first = Path(folder) / "forgetting.json", columns, first
        self.content: Json = {"names": list(names), "first": first, "rows": []}
        if self.path.is_file():
            self.content = json.loads(self.path.read_text(encoding="utf-8"))

    def add(
        self, number: int, scorer: Callable[[Sequence[Mapping]], dict], write: bool = True, **more: object
    ) -> None:
        """Measure row ``number`` on every column; ``more`` is kept beside it (drift, overlap, retained figures)."""
        if number < len(self.content["rows"]) and number == 0:
            return  # the start does not change
        row = {"scores": [scorer(column) for column in self.columns], **more}
        self.content["rows"] = [*self.content["rows"][:number], row]
        if write:
            write_json(self.path, self.content)

    def table(self, name: str) -> list[list[float]]:
        """R of one figure, e.g. ``accuracy``."""
        return [[cell[name] for cell in row["scores"]] for row in self.content["rows"]]

    def rows(self) -> list[Json]:
        """R as a table: ``after`` how many corpora, ``corpus``, and the scores on it."""
        names = self.content["names"]
        return [
            {"after": number, "corpus": name, **cell}
            for number, row in enumerate(self.content["rows"])
            for name, cell in zip(names, row["scores"], strict=True)
        ]

    def paths(self) -> list[Json]:
        """A table of what learning a corpus did to those before it: ``path_interference`` (see `WatchPath`) beside the
        ``rise`` of the held-out loss, both in nats per token.
        """
        names, rows = self.content["names"], self.content["rows"]
        return [
            {
                "after": number,
                "corpus": names[j],
                "path_interference": value,
                "rise": row["scores"][j]["loss"] - rows[number - 1]["scores"][j]["loss"],
            }
            for number, row in enumerate(rows)
            for j, value in enumerate(row.get("path_interference", ()))
        ]

    def metrics(self) -> dict[str, float]:
        """Flat metrics: the summaries of accuracy and, with ``_loss`` behind the name, of the loss in nats."""
        figures = summarise(self.table("accuracy"), self.first)
        losses = summarise([[-value for value in row] for row in self.table("loss")], self.first)
        signs = {"average": -1, "plasticity": -1}
        figures |= {f"{name}_loss": signs.get(name, 1) * value for name, value in losses.items()}
        for path in self.paths():
            figures[f"after_{path['after']}/{path['corpus']}/path_interference"] = path["path_interference"]
        rows = self.content["rows"]
        for i, row in enumerate(rows):
            for name, cell in zip(self.content["names"], row["scores"], strict=True):
                figures |= {f"after_{i}/{name}/{key}": value for key, value in cell.items()}
            figures |= {f"after_{i}/{key}": value for key, value in row.items() if isinstance(value, float)}
            figures |= {f"after_{i}/{key}": value for key, value in row.get("retained", {}).items()}
        return figures


# ---------------------------------------------------------------------- why: gradients and hidden states


def gradient(
    model: PreTrainedModel, coded: Sequence[Scored], parameters: Sequence[torch.Tensor], batch_size: int = 64
) -> torch.Tensor:
    """Gradient of the mean next-token loss over the tokens that count, flat, (P,); leaves ``.grad`` alone."""
    tokens = sum(sum(marks[1:]) for _, marks in coded)
    total = [torch.zeros_like(parameter) for parameter in parameters]
    for batch in padded_batches([ids for ids, _ in coded], batch_size, parameters[0].device):
        counted, _ = pad_right([coded[place][1] for place in batch.places], batch.ids.device)
        logits = model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False).logits[:, :-1].float()
        logs = logits.log_softmax(-1).gather(-1, batch.ids[:, 1:, None])[..., 0]
        loss = -(logs * counted[:, 1:]).sum() / max(tokens, 1)
        parts = torch.autograd.grad(loss, parameters, allow_unused=True)
        total = [sum_ if part is None else sum_ + part for sum_, part in zip(total, parts, strict=True)]
    return torch.cat([part.detach().flatten() for part in total])


def path_interference(points: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor]) -> float:
    """`sum_t <(g_t + g_{t+1}) / 2, theta_{t+1} - theta_t>`: the rise of an old loss along a path, step by step, in
    nats.

    By construction the sum is the rise of the loss, up to third order in the steps (exact where the loss is
    quadratic): unlike the overlap of gradients it has a sign, and it counts what happens after the first step, where
    the old gradients, at a minimum, are 0.

    Args:
        points: the trained parameters at successive times, (P,) each.
        gradients: of the old loss at these points (`gradient`), (P,) each.
    """
    total = 0.0
    for before, after, first, last in zip(points, points[1:], gradients, gradients[1:]):
        total += float(((first + last) / 2).double() @ (after - before).double())
    return total


class WatchOverlap(TrainerCallback):
    """Logs along training which share of the new corpus's gradient lies in the span of the old corpora's gradients.

    ``gradient_overlap`` in the log: |P g|^2 / |g|^2 at the current parameters, over the trainable ones. Nothing random
    is drawn and no gradient is left behind, so training is the same with and without it.

    Args:
        new: rows of the corpus that is learned, from `supervised`.
        old: the same of every earlier corpus.
        times: how often in one corpus.
    """

    def __init__(self, new: Sequence[Scored], old: Sequence[Sequence[Scored]], times: int = 2):
        self.new, self.old, self.times = new, old, times
        self.points: list[float] = []

    def on_step_end(self, args, state, control, model=None, **kwargs) -> None:
        """Measure at the first step and at every ``1 / times`` of the way."""
        every = max(1, state.max_steps // self.times)
        if not self.old or (state.global_step - 1) % every:
            return
        parameters = [p for p in model.parameters() if p.requires_grad]
        with evaluating(model):
            old = [gradient(model, rows, parameters) for rows in self.old]
            share = span_share(gradient(model, self.new, parameters), old)
        self.points.append(share)
        state.log_history.append({"step": state.global_step, "epoch": state.epoch, "gradient_overlap": share})

    @property
    def mean(self) -> float:
        """The mean over the points measured; NaN where there is none."""
        return fmean(self.points) if self.points else float("nan")


class WatchPath(TrainerCallback):
    """Adds up along training what the path of the parameters does to the loss of each earlier corpus.

    By `path_interference` on the trained parameters, at the start, at the end and at ``times`` - 1 places between. The
    fewer the places, the more it differs from the rise of the loss. Nothing random is drawn and no gradient is left
    behind. A training that resumes lacks the beginning of its path, so there nothing is measured.

    Args:
        old: rows of every earlier corpus, from `supervised`.
        times: number of pieces of the path.

    Attributes:
        rises: in nats per token, one of each earlier corpus; empty where nothing was measured.
    """

    def __init__(self, old: Sequence[Sequence[Scored]], times: int = 8):
        self.old, self.times = old, times
        self.rises: list[float] = []
        self._last: tuple[torch.Tensor, list[torch.Tensor]] | None = None

    def on_train_begin(self, args, state, control, model=None, **kwargs) -> None:
        """The first place of the path."""
        if self.old and not state.global_step:
            self.rises = [0.0] * len(self.old)
            self._add(model)

    def on_step_end(self, args, state, control, model=None, **kwargs) -> None:
        """A further place at every ``1 / times`` of the way."""
        if self._last and state.global_step % max(1, state.max_steps // self.times) == 0:
            self._add(model)

    def on_train_end(self, args, state, control, model=None, **kwargs) -> None:
        """The last place of the path."""
        if self._last:
            self._add(model)
            self._last = None

    def _add(self, model: PreTrainedModel) -> None:
        parameters = [p for p in model.parameters() if p.requires_grad]
        point = torch.cat([p.detach().flatten().cpu() for p in parameters])
        with evaluating(model):
            gradients = [gradient(model, rows, parameters).cpu() for rows in self.old]
        if self._last:
            before, first = self._last
            for i, last in enumerate(gradients):
                self.rises[i] += path_interference([before, point], [first[i], last])
        self._last = point, gradients


def hidden_states(model: PreTrainedModel, coded: Sequence[Scored], batch_size: int = 64) -> list[torch.Tensor]:
    """Last hidden states F_theta(E) of every row, (T, D) each, on the CPU."""
    return last_hidden_states(model, [ids for ids, _ in coded], batch_size=batch_size)


def drift(now: Sequence[torch.Tensor], before: Sequence[torch.Tensor]) -> float:
    """``E |F_theta(E) - F_0(E)|^2 / E |F_0(E)|^2`` over the tokens of the same rows."""
    new, old = torch.cat(list(now))[None], torch.cat(list(before))[None]
    return float(hidden_distillation(new, old, torch.ones(new.shape[:2])))
