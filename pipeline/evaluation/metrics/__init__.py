"""Figures of the evaluations as ``evaluate.Metric`` modules: one folder each, loaded by path, offline.

    evaluate.load("pipeline/evaluation/metrics/pass_at_k")

They have no arithmetic of their own: the modules and the evaluations of ``assess.py`` call the same functions of
``pipeline.objectives.statistics`` and ``pipeline.evaluation.verified``. The evaluations do not go through the modules,
because importing ``evaluate`` takes several seconds.
"""
