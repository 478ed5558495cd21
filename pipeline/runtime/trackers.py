"""Where a run reports to (``report_to``), checked before anything is loaded."""

from pipeline.runtime.compat import require
from pipeline.runtime.errors import UserError, did_you_mean

TRACKERS = ("tensorboard", "wandb", "trackio")  # what the extra `tracking` installs


def check_trackers(names: list[str]) -> None:
    """Check that each tracker exists and is installed; Trainer would find out with the model loaded.

    Raises:
        UserError: one does not exist, or is not installed.
    """
    if not names:
        return
    require("check_trackers")
    from transformers.integrations import integration_utils as known

    for name in names:
        if name not in known.INTEGRATION_TO_CALLBACK:
            names = [*known.INTEGRATION_TO_CALLBACK, "none"]
            raise UserError(
                f"report_to: there is no {name}; choose one of {', '.join(names)}{did_you_mean(name, names)}"
            )
        if name in TRACKERS and not getattr(known, f"is_{name}_available")():
            raise UserError(f"report_to: {name} is not installed: pip install -e '.[tracking]', or report_to: none")
