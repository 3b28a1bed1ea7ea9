"""From records to rows: one row for each method and task, with every seed at the best learning rate.

Rows are made from records only, so that a table can be printed without data and backbone.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from t5peft.benchmark.baselines import BASELINES, is_baseline
from t5peft.benchmark.peers import PREFIX, is_peer
from t5peft.benchmark.records import RunRecord
from t5peft.benchmark.schedule import best_rate, validation_score
from t5peft.benchmark.statistics import Difference, MeanStd, mean_std, paired_bootstrap
from t5peft.methods.registry import METHODS, method_label

PERCENT = {"accuracy", "f1_macro", "f1_binary", "exact_match", "token_f1", "rougeL", "gleu", "google_bleu", "matthews"}
"""Scores that are fractions, which tables show as percentages."""


@dataclass(frozen=True)
class SweepPoint:
    """One learning rate of a sweep: its validation score, or the reason why there is none."""

    learning_rate: float
    score: float | None
    reason: str | None


@dataclass(frozen=True)
class Row:
    """A method on a task. If no run finished, ``reason`` says why and the figures are None."""

    task: str
    metric: str
    method: str
    options: Mapping[str, Any]
    learning_rate: float | None
    sweep: tuple[SweepPoint, ...]
    test: MeanStd | None
    loss: MeanStd | None
    reason: str | None
    curves: tuple[tuple[tuple[float, float], ...], ...]
    failed: tuple[str, ...]
    # Test scores [examples] by seed and by the metric of an example, so that scores of two metrics are never compared.
    by_example: Mapping[tuple[int, str], np.ndarray] = field(compare=False)
    difference: Difference | None = None
    trainable: int | None = None
    stored_bytes: int | None = None
    peak_bytes: MeanStd | None = None
    step_seconds: MeanStd | None = None
    tokens_per_second: MeanStd | None = None
    train_seconds: MeanStd | None = None
    to_best_seconds: MeanStd | None = None
    latency_seconds: MeanStd | None = None
    merged_latency: MeanStd | str | None = None

    @property
    def label(self) -> str:
        """The method with its options."""
        return method_label(self.method, self.options)

    @property
    def factor(self) -> float:
        """The factor of scores in tables."""
        return 100.0 if self.metric in PERCENT else 1.0

    def points_of(self, runs: Iterable[tuple[int, str]]) -> np.ndarray:
        """Return the test scores of these runs as tables show them ``[runs, examples]``."""
        return self.factor * np.stack([self.by_example[run] for run in runs])

    @property
    def grid_end_won(self) -> bool:
        """Whether the best learning rate is an end of the grid, so that a better one may lie beyond it."""
        rates = [point.learning_rate for point in self.sweep]
        return len(rates) > 1 and self.learning_rate in (min(rates), max(rates))


@dataclass(frozen=True)
class TaskTable:
    """The rows of one task, all made under the same conditions."""

    task: str
    metric: str
    rows: tuple[Row, ...]
    conditions: Mapping[str, Any]
    left_out: int

    @cached_property
    def strongest_baseline(self) -> Row | None:
        """The baseline with the highest score."""
        found = [row for row in self.rows if is_baseline(row.method) and row.test]
        return max(found, key=lambda row: row.test.mean, default=None)  # type: ignore[union-attr]

    @cached_property
    def tells_nothing(self) -> str | None:
        """Why the task is left out of means: no method is clearly above the strongest baseline. None if one is."""
        baseline = self.strongest_baseline
        trained = [row for row in self.rows if not is_baseline(row.method)]
        if baseline is None or baseline.test is None or not any(row.test for row in trained):
            return None
        if any(found.low > 0 for row in trained if (found := difference((row, baseline)))):
            return None
        return f"no method is clearly above {baseline.label} ({baseline.test.mean * baseline.factor:.1f})"


def summarize(records: Iterable[RunRecord], asked: Iterable[RunRecord] = ()) -> list[TaskTable]:
    """Return one table for each task and backbone, in the order in which they were first run.

    Seconds and bytes come from records of one machine, number of threads and of runs at once, and version of torch: those of the
    newest run of full fine-tuning, or else of the newest run. Other records give scores only.

    Args:
        records: The records of a suite.
        asked: Records whose conditions (steps, data, device) the tables have; for a task without one, the newest record's.
            Records under other conditions are left out and counted.
    """
    found: dict[tuple[str, str], list[RunRecord]] = defaultdict(list)
    for record in sorted(records, key=lambda record: record.get("started", "")):
        found[_task_and_backbone(record)].append(record)
    wanted = {_task_and_backbone(record): record for record in asked}
    return [_table(key[0], of_key, _conditions(wanted.get(key, of_key[-1]))) for key, of_key in found.items()]


def _task_and_backbone(record: RunRecord) -> tuple[str, str]:
    return record["config"]["task"], record["config"]["backbone"]


_CONDITIONS = (
    "backbone",
    "backbone_fingerprint",
    "data",
    "steps",
    "examples_per_step",
    "device",
    "limits",
    "training_options",
)


def _conditions(record: RunRecord) -> str:
    return json.dumps({name: record["config"].get(name) for name in _CONDITIONS}, sort_keys=True)


def _table(task: str, records: Sequence[RunRecord], under: str) -> TaskTable:
    used = [record for record in records if _conditions(record) == under]
    groups: dict[tuple[str, str], list[RunRecord]] = defaultdict(list)
    for record in used:
        config = record["config"]
        groups[config["method"], json.dumps(config["method_options"], sort_keys=True)].append(record)
    metric = next((record["metric"] for record in used if "metric" in record), "score")
    trained = [record for record in used if not is_baseline(record["config"]["method"])]
    reference = [
        record for record in trained if record["config"]["method"] == "full" and record["outcome"] == "finished"
    ]
    measured = (reference or trained or used)[-1]
    rows = [_row(group, task, metric, _measured_on(measured)) for group in groups.values()]
    full = next((row for row in rows if row.method == "full"), None)
    if full is not None:
        rows = [row if row is full else replace(row, difference=difference((row, full))) for row in rows]
    rows.sort(key=sort_key)
    conditions = {name: used[-1]["config"].get(name) for name in _CONDITIONS}
    conditions["machine"] = measured.get("machine", {})
    conditions["versions"] = measured.get("versions", {})
    conditions["commits"] = sorted({str(record.get("commit")) for record in used})
    conditions["examples"] = next((record["examples"] for record in used if "examples" in record), {})
    conditions["seeds"] = sorted({record["config"]["seed"] for record in trained or used})
    return TaskTable(task, metric, tuple(rows), conditions, len(records) - len(used))


def difference(*pairs: tuple[Row, Row]) -> Difference | None:
    """Return the first row of each pair minus the second in points, over their common seeds, averaged over the pairs.

    Args:
        pairs: One for each task.

    Returns:
        The difference, or None if a pair has no common seed whose examples were scored by the same metric.
    """
    scores = [_scores_of_both(*pair) for pair in pairs]
    found = [pair for pair in scores if pair is not None]
    return paired_bootstrap(*found) if found and len(found) == len(pairs) else None


def _scores_of_both(ours: Row, other: Row) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the points of both rows in the runs that can be compared; a baseline has one run, which stands for any seed."""
    if is_baseline(ours.method) or is_baseline(other.method):
        metrics = {metric for _, metric in ours.by_example} & {metric for _, metric in other.by_example}
        runs = [[run for run in sorted(row.by_example) if run[1] in metrics] for row in (ours, other)]
    else:
        runs = [sorted(ours.by_example.keys() & other.by_example.keys())] * 2
    return (ours.points_of(runs[0]), other.points_of(runs[1])) if all(runs) else None


def against_peer(table: TaskTable) -> list[tuple[Row, Row]]:
    """Return each method that peft has too, with peft's own of the same options, if both finished."""
    by_name = {(row.method, method_label("", row.options)): row for row in table.rows if row.test}
    return [
        (by_name[ours], row)
        for (method, options), row in by_name.items()
        if is_peer(method) and (ours := (method.removeprefix(PREFIX), options)) in by_name
    ]


def sort_key(row: Row) -> tuple[Any, ...]:
    """Sort methods before peers and these before baselines, each in their order, then by name and options."""
    method, order = row.method, [*METHODS, *BASELINES]
    place = order.index(method) if method in order else len(order)
    return is_baseline(method), is_peer(method), place, method, len(row.options), _numbers(row.options)


def _numbers(options: Mapping[str, Any]) -> list[tuple[str, float, str]]:
    """Sort options so that rank 4 comes before rank 16."""
    return [
        (name, float(value) if isinstance(value, int | float) else 0.0, str(value))
        for name, value in sorted(options.items())
    ]


def _row(records: Sequence[RunRecord], task: str, metric: str, machine: tuple[Any, ...]) -> Row:
    """Return the row of one method on one task: of its records, all seeds at the best rate."""
    first = records[0]["config"]
    by_seed: dict[int, dict[float, Any]] = defaultdict(dict)
    for record in records:
        by_seed[record["config"]["seed"]][record["config"]["learning_rate"]] = record
    tuned = max(by_seed.values(), key=len)
    rate = best_rate(tuned)
    swept = [] if is_baseline(first["method"]) else sorted(tuned.items())  # it has no validation scores
    at_rate = [seeds[rate] for _, seeds in sorted(by_seed.items()) if rate in seeds] if rate is not None else []
    finished = [record for record in at_rate if record["outcome"] == "finished"]
    failed = [record for record in (at_rate or records) if record["outcome"] != "finished"]
    trained = bool(finished) and not is_baseline(first["method"])
    reasons = tuple(f"seed {record['config']['seed']}: {_why(record)}" for record in failed)
    return Row(
        task=task,
        metric=metric,
        method=first["method"],
        options=first["method_options"],
        learning_rate=rate or None,
        sweep=tuple(SweepPoint(value, validation_score(record), record.get("reason")) for value, record in swept),
        test=mean_std([record["scores"]["test"][metric] for record in finished]) if finished else None,
        loss=mean_std([record["validation_loss"] for record in finished]) if trained else None,
        reason=None if finished else _why(failed[0]),
        curves=tuple(tuple((point["step"], point[metric]) for point in record.get("curve", ())) for record in finished),
        failed=reasons if finished else (),
        by_example={
            (record["config"]["seed"], record.get("example_metric", metric)): np.array(record["test_score_by_example"])
            for record in finished
        },
        **(_figures(finished, machine) if trained else {}),
    )


def _why(record: RunRecord) -> str:
    return f"{record['outcome'].replace('_', ' ')}: {record['reason']}"


def _measured_on(record: RunRecord) -> tuple[Any, ...]:
    """Return what seconds and bytes depend on besides the run itself."""
    machine = record.get("machine", {})
    settings = machine.get("name"), machine.get("threads"), machine.get("runs_at_once", 1)
    return *settings, record.get("versions", {}).get("torch")


def _figures(records: Sequence[RunRecord], machine: tuple[Any, ...]) -> dict[str, Any]:
    """Return the costs of a method; seconds and bytes from the records that were measured on ``machine``."""

    def over(path: str, of: Sequence[RunRecord]) -> list[float]:
        part, name = path.split(".")
        return [float(record[part][name]) for record in of]

    def mean_std_of(values: Sequence[float]) -> MeanStd | None:
        return mean_std(values) if values else None

    here = [record for record in records if _measured_on(record) == machine]
    # Older records count what evaluations left allocated as the training's.
    metered = [record for record in here if "left_by_evaluation_bytes" in record["memory"]]
    latency = records[0]["latency"]
    merged = [record for record in here if record["latency"]["merged_seconds"] is not None]
    return {
        "trainable": records[0]["parameters"]["trainable"],
        "stored_bytes": records[0]["parameters"]["stored_bytes"],
        "peak_bytes": mean_std_of(over("memory.peak_above_libraries_and_data_bytes", metered)),
        # Other work on the machine can only add to seconds, so the seed with the fewest counts.
        "step_seconds": mean_std_of(sorted(over("seconds.step_median", here))[:1]),
        "tokens_per_second": mean_std_of(sorted(float(record["tokens_per_second"]) for record in here)[-1:]),
        "train_seconds": mean_std_of([record["curve"][-1]["seconds"] for record in here]),
        "to_best_seconds": mean_std_of(over("seconds.to_best", here)),
        "latency_seconds": mean_std_of(over("latency.seconds", here)),
        # Norm tuning was timed "merged" for a while, which it was not.
        "merged_latency": latency.get("merged_reason", "not merged")
        if latency["merged_seconds"] is None or records[0]["config"]["method"] == "norm"
        else mean_std_of(over("latency.merged_seconds", merged)),
    }
