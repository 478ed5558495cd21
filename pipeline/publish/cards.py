"""Model cards: one template per stage in ``model_cards/``, filled from the run record and the model's assessments."""

import json
import os
import platform
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Template

from pipeline.publish.snippets import scores, snippet
from pipeline.runtime.adapter_kinds import NARLM_PEFT_TYPE
from pipeline.runtime.compat import SAVED_MODELS_RUN_ON
from pipeline.runtime.files import Json, is_local, resource
from pipeline.runtime.lineage import assessments_of, repo_of, walk
from pipeline.worlds.table import is_world

PAPER = "2602.00426"
CODE = "modeling_narlm.py"  # in the folder of every saved NarLM

# Metrics of a run that its model-index lists: those on rows it was not trained on, or at the end of its rollouts.
RESULTS = ("eval_", "held_out_", "last_")


def write_card(
    folder: Path,
    record: Json,
    repo: str | None = None,
    assessments: Sequence[tuple[Path, Json]] | None = None,
) -> Path:
    """Write ``README.md`` from ``model_cards/<stage>.md``, the run record and the model's assessments.

    The card names no local path: a local parent appears by the Hub id it was pushed under, else by its folder's name.

    Args:
        folder: the folder of the weights.
        record: the run record.
        repo: the repository the card goes to, which then names the model; else the folder does.
        assessments: folders and records of the model's assessments; None looks beside ``folder``.

    Returns:
        The card's path.
    """
    name = repo or folder.resolve().name
    facts = facts_of(folder, record, name)
    facts["assessments"] = assessment_tables(assessments_of(folder) if assessments is None else assessments)
    card = ModelCard.from_template(
        metadata_of(folder, record, name),
        template_path=str(resource("model_cards", f"{record['stage']}.md")),
        name=name.split("/")[-1],
        arguments=record["arguments"],
        **{part: _render(f"_{part}.md", facts) for part in ("facts", "reproduce")},
    )
    path = folder / "README.md"
    card.save(path)
    return path


def metadata_of(folder: Path, record: Json, name: str) -> ModelCardData:
    """The card's YAML header: what the Hub indexes a model by."""
    kind = _adapter_config(folder).get("peft_type")
    task = "text-classification" if scores(folder, record) else "text-generation"
    datasets = [source["name"] for source in record["data"]]
    on_hub = sorted({data for data in datasets if _is_on_hub(data)})
    results = [
        EvalResult(
            task_type=task,
            dataset_type=on_hub[-1] if on_hub else "held-out",
            dataset_name=public_name(datasets[-1]) if datasets else "held-out rows",
            metric_type=metric,
            metric_value=value,
        )
        for metric, value in results_of(record).items()
        if metric.startswith(RESULTS)
    ]
    return ModelCardData(
        base_model=base_of(folder, record),
        datasets=on_hub or None,
        library_name={None: "transformers", NARLM_PEFT_TYPE: "narlm"}.get(kind, "peft"),
        license="apache-2.0" if record["stage"] == "pretrain" else None,
        pipeline_tag=task,
        tags=["narlm", record["stage"], "trl", *(["lora"] if kind == "LORA" else []), f"arxiv:{PAPER}"],
        model_name=name.split("/")[-1],
        eval_results=results or None,  # an empty model-index is invalid
    )


def facts_of(folder: Path, record: Json, name: str) -> Json:
    """What the templates of ``model_cards/`` are filled with."""
    processes = f"--num_processes {n} " if (n := record.get("processes", 1)) > 1 else ""
    return {
        "lineage": lineage_of(record)[1],
        "data": _table(
            ["dataset", "split", "rows", "fingerprint"],
            [
                [public_name(s["name"]), s.get("split", ""), s.get("rows", ""), str(s.get("fingerprint", ""))[:12]]
                for s in record["data"]
            ],
        ),
        "prepared": prepared_rows(record),
        "results": _table(["metric", "value"], [[k, f"{v:.4g}"] for k, v in sorted(results_of(record).items())]),
        "configuration": yaml.safe_dump({key: public_value(value) for key, value in record["given"].items()}).strip(),
        "command": f"accelerate launch {processes}pipeline/{record['stage']}.py --config config.yaml",
        "load": snippet(folder, record, name, base_of(folder, record)),
        "code_runs_on": " to ".join(SAVED_MODELS_RUN_ON) if (folder / CODE).is_file() else None,
        "environment": _table(["package", "version"], sorted(record["versions"].items())),
        "hardware": hardware(),
        "seconds": f"{record['seconds']:.0f}",
        "peak_memory": f"{record['peak_memory_bytes'] / 2**30:.2f} GiB",
        "seed": record["seed"],
        "sandbox": record.get("sandbox"),
        "plots": [f"plots/{plot.name}" for plot in sorted((folder / "plots").glob("*.png"))],
    }


def results_of(record: Json) -> dict[str, float]:
    """The run's metrics that say something about the model, not about the time it took."""
    return {
        metric: value
        for metric, value in record["metrics"].items()
        if value is not None and not metric.endswith(("_per_second", "_runtime", "epoch", "num_tokens"))
    }


def assessment_tables(assessments: Sequence[tuple[Path, Json]]) -> dict[str, str]:
    """The figures of each assessment of a model, with their 95% intervals, as a table by the assessment's name."""
    tables = {}
    for folder, record in assessments:
        metrics = {name: value for name, value in record["metrics"].items() if value is not None}
        bounds = {f"{name}_{end}" for name in metrics for end in ("low", "high")} & metrics.keys()
        rows = []
        for name in sorted(metrics.keys() - bounds):
            low, high = metrics.get(f"{name}_low"), metrics.get(f"{name}_high")
            rows.append([name, f"{metrics[name]:.4g}", "" if None in (low, high) else f"[{low:.4g}, {high:.4g}]"])
        if rows:
            tables[folder.name] = _table(["metric", "value", "95% interval"], rows)
    return tables


def base_of(folder: Path, record: Json) -> str | None:
    """Hub id of what a model was made from: of an adapter its base, which is further back than the run's start."""
    base = _adapter_config(folder).get("base_model_name_or_path")
    return base if base and _is_on_hub(base) else lineage_of(record)[0]


def prepared_rows(record: Json) -> list[str]:
    """What of the data was learned, and what was dropped before training, in sentences."""
    lines = [
        f"Learned ({name}): {learned['share']:.0%} of the tokens, {learned['of']}"
        + (f"; {learned['rows_cut']} rows are cut to the longest length." if learned["rows_cut"] else ".")
        for name, learned in record.get("learned", {}).items()
    ]
    for name, causes in record.get("dropped", {}).items():
        lines.append(f"Dropped ({name}): {', '.join(f'{count} rows {cause}' for cause, count in causes.items())}.")
    return lines


def lineage_of(record: Json) -> tuple[str | None, str]:
    """The Hub id a run's weights come from, if there is one, and the chain of runs as a Markdown list."""
    lines, base = [], None
    for run, parent in walk(record, starts_only=True):
        repo = repo_of(parent)
        label = f"[{repo}](https://huggingface.co/{repo})" if repo else f"`{Path(parent['path']).name}`"
        lines.append(f"- {run['stage']} started from {label}")
        base = base or repo
    return base, "\n".join(lines) or "- trained from scratch"


def public_name(name: str) -> str:
    """A dataset's name as a card may show it: a local path by its last part only."""
    return name if is_world(name) or not is_local(name) else Path(name).name


def public_value(value: Any) -> Any:
    """A configuration value as a card may show it: paths by their last part, everything else as it is.

    Also the paths within a text, as in ``math + 0.1 * reward_model(model='/data/rm')``.
    """
    if isinstance(value, str):
        all_of_it, quoted, words = r"(?s)^.+$", r"(?<=['\"])[^'\"]+(?=['\"])", r"[^\s'\"(),;=]+"
        for part in (all_of_it, quoted, words):
            value = re.sub(part, lambda found: _without_folders(found[0]), value)
        return value
    if isinstance(value, dict):
        return {key: public_value(item) for key, item in value.items()}
    if isinstance(value, list):
        return [public_value(item) for item in value]
    return value


def _without_folders(text: str) -> str:
    local = os.path.isabs(text) or text.startswith(("~", "..", "file:")) or os.path.exists(text)
    return (Path(text).name or text) if local else text


def hardware() -> str:
    """The accelerator, or the processor's architecture and core count."""
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}"
    return f"{os.cpu_count()} CPU cores ({platform.machine()})"


def _is_on_hub(name: str) -> bool:
    return not is_world(name) and not is_local(name)


def _adapter_config(folder: Path) -> Json:
    file = folder / "adapter_config.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _render(template: str, facts: Json) -> str:
    """One of the parts that all cards share, filled."""
    return Template(resource("model_cards", template).read_text(encoding="utf-8")).render(facts).strip()


def _table(header: list[str], rows: list[list[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)
