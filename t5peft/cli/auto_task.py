"""Tell the task of a table from its columns: which one is predicted, from which others, and how."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from t5peft.data.presets import DOCUMENT, LABEL, MOST_LABELS, PRESETS, preset_task
from t5peft.data.task import Task
from t5peft.data.template import Template

Rows = Sequence[Mapping[str, Any]]

_ROWS = 5000  # that kinds are told from
_GRID = 20  # the most steps that numbers are rounded to, as T5 was pretrained on STS-B in steps of 0.2
_IDS = ("id", "idx", "index", "guid", "uid", "uuid", "key")


class UnclearTaskError(ValueError):
    """The columns do not tell the task.

    Attributes:
        choices: The columns that could be predicted.
    """

    def __init__(self, message: str, choices: Sequence[str]) -> None:
        super().__init__(message)
        self.choices = tuple(choices)


@dataclass(frozen=True)
class TaskGuess:
    """A task that columns tell.

    Attributes:
        family: A key of ``PRESETS``.
        columns: Role to column.
        template: The source over the columns; None for the preset's.
        step: What numbers are rounded to; None where they are not.
        reasons: Sentences that say why.
    """

    family: str
    columns: Mapping[str, str]
    reasons: tuple[str, ...]
    template: str | None = None
    step: float | None = None


@dataclass(frozen=True)
class Wording:
    """The words of the user for a task that is told from the columns.

    Attributes:
        template: The source over the columns; None for the preset's.
        target_words: The word that T5 writes, by label; None for the labels.
        references: A column with a list of references for each record.
        max_source_length: Tokens of a source; None for the preset's.
        max_target_length: Tokens of a target; None for the preset's.
    """

    template: str | None = None
    target_words: Mapping[str, str] | None = None
    references: str | None = None
    max_source_length: int | None = None
    max_target_length: int | None = None

    def task(
        self, family: str, records: Rows, columns: Mapping[str, str], template: str | None = None, scored: Rows = ()
    ) -> Task:
        """Return the task of a family in these words.

        Args:
            family: A key of ``PRESETS``.
            records: The training records.
            columns: Role to column.
            template: The source, unless the user gives one.
            scored: Validation and test records.

        Returns:
            The task.
        """
        task = preset_task(
            family,
            records,
            columns=columns,
            verbalizer=self.target_words,
            template=self.template or template,
            references=self.references,
            scored=scored,
        )
        source, target = self.max_source_length, self.max_target_length
        return replace(
            task,
            max_source_length=task.max_source_length if source is None else source,
            max_target_length=task.max_target_length if target is None else target,
        )


@dataclass(frozen=True)
class Column:
    """A column and its kind: ``text``, ``label``, ``number``, ``list``, ``id``, ``constant`` or ``empty``."""

    name: str
    kind: str
    distinct: int

    def __str__(self) -> str:
        return f"{self.name} ({self.kind}, {self.distinct} different values)"


def describe_columns(records: Rows) -> list[Column]:
    """Return the kind of each column.

    Args:
        records: Some, all with the columns of the first.

    Returns:
        The columns in their order.
    """
    rows = list(records[:_ROWS])
    return [_column(name, [row.get(name) for row in rows]) for name in (rows[0] if rows else ())]


def _column(name: str, cells: Sequence[Any]) -> Column:
    values = [cell for cell in cells if cell is not None and cell != ""]
    if not values:
        return Column(name, "empty", 0)
    if any(isinstance(value, (list, tuple)) for value in values):
        return Column(name, "list", len({str(value) for value in values}))
    distinct = len({str(value) for value in values})
    words = sum(len(str(value).split()) for value in values) / len(values)
    numbers = [number for value in values if (number := _number(value)) is not None]
    if name.lower() in _IDS or name.lower().endswith("_id") or (distinct == len(values) > 20 and words == 1):
        kind = "id" if not (len(numbers) == len(values) and any(number % 1 for number in numbers)) else "number"
    elif distinct == 1:
        kind = "constant"
    elif len(numbers) == len(values):
        few = distinct <= _GRID and all(number % 1 == 0 for number in numbers)
        kind = "label" if few or distinct <= 2 else "number"
    else:
        kind = "label" if distinct <= min(MOST_LABELS, max(2, len(values) // 4)) and words <= 6 else "text"
    return Column(name, kind, distinct)


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def guess_task(
    records: Rows, *, columns: Mapping[str, str] | None = None, target: str | None = None, template: str | None = None
) -> TaskGuess:
    """Tell the task of records from their columns.

    Args:
        records: The training records.
        columns: Role to column, as far as the user says.
        target: The column that is predicted, where the user says only this.
        template: The source over the columns. What it names is not predicted, and no other text is read.

    Returns:
        The family, the column of each role, and why.

    Raises:
        UnclearTaskError: Several columns could be predicted, or none.
    """
    found = describe_columns(records)
    if template is not None:
        found, target = _of_template(template, found, {*(columns or {}).values(), target} - {None}, target)
    if columns:
        return _of_roles(columns, found)
    named = _by_names(found) if target is None and template is None else None
    if named is not None:
        return named
    goal = _target(found) if target is None else next((one for one in found if one.name == target), None)
    if goal is None:
        raise _unclear(found)
    texts = [one for one in found if one.kind == "text" and one.name != goal.name]
    if not texts:
        raise _unclear(found)
    why = f"The column {goal.name!r} is predicted: {goal.kind}, {goal.distinct} different values."
    if goal.kind in ("label", "list", "number"):
        step = _step([row[goal.name] for row in records]) if goal.kind == "number" else None
        return _labels(goal.name, [one.name for one in texts], (why,), step)
    if len(texts) == 1:
        return TaskGuess("generation", {"prompt": texts[0].name, "completion": goal.name}, (why,))
    joined = " ".join(f"{one.name}: {{{one.name}}}" for one in texts)
    return TaskGuess("generation", {"prompt": texts[0].name, "completion": goal.name}, (why,), joined)


def _of_roles(columns: Mapping[str, str], found: Sequence[Column]) -> TaskGuess:
    """Return the preset with the roles that the user names; of several, the one whose other roles are found by name."""
    fitting = [family for family, preset in PRESETS.items() if columns.keys() <= preset.roles.keys()]
    there = {one.name for one in found}
    ready = [
        family
        for family in fitting
        if all(role in columns or there & {*common} for role, common in PRESETS[family].roles.items())
    ]
    if not (ready or fitting):
        raise UnclearTaskError(
            f"Got --column with {', '.join(columns)}; expected roles of one preset. Give --task, one of {', '.join(PRESETS)}.",
            (),
        )
    family = (ready or fitting)[0]
    kinds = {one.name: one.kind for one in found}
    goal = columns.get(list(PRESETS[family].roles)[-1])
    if PRESETS[family].has_labels and len(columns) == 1 and goal is not None:
        texts = [one.name for one in found if one.kind == "text" and one.name != goal]
        if texts:
            return _labels(goal, texts, (f"The column {goal!r} is the label, as set by --column.",), None)
    if PRESETS[family].has_labels and goal is not None and kinds.get(goal) == "text":
        family = "generation" if "text" not in columns else family
    return TaskGuess(family, dict(columns), (f"The roles {', '.join(columns)} belong to the preset {family}.",))


def _of_template(
    template: str, found: Sequence[Column], named: Collection[str | None], target: str | None
) -> tuple[list[Column], str | None]:
    """Return the columns that a template reads, as texts, with those that may be predicted, and the target if it is clear."""
    read = Template.parse(template).columns
    if unknown := sorted({*read} - {one.name for one in found}):
        raise UnclearTaskError(
            f"Got a template with {', '.join(unknown)}; expected columns of the records: {', '.join(map(str, found))}.",
            (),
        )
    others = [one for one in found if one.name not in read]
    short = [one for one in others if one.kind in ("label", "number", "list")]
    goals = [one for one in others if one.name in named] or short or [one for one in others if one.kind == "text"]
    clear = goals[0].name if len(goals) == 1 else target
    return [replace(one, kind="text") for one in found if one.name in read] + goals, clear


def _by_names(found: Sequence[Column]) -> TaskGuess | None:
    """Return the family all of whose columns have their common names, where its answers are free texts."""
    free = {one.name: one for one in found if one.kind == "text"}
    best: TaskGuess | None = None
    for family, preset in PRESETS.items():
        if preset.has_labels:
            continue
        columns: dict[str, str] = {}
        for role, common in preset.roles.items():
            name = next((name for name in common if name in free and name not in columns.values()), None)
            if name is not None:
                columns[role] = name
        goal = columns.get(list(preset.roles)[-1])
        if len(columns) < len(preset.roles) or goal in (*LABEL, *DOCUMENT, "title"):
            continue
        if best is None or len(columns) > len(best.columns):
            names = ", ".join(columns.values())
            best = TaskGuess(family, columns, (f"The columns {names} have the names of {family}.",))
    return best


def _target(found: Sequence[Column]) -> Column | None:
    """Return the column that is predicted; None where there are several or none."""
    labels = [one for one in found if one.kind == "label"]
    named = [one for one in found if one.name.lower() in LABEL and one.kind in ("label", "list", "number")]
    for group in (named, labels, [one for one in found if one.kind == "list"]):
        if len(group) == 1:
            return group[0]
        if group:
            return None
    numbers = [one for one in found if one.kind == "number"]
    if len(numbers) == 1:
        return numbers[0]
    texts = [one for one in found if one.kind == "text"]
    return texts[-1] if len(texts) == 2 and not numbers else None


def _labels(goal: str, texts: Sequence[str], reasons: tuple[str, ...], step: float | None) -> TaskGuess:
    """Return classification of one text, of a pair, or of several by a template over all."""
    if step is not None:
        reasons += (f"Its numbers are rounded to steps of {step:g}, each of which is a word for T5.",)
    if len(texts) == 1:
        return TaskGuess("classification", {"text": texts[0], "label": goal}, reasons, step=step)
    if len(texts) == 2:
        roles = {"first": texts[0], "second": texts[1], "label": goal}
        return TaskGuess("sentence_pairs", roles, (*reasons, f"The source is the pair {', '.join(texts)}."), step=step)
    template = "classify: " + " ".join(f"{name}: {{{name}}}" for name in texts)
    reasons += (f"The source has the texts {', '.join(texts)}.",)
    return TaskGuess("classification", {"text": texts[0], "label": goal}, reasons, template, step)


def _step(cells: Sequence[Any]) -> float:
    """Return the step of 1, 2 or 5 times a power of ten that leaves at most 20 steps between the extremes."""
    numbers = [number for cell in cells if (number := _number(cell)) is not None]
    width = (max(numbers) - min(numbers)) / _GRID
    power = 10.0 ** math.floor(math.log10(width)) if width > 0 else 1.0
    return next((power * factor for factor in (1, 2, 5, 10) if power * factor >= width * (1 - 1e-9)), power * 10)


def round_numbers(records: Rows, column: str, step: float) -> list[dict[str, Any]]:
    """Return records whose numbers in a column are rounded to steps, as text of one form.

    Args:
        records: The records.
        column: The column of numbers.
        step: The step.

    Returns:
        Copies of the records; a cell without a number stays.
    """
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))

    def cell(value: Any) -> Any:
        number = _number(value)
        return value if number is None else f"{round(number / step) * step + 0.0:.{decimals}f}"

    return [{**record, column: cell(record[column])} if column in record else dict(record) for record in records]


def _unclear(found: Sequence[Column]) -> UnclearTaskError:
    choices = [one for one in found if one.kind in ("label", "number", "list", "text")]
    listed = "".join(f"\n  - {one}" for one in found)
    return UnclearTaskError(
        "Got columns from which the task is not clear; expected texts with one column of labels or numbers, or two columns of "
        f"texts. Name the column to predict, with --column label=NAME for labels, or with --task and --column. Columns:{listed}",
        [one.name for one in choices],
    )
