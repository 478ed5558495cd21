"""EleutherAI's lm-evaluation-harness on any model that assess.py loads: adapters too, and without a network.

Tasks are those of the harness or your own YAML files (``include_path``); its figures keep its names
(``exact_match,strict-match``, ``exact_match,flexible-extract``) and get intervals over documents.
"""

import importlib.util
import logging
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.evaluation.registry import Result
from pipeline.objectives.statistics import mean_interval, with_interval
from pipeline.runtime.errors import UserError, did_you_mean
from pipeline.runtime.files import Json

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager


def lm_eval(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    tasks: Sequence[str],
    include_path: str | None = None,
    num_fewshot: int | None = None,
    limit: int | None = None,
    think_end_token: str | None = None,
    as_chat: bool = False,
    system: str | None = None,
    batch_size: int = 16,
    seed: int = 0,
) -> Result:
    """Run tasks of lm_eval: ``<task>/<metric>,<filter>`` per task, group members apart.

    Wilson's interval where every document has 0 or 1, else a bootstrap's; lm_eval's own standard error is in the
    table. Few-shot examples are turns of the chat where prompts are.

    Args:
        tasks: names of tasks or groups.
        include_path: folder of task YAML files.
        num_fewshot: examples per prompt instead of the task's own number.
        limit: documents per task, the first ones.
        think_end_token: the answer is what comes after it.
        as_chat: prompts are turns, written by the chat template.
        system: the system message of the chat.
        batch_size: sequences per batch.
        seed: of examples and samples.

    Raises:
        UserError: lm_eval is not installed, the folder is not there, or a task that is not known or cannot be read.
    """
    manager = _task_manager(tasks, include_path)
    _ = model.config  # what follows needs the model
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    subject = HFLM(
        pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=batch_size, think_end_token=think_end_token
    )
    try:
        found = simple_evaluate(
            model=subject, tasks=list(tasks), task_manager=manager, num_fewshot=num_fewshot, limit=limit,
            apply_chat_template=as_chat, system_instruction=system, fewshot_as_multiturn=as_chat, log_samples=True,
            bootstrap_iters=0, random_seed=seed, numpy_random_seed=seed, torch_random_seed=seed,
            fewshot_random_seed=seed,
        )  # fmt: skip
    except (ValueError, KeyError, FileNotFoundError) as error:
        raise UserError(f"lm_eval: {', '.join(tasks)} cannot be run: {error}") from error
    return _result(found)


def check_installed() -> None:
    """Raises UserError where the package is missing."""
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError("lm_eval is not installed: pip install 'narlm[eval]'")


def _task_manager(tasks: Sequence[str], include_path: str | None) -> "TaskManager":
    """The harness's index of tasks, once all that are named are in it.

    Raises:
        UserError: see ``lm_eval``.
    """
    check_installed()
    if isinstance(tasks, str) or not tasks:
        raise UserError(f"lm_eval: tasks is {tasks!r}: give a list of one task or more")
    if include_path is not None and not Path(include_path).is_dir():
        raise UserError(f"lm_eval_include_path: {include_path} is no folder; give the one with the task YAML files")
    logging.getLogger("lm_eval").setLevel(logging.WARNING)
    from lm_eval.tasks import TaskManager

    if include_path is not None:  # the harness's own index has thousands of files
        manager = TaskManager(include_path=include_path, include_defaults=False)
        if set(tasks) <= set(manager.all_tasks):
            return manager
    manager = TaskManager(include_path=include_path)
    known = [*manager.all_tasks]
    for name in tasks:
        if name not in known:
            near = did_you_mean(name, known, f"{include_path or 'lm_eval'} has {len(known)} tasks")
            raise UserError(f"lm_eval: there is no task {name!r}{near}")
    return manager


def _result(found: Json) -> Result:
    """Metrics, table and files of the harness's results."""
    result = Result({})
    table: list[Json] = []
    for task, documents in found["samples"].items():
        values = found["results"][task]
        result.files[f"lm_eval_{task}.jsonl"] = [_document(each) for each in documents]
        result.data.append(
            {"name": f"lm_eval/{task}", "rows": len({d["doc_id"] for d in documents}), "role": "evaluation",
             "split": str(found["configs"][task].get("test_split") or found["configs"][task].get("validation_split")),
             "fingerprint": str(documents[0].get("task_hash", found["versions"].get(task)))}
        )  # fmt: skip
        for key, value in values.items():
            metric, _, name = key.partition(",")
            if not name or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            scores = [float(d[metric]) for d in documents if d.get("filter") == name and _is_number(d.get(metric))]
            error = values.get(f"{metric}_stderr,{name}")
            figure = {key: float(value)}
            if scores and abs(fmean(scores) - value) < 1e-9:  # not of a metric that is no mean over documents
                figure = with_interval(key, float(value), mean_interval(scores))
            result.metrics |= {f"{task}/{part}": number for part, number in figure.items()}
            low, high = (figure.get(f"{key}_{end}") for end in ("low", "high"))
            line = {"task": task, "version": found["versions"].get(task), "n-shot": found["n-shot"].get(task)}
            line |= {"filter": name, "metric": metric, "value": value, "value_low": low, "value_high": high}
            table.append(line | {"stderr": error if _is_number(error) else None, "n": len(scores) or None})
    result.tables["lm_eval"] = table
    return result


def _is_number(value: object) -> bool:
    return isinstance(value, int | float)


def _document(sample: Json) -> Json:
    """What is kept of one document under one filter."""
    names = ("doc_id", "filter", "target", "resps", "filtered_resps", *sample.get("metrics", ()))
    return {name: sample[name] for name in names if name in sample}
