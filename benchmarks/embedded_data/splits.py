"""Splits without near-duplicates, for the grammars in this folder."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

Row = TypeVar("Row")

NEAR_DUPLICATE = 0.8
SPLITS = ("train", "validation", "test")


def token_set(text: str) -> frozenset[str]:
    """Words and numbers of a text in lower case, without punctuation."""
    return frozenset(re.findall(r"[^\W_]+(?:['’][^\W_]+)*", text.lower()))


def jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    """Shared share of two token sets, 0 to 1; two empty sets are alike."""
    return len(one & other) / len(one | other) if one or other else 1.0


def is_near_duplicate(one: frozenset[str], other: frozenset[str]) -> bool:
    """Whether two token sets share so much; sets of very different size cannot, which saves most of the work."""
    small, large = sorted((len(one), len(other)))
    return small >= NEAR_DUPLICATE * large and jaccard(one, other) >= NEAR_DUPLICATE


def without_near_duplicates(
    candidates: Mapping[str, Iterable[Row]],
    counts: Mapping[str, int],
    texts: Callable[[Row], tuple[str, ...]],
    key: Callable[[Row], object],
) -> dict[str, list[Row]]:
    """Take rows for each split, test first, none of which is close to a row of a split already filled.

    Args:
        candidates: for each split, rows in the order in which they are to be tried.
        counts: rows wanted for each split.
        texts: the texts of a row that are compared, each with the text at its place in the other row.
        key: what may occur only once in the whole set.

    Raises:
        ValueError: candidates ran out before a split was full.
    """
    taken: dict[str, list[Row]] = {}
    foreign: list[tuple[frozenset[str], ...]] = []
    seen: set[object] = set()
    for split in reversed(SPLITS):
        rows: list[Row] = []
        own: list[tuple[frozenset[str], ...]] = []
        for row in candidates[split]:
            if len(rows) == counts[split]:
                break
            sets = tuple(token_set(text) for text in texts(row))
            if key(row) in seen or any(any(map(is_near_duplicate, sets, other)) for other in foreign):
                continue
            seen.add(key(row))
            rows.append(row)
            own.append(sets)
        if len(rows) < counts[split]:
            raise ValueError(
                f"{split} got {len(rows)} rows of {counts[split]} before the candidates ran out; widen the grammar"
            )
        taken[split] = rows
        foreign += own
    return {split: taken[split] for split in SPLITS}


def numbered(name: str, rows: Mapping[str, Iterable[dict]]) -> dict[str, list[dict]]:
    """Give every row an id such as "phrases-0001", counted through the splits."""
    result: dict[str, list[dict]] = {}
    count = 0
    for split in SPLITS:
        result[split] = []
        for row in rows[split]:
            count += 1
            result[split].append({"id": f"{name}-{count:04d}", **row})
    return result


def capital(text: str) -> str:
    """Return the text with its first letter in upper case."""
    return text[:1].upper() + text[1:]


def with_article(phrase: str) -> str:
    """Return the phrase after "a" or "an", by its first letter and the exceptions that the grammars use."""
    vowel = phrase[0].lower() in "aeiou" and not re.match(r"(?i)(uni|use|one|eu)", phrase)
    return f"{'an' if vowel or re.match(r'(?i)(hour|honest|eight|11|18|8)', phrase) else 'a'} {phrase}"
