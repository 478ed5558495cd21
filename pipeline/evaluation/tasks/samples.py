"""Completions to look at: the report shows the same prompts after every stage side by side."""

from collections.abc import Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.evaluation.completions import complete, length_figures, sample_rows
from pipeline.evaluation.registry import Result
from pipeline.evaluation.rows import read_rows
from pipeline.inference.filters import check_options
from pipeline.model.chat import as_noted
from pipeline.runtime.errors import UserError
from pipeline.runtime.messages import Turn


def samples(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    prompts: Sequence[Turn] | None = None,
    dataset: str | None = None,
    max_new_tokens: int,
    n: int = 1,
    temperature: float = 0.0,
    top_p: float = 1.0,
    template: str | None = None,
    stop: Sequence[str] = (),
    as_chat: bool = False,
    system: str | None = None,
    batch_size: int = 256,
    seed: int = 0,
    **data: object,
) -> Result:
    """Completions of given prompts, or of a dataset's, without a score.

    Args:
        prompts: strings or message lists; or name a dataset instead.
        dataset: see ``rows.read_rows``, as for its further options.
        max_new_tokens: longest completion in tokens.
        n: samples per prompt.
        temperature: 0 for greedy.
        top_p: nucleus of the samples.
        template: as in ``accuracy``.
        stop: a completion is shown up to the first of these strings.
        as_chat: a string among the prompts is a user's message, not plain text.
        system: a message for the dialogues that have none.
        batch_size: sequences decoded together.
        seed: random seed of the samples.
        data: which rows of the dataset.

    Raises:
        UserError: neither or both of prompts and dataset, or an option out of range.
    """
    if (prompts is None) == (dataset is None):
        raise UserError("give either prompts or a dataset")
    check_options(n=n, max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, batch_size=batch_size)
    sources = []
    if dataset is not None:
        rows, source = read_rows(dataset, kind="prompt", as_chat=as_chat, system=system, **data)
        sources.append(source)
    else:
        rows = as_noted([{"prompt": p} for p in prompts], "prompt", {"as_chat": as_chat, "system": system})
    drawn = complete(
        model, tokenizer, rows, template=template, stop=stop, n=n, max_new_tokens=max_new_tokens,
        temperature=temperature, top_p=top_p, batch_size=batch_size, seed=seed,
    )  # fmt: skip
    return Result(length_figures(drawn), sample_rows(rows, drawn), sources)
