"""All tasks in one table: scores, means over the tasks that can tell, and costs relative to full fine-tuning.

A task on which no method is clearly above the strongest baseline is shown, and left out of the means: its differences are
chance, and would halve those of the other tasks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from t5peft.benchmark.baselines import is_baseline
from t5peft.benchmark.peers import is_peer
from t5peft.benchmark.statistics import Difference, MeanStd
from t5peft.benchmark.summary import Row, TaskTable, against_peer, difference, sort_key
from t5peft.benchmark.tables import Cell, backbone_text, difference_cell, markdown_table


@dataclass(frozen=True)
class Overall:
    """A method over all tasks.

    Attributes:
        rows: Its rows by task.
        mean: Its mean score in points over the tasks that can tell; None if it lacks a score on one of them.
        error: The standard error of the mean, from the deviations over seeds; None for a single seed.
        to_full: The difference to full fine-tuning over these tasks; None for full fine-tuning itself.
        trained: The most trained parameters on a task.
        memory: Peak memory relative to full fine-tuning, as a geometric mean over tasks.
        time: Seconds of a step relative to full fine-tuning, likewise.
        file: Stored bytes relative to full fine-tuning, likewise.
    """

    label: str
    method: str
    rows: Mapping[str, Row]
    mean: float | None
    error: float | None
    to_full: Difference | None
    trained: int | None
    memory: float | None
    time: float | None
    file: float | None

    @property
    def ours(self) -> bool:
        """Whether it is a method of this library that trains."""
        return not is_baseline(self.method) and not is_peer(self.method)

    def seeds(self, tasks: Iterable[str]) -> int:
        """Return the fewest seeds on these tasks."""
        return min((row.test.n for task in tasks if (row := self.rows.get(task)) and row.test), default=0)


@dataclass(frozen=True)
class Overview:
    """The tables of all tasks.

    Attributes:
        tables: One for each task, of one backbone.
    """

    tables: tuple[TaskTable, ...]

    @cached_property
    def telling(self) -> tuple[TaskTable, ...]:
        """The tables of the tasks that can tell methods apart."""
        return tuple(table for table in self.tables if table.tells_nothing is None)

    @cached_property
    def methods(self) -> dict[str, Overall]:
        """Every method by its label. The intervals take seconds."""
        return {label: self._overall(label, rows) for label, rows in self._rows.items()}

    @cached_property
    def _rows(self) -> dict[str, dict[str, Row]]:
        """Group rows by label and task, without variants of a method that ran on fewer tasks than another variant."""
        found: dict[str, dict[str, Row]] = {}
        tasks: dict[str, int] = {}
        for row in sorted((row for table in self.tables for row in table.rows), key=sort_key):
            of_label = found.setdefault(row.label, {})
            of_label[row.task] = row
            tasks[row.method] = max(tasks.get(row.method, 0), len(of_label))
        return {
            label: rows for label, rows in found.items() if all(len(rows) == tasks[r.method] for r in rows.values())
        }

    @cached_property
    def measured(self) -> list[str]:
        """The tasks on which all measured methods were measured; ratios over other tasks cannot be compared."""
        measured = [[task for task, row in rows.items() if row.step_seconds] for rows in self._rows.values()]
        first, *others = [tasks for tasks in measured if tasks] or [[]]
        return [task for task in first if all(task in tasks for tasks in others)]

    def rows_of(self, label: str, tasks: Iterable[TaskTable]) -> list[Row]:
        """Return the finished rows of a method on these tasks; none if one of them is missing."""
        tables = list(tasks)
        rows = [row for table in tables if (row := self._rows.get(label, {}).get(table.task)) and row.test]
        return rows if len(rows) == len(tables) else []

    def to_full(self, label: str, tasks: Iterable[TaskTable]) -> Difference | None:
        """Return the difference of a method to full fine-tuning over these tasks."""
        tables = list(tasks)
        rows, full = self.rows_of(label, tables), self.rows_of("full", tables)
        return difference(*zip(rows, full, strict=True)) if rows and full and label != "full" else None

    def _overall(self, label: str, rows: Mapping[str, Row]) -> Overall:
        counted = self.rows_of(label, self.telling)
        scores = [(row.test, row.factor) for row in counted if row.test]
        variances = [(factor * s.deviation) ** 2 / s.n for s, factor in scores if s.deviation is not None]
        return Overall(
            label=label,
            method=next(iter(rows.values())).method,
            rows=rows,
            mean=sum(score.mean * factor for score, factor in scores) / len(scores) if scores else None,
            error=math.sqrt(sum(variances)) / len(scores) if scores and len(variances) == len(scores) else None,
            to_full=self.to_full(label, self.telling),
            trained=max((row.trainable for row in rows.values() if row.trainable), default=None),
            memory=self._against_full(rows, lambda row: row.peak_bytes),
            time=self._against_full(rows, lambda row: row.step_seconds),
            file=self._against_full(rows, lambda row: row.stored_bytes),
        )

    def _against_full(self, rows: Mapping[str, Row], figure: Callable[[Row], MeanStd | int | None]) -> float | None:
        """Return the geometric mean over the measured tasks of a figure's ratio to full fine-tuning."""

        def number(row: Row | None) -> float | None:
            found = figure(row) if row else None
            return found.mean if isinstance(found, MeanStd) else found

        full = self._rows.get("full", {})
        pairs = [(number(rows.get(task)), number(full.get(task))) for task in self.measured]
        logs = [math.log(ours / theirs) for ours, theirs in pairs if ours and theirs]
        return math.exp(sum(logs) / len(logs)) if logs else None

    def note(self) -> str:
        """Return what the figures are, and which tasks are left out of the means, with the reason."""
        backbones = dict.fromkeys(backbone_text(table) for table in self.tables)
        left_out = [f"{table.task}, where {table.tells_nothing}" for table in self.tables if table.tells_nothing]
        shown = [f"Left out of the means and differences: {'; '.join(left_out)}."] if left_out else []
        return " ".join(
            [
                f"Backbone {', '.join(backbones)}. Scores are on the test split, mean ± standard deviation over seeds. The mean "
                f"is over {', '.join(table.task for table in self.telling) or 'no task'}, in points of each task's metric; its "
                "± is the standard error. Differences are averages of per-example scores, with 95 % intervals.",
                *shown,
                "Memory (at the peak of training, above that of libraries and data) and time of a step are relative to full "
                f"fine-tuning, geometric means over {', '.join(self.measured) or 'no task'}, where one machine measured every "
                "method.",
            ]
        )

    def header(self) -> list[str]:
        """Return the column names of ``cells``."""
        tasks = [f"{table.task}, {table.metric}" for table in self.tables]
        return ["method", *tasks, "mean", "against full", "trained", "memory", "time"]

    def cells(self) -> list[list[Cell]]:
        """Return a row for each method: its score on every task, its mean over those that can tell, and its costs."""
        return [
            [
                Cell(one.label),
                *(_score(one.rows.get(table.task)) for table in self.tables),
                _mean(one),
                Cell("reference", 0.0) if one.method == "full" else difference_cell(one.to_full),
                Cell("–" if one.trained is None else f"{one.trained:,}", one.trained),
                *(Cell("–" if cost is None else f"{cost:.2f}", cost) for cost in (one.memory, one.time)),
            ]
            for one in self.methods.values()
        ]

    def peers_header(self) -> list[str]:
        """Return the column names of ``peers_cells``."""
        return ["against peft's own", *(f"{table.task}, {table.metric}" for table in self.tables), "mean"]

    def peers_cells(self) -> list[list[Cell]]:
        """Return each method minus peft's own under ``Seq2SeqTrainer``, on every task and over those that can tell."""
        pairs = {table.task: {ours.label: (ours, peer) for ours, peer in against_peer(table)} for table in self.tables}
        rows = []
        for label in dict.fromkeys(label for found in pairs.values() for label in found):
            of_label = {task: found[label] for task, found in pairs.items() if label in found}
            both = [of_label[table.task] for table in self.telling if table.task in of_label]
            mean = difference(*both) if len(both) == len(self.telling) else None
            single = [difference(of_label[table.task]) if table.task in of_label else None for table in self.tables]
            rows.append([Cell(label), *map(difference_cell, [*single, mean])])
        return rows

    def markdown(self) -> str:
        """Return the note and the tables."""
        parts = [self.note(), markdown_table(self.header(), self.cells())]
        if peers := self.peers_cells():
            parts.append(markdown_table(self.peers_header(), peers))
        return "\n\n".join(parts)


def overviews(tables: Sequence[TaskTable]) -> list[Overview]:
    """Return an overview for each backbone that has several tasks.

    Args:
        tables: Those of all tasks and backbones.
    """
    by_backbone: dict[str, list[TaskTable]] = {}
    for table in tables:
        by_backbone.setdefault(table.conditions["backbone"], []).append(table)
    return [Overview(tuple(found)) for found in by_backbone.values() if len(found) > 1]


def _score(row: Row | None) -> Cell:
    if row is None or row.test is None:
        return Cell("–", title="not run" if row is None else row.reason or "not run")
    return Cell(row.test.text(1, row.factor).rpartition(" ")[0], row.test.mean, f"{row.test.n} seeds")


def _mean(one: Overall) -> Cell:
    if one.mean is None:
        return Cell("–")
    return Cell(f"{one.mean:.1f}" + ("" if one.error is None else f" ± {one.error:.1f}"), one.mean)
