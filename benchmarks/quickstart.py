"""The quickstart with several seeds: are its expectations met by luck?

    python benchmarks/quickstart.py --seeds 1 2 3 --folder runs/seeds

Runs configs/quickstart/recipe.yaml once a seed (every stage takes it; what is finished is not run again) and prints,
for every expectation of the recipe, whether it was met and by which figures, and the seconds of every stage.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import yaml

from pipeline.runtime.run_json import read_record

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "quickstart"
SEEDED = {"pretrain", "sft", "dpo", "grpo", "reward_model", "ppo", "rsft", "assess"}


def recipe_for(seed: int, folder: Path) -> Path:
    """The quickstart's recipe with this seed in every stage and its outputs below ``folder``."""
    text = (CONFIGS / "recipe.yaml").read_text().replace("runs/quickstart", str(folder))
    entries = yaml.safe_load(text)
    for entry in entries:
        if entry["stage"] in SEEDED:
            entry["overrides"]["seed"] = seed
        if "config" in entry:
            entry["config"] = str(CONFIGS / entry["config"])
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(entries, sort_keys=False))
    return path


def main() -> None:
    """Run and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--folder", type=Path, default=Path("runs/seeds"))
    args = parser.parse_args()
    runs = {}
    for seed in args.seeds:
        folder = args.folder / str(seed)
        subprocess.run([sys.executable, "-m", "pipeline.run", str(recipe_for(seed, folder))], check=True)
        runs[seed] = {path.parent.name: read_record(path.parent) for path in sorted(folder.glob("*/run.json"))}
    print("| expected | " + " | ".join(f"seed {seed}" for seed in runs) + " |")
    print("|---|" + "---|" * len(runs))
    first = next(iter(runs.values()))
    for name, record in first.items():
        for number, claim in enumerate(record.get("expected", [])):
            cells = []
            for records in runs.values():
                found = records[name]["expected"][number]
                cells.append(f"{'yes' if found['met'] else 'NO'} ({found['value']:.3f})")
            print(f"| {name.removeprefix('assess_')}: {claim['claim']} | " + " | ".join(cells) + " |")
    print("\n| seconds | " + " | ".join(f"seed {seed}" for seed in runs) + " |")
    print("|---|" + "---|" * len(runs))
    for name in first:
        print(f"| {name} | " + " | ".join(f"{records[name]['seconds']:.0f}" for records in runs.values()) + " |")
    print(
        "| all | "
        + " | ".join(f"{sum(r['seconds'] for r in records.values()):.0f}" for records in runs.values())
        + " |"
    )


if __name__ == "__main__":
    main()
