"""What the `evaluate` modules in `modules/` share.

They import this module, not a class from it: evaluate takes the first metric class that it finds in a file's names.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate

from t5peft.evaluation.metrics import METRICS, compute


def info(name: str) -> evaluate.MetricInfo:
    """What evaluate wants to know of the metric `name`."""
    return evaluate.MetricInfo(
        description=METRICS[name].function.__doc__,
        citation="",
        inputs_description="predictions: one an example; references: one an example, or a list of accepted ones.",
        features=_features(name),
    )


def scores(
    name: str, predictions: Sequence[Any], references: Sequence[Any], sources: Sequence[str] | None = None
) -> Any:
    """As `t5peft.evaluation.compute`."""
    return compute(name, predictions, references, sources=sources)


def _features(name: str) -> datasets.Features | list[datasets.Features]:
    text = datasets.Value("string")
    if name == "perplexity":
        return datasets.Features({"predictions": datasets.Value("float64"), "references": datasets.Value("int64")})
    more = {"sources": text} if METRICS[name].needs_sources else {}
    several = datasets.Features({"predictions": text, "references": datasets.List(text), **more})
    return [several, datasets.Features({"predictions": text, "references": text, **more})]
