"""From records to rows: one row a method and task, with every seed in it, best learning rate first.

Rows are made from records alone, so a table can be printed where neither data nor backbone are.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from t5peft.benchmark.schedule import best_rate, validation_score
from t5peft.benchmark.statistics import Difference, MeanStd, mean_std, paired_bootstrap
from t5peft.methods.registry import METHODS, method_label

PERCENT = {"accuracy", "f1_macro", "f1_binary", "exact_match", "token_f1", "rougeL", "gleu", "google_bleu", "matthews"}
"""Scores that are fractions and stand in tables as hundredths."""

Record = Mapping[str, Any]


@dataclass(frozen=True)
class SweepPoint:
    """One learning rate of a sweep: its validation score, or why there is none."""

    learning_rate: float
    score: float | None
    reason: str | None


@dataclass(frozen=True)
class Row:
    """A method on a task. Where no run finished, `reason` says why and the figures are None."""

    task: str
    metric: str
    method: str
    options: Mapping[str, Any]
    learning_rate: float | None
    sweep: tuple[SweepPoint, ...]
    test: MeanStd | None
    reason: str | None
    difference: Difference | None
    trainable: int | None
    stored_bytes: int | None
    peak_bytes: MeanStd | None
    step_seconds: MeanStd | None
    tokens_per_second: MeanStd | None
    train_seconds: MeanStd | None
    to_best_seconds: MeanStd | None
    latency_seconds: MeanStd | None
    merged_latency: MeanStd | str | None
    curves: tuple[tuple[tuple[float, float], ...], ...]
    failed: tuple[str, ...]
    # Test scores [examples] by seed and by what an example alone is scored by, so that none is compared with another's.
    by_example: Mapping[tuple[int, str], np.ndarray] = field(compare=False)

    @property
    def label(self) -> str:
        """The method with its options."""
        return method_label(self.method, self.options)

    @property
    def factor(self) -> float:
        """What scores are multiplied by in tables."""
        return 100.0 if self.metric in PERCENT else 1.0

    def scores_of(self, runs: Sequence[tuple[int, str]]) -> np.ndarray:
        """Test scores of these runs [runs, examples]."""
        return np.stack([self.by_example[run] for run in runs])

    @property
    def grid_end_won(self) -> bool:
        """Whether the best learning rate is an end of the grid, so that a better one may lie outside."""
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


def summarize(records: Iterable[Record], asked: Iterable[Record] = ()) -> list[TaskTable]:
    """One table a task, in the order in which the tasks were first run.

    Records of the same task under other conditions (backbone, steps, data, device) than those of `asked`, or else the newest, are
    left out and counted. Seconds and bytes are of one machine, number of threads and version of torch, those of full fine-tuning's
    newest run, or else of the newest; records of others give scores alone.
    """
    by_task: dict[str, list[Record]] = defaultdict(list)
    for record in sorted(records, key=lambda record: record.get("started", "")):
        by_task[record["config"]["task"]].append(record)
    wanted = {record["config"]["task"]: record for record in asked}
    return [_table(task, found, _conditions(wanted.get(task, found[-1]))) for task, found in by_task.items()]


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


def _conditions(record: Record) -> str:
    return json.dumps({name: record["config"].get(name) for name in _CONDITIONS}, sort_keys=True)


def _table(task: str, records: Sequence[Record], under: str) -> TaskTable:
    used = [record for record in records if _conditions(record) == under]
    groups: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in used:
        config = record["config"]
        groups[config["method"], json.dumps(config["method_options"], sort_keys=True)].append(record)
    metric = next((record["metric"] for record in used if "metric" in record), "score")
    chosen = [_Chosen.of(group) for group in groups.values()]
    reference = [record for record in used if record["config"]["method"] == "full" and record["outcome"] == "finished"]
    measured = (reference or used)[-1]
    rows = [group.row(task, metric, _measured_on(measured)) for group in chosen]
    full = next((row for row in rows if row.method == "full"), None)
    if full is not None:
        rows = [row if row is full else replace(row, difference=difference((row, full))) for row in rows]
    rows.sort(key=sort_key)
    conditions = {name: used[-1]["config"].get(name) for name in _CONDITIONS}
    conditions["machine"] = measured.get("machine", {})
    conditions["versions"] = measured.get("versions", {})
    conditions["commits"] = sorted({str(record.get("commit")) for record in used})
    conditions["examples"] = next((record["examples"] for record in used if "examples" in record), {})
    conditions["seeds"] = sorted({record["config"]["seed"] for record in used})
    return TaskTable(task, metric, tuple(rows), conditions, len(records) - len(used))


def difference(*pairs: tuple[Row, Row]) -> Difference | None:
    """The first row of each pair less the second, over seeds that both have; of several tasks' pairs, their mean.

    None where a pair has no seed in common whose examples were scored alike.
    """
    runs = [sorted(ours.by_example.keys() & other.by_example.keys()) for ours, other in pairs]
    if not pairs or not all(runs):
        return None
    return paired_bootstrap(
        *((ours.scores_of(shared), other.scores_of(shared)) for (ours, other), shared in zip(pairs, runs, strict=True))
    )


def against_baseline(table: TaskTable) -> list[tuple[Row, Row]]:
    """Each method of the library that peft has too, with peft's own of the same options, where both finished."""
    by_name = {(row.method, method_label("", row.options)): row for row in table.rows if row.test}
    return [
        (by_name[ours], row)
        for (method, options), row in by_name.items()
        if method.startswith("peft-") and (ours := (method.removeprefix("peft-"), options)) in by_name
    ]


def sort_key(row: Row) -> tuple[Any, ...]:
    """Sort methods of the library before peers, both in the order of ``METHODS``, then by name and options."""
    peer, method, order = row.method.startswith("peft-"), row.method, list(METHODS)
    return peer, order.index(method) if method in order else len(order), method, len(row.options), _numbers(row.options)


def _numbers(options: Mapping[str, Any]) -> list[tuple[str, float, str]]:
    """Options in an order in which rank 4 comes before rank 16."""
    return [
        (name, float(value) if isinstance(value, int | float) else 0.0, str(value))
        for name, value in sorted(options.items())
    ]


@dataclass(frozen=True)
class _Chosen:
    """The records of one method on one task, and those of them that stand for it: all seeds at the best rate."""

    everything: Sequence[Record]
    rate: float | None
    sweep: tuple[SweepPoint, ...]
    finished: Sequence[Record]
    failed: Sequence[Record]

    @classmethod
    def of(cls, records: Sequence[Record]) -> _Chosen:
        by_seed: dict[int, dict[float, Any]] = defaultdict(dict)
        for record in records:
            by_seed[record["config"]["seed"]][record["config"]["learning_rate"]] = record
        tuned = max(by_seed.values(), key=len)
        rate = best_rate(tuned)
        sweep = tuple(
            SweepPoint(value, validation_score(record), record.get("reason")) for value, record in sorted(tuned.items())
        )
        at_rate = [seeds[rate] for _, seeds in sorted(by_seed.items()) if rate in seeds] if rate is not None else []
        finished = [record for record in at_rate if record["outcome"] == "finished"]
        failed = [record for record in (at_rate or records) if record["outcome"] != "finished"]
        return cls(records, rate, sweep, finished, failed)

    def row(self, task: str, metric: str, machine: tuple[Any, ...]) -> Row:
        first = self.everything[0]["config"]
        figures = _figures(self.finished, machine) if self.finished else dict.fromkeys(_FIGURES)
        reasons = tuple(f"seed {record['config']['seed']}: {_why(record)}" for record in self.failed)
        return Row(
            task=task,
            metric=metric,
            method=first["method"],
            options=first["method_options"],
            learning_rate=self.rate,
            sweep=self.sweep,
            test=mean_std([record["scores"]["test"][metric] for record in self.finished]) if self.finished else None,
            reason=None if self.finished else _why(self.failed[0]),
            difference=None,
            curves=tuple(
                tuple((point["step"], point[metric]) for point in record["curve"]) for record in self.finished
            ),
            failed=reasons if self.finished else (),
            by_example={
                (record["config"]["seed"], record.get("example_metric", metric)): np.array(
                    record["test_score_by_example"]
                )
                for record in self.finished
            },
            **figures,
        )


def _why(record: Record) -> str:
    return f"{record['outcome'].replace('_', ' ')}: {record['reason']}"


_FIGURES = (
    "trainable", "stored_bytes", "peak_bytes", "step_seconds", "tokens_per_second", "train_seconds", "to_best_seconds",
    "latency_seconds", "merged_latency",
)  # fmt: skip


def _measured_on(record: Record) -> tuple[Any, ...]:
    """What seconds and bytes depend on besides the run itself."""
    machine = record.get("machine", {})
    return machine.get("name"), machine.get("threads"), record.get("versions", {}).get("torch")


def _figures(records: Sequence[Record], machine: tuple[Any, ...]) -> dict[str, Any]:
    """What finished records of a method cost; seconds and bytes from those that were measured on `machine`."""

    def over(path: str, of: Sequence[Record]) -> list[float]:
        part, name = path.split(".")
        return [float(record[part][name]) for record in of]

    def spread_of(values: Sequence[float]) -> MeanStd | None:
        return mean_std(values) if values else None

    here = [record for record in records if _measured_on(record) == machine]
    # Records that do not say what evaluations left held count it as the training's.
    metered = [record for record in here if "left_by_evaluation_bytes" in record["memory"]]
    latency = records[0]["latency"]
    merged = [record for record in here if record["latency"]["merged_seconds"] is not None]
    return {
        "trainable": records[0]["parameters"]["trainable"],
        "stored_bytes": records[0]["parameters"]["stored_bytes"],
        "peak_bytes": spread_of(over("memory.peak_above_libraries_and_data_bytes", metered)),
        # Other work on the machine can only add to seconds: of the seeds, the least.
        "step_seconds": spread_of(sorted(over("seconds.step_median", here))[:1]),
        "tokens_per_second": spread_of(sorted(float(record["tokens_per_second"]) for record in here)[-1:]),
        "train_seconds": spread_of([record["curve"][-1]["seconds"] for record in here]),
        "to_best_seconds": spread_of(over("seconds.to_best", here)),
        "latency_seconds": spread_of(over("latency.seconds", here)),
        # Norm tuning was timed "merged" for a while, which it was not.
        "merged_latency": latency.get("merged_reason", "not merged")
        if latency["merged_seconds"] is None or records[0]["config"]["method"] == "norm"
        else spread_of(over("latency.merged_seconds", merged)),
    }


@dataclass(frozen=True)
class Mean:
    """A row's mean score over tasks.

    Attributes:
        value: the mean.
        error: its standard error, from the deviations over seeds; None: a seed alone.
        difference: to full fine-tuning's; None where that has no run with the same seeds, or is the row itself.
    """

    value: float
    error: float | None
    difference: Difference | None

    def text(self, factor: float = 1.0) -> str:
        """`73.1 ± 0.8`, or `73.1`; values are multiplied by `factor`."""
        return f"{self.value * factor:.1f}" + ("" if self.error is None else f" ± {self.error * factor:.1f}")


@dataclass(frozen=True)
class Means:
    """Means over tasks that are scored alike, by row label; without the rows that lack a score on one of the tasks."""

    metric: str
    tables: tuple[TaskTable, ...]
    by_label: Mapping[str, Mean]

    @property
    def factor(self) -> float:
        """What scores are multiplied by in tables."""
        return self.tables[0].rows[0].factor


def means_over_tasks(tables: Sequence[TaskTable]) -> list[Means]:
    """Means for each metric that several tasks share; accuracy and Matthews correlation count as one, as in GLUE's mean."""
    groups: dict[str, list[TaskTable]] = defaultdict(list)
    for table in tables:
        groups["accuracy" if table.metric == "matthews" else table.metric].append(table)
    return [_means(tuple(group)) for group in groups.values() if len(group) > 1]


def _means(tables: tuple[TaskTable, ...]) -> Means:
    rows: dict[str, list[Row]] = defaultdict(list)
    for row in (row for table in tables for row in table.rows):
        if row.test:
            rows[row.label].append(row)
    complete = {label: found for label, found in rows.items() if len(found) == len(tables)}
    means = {label: _mean(found, complete.get("full", [])) for label, found in complete.items()}
    return Means(" or ".join(dict.fromkeys(table.metric for table in tables)), tables, means)


def _mean(rows: Sequence[Row], full: Sequence[Row]) -> Mean:
    spreads = [row.test for row in rows if row.test]
    variances = [mean_std.deviation**2 / mean_std.n for mean_std in spreads if mean_std.deviation is not None]
    error = sum(variances) ** 0.5 / len(spreads) if len(variances) == len(spreads) else None
    to_full = None if rows == full or not full else difference(*zip(rows, full, strict=True))
    return Mean(sum(mean_std.mean for mean_std in spreads) / len(spreads), error, to_full)
