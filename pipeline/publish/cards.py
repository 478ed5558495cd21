"""Model cards: one template a stage in ``model_cards/``, filled from the run record and from nothing else."""

import json
import os
import platform
import re
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Template

from pipeline.publish.snippets import OWN, scores, snippet
from pipeline.runtime.compat import SAVED_MODELS_RUN_ON
from pipeline.runtime.files import resource
from pipeline.runtime.record import read_record

PAPER = "2602.00426"
CODE = "modeling_narlm.py"  # in the folder of every saved NarLM

# Metrics of a run that its model-index states: those on rows it was not trained on, or at the end of its rollouts.
RESULTS = ("eval_", "held_out_", "last_")


def write_card(folder: Path, record: dict[str, Any], repo: str | None = None) -> Path:
    """Write ``README.md`` from ``model_cards/<stage>.md`` and the run record; returns its path.

    The card names no local path: a local parent appears by the Hub id it was pushed under, else by its folder's name.

    Args:
        folder: the folder of the weights.
        record: the run record.
        repo: the repository the card goes to, which then names the model; else the folder does.
    """
    base, lineage = lineage_of(record)
    datasets = [source["name"] for source in record["data"]]
    results = {
        metric: value
        for metric, value in record["metrics"].items()
        if value is not None and not metric.endswith(("_per_second", "_runtime", "epoch", "num_tokens"))
    }
    name = repo or folder.resolve().name
    file = folder / "adapter_config.json"
    adapter = json.loads(file.read_text()) if file.is_file() else {}
    kind = adapter.get("peft_type")
    # What an adapter is laid on is further back than the adapter that its run started from.
    found = adapter.get("base_model_name_or_path")
    base = found if found and _is_hub_id(found) else base
    task = "text-classification" if scores(folder, record) else "text-generation"
    hub_data = sorted({data for data in datasets if _is_hub_id(data)})
    card_data = ModelCardData(
        base_model=base,
        datasets=hub_data or None,
        library_name={None: "transformers", OWN: "narlm"}.get(kind, "peft"),
        license="apache-2.0" if record["stage"] == "pretrain" else None,
        pipeline_tag=task,
        tags=["narlm", record["stage"], "trl", *(["lora"] if kind == "LORA" else []), f"arxiv:{PAPER}"],
        model_name=name.split("/")[-1],
        eval_results=[
            EvalResult(
                task_type=task,
                dataset_type=hub_data[-1] if hub_data else "held-out",
                dataset_name=public_name(datasets[-1]) if datasets else "held-out rows",
                metric_type=metric,
                metric_value=value,
            )
            for metric, value in results.items()
            if metric.startswith(RESULTS)
        ]
        or None,  # an empty model-index is invalid
    )
    processes = f"--num_processes {n} " if (n := record.get("processes", 1)) > 1 else ""
    facts = {
        "lineage": lineage,
        "data": _table(
            ["dataset", "split", "rows", "fingerprint"],
            [
                [public_name(s["name"]), s.get("split", ""), s.get("rows", ""), str(s.get("fingerprint", ""))[:12]]
                for s in record["data"]
            ],
        ),
        "prepared": prepared_rows(record),
        "results": _table(["metric", "value"], [[k, f"{v:.4g}"] for k, v in sorted(results.items())]),
        "configuration": yaml.safe_dump({key: public_value(value) for key, value in record["given"].items()}).strip(),
        "command": f"accelerate launch {processes}pipeline/{record['stage']}.py --config config.yaml",
        "load": snippet(folder, record, name, base),
        "code_runs_on": " to ".join(SAVED_MODELS_RUN_ON) if (folder / CODE).is_file() else None,
        "environment": _table(["package", "version"], sorted(record["versions"].items())),
        "hardware": hardware(),
        "seconds": f"{record['seconds']:.0f}",
        "peak_memory": f"{record['peak_memory_bytes'] / 2**30:.2f} GiB",
        "seed": record["seed"],
        "sandbox": record.get("sandbox"),
        "plots": [f"plots/{plot.name}" for plot in sorted((folder / "plots").glob("*.png"))],
    }
    card = ModelCard.from_template(
        card_data,
        template_path=str(resource("model_cards", f"{record['stage']}.md")),
        name=name.split("/")[-1],
        arguments=record["arguments"],
        **{part: _render(f"_{part}.md", facts) for part in ("facts", "reproduce")},
    )
    path = folder / "README.md"
    card.save(path)
    return path


def prepared_rows(record: dict[str, Any]) -> list[str]:
    """What of the data was learned, and what was dropped before training, in sentences."""
    lines = [
        f"Learned ({name}): {learned['share']:.0%} of the tokens, {learned['of']}"
        + (f"; {learned['rows_cut']} rows are cut to the longest length." if learned["rows_cut"] else ".")
        for name, learned in record.get("learned", {}).items()
    ]
    for name, causes in record.get("dropped", {}).items():
        lines.append(f"Dropped ({name}): {', '.join(f'{count} rows {cause}' for cause, count in causes.items())}.")
    return lines


def lineage_of(record: dict[str, Any]) -> tuple[str | None, str]:
    """The Hub id a run's weights come from, if there is one, and the chain of runs as a Markdown list."""
    lines, base, seen = [], None, set()
    while record and record["parents"]:
        parent = record["parents"][0]
        repo = parent.get("repo") or (read_record(parent["path"]) or {}).get("hub", {}).get("repo")
        label = f"[{repo}](https://huggingface.co/{repo})" if repo else f"`{Path(parent['path']).name}`"
        lines.append(f"- {record['stage']} started from {label}")
        base = base or repo
        if "path" not in parent or parent["path"] in seen:
            break
        seen.add(parent["path"])
        record = read_record(parent["path"])
    return base, "\n".join(lines) or "- trained from scratch"


def public_name(name: str) -> str:
    """A dataset's name as a card may show it: a local path by its last part only."""
    return name if name.startswith("world/") or _is_hub_id(name) else Path(name).name


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


def _is_hub_id(name: str) -> bool:
    is_file = Path(name).suffix in (".jsonl", ".json", ".parquet", ".csv", ".txt", ".gz")
    local = is_file or name.startswith(("world/", ".", "/", "~")) or os.path.exists(name)
    return name.count("/") <= 1 and not local


def _render(template: str, facts: dict[str, Any]) -> str:
    """One of the parts that all cards share, filled."""
    return Template(resource("model_cards", template).read_text(encoding="utf-8")).render(facts).strip()


def _table(header: list[str], rows: list[list[Any]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)
