"""What a user says about data: one small dataclass whose names are TRL's. Imports nothing heavy."""

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass
class DataArguments:
    """Which data a stage learns from, and which rows it is evaluated on."""

    dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "Hub id, local file or folder (jsonl, json, parquet, csv, txt, a folder of save_to_disk), a URL "
            "(s3://, gs://, https:// …), or world/<name> for the embedded data."
        },
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration (subset) of a Hub dataset."})
    dataset_revision: str | None = field(
        default=None, metadata={"help": "Commit, tag or branch of a Hub dataset; name one to make runs repeatable."}
    )
    dataset_train_split: str = field(
        default="train",
        metadata={"help": "Split to train on; a slice is allowed: train[:1000], train[:10%]."},
    )
    dataset_test_split: str | None = field(
        default=None,
        metadata={
            "help": "Split to evaluate on. When neither this nor eval_dataset_name is given, rows are "
            "held out of the training split (see eval_rows), even if the dataset has a test split."
        },
    )
    dataset_streaming: bool = field(
        default=False,
        metadata={"help": "Read a pretraining corpus that is larger than memory as a stream; needs max_steps."},
    )
    dataset_map: dict[str, str] | str | None = field(
        default=None,
        metadata={"help": "Renames columns, old=new,…: question=prompt,answer=completion; in YAML also a mapping."},
    )
    datasets: list[dict[str, Any]] | None = field(
        default=None,
        metadata={
            "help": "A mixture, in YAML only: a list of entries with path, name, data_dir, data_files, split, "
            "columns, fraction (as in TRL), weight (relative sampling weight) and dataset_map. Replaces dataset_name."
        },
    )
    eval_dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "A separate dataset for evaluation, named as dataset_name is; its split is "
            "dataset_test_split, else test."
        },
    )
    eval_rows: int | None = field(
        default=None,
        metadata={
            "help": "Rows held out of the training split when no evaluation data is named: a seeded draw that keeps "
            "rows with the same prompt on one side. Default: a tenth, at most 500; 0 for none."
        },
    )
    skip_bad_rows: bool = field(
        default=False,
        metadata={"help": "Skip, count and record rows that do not fit, instead of stopping at the first."},
    )
    deduplicate: bool = field(
        default=True, metadata={"help": "Drop exact duplicates. Rows of the evaluation split leave training anyway."}
    )


@dataclass
class ChatDataArguments(DataArguments):
    """For the stages that read prompts, answers and dialogues: how they meet the model's chat template."""

    as_chat: Literal["auto", "true", "false"] = field(
        default="auto",
        metadata={
            "help": "Whether strings (prompt, completion, chosen, rejected) are turns of a chat, written by the chat "
            "template. auto: as the model was trained, else if its tokenizer has a template."
        },
    )
    system: str | None = field(
        default=None, metadata={"help": "System message that is put in front of dialogues that have none."}
    )
    balance: str | None = field(
        default=None,
        metadata={
            "help": "For preference pairs: package.module:function of a row, which returns 1 where only the chosen "
            "answer has a property (it agrees with the user), -1 where only the rejected one has it, else 0. As many "
            "rows of 1 as of -1 are trained on."
        },
    )
    balance_by: Literal["dropping", "repeating"] = field(
        default="dropping",
        metadata={"help": "How balance does it: dropping rows of the commoner kind, or repeating those of the rarer."},
    )
