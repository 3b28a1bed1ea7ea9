"""Several tasks in one training set: the rate at which each is drawn, and the order of its examples.

Rates follow the T5 paper (Raffel et al. 2020, section 3.5.2): r_t = min(e_t, K)^(1/T) / sum over tasks, with e_t examples,
a cap K and a temperature T; or they are fixed.

Draw i depends only on the seed and on i, so a run resumes anywhere. Draws come in blocks: every block holds each task as
often as its rate says, in an order of its own. A task's examples all come once, shuffled, before any comes again.
(Independent draws, as in seqio's sampling, would leave some examples out and repeat others.)
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate

import numpy as np
from datasets import Dataset, concatenate_datasets
from transformers import PreTrainedTokenizerBase

from t5peft.data.sources import Records
from t5peft.data.task import Task

BLOCK = 1000


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
    _orders: dict[tuple[str, int], np.ndarray] = field(default_factory=dict, init=False, repr=False, compare=False)

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
        order = self._order("", block, BLOCK)
        ends = dict(zip(self.counts, accumulate(self.counts.values()), strict=True))
        name = next(name for name, end in ends.items() if order[place] < end)
        end, count = ends[name], self.counts[name]
        before = int(np.count_nonzero((order[:place] >= end - count) & (order[:place] < end)))
        size = len(self.datasets[name])
        epoch, position = divmod(block * count + before, size)
        return name, int(self._order(name, epoch, size)[position])

    def dataset(self, length: int, *, start: int = 0) -> Dataset:
        """Return draws ``start`` to ``start + length`` as one data set for a trainer. It shares the memory of the tasks.

        Args:
            length: Number of draws; it should cover the whole run, because a second epoch repeats the same draws.
            start: Index of the first draw.
        """
        offsets, together = {}, 0
        for name, dataset in self.datasets.items():
            offsets[name] = together
            together += len(dataset)
        draws = (self.draw(index) for index in range(start, start + length))
        rows = np.fromiter((offsets[name] + row for name, row in draws), np.int64, length)
        columns = [dataset.select_columns(["input_ids", "labels"]) for dataset in self.datasets.values()]
        return concatenate_datasets(columns).select(rows)

    def _order(self, name: str, epoch: int, size: int) -> np.ndarray:
        """Return the shuffled numbers 0 to size of one epoch of a task, or of one block for the name ``""``."""
        key = (name, epoch)
        if key not in self._orders:
            # only the newest order of a name is kept, as draws mostly come in sequence
            for old in [other for other in self._orders if other[0] == name]:
                del self._orders[old]
            self._orders[key] = shuffled(size, f"{self.seed}/{name}/{epoch}")
        return self._orders[key]


def shuffled(size: int, key: str) -> np.ndarray:
    """Return the numbers 0 to size in an order that depends only on the key, not on the version of numpy [size]."""
    start = np.uint64(int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little"))
    # splitmix64 (Steele, Lea and Flood 2014) over a counter
    with np.errstate(over="ignore"):
        mixed = start + np.arange(1, size + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
        mixed ^= mixed >> np.uint64(31)
    return np.argsort(mixed, kind="stable")
