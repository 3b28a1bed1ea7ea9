"""Find sources that hold their answer: a model learns to copy it, and has nothing to copy when the answer is not known.

A template that names the column of the target is sure to. Another column is compared with the targets: it is, begins or ends
with them, or each of its few values stands for one label. A target within its source is not a leak, as extractive tasks have it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from datasets import Dataset

from t5peft.data.sources import batches_of, part_of, read_records
from t5peft.data.task import Record, Task
from t5peft.data.template import Template, as_text

SAMPLE = 1000
_LEAST_ROWS = 20  # in fewer, it may be chance
_NEARLY_ALL = 0.98
_ROWS_OF_A_VALUE = 5  # on average, of a column that stands for the label
_SHOWN = 120


def leak_of(task: Task, records: Iterable[Record]) -> str | None:
    """Return a sentence on the column of the source that holds the target, with an example.

    Args:
        task: The task of the records.
        records: The records, of which some are read. An iterator is left as it is.

    Returns:
        None if no column does, or if the records are an iterator.
    """
    named_rows = task.with_names(_sample(records))
    rows = [row for row in named_rows if isinstance(row, Mapping) and not any(task.problems_of([row]))]
    if not rows:
        return None
    named = Template.parse(task.target).columns
    sources, targets = [task.source_row(row) for row in rows], [task.target_text(row) for row in rows]
    others = [column for column in task.columns if column not in named]
    column, how = None, ""
    if set(named) <= set(task.columns) and (task.verbalizer is not None or others):
        column, how = named[0], "is that of the target"
    elif len(set(targets)) > 1 and len(rows) >= _LEAST_ROWS:
        labels = [as_text(row[named[0]]) or "" for row in rows] if task.verbalizer is not None else targets
        words = [" ".join(task.target_row(row).values()) for row in rows]
        answers = [{*map(_bare, texts)} - {""} for texts in zip(targets, labels, words, strict=True)]
        for other in others:
            texts = [source[other] for source in sources]
            if found := _likeness(
                texts, answers, labels, has_labels=task.verbalizer is not None, is_only=len(others) == 1
            ):
                column, how = other, found
                break
    if column is None:
        return None
    row = next((i for i, source in enumerate(sources) if source[column].strip()), 0)
    return (
        f"sources: the column {column!r} of the template {task.template!r} {how}, so that sources hold their answers: "
        f"{task.source(rows[row])[-_SHOWN:]!r} with the target {targets[row][:_SHOWN]!r}. If that is not meant, leave the column "
        "out of the template (--template)"
    )


def _likeness(
    texts: Sequence[str], answers: Sequence[set[str]], labels: Sequence[str], *, has_labels: bool, is_only: bool
) -> str | None:
    """Return how the texts of a column hold the answers, or None."""

    def nearly_all(found: Iterator[bool]) -> bool:
        return sum(found) >= _NEARLY_ALL * len(texts)

    pairs = [(_bare(text), answer) for text, answer in zip(texts, answers, strict=True)]
    if has_labels and nearly_all(text in answer for text, answer in pairs):
        return "equals the target in nearly every record"
    if nearly_all(any(text.endswith(f" {one}") for one in answer) for text, answer in pairs):
        return "ends with the target in nearly every record"
    if has_labels and nearly_all(any(text.startswith(f"{one} ") for one in answer) for text, answer in pairs):
        return "begins with the target in nearly every record"
    meanings = dict(zip(texts, labels, strict=True))
    if (
        has_labels
        and not is_only
        and len(meanings) * _ROWS_OF_A_VALUE <= len(texts)
        and all(meanings[text] == label for text, label in zip(texts, labels, strict=True))
    ):
        return "has few values, of which each stands for one label"
    return None


def _bare(text: str) -> str:
    """Return the text in lower case, with spaces in the place of marks."""
    return " ".join("".join(letter if letter.isalnum() else " " for letter in text.lower()).split())


def _sample(records: Iterable[Any]) -> Sequence[Any]:
    """Return records from all parts of a collection, as files are often sorted by label; those at the start of a stream."""
    if isinstance(records, Dataset):
        return read_records(records.select(range(0, len(records), len(records) // SAMPLE + 1)))
    if isinstance(records, Sequence):
        return part_of(records, [records[i] for i in range(0, len(records), len(records) // SAMPLE + 1)])
    return () if isinstance(records, Iterator) else next(batches_of(records, SAMPLE), ())
