"""Tell whether a data set holds the records that it held before."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

ROWS = 256


def content_of(dataset: Any) -> str | None:
    """Return a hash over the records of a data set; of a large one, over ``ROWS`` that are evenly spaced.

    Args:
        dataset: A data set with a length, whose records are read by index.

    Returns:
        None for a data set whose records cannot be read so, or are not the same twice, as those that are drawn anew each time.
    """
    if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        return None
    count = len(dataset)
    places = sorted({round(i * (count - 1) / max(1, min(count, ROWS) - 1)) for i in range(min(count, ROWS))})
    try:
        with _same_random_numbers():
            first, again = ([_plain(dataset[place]) for place in places] for _ in range(2))
    except Exception:  # of the user's code, which the training will meet where it needs the record
        return None
    text = json.dumps(first)
    return hashlib.sha256(text.encode()).hexdigest()[:16] if text == json.dumps(again) else None


def _plain(value: Any) -> Any:
    """Return a value as JSON holds it; of an object that has no such form, its type."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(name): _plain(part) for name, part in sorted(value.items(), key=lambda item: str(item[0]))}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value if isinstance(value, str | int | float | bool | None) else type(value).__name__


@contextmanager
def _same_random_numbers() -> Iterator[None]:
    """Leave the generators as they were, as a data set may draw from them."""
    plain, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng([]):
            yield
    finally:
        random.setstate(plain)
        np.random.set_state(numpy)
