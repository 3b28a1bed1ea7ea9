"""Checks of a task's fields and records; each problem is a sentence with what to do, and all come in one error.

Records are checked batch by batch. A problem with rows knows their numbers in the batch, and ``Findings`` joins those of all
batches into the sentence that one check of all records would give.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import Any, cast

from t5peft.data.sources import origin_of
from t5peft.data.template import SURROGATE, Template, as_text, some_rows
from t5peft.data.truncation import Truncated

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class RowProblem:
    """A problem with some rows.

    Attributes:
        kind: What is wrong; of two batches, problems of the same kind are one.
        before: The sentence up to the rows.
        rows: Their numbers.
        after: The rest of the sentence.
        place: Where it stands among the problems of its check.
    """

    kind: tuple[str, ...]
    before: str
    rows: list[int]
    after: str
    place: tuple[int, int] = (0, 0)

    def __str__(self) -> str:
        return f"{self.before}{some_rows(self.rows)}{self.after}"


Problems = Sequence[RowProblem | str]


@dataclass
class Findings:
    """The problems of one check, joined over all batches."""

    _joined: dict[tuple[str, ...], RowProblem] = field(default_factory=dict)
    _others: list[str] = field(default_factory=list)

    def add(self, problems: Problems, first_row: int = 0) -> None:
        """Add the problems of a batch.

        Args:
            problems: What the check returned.
            first_row: The number of the batch's first row.
        """
        for problem in problems:
            if isinstance(problem, str):
                self._others.append(problem)
                continue
            joined = self._joined.setdefault(problem.kind, replace(problem, rows=[]))
            joined.rows.extend(first_row + row for row in problem.rows)

    def __iter__(self) -> Iterator[str]:
        yield from self._others
        yield from map(str, sorted(self._joined.values(), key=lambda problem: problem.place))

    def __bool__(self) -> bool:
        return bool(self._others or self._joined)


def raise_all(name: object, problems: Iterable[RowProblem | str], records: object = ()) -> None:
    """Raise one error for all problems, if there are any.

    Args:
        name: The task's name.
        problems: Sentences.
        records: The records that they are about; the error names the file that ``load_records`` read them from.

    Raises:
        ValueError: There is a problem.
    """
    if sentences := dict.fromkeys(map(str, problems)):
        origin = origin_of(records)
        where = f" and {origin} (its first row is row 0)" if origin else ""
        listed = "\n".join(f"  - {sentence}" for sentence in sentences)
        raise ValueError(f"Got problems with task {name!r}{where}; expected none:\n{listed}")


def no_records(records: Sequence[Any], first_row: int = 0) -> list[str]:
    """Return a problem where records are not mappings but, say, the names of columns or splits."""
    return [
        f"Record {first_row + i} is {record!r:.60}; a mapping from columns to cells was expected. For a pandas DataFrame, pass "
        "df.to_dict('records'). For a DatasetDict, pass one of its splits."
        for i, record in enumerate(records)
        if not isinstance(record, Mapping)
    ][:1]


def missing_columns(records: Rows, template: Template, separator: str | None = None) -> list[RowProblem | str]:
    """Return problems with the columns of a template: not there, without text, or with half of a character.

    Args:
        records: All records.
        template: Names the columns.
        separator: Of lists, see ``as_text``.
    """
    if foreign := no_records(records):
        return [*foreign]
    problems: list[RowProblem | str] = [] if records else ["There are no records; the file or the split is empty."]
    for place, column in enumerate(template.columns):
        absent = [i for i, record in enumerate(records) if column not in record]
        if absent:
            problems.append(_without_column(template, column, records[absent[0]], absent, place))
        texts = [as_text(record.get(column), separator) for record in records]
        untextual = [i for i, record in enumerate(records) if column in record and texts[i] is None]
        if untextual:
            problems.append(_without_text(column, records[untextual[0]][column], untextual, place))
        halved = [i for i, text in enumerate(texts) if SURROGATE.search(text or "")]
        if halved:
            before = f"The column {column!r} contains half of a character (a lone surrogate) in "
            after = (
                ", which tokenizers cannot read. Cut texts between characters, or remove these halves with "
                "text.encode('utf-8', 'ignore').decode()."
            )
            problems.append(RowProblem(("halved", template.text, column), before, halved, after, (place, 2)))
    return problems


def _without_column(
    template: Template, column: str, record: Mapping[str, Any], rows: list[int], place: int
) -> RowProblem:
    there = ", ".join(map(repr, record)) or "none"
    before = f"The template {template.text!r} names the column {column!r}, which is not in "
    after = f"; the columns are: {there}. Change the template (--template), name the column (--column), or rename it."
    return RowProblem(("absent", template.text, column), before, rows, after, (place, 0))


def _without_text(column: str, cell: object, rows: list[int], place: int) -> RowProblem:
    kind = "NaN, a missing cell," if isinstance(cell, Real) else type(cell).__name__
    advice = "make it text, or remove those records"
    if isinstance(cell, list):
        advice = "give the task a list_separator such as ', ', or make it text"
    elif isinstance(cell, bytes):
        advice = "decode it, by cell.decode()"
    after = f"; text or a number was expected: {advice}."
    return RowProblem(("untextual", column), f"The column {column!r} holds {kind} in ", rows, after, (place, 1))


def missing_references(records: Rows, column: str | None) -> list[str]:
    """Return a problem where no record has the column of references, so that each would be scored by its one target."""
    if column is None or any(column in record for record in records):
        return []
    there = ", ".join(map(repr, records[0] if records else ())) or "none"
    return [
        f"Its references are in the column {column!r}, which is in none of the {len(records)} records; the columns "
        f"are: {there}. Rename the column, or remove 'references' (for an adapter: from its task.yaml) to score with the single "
        "target."
    ]


def mapped_references(records: Rows, column: str | None) -> list[RowProblem]:
    """Return a problem for each kind of references that are neither texts nor lists of texts.

    Those of SQuAD are nested columns, whose names would pass for answers. Lists of lists would pass for none.
    """
    if column is None:
        return []
    rows: dict[str, list[int]] = {}
    for i, record in enumerate(records):
        cell = record.get(column)
        several = isinstance(cell, Iterable) and not isinstance(cell, str | bytes | Mapping)
        items = list(cast("Iterable[object]", cell)) if several else [cell]
        if any(isinstance(one, Mapping) for one in items):
            rows.setdefault("nested columns", []).append(i)
        elif any(isinstance(one, Iterable) and not isinstance(one, str) for one in items):
            rows.setdefault("lists of lists, or bytes,", []).append(i)
    after = (
        "; a text or a list of texts was expected. Name the nested column as load_records does ('answers.text'), or convert the "
        "references to lists of texts."
    )
    return [
        RowProblem(
            ("references", kind),
            f"Its references are in the column {column!r}, which contains {kind} in ",
            where,
            after,
        )
        for kind, where in rows.items()
    ]


def unknown_labels(records: Rows, column: str, labels: Sequence[str]) -> list[RowProblem]:
    """Return a problem for each label of the records that has no word."""
    unknown: dict[str, list[int]] = {}
    for i, record in enumerate(records):
        label = as_text(record.get(column))
        if label is not None and label not in labels:
            unknown.setdefault(label, []).append(i)
    after = (
        f" has no word; the labels are: {', '.join(map(repr, labels))}. Add it to the verbalizer (--target-word), or remove "
        "those records."
    )
    return [
        RowProblem(("label", label), f"The label {label!r} of the column {column!r} in ", rows, after)
        for label, rows in unknown.items()
    ]


def unusable(truncated: Truncated, template: Template, side: str, max_tokens: int) -> list[RowProblem]:
    """Return problems with sources or targets that are empty, or whose template would have to be truncated."""
    problems = []
    if truncated.crowded_out:
        limit = f"max_{side}_length={max_tokens}"
        before = f"The template {template.text!r} fills {limit} tokens and leaves no room for its columns in "
        after = f": it would be truncated. Raise max_{side}_length, or shorten the template."
        problems.append(RowProblem(("crowded", side), before, truncated.crowded_out, after, (0, 0)))
    if truncated.empty:
        consequence = ", so its labels would be only padding" if side == "target" else ""
        after = f" (columns: {', '.join(template.columns)}){consequence}. Remove those records."
        problems.append(RowProblem(("empty", side), f"The {side} is empty in ", truncated.empty, after, (0, 1)))
    return problems
