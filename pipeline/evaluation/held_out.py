"""The rows that a run held out of its training data, found again through its run record.

A stage that names no evaluation data draws rows from the training split by its seed. The draw is repeated here from
the recorded arguments, so that an assessment reads the same rows, in whatever form it needs them.
"""

import dataclasses
from pathlib import Path

from pipeline.data.arguments import DataArguments
from pipeline.data.loading import load_data
from pipeline.data.mixing import Place
from pipeline.runtime.errors import UserError
from pipeline.runtime.files import Json
from pipeline.runtime.run_json import read_record

# As what each stage reads its rows: what is the same row, and which rows share a prompt, depends on it.
KINDS = {"sft": "sft", "dpo": "preference", "ppo": "prompt", "grpo": "prompt", "rsft": "prompt"}
REWARD_KINDS = {"listwise": "ranked", "binary": "labelled"}


def held_out_places(model: str) -> frozenset[Place]:
    """File and row number of the rows that a run held out of its training split.

    Raises:
        UserError: the stage is not one that draws rows, or its data cannot be read any more.
    """
    record = read_record(Path(model).expanduser()) or {}
    arguments: Json = record.get("arguments", {})
    stage = record.get("stage")
    kind = KINDS.get(str(stage))
    if stage == "reward_model":
        kind = REWARD_KINDS.get(str(arguments.get("objective")), "preference")
    if kind is None:
        raise UserError(f"split held_out: rows that the stage {stage} held out cannot be drawn again; name a dataset")
    names = {f.name for f in dataclasses.fields(DataArguments)}
    given = DataArguments(**{name: value for name, value in arguments.items() if name in names})
    return frozenset(load_data(given, kind, record["seed"], quiet=True).evaluation_places)
