"""Metrics as ``evaluate.Metric`` modules: one folder each, loaded by path, offline.

    evaluate.load("pipeline/evaluation/metrics/pass_at_k")

or, from an installed package, ``load_metric("pass_at_k")``. They hold no arithmetic of their own: it stands in
``pipeline.evaluation.statistics`` and the registry of rewards, which the evaluations of ``assess.py`` call directly,
because importing ``evaluate`` takes several seconds.
"""

from pathlib import Path
from typing import Any

from pipeline.runtime.errors import UserError


def load_metric(name: str) -> Any:
    """The ``evaluate.Metric`` of a folder beside this file.

    Raises:
        UserError: there is no such metric.
    """
    folder = Path(__file__).parent
    known = sorted(path.parent.name for path in folder.glob("*/*.py") if path.stem == path.parent.name)
    if name not in known:
        raise UserError(f"there is no metric {name!r}; choose of {', '.join(known)}")
    import evaluate

    return evaluate.load(str(folder / name))
