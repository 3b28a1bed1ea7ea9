"""Checks of a task's fields and records; each problem is a sentence with what to do, and all come in one error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

from t5peft.data.sources import origin_of
from t5peft.data.template import SURROGATE, Template, as_text, some_rows
from t5peft.data.truncation import Truncated

Rows = Sequence[Mapping[str, Any]]


def raise_all(name: object, problems: Sequence[str], records: object = ()) -> None:
    """Raise one error for all problems, if there are any.

    Args:
        name: The task's name.
        problems: Sentences.
        records: The records that they are about; the error names the file that ``load_records`` read them from.

    Raises:
        ValueError: There is a problem.
    """
    if problems:
        origin = origin_of(records)
        where = f" and {origin} (its first row is row 0)" if origin else ""
        listed = "\n".join(f"  - {problem}" for problem in dict.fromkeys(problems))
        raise ValueError(f"Got problems with task {name!r}{where}; expected none:\n{listed}")


def no_records(records: Sequence[Any]) -> list[str]:
    """Return a problem where records are not mappings but, say, the names of columns or splits."""
    return [
        f"Record {i} is {record!r:.60}, and a mapping from columns to cells was expected. Of a pandas DataFrame give "
        "df.to_dict('records'), of a DatasetDict one of its splits."
        for i, record in enumerate(records)
        if not isinstance(record, Mapping)
    ][:1]


def missing_columns(records: Rows, template: Template, separator: str | None = None) -> list[str]:
    """Return problems with the columns of a template: not there, without text, or with half of a character.

    Args:
        records: All records.
        template: Names the columns.
        separator: Of lists, see ``as_text``.
    """
    if foreign := no_records(records):
        return foreign
    problems = [] if records else ["There are no records; the file or the split is empty."]
    for column in template.columns:
        absent = [i for i, record in enumerate(records) if column not in record]
        if absent:
            there = ", ".join(map(repr, records[absent[0]])) or "none"
            problems.append(
                f"The template {template.text!r} names the column {column!r}, which is not in {some_rows(absent)}; "
                f"the columns there are: {there}. Change the template (--template), name the column (--column), or rename it."
            )
        texts = [as_text(record.get(column), separator) for record in records]
        untextual = [i for i, record in enumerate(records) if column in record and texts[i] is None]
        if untextual:
            problems.append(_without_text(column, records[untextual[0]][column], untextual))
        halved = [i for i, text in enumerate(texts) if SURROGATE.search(text or "")]
        if halved:
            problems.append(
                f"The column {column!r} holds half of a character, a lone surrogate, in {some_rows(halved)}, which no tokenizer "
                "reads. Cut texts between characters, or leave those halves out by text.encode('utf-8', 'ignore').decode()."
            )
    return problems


def _without_text(column: str, cell: object, rows: list[int]) -> str:
    kind = "NaN, a missing cell," if isinstance(cell, Real) else type(cell).__name__
    advice = "make it text, or leave those records out"
    if isinstance(cell, list):
        advice = "give the task a list_separator such as ', ', or make it text"
    elif isinstance(cell, bytes):
        advice = "decode it, by cell.decode()"
    return f"The column {column!r} holds {kind} in {some_rows(rows)}; text or a number was expected: {advice}."


def missing_references(records: Rows, column: str | None) -> list[str]:
    """Return a problem where no record has the column of references, so that each would be scored by its one target."""
    if column is None or any(column in record for record in records):
        return []
    there = ", ".join(map(repr, records[0] if records else ())) or "none"
    return [
        f"Its references are in the column {column!r}, which is in none of the {len(records)} records; the columns there "
        f"are: {there}. Rename the column, or leave out 'references' (of an adapter: in its task.yaml) to score by the one "
        "target."
    ]


def mapped_references(records: Rows, column: str | None) -> list[str]:
    """Return a problem where references hold columns of their own, as SQuAD's do, whose names would pass for answers."""

    def is_mapped(cell: object) -> bool:
        return isinstance(cell, Mapping) or (isinstance(cell, list) and any(isinstance(one, Mapping) for one in cell))

    rows = [i for i, record in enumerate(records) if column is not None and is_mapped(record.get(column))]
    if not rows:
        return []
    return [
        f"Its references are in the column {column!r}, which holds columns of its own in {some_rows(rows)}; a text or a list of "
        "texts was expected. Name the one that has them, as load_records does ('answers.text'), or make them lists of texts."
    ]


def unknown_labels(records: Rows, column: str, labels: Sequence[str]) -> list[str]:
    """Return a problem for each label of the records that has no word."""
    unknown: dict[str, list[int]] = {}
    for i, record in enumerate(records):
        label = as_text(record.get(column))
        if label is not None and label not in labels:
            unknown.setdefault(label, []).append(i)
    return [
        f"The label {label!r} of the column {column!r} in {some_rows(rows)} has no word; the labels are: "
        f"{', '.join(map(repr, labels))}. Add it to the verbalizer (--target-word), or leave those records out."
        for label, rows in unknown.items()
    ]


def unusable(truncated: Truncated, template: Template, side: str, max_tokens: int) -> list[str]:
    """Return problems with sources or targets that are empty, or whose template would have to be truncated."""
    problems = []
    if truncated.crowded_out:
        problems.append(
            f"The template {template.text!r} fills max_{side}_length={max_tokens} tokens and leaves no room for its "
            f"columns in {some_rows(truncated.crowded_out)}: it would be truncated. Raise max_{side}_length, or "
            "shorten the template."
        )
    if truncated.empty:
        consequence = ", so its labels would be nothing but padding" if side == "target" else ""
        problems.append(
            f"The {side} is empty in {some_rows(truncated.empty)} (columns: {', '.join(template.columns)})"
            f"{consequence}. Leave those records out."
        )
    return problems
