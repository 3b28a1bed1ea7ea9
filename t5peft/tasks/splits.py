"""Held-out records, the same on every machine and whatever order the file has."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

Records = list[dict[str, Any]]
Splits = dict[str, Records]


def hold_out(
    records: Records, key: Callable[[dict[str, Any]], str], *, share: float = 0.1, at_most: int = 1000
) -> tuple[Records, Records]:
    """Part records into the rest and a held-out share, both in their old order.

    Records with the same key go together, so that a source with several targets, or one that is there twice, is never
    on both sides. Which keys are held out follows from a hash of the key alone.

    Args:
        records: what to part.
        key: what makes two records the same; most often the source.
        share: of the keys, to hold out; at least one.
        at_most: keys to hold out.

    Raises:
        ValueError: fewer than two different keys.
    """
    keys = {key(record) for record in records}
    if len(keys) < 2:
        raise ValueError(f"{len(records)} records have {len(keys)} different keys; two or more are needed to part them")
    count = min(max(1, round(share * len(keys))), at_most, len(keys) - 1)
    held = set(sorted(keys, key=_rank)[:count])
    rest = [record for record in records if key(record) not in held]
    return rest, [record for record in records if key(record) in held]


def group_references(records: Records, key: Callable[[dict[str, Any]], str], column: str) -> Records:
    """One record for each key, with ``references``: the column's texts over all records of that key."""
    groups: dict[str, Records] = {}
    for record in records:
        groups.setdefault(key(record), []).append(record)
    return [group[0] | {"references": [record[column] for record in group]} for group in groups.values()]


def _rank(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
