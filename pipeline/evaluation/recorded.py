"""What the run records of a model say about its evaluation.

The rows it must not be evaluated on, and its objective: pi_ref, reward, beta and held-out prompts.
"""

from collections.abc import Sequence
from pathlib import Path

from pipeline.evaluation.registry import Entry, label
from pipeline.rewards.resolve import reward_spec, weighted_spec
from pipeline.runtime.errors import UserError
from pipeline.runtime.lineage import ancestors
from pipeline.runtime.run_json import read_record


def resolve_held_out(model: str, entry: Entry) -> Entry:
    """An entry of an assessment whose ``split: held_out`` has become what the model's run held out.

    Raises:
        UserError: the folder has no run record, its run held no rows out, or the entry names another dataset.
    """
    if entry.get("split") != "held_out":
        return entry
    record = read_record(Path(model).expanduser())
    if record is None:
        needs = f"split held_out needs the run record (run.json) of {model}, or name a dataset and its split"
        raise UserError(f"evaluation {label(entry)}: {needs}")
    sources = [source for source in record.get("data", []) if source.get("role") == "evaluation"]
    named = entry.get("dataset")
    found = [source for source in sources if named is None or str(source["name"]) == str(named)]
    if len(found) != 1:
        listed = ", ".join(str(source["name"]) for source in sources) or "nothing"
        what = "name one of them as dataset" if len(found) > 1 or sources else "name a dataset and its split"
        raise UserError(f"evaluation {label(entry)}: split held_out: {model} held out rows of {listed}; {what}")
    [source] = found
    inherited = {name: source[name] for name in ("config", "dataset_map") if name in source}
    own = {"held_out_of": model} if "held_out_of" in source else {}
    return {**inherited, **entry, "dataset": source["name"], "split": source["split"], **own}


def refuse_training_rows(model: str, entries: Sequence[Entry]) -> None:
    """Refuse evaluations on rows that the model or its ancestors were trained on, by their run records.

    Raises:
        UserError: an evaluation names a training split of the model's lineage.
    """
    for folder, record in ancestors(model):
        for source in record.get("data", []):
            if source.get("role", "train") != "train":
                continue
            for entry in entries:
                if entry.get("held_out_of") is not None:
                    continue
                dataset, split = entry.get("dataset"), str(entry.get("split", "test"))
                if dataset is not None and _same_rows(source, str(dataset), split):
                    raise UserError(
                        f"evaluation {label(entry)}: {dataset}, split {split}, holds rows that {folder} was "
                        f"trained on (split {source['split']}); name held-out ones, another split or file"
                    )


def _same_rows(source: Entry, dataset: str, split: str) -> bool:
    """Whether a training source and a named split share rows; two slices of one split are taken to be apart."""
    name = str(source["name"])
    if Path(dataset).expanduser().is_file():
        return Path(name).exists() and Path(name).resolve() == Path(dataset).expanduser().resolve()
    if dataset.strip("/") != name.strip("/"):
        return False
    (base, one, _), (other_base, other, _) = (text.partition("[") for text in (split, str(source["split"])))
    return base == other_base and not (one and other and split != source["split"])


# ---------------------------------------------------------------------- the objective that a model was trained for


def recorded_reference(model: str) -> str | None:
    """The pi_ref in the model's run record, if it has one."""
    record = read_record(Path(model))
    return record.get("pi_ref") if record else None


def recorded_objective(model: str) -> Entry:
    """The objective in the model's run record: reward, beta and max_new_tokens."""
    record = read_record(Path(model)) or {}
    given = record.get("arguments", {})
    rewards, weights = given.get("reward"), given.get("reward_weights")
    if isinstance(rewards, list):
        rewards = weighted_spec(rewards, weights)
    elif rewards is not None:
        rewards = reward_spec(str(rewards))
    found = {
        "reward": rewards or None,
        "beta": given.get("tau") if record.get("stage") == "rsft" else given.get("beta"),
        "max_new_tokens": given.get("max_completion_length"),
    }
    return {name: value for name, value in found.items() if value is not None}


def objective_entry(model: str) -> Entry:
    """The evaluation that --objective adds, on the prompts that the model's run held out.

    Raises:
        UserError: it has no held-out data to take prompts from.
    """
    sources = (read_record(Path(model)) or {}).get("data", [])
    held_out = next((s for s in sources if s.get("role") == "evaluation"), None)
    if held_out is not None:
        prompts = {"dataset": held_out["name"], "split": held_out.get("split", "test")}
    elif sources and str(sources[0]["name"]).startswith("world/"):
        prompts = {"dataset": sources[0]["name"], "split": "test"}
    else:
        raise UserError(
            f"objective: the run record of {model} names no held-out data to take prompts from; write it out in YAML: "
            "evaluations: [{type: objective, dataset: …, split: …, reward: …, beta: …, max_new_tokens: …}]"
        )
    return {"name": "objective", "type": "objective", **prompts}
