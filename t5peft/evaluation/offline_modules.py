"""The metrics as ``evaluate`` modules: the files in ``modules/`` call ``make_module`` with their metric.

``evaluate.load`` takes the first metric class in a file, so each metric has a file; a file of several would give only one.
"""

from __future__ import annotations

from typing import Any

import datasets
import evaluate

from t5peft.evaluation.metrics import METRICS, compute


def make_module(name: str) -> type[evaluate.Metric]:
    """Make the ``evaluate`` module of a metric.

    Args:
        name: A key of ``METRICS``.

    Returns:
        A class that computes as ``t5peft.evaluation.compute`` does.
    """

    class Module(evaluate.Metric):
        """Loaded by ``evaluate.load(path)``."""

        def _info(self) -> evaluate.MetricInfo:
            return evaluate.MetricInfo(
                description=METRICS[name].function.__doc__,
                citation="",
                inputs_description="predictions: one per example; references: one per example, or a list of accepted ones.",
                features=_features(name),
            )

        def _compute(self, **inputs: Any) -> dict[str, float]:
            return compute(name, **inputs)

    return Module


def _features(name: str) -> datasets.Features | list[datasets.Features]:
    text = datasets.Value("string")
    if name == "perplexity":
        return datasets.Features({"predictions": datasets.Value("float64"), "references": datasets.Value("int64")})
    more = {"sources": text} if METRICS[name].needs_sources else {}
    several = datasets.Features({"predictions": text, "references": datasets.List(text), **more})
    return [several, datasets.Features({"predictions": text, "references": text, **more})]
