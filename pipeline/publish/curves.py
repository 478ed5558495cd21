"""What training logged, as one image for the card."""

import json
from pathlib import Path

# Title of a panel: the names it may show in ``log_history``, as logged in training and on held-out rows.
PANELS = {
    "loss": ("loss", "eval_loss"),
    "reward": ("reward", "eval_reward"),
    "KL to pi_ref (nats per token)": ("kl", "eval_kl"),
    "KL to pi_ref (nats per completion)": ("objective/kl", "eval_objective/kl"),
    "pairs ranked right": ("rewards/accuracies", "eval_rewards/accuracies"),
    "accuracy": ("accuracy", "eval_accuracy"),
}
STYLES = {"training": ("#0072B2", ""), "held out": ("#D55E00", "o")}


def plot_training(folder: Path, path: Path) -> None:
    """Draw the panels of which a run's ``trainer_state.json`` holds at least two points, if there are any."""
    state = folder / "trainer_state.json"
    history = json.loads(state.read_text(encoding="utf-8")).get("log_history", []) if state.is_file() else []
    panels = {}
    for title, names in PANELS.items():
        curves = [[(entry["step"], entry[name]) for entry in history if entry.get(name) is not None] for name in names]
        if max(map(len, curves)) > 1:
            panels[title] = curves
    if not panels:
        return
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, all_axes = pyplot.subplots(
        1, len(panels), figsize=(4 * len(panels), 3), layout="constrained", squeeze=False
    )
    for axes, (title, curves) in zip(all_axes[0], panels.items()):
        for (label, (color, marker)), curve in zip(STYLES.items(), curves):
            if curve:
                axes.plot(*zip(*curve), color=color, marker=marker, label=label)
        axes.set(title=title, xlabel="step")
        axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
