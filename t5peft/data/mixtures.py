"""Several tasks in one training set: the rate at which each is drawn, and the order of its examples.

Rates follow the T5 paper (Raffel et al. 2020, section 3.5.2): r_t = min(e_t, K)^(1/T) / sum over tasks, with e_t examples,
a cap K and a temperature T; or they are fixed.

Draw i depends only on the seed and on i, so a run resumes anywhere. Draws come in blocks: every block holds each task as
often as its rate says, in an order of its own. A task's examples all come once, shuffled, before any comes again.
(Independent draws, as in seqio's sampling, would leave some examples out and repeat others.)
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from datasets import Dataset, concatenate_datasets
from transformers import PreTrainedTokenizerBase

from t5peft.compat.datasets import chosen_rows
from t5peft.data.on_disk import joined
from t5peft.data.sources import Records
from t5peft.data.task import Task

BLOCK = 1000
SORTED_ROWS = 1 << 20  # random keys that are sorted at a time


def mixture_rates(sizes: Mapping[str, int], *, cap: int | None = None, temperature: float = 1.0) -> dict[str, float]:
    """Return examples-proportional rates that sum to 1.

    Args:
        sizes: Number of examples of each task.
        cap: Maximum number of examples that count per task; None for no cap.
        temperature: 1 for proportional rates; higher values are closer to equal rates.

    Raises:
        ValueError: No tasks, an empty one, a cap below 1 or a temperature that is not positive.
    """
    problems = [] if sizes else ["there are no tasks"]
    problems += [f"task {name!r} has no examples" for name, size in sizes.items() if size < 1]
    if cap is not None and cap < 1:
        problems.append(f"cap is {cap}; at least 1 was expected")
    if not temperature > 0:
        problems.append(f"temperature is {temperature}; a number above 0 was expected")
    if problems:
        raise ValueError(f"Got a mixture with problems; expected none: {'; '.join(problems)}.")
    largest = max(sizes.values()) if temperature < 1 else 1  # a high power of a size would overflow
    weights = {name: (min(size, cap or size) / largest) ** (1 / temperature) for name, size in sizes.items()}
    return {name: weight / sum(weights.values()) for name, weight in weights.items()}


@dataclass(frozen=True)
class Mixture:
    """Tokenized tasks, and the rates at which they are sampled.

    Args:
        datasets: The data set of each task, with columns ``input_ids`` and ``labels`` from ``Task.tokenize``.
        rates: The rate of each task, above 0. Rates are scaled to sum to 1 and rounded to a thousandth.
        seed: Seed of the order.

    Raises:
        ValueError: Tasks and rates do not match, a rate is not positive, or a data set is empty.
    """

    datasets: Mapping[str, Dataset]
    rates: Mapping[str, float]
    seed: int = 0
    _orders: dict[str, tuple[int, np.ndarray]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        problems = [f"task {name!r} has no rate" for name in self.datasets if name not in self.rates]
        problems += [
            f"there is a rate for {name!r}, which is not a task here"
            for name in self.rates
            if name not in self.datasets
        ]
        problems += [
            f"the rate of {name!r} is {rate}; a number above 0 was expected, or remove the task"
            for name, rate in self.rates.items()
            if not 0 < rate < float("inf")
        ]
        problems += [f"task {name!r} has no examples" for name, dataset in self.datasets.items() if len(dataset) == 0]
        if not self.datasets or len(self.datasets) > BLOCK:
            problems.append(f"there are {len(self.datasets)} tasks; 1 to {BLOCK} were expected")
        if problems:
            listed = "\n".join(f"  - {problem}" for problem in problems)
            raise ValueError(f"Got a mixture with problems; expected none:\n{listed}")

    @classmethod
    def of_tasks(
        cls,
        tasks: Mapping[str, tuple[Task, Records]],
        tokenizer: PreTrainedTokenizerBase,
        *,
        cap: int | None = None,
        temperature: float = 1.0,
        seed: int = 0,
    ) -> Mixture:
        """Return the examples-proportional mixture of tasks over their training records.

        Args:
            tasks: The task and records of each name.
            tokenizer: The tokenizer of the model.
            cap: See ``mixture_rates``.
            temperature: See ``mixture_rates``.
            seed: Seed of the order.

        Raises:
            ValueError: See ``Task.encode`` and ``mixture_rates``.
        """
        datasets = {name: task.tokenize(records, tokenizer) for name, (task, records) in tasks.items()}
        sizes = {name: len(dataset) for name, dataset in datasets.items()}
        return cls(datasets, mixture_rates(sizes, cap=cap, temperature=temperature), seed)

    @cached_property
    def counts(self) -> dict[str, int]:
        """Draws of each task in every block of 1,000: its rate to the thousandth, at least one."""
        total = sum(self.rates.values())
        exact = {name: self.rates[name] / total * BLOCK for name in self.datasets}
        counts = {name: max(1, int(share)) for name, share in exact.items()}
        # what rounding left over goes to the tasks that lost most by it, and comes from those that gained most
        while (missing := BLOCK - sum(counts.values())) != 0:
            step = 1 if missing > 0 else -1
            candidates = [name for name in counts if counts[name] + step >= 1]
            neediest = max(candidates, key=lambda name: step * (exact[name] - counts[name]))
            counts[neediest] += step
        return counts

    def draw(self, index: int) -> tuple[str, int]:
        """Return the task of draw ``index`` and the row of its data set, independent of earlier draws.

        Raises:
            IndexError: The index is negative.
        """
        if index < 0:
            raise IndexError(f"Got draw {index}; expected 0 or more.")
        block, place = divmod(index, BLOCK)
        tasks, rows = self._block(block)
        return list(self.datasets)[tasks[place]], int(rows[place])

    def dataset(self, length: int, *, start: int = 0) -> Dataset:
        """Return draws ``start`` to ``start + length`` as one data set for a trainer. It shares the memory of the tasks.

        Args:
            length: Number of draws; it should cover the whole run, because a second epoch repeats the same draws.
            start: Index of the first draw.
        """
        together = concatenate_datasets(
            [dataset.select_columns(["input_ids", "labels"]) for dataset in self.datasets.values()]
        )
        sizes = [len(dataset) for dataset in self.datasets.values()]
        offsets = np.cumsum([0, *sizes])[:-1]
        parts = (offsets[tasks] + rows for tasks, rows in self._blocks(start, start + length))
        drawn = joined(parts, length, np.uint64, in_memory=SORTED_ROWS)
        self._orders.clear()
        return chosen_rows(together, drawn)

    def _blocks(self, start: int, end: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the task and the row of each draw from ``start`` to ``end``, block by block."""
        for block in range(start // BLOCK, -(-end // BLOCK)):
            begin = block * BLOCK
            wanted = slice(max(start - begin, 0), end - begin)
            tasks, rows = self._block(block)
            yield tasks[wanted], rows[wanted]

    def _block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the task of each draw of a block, by its number, and the row of its data set [BLOCK each]."""
        order = shuffled(BLOCK, f"{self.seed}//{block}")
        tasks = np.searchsorted(np.cumsum(list(self.counts.values())), order, side="right")
        rows = np.empty(BLOCK, np.int64)
        for number, (name, count) in enumerate(self.counts.items()):
            epochs, positions = np.divmod(block * count + np.arange(count), len(self.datasets[name]))
            parts = [self._order(name, int(epoch))[positions[epochs == epoch]] for epoch in np.unique(epochs)]
            rows[tasks == number] = np.concatenate(parts)
        return tasks, rows

    def _order(self, name: str, epoch: int) -> np.ndarray:
        """Return the shuffled numbers of the rows of one epoch of a task. Only the newest order of a task is kept."""
        known, order = self._orders.get(name, (None, None))
        if order is None or known != epoch:
            self._orders.pop(name, None)
            order = shuffled(len(self.datasets[name]), f"{self.seed}/{name}/{epoch}")
            self._orders[name] = epoch, order
        return order


def shuffled(size: int, key: str) -> np.ndarray:
    """Return the numbers 0 to size in an order that depends only on the key, not on the version of numpy [size].

    It is the order of random keys, of which a part is sorted at a time. A long one is read from a file.
    """
    return joined(_sorted_parts(size, key), size, np.min_scalar_type(size), in_memory=SORTED_ROWS)


def _sorted_parts(size: int, key: str) -> Iterator[np.ndarray]:
    start = np.uint64(int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little"))
    parts, step = 1 + size // SORTED_ROWS, SORTED_ROWS // 16
    for part in range(parts):
        found: list[tuple[np.ndarray, np.ndarray]] = []
        for first in range(0, size, step):
            numbers = np.arange(first, min(size, first + step), dtype=np.uint64)
            keys = _random_keys(start, numbers)
            chosen = (keys >> np.uint64(32)) * np.uint64(parts) >> np.uint64(32) == part  # parts are ranges of keys
            found.append((keys[chosen], numbers[chosen].astype(np.min_scalar_type(size))))
        keys, numbers = map(np.concatenate, zip(*found, strict=True))
        yield numbers[np.argsort(keys, kind="stable")]


def _random_keys(start: np.uint64, numbers: np.ndarray) -> np.ndarray:
    """Return splitmix64 (Steele, Lea and Flood 2014) over a counter [numbers]."""
    with np.errstate(over="ignore"):
        mixed = start + (numbers + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
        return mixed ^ (mixed >> np.uint64(31))
