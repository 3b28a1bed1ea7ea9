"""The few statistics that the tables need: mean and deviation over seeds, paired bootstrap over examples."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation over n runs; the deviation of a single run is not known (None)."""

    mean: float
    deviation: float | None
    n: int

    def text(self, decimals: int = 1, factor: float = 1.0) -> str:
        """`89.3 ± 0.4 (3)`, or `89.3 (1)` for one run; values are multiplied by `factor`."""
        mean = f"{self.mean * factor:.{decimals}f}"
        if self.deviation is None:
            return f"{mean} ({self.n})"
        return f"{mean} ± {self.deviation * factor:.{decimals}f} ({self.n})"


def spread(values: Sequence[float]) -> Spread:
    """Mean ± sample deviation.

    Raises:
        ValueError: no value, or one that is not finite.
    """
    if not values or not all(math.isfinite(value) for value in values):
        raise ValueError(f"expected at least one finite value, got {list(values)!r}")
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return Spread(statistics.fmean(values), deviation, len(values))


@dataclass(frozen=True)
class Difference:
    """Mean difference of two methods on the same examples, with the 95 % interval of the paired bootstrap."""

    mean: float
    low: float
    high: float

    @property
    def clear(self) -> bool:
        """Whether the interval leaves zero out."""
        return self.low > 0 or self.high < 0


def paired_bootstrap(ours: np.ndarray, reference: np.ndarray, *, resamples: int = 2000) -> Difference:
    """`ours - reference` over the same examples.

    Args:
        ours: score of each test example, averaged over seeds. [examples]
        reference: the same for the method that is compared with. [examples]
        resamples: drawn with replacement, examples kept in pairs, with a fixed seed, so that tables repeat.

    Raises:
        ValueError: the two do not hold the same number of examples, or none.
    """
    if ours.shape != reference.shape or ours.ndim != 1 or not len(ours):
        raise ValueError(f"expected scores of the same examples, got shapes {ours.shape} and {reference.shape}")
    differences = ours - reference
    draws = np.random.default_rng(0).integers(len(differences), size=(resamples, len(differences)))
    low, high = np.percentile(differences[draws].mean(axis=1), [2.5, 97.5])
    return Difference(float(differences.mean()), float(low), float(high))
