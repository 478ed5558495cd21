"""What a stage cannot do without, so that everything that is missing is named at once."""

from pipeline.runtime.arguments import FORMER_NAMES
from pipeline.runtime.errors import UserError, nearest
from pipeline.runtime.files import Json

MODEL = {"model_name_or_path": "a Hub id or a folder"}
DATA = {"dataset_name": "a Hub id, a file, a folder or world/<name>"}
OUTPUT = {"output_dir": "where the run goes"}
TASKS = {"tasks": "what to evaluate: accuracy, preference, …"}
PROMPT = {"prompt": "or --prompt_file, or --chat"}
# Other fields that say the same.
INSTEAD = {
    "dataset_name": ("datasets", "corpora", "from_candidates"),
    "tasks": ("evaluations", "objective", "lm_eval", "lm_eval_include_path"),
    "prompt": ("prompt_file", "chat"),
}
OTHER_NEEDS = {
    "pretrain": DATA | OUTPUT,
    "assess": MODEL | TASKS | OUTPUT,
    "merge": MODEL | OUTPUT,
    "generate": MODEL | PROMPT,
}


def require_needs(stage: str, given: Json) -> None:
    """Refuse a stage that lacks what it works on, in one line with all that is missing.

    Args:
        stage: its name.
        given: the fields that were given.

    Raises:
        UserError: something is missing.
    """
    needs = OTHER_NEEDS.get(stage, MODEL | DATA | OUTPUT)
    missing = [name for name in needs if not any(given.get(field) for field in (name, *INSTEAD.get(name, ())))]
    if missing:
        each = ", ".join(f"--{name} ({_meant(name, given) or needs[name]})" for name in missing)
        raise UserError(f"{stage} needs {each}")


def _meant(name: str, given: Json) -> str | None:
    """What is said of a field that was given under another tool's name, or misspelt."""
    others = [other for other in given if other != name]
    found = next((other for other in others if FORMER_NAMES.get(other) == name), None) or nearest(name, others, 0.9)
    return f"you gave --{found}" if found else None
