"""Held-out records, the same on every machine and whatever order the file has."""

from __future__ import annotations

import hashlib
import heapq
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from itertools import compress
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from t5peft.data.sources import RecordFile, Records, origin_of, part_of, read_records
from t5peft.data.template import one_line

if TYPE_CHECKING:
    from t5peft.data.task import Task

Splits = dict[str, Records]
"""Records by split: "train", "validation", "test"."""
_PART = 1_000_000  # rows that are compared at a time


def fingerprint_of_data(task: Task, splits: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Return a hash of the records with the task's definition, the same as that of version 0.1."""
    fields = asdict(task)
    fields["target_words"] = fields.pop("verbalizer")  # its name in 0.1
    if fields["list_separator"] is None:
        del fields["list_separator"]
    digest = hashlib.sha256()
    for part in _json_of(fields, splits):
        digest.update(part.encode())
    return digest.hexdigest()[:16]


def _json_of(fields: dict[str, Any], splits: Mapping[str, Sequence[Mapping[str, Any]]]) -> Iterator[str]:
    """Yield the JSON of ``[fields, splits]`` record by record."""
    dumps = partial(json.dumps, sort_keys=True, ensure_ascii=False, default=str)
    yield f"[{dumps(fields)}, {{"
    for number, split in enumerate(sorted(splits)):
        yield f"{', ' if number else ''}{dumps(split)}: ["
        for row, record in enumerate(splits[split]):
            yield f"{', ' if row else ''}{dumps(dict(record))}"
        yield "]"
    yield "}]"


def hold_out(
    records: Records, key: Callable[[dict[str, Any]], str], *, share: float = 0.1, at_most: int = 1000
) -> tuple[Records, Records]:
    """Split records into the rest and a held-out part, both in their original order.

    Records with the same key stay together, so a duplicate source, or a source with several targets, is never in both parts. Keys
    that differ only in white space are the same, as they are for T5. A hash of the key decides which keys are held out.

    Args:
        records: All records.
        key: A function that returns the text by which records are grouped, usually the source.
        share: Fraction of the keys to hold out; at least one key.
        at_most: Maximum number of keys to hold out.

    Returns:
        The rest, and the held-out records.

    Raises:
        ValueError: Fewer than two different keys.
    """
    rows = read_records(records)
    is_held = _held(rows, key, share, at_most)
    if isinstance(rows, RecordFile):
        return rows.chosen(np.flatnonzero(~is_held)), rows.chosen(np.flatnonzero(is_held))
    return part_of(rows, compress(rows, ~is_held)), part_of(rows, compress(rows, is_held))


def _held(
    records: Sequence[Any], key: Callable[[dict[str, Any]], str], share: float, at_most: int
) -> NDArray[np.bool_]:
    """Return whether each record is held out, with eight bytes of memory a record: the start of the hash of its key."""
    groups = np.empty(len(records), np.uint64)
    lowest, bound = dict[int, int](), 1 << 64  # the rank of each group that may be held out, and that of the last one
    for row, record in enumerate(records):
        name = key(record)
        group, rank = map(_rank, (one_line(name), name))
        groups[row] = group
        if rank < bound:
            lowest[group] = min(rank, lowest.get(group, rank))
            if len(lowest) > 2 * at_most:
                lowest = dict(_lowest(lowest, at_most))
                bound = max(lowest.values(), default=0)
    count = _count(records, _distinct(groups), share, at_most)
    held = np.array([group for group, _ in _lowest(lowest, count)], np.uint64)
    return np.concatenate([np.isin(part, held) for part in np.split(groups, range(_PART, len(groups), _PART))])


def _lowest(ranks: Mapping[int, int], count: int) -> list[tuple[int, int]]:
    return heapq.nsmallest(count, ranks.items(), key=itemgetter(1))


def _distinct(values: NDArray[np.uint64]) -> int:
    """Return the number of different values. ``np.unique`` would take twice the memory."""
    ordered = np.sort(values)
    return int(np.count_nonzero(ordered[1:] != ordered[:-1])) + 1 if len(ordered) else 0


def _count(records: Sequence[Any], keys: int, share: float, at_most: int) -> int:
    """Return how many of the keys to hold out."""
    if keys < 2:
        origin = origin_of(records)
        where = f" in {origin}" if origin else ""
        raise ValueError(
            f"Got {len(records)} records with {keys} different keys{where}; expected at least two, to hold some records "
            "out. Give more records, or a file with validation records."
        )
    return min(max(1, round(share * keys)), at_most, keys - 1)


def group_references(records: Records, key: Callable[[dict[str, Any]], str], column: str) -> Records:
    """Return one record for each key, with ``references``: the column's texts over all records of that key."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        groups.setdefault(key(record), []).append(record)
    return [group[0] | {"references": [record[column] for record in group]} for group in groups.values()]


def _rank(key: str) -> int:
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")
