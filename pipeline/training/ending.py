"""How a run ends in the terminal: the held-out figure, where everything is saved, and a command to go on with."""

import os
import shlex

from pipeline.runtime.command_table import as_typed
from pipeline.runtime.formatting import counted, duration, memory
from pipeline.runtime.record import RECIPE_VARIABLE, Run
from pipeline.training import held_out


def say_end(run: Run) -> None:
    """Print the last lines of a run; in a recipe no next command, since the recipe continues by itself."""
    metrics, sources = run.record["metrics"], run.record["data"]
    figure = held_out.in_words(metrics)
    rows = sum(source["rows"] for source in sources if source.get("role") == "evaluation")
    if figure:
        run.say(f"held out{' of the last corpus' if run.stage == 'continual' else ''}: {figure}")
    elif rows:
        run.say(f"held out: {counted(rows, 'row')}, not evaluated")
    else:
        run.say("no rows were held out, so nothing was evaluated")
    say_saved(run)


def say_saved(run: Run) -> None:
    """Where a model is, and what one does with it next."""
    metrics = run.record["metrics"]
    size = sum(file.stat().st_size for file in run.folder.glob("*.safetensors"))
    what = "adapter" if (run.folder / "adapter_config.json").is_file() else "model"
    steps = f", {counted(int(metrics['steps']), 'step')}" if metrics.get("steps") else ""
    run.say(f"saved in {run.folder} ({what}, {memory(size)}{steps}, {duration(run.record['seconds'])} in all)")
    if RECIPE_VARIABLE not in os.environ:
        run.say(f"next: {next_command(run)}")


def next_command(run: Run) -> str:
    """What one does with the finished run: a reward model is trained against, any other model is talked to."""
    folder = shlex.quote(str(run.folder))
    if run.stage != "reward_model":
        # A base that was pretrained writes on; it answers no questions.
        prompt = "Once upon a time" if run.stage == "pretrain" else "Who are you?"
        return f'{as_typed("generate")} --model_name_or_path {folder} --prompt "{prompt}"'
    arguments = run.record["arguments"]
    start, data = (shlex.quote(str(arguments.get(name))) for name in ("model_name_or_path", "dataset_name"))
    return (
        f"{as_typed('ppo')} --model_name_or_path {start} --reward {folder} --dataset_name {data} "
        f"--output_dir {shlex.quote(f'{run.folder}-ppo')}"
    )
