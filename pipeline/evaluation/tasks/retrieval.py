"""Answers from retrieved passages: how often the evidence is found, how well it is read, and what misleads the reader.

    Acc_RAG(m) = recall@m a(m) + (1 - recall@m) c(m)

``recall@m``: the evidence is among the m passages found. ``a(m)``: accuracy when it is in the context, ``c(m)``: when
it is not. Recall and accuracy are measured on every other row; a and c on the rows in between, all of them in both
conditions (evidence that was missed takes the place at which another row's was found; what was found is taken out), so
that the prediction could fail: it holds as far as what a search finds is as easy to read as what it misses.

Rows: ``prompt``, ``answer``; ``evidence`` (ids of the documents that answer, all of them needed) or
``reference_contexts`` (their texts); without either there is no recall. ``false_evidence`` with ``false_answer`` and
``order`` with ``order_answer``, texts that a poisoned or hostile document would have, make the cases. RAGAS's rows
(``user_input``, ``reference``, ``reference_contexts``, ``retrieved_contexts``) are read as they are, and
``ragas_file`` is written: the same names with ``response``, for RAGAS's own metrics.

Figures per number of passages m: ``accuracy@m``, ``hall@m`` (wrong and no abstention), and where evidence is known
``recall@m``, ``a@m``, ``c@m``, ``predicted@m``, ``gap@m`` (measured - predicted). ``best_m`` has the highest
accuracy. Greedy decoding.
"""

import functools
from collections.abc import Sequence
from statistics import fmean

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.data.sources import Source, raw_rows
from pipeline.evaluation.passages import Found, Reader, Setting, cases, share
from pipeline.evaluation.registry import Result
from pipeline.evaluation.rows import read_rows
from pipeline.inference.retrieval.arguments import RetrievalArguments, check_arguments
from pipeline.inference.retrieval.context import figures
from pipeline.inference.retrieval.dense import Dense, Encoder
from pipeline.inference.retrieval.index import Index, IndexOptions, Passage, open_index
from pipeline.rewards.resolve import resolve
from pipeline.runtime.errors import UserError
from pipeline.runtime.files import Json
from pipeline.runtime.messages import as_turns, user_text

RAGAS = {"user_input": "prompt", "reference": "answer"}
SELF = "self"  # as encoder: the model that is assessed


def retrieval(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    dataset: str,
    max_new_tokens: int,
    documents: str | None = None,
    passages: Sequence[int] = (1, 2, 3, 5, 8),
    case_passages: int = 3,
    hops: int = 1,
    retrievers: Sequence[str] = ("bm25",),
    encoder: str | None = None,
    query_prefix: str = "",
    passage_prefix: str = "",
    reward: str = "exact",
    passage_template: str = "{text}\n",
    context_template: str = "{passages}\n{prompt}",
    ragas_file: str = "ragas.jsonl",
    dataset_map: dict[str, str] | str | None = None,
    batch_size: int = 256,
    **data: object,
) -> Result:
    """Closed and open book, the curve over the number of passages with its decomposition, and misleading passages.

    Args:
        dataset: the questions.
        max_new_tokens: longest answer in tokens.
        documents: an index folder, or documents to index; without it the rows' ``retrieved_contexts`` are used.
        passages: the numbers of passages.
        case_passages: passages of the cases, of ``open_book`` and of ``ragas_file``.
        hops: 2 for a second search by a reformulated query.
        retrievers: of documents; an index folder has its own. Several are fused, and compared in a curve.
        encoder: model of the dense retriever; ``self`` is the model that is assessed.
        query_prefix: in front of a query, for the encoder.
        passage_prefix: in front of a passage, for the encoder.
        reward: what is right.
        passage_template: how a passage is written.
        context_template: how passages and the question become one message.
        ragas_file: rows in RAGAS's names, beside ``samples.jsonl``.
        dataset_map: renames columns.
        batch_size: sequences decoded together.
        data: which rows, see ``rows.read_rows``.
    """
    written = RetrievalArguments(documents, max((*passages, case_passages)), hops, passage_template, context_template)
    check_arguments(written)
    if not passages or min(*passages, case_passages, 1) < 1:
        raise UserError("passages: give one or several numbers of passages, each 1 or more")
    rows, source, ragas = _questions(dataset, dataset_map, data)
    verifier = resolve(reward, rows=rows)
    options = IndexOptions(list(retrievers), encoder, query_prefix, passage_prefix)
    index, sources = _opened(documents, options, rows)
    evidence = _evidence(rows, index)
    rows = [as_turns(row, "prompt", mark=False) for row in rows] if ragas and tokenizer.chat_template else rows
    index = _with_own_encoder(index, model, tokenizer)
    found = functools.cache(functools.partial(_search, index, rows, hops))
    setting = Setting(rows, evidence, found, Reader(model, tokenizer, written, verifier, max_new_tokens, batch_size))
    metrics, curves, tables = _measured(setting, index, sorted(set(passages)), case_passages)
    final = setting.natural(case_passages)
    return Result(metrics, final.samples(), [source, *sources], {ragas_file: final.ragas()}, curves, tables)


DRAWN = ("passages", "accuracy", "predicted", "a", "c", "recall", "hall")
Named = dict[str, list[Json]]  # curves or tables


def _measured(
    setting: Setting, index: Index | None, passages: Sequence[int], case_passages: int
) -> tuple[dict[str, float], Named, Named]:
    """Figures, curves and tables of all that is asked: the books, the cases, and each number of passages."""
    metrics, tables = _books(setting, case_passages)
    points = [_point(setting, m) for m in passages]
    metrics |= {f"{name}@{p['passages']}": v for p in points for name, v in _named(p).items()}
    metrics["best_m"] = max(points, key=lambda point: point["accuracy"])["passages"]
    curves = {"accuracy by passages": [{k: v for k, v in point.items() if k in DRAWN} for point in points]}
    if index is not None and any(setting.evidence):
        curves["recall by passages"] = _recall_curve(index, setting.rows, setting.evidence, passages)
    metrics |= figures(setting.natural(case_passages).augmented)
    return metrics, curves, tables | {"by passages": points}


def _point(setting: Setting, m: int) -> Json:
    """Everything about m passages: one row of the table, one point of the curves."""
    measuring, calibrating = setting.halves()
    answers = setting.natural(m)
    point = {"passages": m, "n": len(measuring), **share("accuracy", answers.scores()), "hall": answers.hall()}
    if not calibrating:
        return point
    recall = fmean(setting.has(i, m) for i in measuring)
    a = setting.measured(calibrating, lambda i: setting.given(i, m)).scores()
    c = setting.measured(calibrating, lambda i: setting.withheld(i, m)).scores()
    predicted = recall * fmean(a) + (1 - recall) * fmean(c)
    point |= share("recall", [float(setting.has(i, m)) for i in measuring]) | share("a", a) | share("c", c)
    return point | {"n_a_c": len(calibrating), "predicted": predicted, "gap": point["accuracy"] - predicted}


def _books(setting: Setting, m: int) -> tuple[dict[str, float], dict[str, list[Json]]]:
    """Figures without passages and with m, and the table of the cases."""
    measuring, calibrating = setting.halves()
    closed = setting.measured(measuring, lambda i: [])
    opened = setting.natural(m)
    metrics = share("closed_book", closed.scores()) | share("open_book", opened.scores())
    metrics |= {"hall_closed_book": closed.hall(), "hall_open_book": opened.hall(), "prompts": len(measuring)}
    if not calibrating:
        return metrics, {}
    found = cases(setting, calibrating, m)
    for case in found:
        for name in ("right", "follows"):
            if name in case:
                metrics[f"{case['case']}/{name}"] = case[name]
    return metrics, {"cases": found}


def _named(point: Json) -> Json:
    """A point's figures for the run record; intervals of the accuracy only, the table has the others."""
    kept = ("accuracy", "accuracy_low", "accuracy_high", "hall", "recall", "a", "c", "predicted", "gap")
    return {name: point[name] for name in kept if name in point}


def _recall_curve(index: Index, rows: Sequence[Json], evidence: Found, passages: Sequence[int]) -> list[Json]:
    """``recall@m`` of each retriever alone and of their fusion, over all rows with evidence."""
    known = [i for i, each in enumerate(evidence) if each]
    queries = [user_text(rows[i]["prompt"]) for i in known]
    alone = {name: Index(index.chunks, {name: r}, index.options) for name, r in index.retrievers.items()}
    searched = alone if len(alone) == 1 else {**alone, "fused": index}
    found = {name: each.search(queries, max(passages)) for name, each in searched.items()}
    needed = [{passage.id for passage in evidence[i]} for i in known]

    def recall(name: str, m: int) -> float:
        return fmean(ids <= {p.id for p in hits[:m]} for ids, hits in zip(needed, found[name]))

    return [{"passages": m, **{name: recall(name, m) for name in found}} for m in passages]


# --- rows and index --------------------------------------------------------------------------------------------------


def _questions(
    dataset: str, dataset_map: dict[str, str] | str | None, data: dict[str, object]
) -> tuple[list[Json], Json, bool]:
    """The rows, their entry for the run record, and whether they came in RAGAS's names."""
    first = next(raw_rows(Source(name=dataset, split=str(data.get("split", "test")))), None)
    row = first[2] if first else None
    ragas = isinstance(row, dict) and "user_input" in row and "prompt" not in row and not dataset_map
    rows, source = read_rows(dataset, kind="prompt", dataset_map=RAGAS if ragas else dataset_map, **data)
    return rows, source, ragas


def _opened(documents: str | None, options: IndexOptions, rows: Sequence[Json]) -> tuple[Index | None, list[Json]]:
    """The index and its entry for the run record; None where the rows bring their passages."""
    if documents is not None:
        if "dense" in options.retrievers and options.encoder is None:
            raise UserError("encoder is missing: name a model for the dense retriever, or self")
        now = options
        if options.encoder == SELF:  # the model is not there yet: its vectors follow
            others = [name for name in options.retrievers if name != "dense"]
            now = IndexOptions(others or ["bm25"], SELF, options.query_prefix, options.passage_prefix)
        index, record = open_index(documents, now)
        if options.encoder == SELF:
            index.options = options
        return index, [record]
    if any(not isinstance(row.get("retrieved_contexts"), list) for row in rows):
        raise UserError("documents is missing: name an index or documents, or give rows with retrieved_contexts")
    return None, []


def _with_own_encoder(index: Index | None, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Index | None:
    """The index with vectors of the model that is assessed, where its options say so."""
    if index is None or index.options.encoder != SELF:
        return index
    encoder = Encoder(model, tokenizer, index.options.query_prefix, index.options.passage_prefix)
    dense = Dense.of([chunk.text for chunk in index.chunks], encoder)
    made = {**index.retrievers, "dense": dense}
    return Index(index.chunks, {name: made[name] for name in index.options.retrievers}, index.options)


def _search(index: Index | None, rows: Sequence[Json], hops: int, count: int) -> Found:
    """``count`` passages for each row, by search or, without an index, those that it brings."""
    if index is not None:
        return index.search([user_text(row["prompt"]) for row in rows], count, hops)
    return [
        [Passage(str(number), text, 0.0) for number, text in enumerate(row["retrieved_contexts"][:count], 1)]
        for row in rows
    ]


def _evidence(rows: Sequence[Json], index: Index | None) -> Found:
    """The passages that hold the answer of each row, by ``evidence`` (ids) or ``reference_contexts`` (texts).

    Raises:
        UserError: an id that no document has.
    """
    if index is None:
        return [[] for _ in rows]
    by_document: dict[str, Passage] = {}
    by_text: dict[str, Passage] = {}
    for chunk in index.chunks:
        passage = Passage(chunk.id, chunk.text, 0.0)
        for known in (chunk.id, chunk.document):
            by_document.setdefault(known, passage)
        by_text.setdefault(chunk.text.strip(), passage)
    found = []
    for number, row in enumerate(rows, 1):
        ids, texts = row.get("evidence") or [], row.get("reference_contexts") or []
        if missing := [name for name in ids if name not in by_document]:
            raise UserError(f"row {number}: evidence {missing[0]!r} is the id of no document")
        texts = [texts] if isinstance(texts, str) else texts
        known = [by_document[name] for name in ids] or [by_text.get(text.strip()) for text in texts]
        found.append([] if None in known else known)
    return found
