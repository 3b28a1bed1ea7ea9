"""Parameters of tests that are a sample of a grid; the rest of the grid is slow."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import product
from typing import Any

import pytest


def sampled(*axes: Iterable[Any], every: int) -> list[Any]:
    """Return all combinations of the axes, of which one in ``every`` is fast.

    Those lie on diagonals of the grid, so that each value of an axis of at most ``every`` values meets every value of the others.

    Args:
        axes: The values of each parameter.
        every: Combinations for each fast one.
    """
    values: Sequence[list[Any]] = [list(axis) for axis in axes]
    found = []
    for places in product(*map(range, map(len, values))):
        row = [axis[place] for axis, place in zip(values, places, strict=True)]
        name = "-".join(getattr(value, "__name__", None) or str(value) for value in row)
        found.append(pytest.param(*row, id=name, marks=[pytest.mark.slow] if sum(places) % every else []))
    return found
