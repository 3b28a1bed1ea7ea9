"""Run a suite: the learning-rate sweep on validation, then every seed at the best rate.

The order of the runs follows from the records only. A suite that was killed asks for the same runs again, finds the
recorded ones, and continues with the first run that has no record.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from t5peft.benchmark.records import RunConfig, RunRecord, RunRecords

if TYPE_CHECKING:  # suites import torch, which the processes that only count runs do without
    from t5peft.benchmark.suites import Suite, SuiteMethod, SuiteTask

Execute = Callable[[RunConfig], RunRecord]
GROWTHS = 3


def validation_score(record: RunRecord) -> float | None:
    """Return the leading metric on validation, or None if the run did not finish."""
    if record["outcome"] != "finished":
        return None
    return float(record["scores"]["validation"][record["metric"]])


def best_rate(records: Mapping[float, RunRecord]) -> float | None:
    """Return the learning rate with the lowest loss on validation, the lower one of equals.

    The score is not used: over a few hundred examples it is mostly chance, and picks rates at which other seeds diverge.

    Args:
        records: The records of one method, task and seed, by learning rate.

    Returns:
        The rate, or None if no run finished.
    """
    finished = {rate: record for rate, record in records.items() if record["outcome"] == "finished"}
    if len(finished) < 2:  # nothing to choose from; a baseline has no loss
        return next(iter(finished), None)
    return min((float(record["validation_loss"]), rate) for rate, record in finished.items())[1]


def next_rate(rates: list[float], best: float | None) -> float | None:
    """Return the rate beyond an end of the grid, at the grid's own ratio, if that end is the best rate."""
    if best is None or len(rates) < 2:
        return None
    if best == rates[0]:
        return float(f"{rates[0] * rates[0] / rates[1]:.3g}")
    if best == rates[-1]:
        return float(f"{rates[-1] * rates[-1] / rates[-2]:.3g}")
    return None


@dataclass(frozen=True)
class Sweep:
    """The runs of one method on one task: a grid of learning rates, then seeds.

    Attributes:
        base: The configuration, whose learning rate and seed each run replaces.
        rates: The grid.
        seeds: The first seed tunes the rate.
    """

    base: RunConfig
    rates: tuple[float, ...]
    seeds: tuple[int, ...]

    @property
    def least_runs(self) -> int:
        """Number of runs if the grid does not grow."""
        return len(self.rates) + len(self.seeds) - 1

    def runs(self) -> Generator[RunConfig, RunRecord, None]:
        """Yield the configurations one by one; each expects its record by ``send`` before the next."""
        records: dict[float, RunRecord] = {}
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


def sweeps(suite: Suite, base_config: Callable[[SuiteTask, SuiteMethod], RunConfig]) -> list[Sweep]:
    """Return a sweep for every method on every task, task by task.

    Args:
        suite: The suite.
        base_config: Makes the configuration of a method on a task, as ``configs.base_configs`` returns it.
    """
    return [
        Sweep(base_config(task, method), method.learning_rates, suite.seeds)
        for task in suite.tasks
        for method in suite.methods
    ]


@dataclass
class Progress:
    """How far a suite is. The time left is estimated from the runs of this call."""

    runs: int
    done: int = 0
    found: int = 0
    seconds: list[float] = field(default_factory=list)
    workers: int = 1

    def seconds_left(self) -> float | None:
        """Return the least time that the remaining runs take, or None before the first run has ended."""
        if not self.seconds:
            return None
        return (self.runs - self.done) * sum(self.seconds) / len(self.seconds) / self.workers

    def line(self) -> str:
        """Return ``12/48 runs, about 7 min left``."""
        left = self.seconds_left()
        if left is None:
            return f"{self.done}/{self.runs} runs"
        return f"{self.done}/{self.runs} runs, about {duration(left)} left"


def duration(seconds: float) -> str:
    """Return ``48 s``, ``7 min`` or ``2 h 05 min``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


class _Walk:
    """A sweep on its way through its runs, which passes over those that are recorded."""

    def __init__(self, sweep: Sweep, records: RunRecords, progress: Progress) -> None:
        self.found: list[RunRecord] = []
        self._sweep, self._records, self._progress = sweep, records, progress
        self._runs = sweep.runs()
        self._asked = 0

    def next_run(self) -> RunConfig | None:
        """Return the next run that has no record, or None at the end."""
        progress = self._progress
        try:
            while True:
                config = self._runs.send(self.found[-1]) if self.found else next(self._runs)
                self._asked += 1
                progress.runs += self._asked > self._sweep.least_runs
                record = self._records.find(config)
                if record is None:
                    return config
                progress.done += 1
                progress.found += 1
                self.found.append(record)
        except StopIteration:
            progress.done += max(0, self._sweep.least_runs - self._asked)
            return None


def run_suite(
    grid: list[Sweep],
    records: RunRecords,
    execute: Execute,
    *,
    log: Callable[[str], None] = print,
    on_start: Callable[[RunConfig, Progress], None] = lambda config, progress: None,
    executor: Executor | None = None,
    workers: int = 1,
) -> list[RunRecord]:
    """Run what is not recorded yet and return the records of the whole suite.

    Args:
        grid: The sweeps of the suite.
        records: Where runs are looked up and recorded.
        execute: Makes one run and returns its record. It must not raise for what happens inside a run.
        log: Gets a line after each run.
        on_start: Called before each run.
        executor: Makes the runs, several at once; None makes them here, one by one. The runs of a sweep follow each other.
        workers: Runs at once.
    """
    records.folder.mkdir(parents=True, exist_ok=True)  # a folder that cannot be made is an error before the first run
    progress = Progress(sum(sweep.least_runs for sweep in grid), workers=workers)
    walks = [_Walk(sweep, records, progress) for sweep in grid]
    waiting = deque(walks)
    running: dict[Future[RunRecord], tuple[_Walk, RunConfig, float]] = {}
    while waiting or running:
        while waiting and len(running) < workers:
            walk = waiting.popleft()
            if (config := walk.next_run()) is not None:
                on_start(config, progress)
                started = time.perf_counter()
                running[_started(executor, execute, config)] = walk, config, started
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            walk, config, started = running.pop(future)
            made = future.result()
            if workers > 1 and "machine" in made:
                made["machine"]["runs_at_once"] = workers  # they share the processor, so that each takes longer
            with suppress(FileExistsError):  # another process has made the same run meanwhile: its record stands
                records.append(config, made)
            progress.done += 1
            if config.learning_rate:  # a baseline takes seconds, which say nothing about the runs that train
                progress.seconds.append(time.perf_counter() - started)
            record = records.find(config)
            assert record is not None  # appended above, or by that process
            walk.found.append(record)
            waiting.appendleft(walk)
            log(f"[{progress.line()}] {describe(config)}: {outcome_text(record)}")
    if progress.found:
        log(f"Found {progress.found} of {progress.runs} runs recorded in {records.folder}.")
    return [record for walk in walks for record in walk.found]


def _started(executor: Executor | None, execute: Execute, config: RunConfig) -> Future[RunRecord]:
    """Start a run, or make it here."""
    if executor is not None:
        return executor.submit(execute, config)
    future: Future[RunRecord] = Future()
    future.set_result(execute(config))
    return future


def describe(config: RunConfig) -> str:
    """Return ``sst2 lora lr 0.001 seed 0``, or ``sst2 constant`` for a baseline."""
    trained = f" lr {config.learning_rate:g} seed {config.seed}" if config.learning_rate else ""
    return f"{config.task} {config.method}{trained}"


def outcome_text(record: RunRecord) -> str:
    """Return ``accuracy 0.913``, or ``out of memory`` with its reason."""
    if record["outcome"] != "finished":
        return f"{record['outcome'].replace('_', ' ')}: {record['reason']}"
    scores = record["scores"]
    shown = [f"{split} {record['metric']} {score[record['metric']]:.3f}" for split, score in scores.items()]
    return f"{', '.join(shown)}, {duration(record['seconds']['total'])}"
