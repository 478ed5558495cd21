"""Run a recipe: its stages in order, each in a process of its own, as `accelerate launch` would start it.

    python -m pipeline.run configs/quickstart/recipe.yaml
    python -m pipeline.run configs/quickstart/recipe.yaml --only dpo --dry_run
    python -m pipeline.run configs/quickstart/recipe.yaml --jobs 2
    python -m pipeline.run configs/smollm2-135m/recipe.yaml --estimate

A recipe is a YAML list of {name, stage, config, overrides}: config is a path beside the recipe, overrides are laid
over it, and ${name} is replaced by the output folder of an earlier entry. What is up to date is skipped, what was
interrupted resumes, and what is stale (its arguments, parents or data changed) moves aside and runs anew.
With --jobs N up to N entries that don't name each other run side by side, each line of theirs with its name before it;
training goes before assessments.
"""

import os
import shlex
import time
from dataclasses import dataclass, field

from pipeline.recipes.recipe import read_recipe, select
from pipeline.recipes.scheduler import announce, launch_command_line, run_entries
from pipeline.runtime.arguments import first_as_flag, parse
from pipeline.runtime.entry import entry
from pipeline.runtime.errors import UserError
from pipeline.runtime.files import config_file
from pipeline.runtime.run_json import RECIPE_VARIABLE


@dataclass
class RunArguments:
    """Which stages of a recipe to run, and on what."""

    recipe: str = field(
        metadata={
            "help": "The recipe: a YAML file, or the name of a packaged one (quickstart); the flag may be left out."
        }
    )
    only: list[str] | None = field(default=None, metadata={"help": "Run these entries only."})
    from_: str | None = field(
        default=None, metadata={"help": "Start at this entry; earlier ones must be finished.", "aliases": ["--from"]}
    )
    jobs: int = field(
        default=1,
        metadata={"help": "Number of entries to run at a time, where none needs the other; they share the cores."},
    )
    dry_run: bool = field(default=False, metadata={"help": "Print the commands and run nothing."})
    estimate: bool = field(
        default=False,
        metadata={"help": "Print the memory each stage will need in GiB (docs/scaling.md) and run nothing."},
    )
    accelerate_config: str | None = field(
        default=None, metadata={"help": "Accelerate config file; without it one process, on a GPU if there is one."}
    )


def main(argv: list[str] | None = None) -> None:
    """Run the recipe; see the module's docstring."""
    (args,) = parse(first_as_flag(argv, "--recipe"), RunArguments, prog="pipeline.run")
    if args.jobs < 1:
        raise UserError(f"--jobs {args.jobs}: give the number of entries to run at a time, at least 1")
    entries = read_recipe(config_file(args.recipe, "*/recipe.yaml"))
    numbers = {item.name: f"[{number}/{len(entries)}]" for number, item in enumerate(entries, start=1)}
    chosen = select(entries, args.only, args.from_)
    if args.estimate:
        from pipeline.recipes.estimate import memory_table

        print(memory_table(entries, chosen))
        return
    if args.dry_run:
        for item in chosen:
            if announce(item, numbers[item.name]) != "up to date":
                print(f"    {shlex.join(launch_command_line(item, args.accelerate_config))}")
        return
    started = time.monotonic()
    os.environ[RECIPE_VARIABLE] = args.recipe  # each stage records it
    try:
        ran = run_entries(chosen, numbers, args.jobs, args.accelerate_config)
    finally:
        del os.environ[RECIPE_VARIABLE]
    print(f"recipe done in {time.monotonic() - started:.0f} s" if ran else "everything is up to date", flush=True)


if __name__ == "__main__":
    entry(main, RunArguments, __doc__, trains=False)
