"""Compare the figures of a suite that repeats a published table with the published ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from t5peft.benchmark.baselines import is_baseline
from t5peft.benchmark.records import RunRecord
from t5peft.benchmark.suites import Expected
from t5peft.benchmark.summary import PERCENT
from t5peft.methods.registry import method_label

HEADER = ("method", "task", "metric", "published", "tolerance", "measured", "verdict")


def verdicts(expected: Iterable[Expected], records: Iterable[RunRecord]) -> list[list[str]]:
    """Return a row of ``HEADER`` for each published figure; its verdict is inside, outside or not run.

    Args:
        expected: The published figures.
        records: Those of the suite. A figure is the mean over the seeds, at the evaluation with the lowest loss on validation.
    """
    found: dict[tuple[str, str], dict[str, list[RunRecord]]] = {}
    for record in records:
        config = record["config"]
        if record["outcome"] == "finished":
            label = config["method"], method_label("", config["method_options"])
            found.setdefault(label, {}).setdefault(Path(config["task"]).stem, []).append(record)
    tasks = {task for by_task in found.values() for task in by_task}
    return [_row(one, found, tasks) for one in expected]


def _row(one: Expected, found: Mapping[tuple[str, str], Mapping[str, list[RunRecord]]], tasks: set[str]) -> list[str]:
    wanted = tasks if one.task is None else {one.task}
    by_task = found.get((one.method, method_label("", one.options)), {})
    measured = _mean(by_task, wanted, one.metric)
    if one.metric == "difference" and measured is not None:
        full = _mean(found.get(("full", method_label("", {})), {}), wanted, one.metric)
        measured = None if full is None else measured - full
    published = f"{one.low:g}" if one.low == one.high else f"{one.low:g} to {one.high:g}"
    inside = measured is not None and one.low - one.tolerance <= measured <= one.high + one.tolerance
    return [
        method_label(one.method, one.options),
        one.task or "mean over tasks",
        one.metric,
        published,
        f"{one.tolerance:g}",
        "–" if measured is None else f"{measured:.3f}" if one.metric == "loss" else f"{measured:.1f}",
        "not run" if measured is None else "inside" if inside else "outside",
    ]


def _mean(by_task: Mapping[str, list[RunRecord]], tasks: set[str], metric: str) -> float | None:
    if not tasks or not tasks <= by_task.keys():
        return None
    return fmean(fmean(_figure(record, metric) for record in by_task[task]) for task in tasks)


def _figure(record: RunRecord, metric: str) -> float:
    """Return a score in points, or the loss."""
    name = record["metric"] if metric == "difference" else metric
    scores: Mapping[str, Any] = record["scores"]["test"]
    if not is_baseline(record["config"]["method"]):
        best = min(record["curve"], key=lambda point: point["loss"])
        if name == "loss" or best["step"] != record["curve"][-1]["step"]:
            scores = best  # of an earlier evaluation there are scores on validation only, which is the published split
    return float(scores[name]) * (100.0 if name in PERCENT or name.startswith("rouge") else 1.0)
