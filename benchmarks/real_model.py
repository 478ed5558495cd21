"""A real model of 135M parameters, asked by the commands that everything else is asked by: docs/prompting.md.

    python benchmarks/real_model.py --data DATA --model runs/smollm2 --out runs/real --tasks topics book gsm8k

DATA has ``gsm8k``, ``halueval`` and ``continual`` as published (jsonl). The rows that are asked are written to OUT
with one YAML per task, which ``assess.py --config`` then runs; the figures are in OUT/<task>/run.json. A task takes
from two to twenty minutes of a core.
"""

import argparse
import json
import re
from pathlib import Path

import yaml

from pipeline import assess

LABELS = ["World", "Sports", "Business", "Science or Technology"]
SHORT = "Answer with a few words only."


def read(path: Path, count: int | None = None) -> list[dict]:
    """The first rows of a jsonl file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[:count]]


def write(path: Path, rows: list[dict]) -> str:
    """Rows as a jsonl file; its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def contains(completions: list, answer: list, **columns: object) -> list[float]:
    """1 where the completion holds the answer, both in small letters without punctuation and articles."""

    def plain(text: str) -> str:
        words = re.sub(r"[^\w\s]", " ", str(text).lower()).split()
        return f" {' '.join(word for word in words if word not in ('a', 'an', 'the'))} "

    texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
    return [float(plain(gold) in plain(text)) for text, gold in zip(texts, answer, strict=True)]


def kind_of(row: dict) -> str:
    """Of a question: whether its answer is yes or no, one of two that it names (echoing scores), or neither."""
    answer, question = row["right_answer"].strip().lower(), row["question"].lower()
    if answer in ("yes", "no"):
        return "yes or no"
    return "either-or" if answer in question or " or " in question else "open"


def topics(data: Path, out: Path) -> list[dict]:
    """Few-shot curve: news topics, four labels."""
    parts = {"train": data / "continual" / "agnews_train.jsonl", "test": data / "continual" / "agnews_test.jsonl"}
    files = {}
    for split, path in parts.items():
        rows = [
            {"prompt": " ".join(row["sentence"].split())[:400], "completion": row["label"], "answer": row["label"]}
            for row in read(path, 200 if split == "test" else None)
        ]
        files[split] = write(out / f"topics-{split}.jsonl", rows)
    return [
        {
            "name": "topics", "type": "prompting", "dataset": files["test"], "split": "train", "reward": "exact",
            "max_new_tokens": 5, "shots": [0, 1, 2, 4, 8], "methods": {"direct": "{prompt}"}, "as_chat": False,
            "examples": files["train"], "stop": ["\n"], "batch_size": 50,
            "example_template": f"{{prompt}}\nTopic ({', '.join(LABELS)}): {{completion}}\n\n",
        }
    ]  # fmt: skip


def book(data: Path, out: Path) -> list[dict]:
    """Closed and open book, 200 questions of HaluEval with the passage that answers each."""
    rows = [row | {"kind": kind_of(row)} for row in read(data / "halueval" / "qa.jsonl", 200)]
    entries = []
    for name in ("closed", "open"):
        asked = [
            {
                "prompt": f"{row['knowledge'] + chr(10) if name == 'open' else ''}{row['question']} {SHORT}",
                "answer": row["right_answer"], "kind": row["kind"],
            }
            for row in rows
        ]  # fmt: skip
        entries.append(
            {
                "name": f"{name} book", "type": "prompting", "dataset": write(out / f"{name}.jsonl", asked),
                "split": "train", "reward": f"{Path(__file__).resolve()}:contains", "max_new_tokens": 24,
                "shots": [0], "methods": {"direct": "{prompt}"}, "by": "kind", "batch_size": 50,
            }
        )  # fmt: skip
    return entries


def gsm8k(data: Path, out: Path) -> list[dict]:
    """100 problems, strict and flexible, with and without a chain of thought."""
    return [
        {
            "name": "gsm8k", "type": "prompting", "split": "train", "reward": "numeric", "max_new_tokens": 160,
            "dataset": write(out / "gsm8k.jsonl", read(data / "gsm8k" / "test_first_half.jsonl", 100)),
            "shots": [0, 2],
            "examples": write(out / "gsm8k-train.jsonl", read(data / "gsm8k" / "train.jsonl", 1000)),
            "methods": {
                "direct": "{prompt}\nGive only the number, after ####.",
                "cot": "{prompt}\nLet's think step by step, and end with the number after ####.",
            },
            "batch_size": 50,
        }
    ]  # fmt: skip


TASKS = {"topics": topics, "book": book, "gsm8k": gsm8k}


def main() -> None:
    """Write rows and YAML of every task, and assess the model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("data", "model", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--tasks", nargs="*", default=list(TASKS), choices=list(TASKS))
    options = parser.parse_args()
    for task in options.tasks:
        path = options.out / f"{task}.yaml"
        entries = TASKS[task](options.data, options.out / "rows")
        path.write_text(yaml.safe_dump({"evaluations": entries, "seed": 1}), encoding="utf-8")
        folder = str(options.out / task)
        assess.main(["--config", str(path), "--model_name_or_path", str(options.model), "--output_dir", folder])


if __name__ == "__main__":
    main()
