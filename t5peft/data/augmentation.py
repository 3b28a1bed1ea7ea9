"""More training records from the given ones: the source in other words, the target as it is.

    augmented = augment(records, task, Synonyms(), copies=2, seed=0)
    print(augmented.report)
    train = task.tokenize(augmented.dataset, tokenizer)

Only columns of the source are reworded, before the template is put around them. The result for a row depends only on the
seed, the row's number, the copy and the column. It is an Arrow file named by a fingerprint of the records and of everything
else that it depends on, so a second run, in another process too, reads it from disk. Records are read batch by batch.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from difflib import SequenceMatcher
from functools import partial
from numbers import Real
from pathlib import Path
from random import Random
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from datasets import Dataset

from t5peft.data import checks
from t5peft.data.checks import Findings
from t5peft.data.rewording import Rewording
from t5peft.data.sources import batches_of
from t5peft.data.task import Task
from t5peft.data.template import Template, as_text

VERSION = 2
"""Increase it when a rewording's result changes, so that cached results are not used."""
BATCH_ROWS = 1000


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
        dataset: The records and copies, with columns ``row`` (the record's number) and ``copy`` (0 for the record, then 1, 2).
        report: The numbers of records, copies and changes.
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
        records: Records with text in the task's columns.
        task: The task; its template names the columns of the source.
        rewording: ``Synonyms``, ``WordDropout``, ``WordSwap``, ``BackTranslation``, or your own.
        copies: Number of copies per record.
        seed: Seed of all random choices.
        columns: Source columns to reword; by default all. Columns of the target are never reworded.
        cache_folder: The folder for the result; by default in the cache folder of ``datasets``.

    Raises:
        ValueError: No records, or none that are mappings, less than one copy, columns that are not the source's or that are the
            target's, or see ``Task.check_sources``.
    """
    given = task.with_names(records)
    chosen = _columns(task, columns)
    names = _check(task, given, copies, chosen)
    rows = _Rows(given, names, _mixed(task, given))
    fingerprint = _fingerprint(rows, rewording, copies, seed, chosen)
    folder = Path(cache_folder or Path(datasets.config.HF_DATASETS_CACHE) / "t5peft_augmented")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{fingerprint}.arrow"
    if not path.is_file():
        _write(path, rows, partial(_reword, rewording=rewording, columns=chosen, copies=copies, seed=seed))
    reworded = Dataset.from_file(str(path))
    return Augmented(reworded, _report(reworded, len(given), copies, chosen))


@dataclass(frozen=True)
class _Rows:
    """Records with the same columns, read anew in each pass; those that only others have are None."""

    records: Sequence[Mapping[str, Any]]
    names: Sequence[str]
    mixed: Collection[str]

    def batches(self) -> Iterator[tuple[int, list[dict[str, Any]]]]:
        """Yield the number of each batch's first row, and its rows."""
        first = 0
        for batch in batches_of(self.records, BATCH_ROWS):
            yield first, [{name: self._cell(record, name) for name in self.names} for record in batch]
            first += len(batch)

    def _cell(self, record: Mapping[str, Any], name: str) -> Any:
        cell = record.get(name)
        return as_text(cell) if name in self.mixed and cell is not None else cell


def _write(path: Path, rows: _Rows, reword: Callable[[list[dict[str, Any]], int], dict[str, list[Any]]]) -> None:
    """Write the rows and their copies; another process sees the whole file or none."""
    schema = pa.schema([(name, pa.null()) for name in rows.names])
    for _, batch in rows.batches():
        found = pa.Table.from_pylist(batch).schema
        schema = pa.unify_schemas([schema, found], promote_options="permissive")
    for name in ("row", "copy"):
        schema = schema.append(pa.field(name, pa.int64()))
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        with pa.OSFile(f"{folder}/rows", "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
            for first, batch in rows.batches():
                writer.write_table(pa.Table.from_pydict(reword(batch, first), schema))
        os.replace(f"{folder}/rows", path)


def _mixed(task: Task, records: Sequence[Mapping[str, Any]]) -> set[str]:
    """Return the columns with numbers of several kinds, which one type of a data set would change: 5 into 5.0."""
    kinds: dict[str, set[type]] = {name: set() for name in (*task.columns, *Template.parse(task.target).columns)}
    for record in records:
        for name, found in kinds.items():
            if isinstance(cell := record.get(name), Real | Decimal | np.bool_):
                found.add(type(cell))
    return {name for name, found in kinds.items() if len(found) > 1}


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


def _check(task: Task, records: Sequence[Mapping[str, Any]], copies: int, columns: Sequence[str]) -> list[str]:
    """Return the names of all columns, after a check of all records."""
    names: dict[str, None] = {}
    wrong: dict[str, list[int]] = {column: [] for column in columns}
    missing = Findings()
    first = 0
    for batch in batches_of(records, BATCH_ROWS):
        checks.raise_all(task.name, checks.no_records(batch, first), records)
        for row, record in enumerate(batch, first):
            names.update(dict.fromkeys(record))
            for column, rows in wrong.items():
                if not isinstance(record.get(column), str):
                    rows.append(row)
        missing.add(checks.missing_columns(batch, Template.parse(task.template), task.list_separator), first)
        first += len(batch)
    problems = [] if first else ["there are no records"]
    if copies < 1:
        problems.append(f"copies is {copies}; at least 1 was expected")
    for column, rows in wrong.items():
        if rows:
            problems.append(f"the column {column!r} holds no text in row {rows[0]} ({len(rows)} such rows)")
    if taken := {"row", "copy"} & set(names):
        problems.append(f"the records have columns that augmentation adds ({', '.join(sorted(taken))}); rename them")
    if problems:
        raise ValueError(
            f"Got records that cannot be augmented; expected none of these problems: {'; '.join(problems)}."
        )
    checks.raise_all(task.name, missing, records)
    return list(names)


def _reword(
    rows: list[dict[str, Any]], first: int, rewording: Rewording, columns: Sequence[str], copies: int, seed: int
) -> dict[str, list[Any]]:
    batch = {name: [row[name] for row in rows] for name in rows[0]}
    indices = range(first, first + len(rows))
    out: dict[str, list[Any]] = {column: list(values) for column, values in batch.items()}
    out |= {"row": list(indices), "copy": [0] * len(rows)}
    seen = [{tuple(row[column] for column in columns)} for row in rows]
    for copy in range(1, copies + 1):
        new = dict(batch)
        for column in columns:
            randoms = [Random(f"{seed}/{row}/{copy}/{column}") for row in indices]
            new[column] = rewording.reword(list(batch[column]), randoms)
        texts = [tuple(new[column][i] for column in columns) for i in range(len(rows))]
        fresh = [i for i, text in enumerate(texts) if text not in seen[i]]
        for i in fresh:
            seen[i].add(texts[i])
        for column in batch:
            out[column] += [new[column][i] for i in fresh]
        out["row"] += [indices[i] for i in fresh]
        out["copy"] += [copy] * len(fresh)
    return out


def _fingerprint(rows: _Rows, rewording: Rewording, copies: int, seed: int, columns: Sequence[str]) -> str:
    digest = hashlib.sha256(json.dumps([VERSION, rewording.identity, copies, seed, columns]).encode())
    for _, batch in rows.batches():
        for record in batch:
            digest.update(json.dumps(record, sort_keys=True, default=str).encode())
    return digest.hexdigest()[:32]


def _report(dataset: Dataset, records: int, copies: int, columns: Sequence[str]) -> AugmentationReport:
    added = len(dataset) - records
    words, kept = dict.fromkeys(columns, 0), dict.fromkeys(columns, 0)
    originals: dict[int, dict[str, list[str]]] = {}  # of one batch, which its copies follow
    for table in dataset.select_columns([*columns, "row", "copy"]).with_format("arrow").iter(BATCH_ROWS):
        for record in table.to_pylist():
            texts = {column: record[column].split() for column in columns}
            if not record["copy"]:
                if record["row"] % BATCH_ROWS == 0:
                    originals.clear()
                originals[record["row"]] = texts
                continue
            for column, text in texts.items():
                old = originals[record["row"]][column]
                words[column] += len(old)
                kept[column] += _words_in_place(old, text)
    shares = {column: 1 - kept[column] / words[column] if words[column] else 0.0 for column in columns}
    return AugmentationReport(records, added, records * copies - added, shares)


def _words_in_place(old: list[str], new: list[str]) -> int:
    return sum(block.size for block in SequenceMatcher(None, old, new, autojunk=False).get_matching_blocks())
