"""Runs a suite: the learning-rate sweep on validation, then every seed at the rate that won.

The order of the runs follows from the records alone, so a suite that was killed asks for the same runs again, finds
those that are recorded, and goes on with the first that is not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from t5peft.benchmark.records import RunConfig, find_record, write_record
from t5peft.benchmark.suites import Suite, SuiteMethod, SuiteTask

Record = dict[str, Any]
Execute = Callable[[RunConfig], Record]
GROWTHS = 3


def validation_score(record: Mapping[str, Any]) -> float | None:
    """The leading metric on validation; None where the run did not finish."""
    if record["outcome"] != "finished":
        return None
    return float(record["scores"]["validation"][record["metric"]])


def best_rate(records: Mapping[float, Record]) -> float | None:
    """The learning rate with the lowest loss on validation, the lower one of equals; None where no run finished.

    Not the best score: of a few hundred examples it is mostly chance, and picks a rate so high that other seeds diverge.
    """
    losses = [
        (float(record["validation_loss"]), rate) for rate, record in records.items() if record["outcome"] == "finished"
    ]
    return min(losses)[1] if losses else None


def next_rate(rates: list[float], best: float | None) -> float | None:
    """The rate to try next where an end of the grid won, at the grid's own ratio; None where the grid is done."""
    if best is None or len(rates) < 2:
        return None
    if best == rates[0]:
        return float(f"{rates[0] * rates[0] / rates[1]:.3g}")
    if best == rates[-1]:
        return float(f"{rates[-1] * rates[-1] / rates[-2]:.3g}")
    return None


@dataclass(frozen=True)
class Plan:
    """One cell of the suite: a method on a task, as a configuration whose rate and seed are filled in run by run."""

    base: RunConfig
    rates: tuple[float, ...]
    seeds: tuple[int, ...]

    @property
    def least_runs(self) -> int:
        """Runs where no grid grows."""
        return len(self.rates) + len(self.seeds) - 1

    def runs(self) -> Generator[RunConfig, Record, None]:
        """The configurations one by one; expects the record of each by `send` before the next."""
        records: dict[float, Record] = {}
        rates = list(self.rates)
        for rate in self.rates:
            records[rate] = yield self._config(rate, self.seeds[0])
        for _ in range(GROWTHS):
            further = next_rate(rates, best_rate(records))
            if further is None:
                break
            records[further] = yield self._config(further, self.seeds[0])
            rates = sorted([*rates, further])
        best = best_rate(records)
        if best is not None:
            for seed in self.seeds[1:]:
                yield self._config(best, seed)

    def _config(self, rate: float, seed: int) -> RunConfig:
        return replace(self.base, learning_rate=rate, seed=seed)


def plans(suite: Suite, base_of: Callable[[SuiteTask, SuiteMethod], RunConfig]) -> list[Plan]:
    """Every method on every task, task by task."""
    return [
        Plan(base_of(task, method), method.learning_rates, suite.seeds)
        for task in suite.tasks
        for method in suite.methods
    ]


@dataclass
class Progress:
    """Where a suite stands; what is left is estimated from the runs that this call has timed."""

    runs: int
    done: int = 0
    found: int = 0
    seconds: list[float] = field(default_factory=list)

    def seconds_left(self) -> float | None:
        """Estimate over the runs that are left, at least; None before the first run has ended."""
        return (self.runs - self.done) * sum(self.seconds) / len(self.seconds) if self.seconds else None

    def line(self) -> str:
        """`12/48 runs, about 7 min left`."""
        left = self.seconds_left()
        if left is None:
            return f"{self.done}/{self.runs} runs"
        return f"{self.done}/{self.runs} runs, about {duration(left)} left"


def duration(seconds: float) -> str:
    """`48 s`, `7 min` or `2 h 05 min`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def run_suite(
    cells: list[Plan],
    directory: Path,
    execute: Execute,
    *,
    say: Callable[[str], None] = print,
    begin: Callable[[RunConfig, Progress], None] = lambda config, progress: None,
) -> list[Record]:
    """Runs what is not recorded yet and returns the records of the whole suite.

    Args:
        cells: from `plans`.
        directory: of the records.
        execute: makes one run and returns its record; it must not raise for what happens inside a run.
        say: gets a line after each run.
        begin: is told of each run before it starts.
    """
    directory.mkdir(parents=True, exist_ok=True)  # what is wrong with it is told before the first run
    progress = Progress(sum(cell.least_runs for cell in cells))
    records: list[Record] = []
    for cell in cells:
        asked, runs, record = 0, cell.runs(), None
        try:
            while True:
                config = next(runs) if record is None else runs.send(record)
                asked += 1
                if asked > cell.least_runs:
                    progress.runs += 1
                record = _one_run(config, directory, execute, progress, say, begin)
                records.append(record)
        except StopIteration:
            progress.done += max(0, cell.least_runs - asked)
    if progress.found:
        say(f"{progress.found} of {progress.runs} runs were recorded before, in {directory}")
    return records


def _one_run(
    config: RunConfig,
    directory: Path,
    execute: Execute,
    progress: Progress,
    say: Callable[[str], None],
    begin: Callable[[RunConfig, Progress], None],
) -> Record:
    found = find_record(directory, config)
    if found is not None:
        progress.done += 1
        progress.found += 1
        return found
    begin(config, progress)
    started = time.perf_counter()
    made = execute(config)
    with suppress(FileExistsError):  # another process has made the same run meanwhile: its record stands
        write_record(directory, config, made)
    progress.done += 1
    progress.seconds.append(time.perf_counter() - started)
    record = find_record(directory, config)
    assert record is not None  # written above, or by that process
    say(f"[{progress.line()}] {describe(config)}: {outcome_text(record)}")
    return record


def describe(config: RunConfig) -> str:
    """`sst2 lora lr 0.001 seed 0`."""
    return f"{config.task} {config.method} lr {config.learning_rate:g} seed {config.seed}"


def outcome_text(record: Mapping[str, Any]) -> str:
    """`accuracy 0.913` or `out of memory: ...`."""
    if record["outcome"] != "finished":
        return f"{record['outcome'].replace('_', ' ')}: {record['reason']}"
    scores = record["scores"]
    shown = [f"{split} {record['metric']} {scores[split][record['metric']]:.3f}" for split in ("validation", "test")]
    return f"{', '.join(shown)}, {duration(record['seconds']['total'])}"
