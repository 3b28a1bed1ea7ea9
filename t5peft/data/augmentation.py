"""More training records from the given ones: the source in other words, the target as it is.

    augmented = augment(records, task, Synonyms(), copies=2, seed=0)
    print(augmented.report)
    train = task.tokenize(augmented.dataset, tokenizer)

Only columns of the source are reworded, before the template is put around them. The result for a row depends only on the
seed, the row's number, the copy and the column. It is cached by ``datasets.map`` under a fingerprint of the records and of
everything else that it depends on, so a second run, in another process too, reads it from disk.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from difflib import SequenceMatcher
from numbers import Real
from pathlib import Path
from random import Random
from typing import Any

import datasets
import numpy as np
from datasets import Dataset

from t5peft.data import checks
from t5peft.data.rewording import Rewording
from t5peft.data.task import Task
from t5peft.data.template import Template, as_text

VERSION = 1
"""Increase it when a rewording's result changes, so that cached results are not used."""


@dataclass(frozen=True)
class AugmentationReport:
    """The number of copies, and the share of words that changed.

    Args:
        records: Number of records before.
        added: Copies that say something in other words.
        left_out: Copies that equal their record or an earlier copy of it.
        changed_words: By column, the share of the words of the added copies that is not the original's in its place.
    """

    records: int
    added: int
    left_out: int
    changed_words: Mapping[str, float]

    def __str__(self) -> str:
        shares = ", ".join(
            f"{100 * share:.1f} % of the words of {column}" for column, share in self.changed_words.items()
        )
        return (
            f"Augmentation: {self.records} records and {self.added} reworded copies ({self.left_out} said "
            f"nothing new and were left out); changed in the copies: {shares}."
        )


@dataclass(frozen=True)
class Augmented:
    """Records and reworded copies.

    Args:
        dataset: With columns ``row``, the record's number, and ``copy``: 0 for the record itself, then 1, 2.
        report: The numbers.
    """

    dataset: Dataset
    report: AugmentationReport


def augment(
    records: Iterable[Mapping[str, Any]],
    task: Task,
    rewording: Rewording,
    *,
    copies: int = 1,
    seed: int = 0,
    columns: Sequence[str] | None = None,
    cache_folder: str | Path | None = None,
) -> Augmented:
    """Add reworded copies of training records.

    Args:
        records: With text in the task's columns.
        task: Its template names the columns of the source.
        rewording: ``Synonyms``, ``WordDropout``, ``WordSwap``, ``BackTranslation``, or your own.
        copies: Of each record.
        seed: Of all random choices.
        columns: Of the source, to reword; all of them by default. A column of the target is never reworded.
        cache_folder: For the result; a folder in that of ``datasets`` by default.

    Raises:
        ValueError: No records, or none that are mappings, less than one copy, columns that are not the source's or that are the
            target's, or see ``Task.check_sources``.
    """
    records = task.with_names(records)
    checks.raise_all(task.name, checks.no_records(records), records)
    rows = [dict(record) for record in records]
    # a data set has the columns of its first row: each record gets those that only others have, as None
    names = dict.fromkeys(name for row in rows for name in row)
    rows = [{name: row.get(name) for name in names} for row in rows]
    mixed = _mixed(task, rows)
    rows = [{**row, **{name: as_text(row[name]) for name in mixed if row[name] is not None}} for row in rows]
    chosen = _columns(task, columns)
    _check(rows, copies, chosen)
    task.check_sources(rows)
    fingerprint = _fingerprint(rows, rewording, copies, seed, chosen)
    folder = Path(cache_folder or Path(datasets.config.HF_DATASETS_CACHE) / "t5peft_augmented")
    folder.mkdir(parents=True, exist_ok=True)
    reworded = Dataset.from_list(rows).map(
        _reword,
        batched=True,
        with_indices=True,
        fn_kwargs={"rewording": rewording, "columns": chosen, "copies": copies, "seed": seed},
        cache_file_name=str(folder / f"{fingerprint}.arrow"),
        new_fingerprint=fingerprint,
        desc="augmentation",
    )
    return Augmented(reworded, _report(reworded, len(rows), copies, chosen))


def _mixed(task: Task, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the columns with numbers of several kinds, which one type of a data set would change: 5 into 5.0."""
    kinds = {
        name: {type(row[name]) for row in rows if isinstance(row.get(name), Real | Decimal | np.bool_)}
        for name in dict.fromkeys([*task.columns, *Template.parse(task.target).columns])
    }
    return [name for name, found in kinds.items() if len(found) > 1]


def _columns(task: Task, columns: Sequence[str] | None) -> tuple[str, ...]:
    of_target = {*Template.parse(task.target).columns, *([task.references] if task.references else [])}
    if columns is None:
        columns = [column for column in task.columns if column not in of_target]
    problems = [
        f"{column!r} is not a column of its source; those are {', '.join(map(repr, task.columns))}"
        for column in columns
        if column not in task.columns
    ]
    problems += [
        f"{column!r} is part of its target, which is never reworded" for column in columns if column in of_target
    ]
    if not columns:
        problems.append("every column of its source is part of its target; there is nothing to reword")
    if problems:
        raise ValueError(
            f"Got columns to reword that task {task.name!r} does not allow; expected others: {'; '.join(problems)}."
        )
    return tuple(columns)


def _check(records: list[dict[str, Any]], copies: int, columns: Sequence[str]) -> None:
    problems = [] if records else ["there are no records"]
    if copies < 1:
        problems.append(f"copies is {copies}; at least 1 was expected")
    for column in columns:
        rows = [i for i, record in enumerate(records) if not isinstance(record.get(column), str)]
        if rows:
            problems.append(f"the column {column!r} holds no text in row {rows[0]} ({len(rows)} such rows)")
    taken = {"row", "copy"} & {column for record in records for column in record}
    if taken:
        problems.append(f"the records have columns that augmentation adds ({', '.join(sorted(taken))}); rename them")
    if problems:
        raise ValueError(
            f"Got records that cannot be augmented; expected none of these problems: {'; '.join(problems)}."
        )


def _reword(
    batch: dict[str, list[Any]],
    indices: list[int],
    rewording: Rewording,
    columns: Sequence[str],
    copies: int,
    seed: int,
) -> dict[str, list[Any]]:
    out: dict[str, list[Any]] = {column: list(values) for column, values in batch.items()}
    out |= {"row": list(indices), "copy": [0] * len(indices)}
    seen = [{tuple(batch[column][i] for column in columns)} for i in range(len(indices))]
    for copy in range(1, copies + 1):
        new = dict(batch)
        for column in columns:
            randoms = [Random(f"{seed}/{row}/{copy}/{column}") for row in indices]
            new[column] = rewording.reword(list(batch[column]), randoms)
        texts = [tuple(new[column][i] for column in columns) for i in range(len(indices))]
        fresh = [i for i, text in enumerate(texts) if text not in seen[i]]
        for i in fresh:
            seen[i].add(texts[i])
        for column in batch:
            out[column] += [new[column][i] for i in fresh]
        out["row"] += [indices[i] for i in fresh]
        out["copy"] += [copy] * len(fresh)
    return out


def _fingerprint(
    records: list[dict[str, Any]], rewording: Rewording, copies: int, seed: int, columns: Sequence[str]
) -> str:
    digest = hashlib.sha256(json.dumps([VERSION, rewording.identity, copies, seed, columns]).encode())
    for record in records:
        digest.update(json.dumps(record, sort_keys=True, default=str).encode())
    return digest.hexdigest()[:32]


def _report(dataset: Dataset, records: int, copies: int, columns: Sequence[str]) -> AugmentationReport:
    added = len(dataset) - records
    numbers = list(zip(dataset["row"], dataset["copy"], strict=True))
    shares = {}
    for column in columns:
        texts = dict(zip(numbers, dataset[column], strict=True))
        pairs = [(texts[row, 0].split(), text.split()) for (row, copy), text in texts.items() if copy]
        words = sum(len(old) for old, _ in pairs)
        kept = sum(_words_in_place(old, new) for old, new in pairs)
        shares[column] = 1 - kept / words if words else 0.0
    return AugmentationReport(records, added, records * copies - added, shares)


def _words_in_place(old: list[str], new: list[str]) -> int:
    return sum(block.size for block in SequenceMatcher(None, old, new, autojunk=False).get_matching_blocks())
