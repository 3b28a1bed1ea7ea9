"""What can be wrong with a task's records, each problem as one sentence: what came, what was expected, what to do."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

from t5peft.data.template import Template, as_text, some_rows
from t5peft.data.truncation import Fitted

SURROGATE = re.compile("[\ud800-\udfff]")


def raise_all(name: str, problems: Sequence[str]) -> None:
    """Raise one error for all problems, if there are any.

    Raises:
        ValueError: there is a problem.
    """
    if problems:
        listed = "\n".join(f"  - {problem}" for problem in dict.fromkeys(problems))
        raise ValueError(f"task {name!r}:\n{listed}")


def no_records(records: Sequence[Any]) -> list[str]:
    """What came in place of records, such as the names of columns or splits."""
    return [
        f"record {i} is {record!r:.60}, and a mapping from columns to cells was expected: of a pandas DataFrame give "
        "df.to_dict('records'), of a DatasetDict one of its splits"
        for i, record in enumerate(records)
        if not isinstance(record, Mapping)
    ][:1]


def missing_columns(records: Sequence[Mapping[str, Any]], template: Template) -> list[str]:
    """Columns that the template names and records do not have, or that hold no text, or half of a character."""
    if foreign := no_records(records):
        return foreign
    problems = [] if records else ["there are no records; the file or the split is empty"]
    for column in template.columns:
        absent = [i for i, record in enumerate(records) if column not in record]
        if absent:
            there = ", ".join(map(repr, records[absent[0]])) or "none"
            problems.append(
                f"the template {template.text!r} names the column {column!r}, which is not in {some_rows(absent)}; "
                f"the columns there are: {there}. Change the template or rename the column"
            )
        untextual = [i for i, record in enumerate(records) if column in record and as_text(record[column]) is None]
        if untextual:
            cell = records[untextual[0]][column]
            kind = "NaN, a missing cell," if isinstance(cell, Real) else type(cell).__name__
            problems.append(
                f"the column {column!r} holds {kind} in {some_rows(untextual)}; text or a number was expected: "
                "make it text, or leave those records out"
            )
        halved = [i for i, record in enumerate(records) if SURROGATE.search(as_text(record.get(column)) or "")]
        if halved:
            problems.append(
                f"the column {column!r} holds half of a character, a lone surrogate, in {some_rows(halved)}, which no tokenizer "
                "reads: cut texts between characters, or leave those halves out by text.encode('utf-8', 'ignore').decode()"
            )
    return problems


def missing_references(records: Sequence[Mapping[str, Any]], column: str | None) -> list[str]:
    """A column of references that no record has, so that each would be scored by its one target alone."""
    if column is None or any(column in record for record in records):
        return []
    there = ", ".join(map(repr, records[0] if records else ())) or "none"
    return [
        f"its references are in the column {column!r}, which is in none of the {len(records)} records; the columns there "
        f"are: {there}. Rename the column, or leave out 'references' (of an adapter: in its task.yaml) to score by the one target"
    ]


def mapped_references(records: Sequence[Mapping[str, Any]], column: str | None) -> list[str]:
    """References that hold columns of their own, as SQuAD's answers do, whose names would pass for answers."""

    def is_mapped(cell: object) -> bool:
        return isinstance(cell, Mapping) or (isinstance(cell, list) and any(isinstance(one, Mapping) for one in cell))

    rows = [i for i, record in enumerate(records) if column is not None and is_mapped(record.get(column))]
    if not rows:
        return []
    return [
        f"its references are in the column {column!r}, which holds columns of its own in {some_rows(rows)}; a text or a list of "
        "texts was expected: name the one that has them, as load_records does ('answers.text'), or make them lists of texts"
    ]


def unknown_labels(records: Sequence[Mapping[str, Any]], column: str, labels: Sequence[str]) -> list[str]:
    """Labels of records that have no target word."""
    unknown: dict[str, list[int]] = {}
    for i, record in enumerate(records):
        label = as_text(record.get(column))
        if label is not None and label not in labels:
            unknown.setdefault(label, []).append(i)
    return [
        f"the label {label!r} in {some_rows(rows)} has no target word; the labels are: "
        f"{', '.join(map(repr, labels))}. Add it to verbalizer, or leave those records out"
        for label, rows in unknown.items()
    ]


def unusable(fitted: Fitted, template: Template, side: str, max_tokens: int) -> list[str]:
    """Sources or targets that say nothing, or whose template would have to be truncated."""
    problems = []
    if fitted.crowded_out:
        problems.append(
            f"the template {template.text!r} fills max_{side}_length={max_tokens} tokens and leaves no room for its "
            f"columns in {some_rows(fitted.crowded_out)}: it would be truncated. Raise max_{side}_length, or "
            "shorten the template"
        )
    if fitted.empty:
        consequence = ", so its labels would be nothing but padding" if side == "target" else ""
        problems.append(
            f"the {side} is empty in {some_rows(fitted.empty)} (columns: {', '.join(template.columns)})"
            f"{consequence}; leave those records out"
        )
    return problems
