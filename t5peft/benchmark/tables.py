"""Tables in Markdown and CSV, and the markers between which a document holds them."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from t5peft.benchmark.baselines import is_baseline
from t5peft.benchmark.statistics import Difference, MeanStd
from t5peft.benchmark.summary import Row, TaskTable
from t5peft.compat.filesystem import write_whole
from t5peft.planning.units import bytes_text, seconds_text

BAR = r"\|"
"""A bar that does not end a cell of Markdown."""


@dataclass(frozen=True)
class Cell:
    """A cell as people read it, with the number that it is sorted by (None: last)."""

    text: str
    value: float | None = None
    title: str = ""


PER_EXAMPLE = {"accuracy", "exact_match", "token_f1", "rougeL"}
"""Metrics that are averages of per-example scores."""

COLUMNS: tuple[tuple[str, str], ...] = (
    (
        "method",
        "Tuning method; full fine-tuning is the reference. The last rows are baselines without training: constant gives the same "
        "answer to everything (the most frequent label, or the training answer most like the others), copy gives the source "
        "back, untuned is the backbone as it is.",
    ),
    ("score", "Mean ± standard deviation over seeds (number of seeds), on the test split."),
    (
        "against full",
        "Difference to full fine-tuning on the same test examples, an average of per-example scores; 95 % interval of the "
        "paired bootstrap over examples and seeds.",
    ),
    ("trained", "Trained parameters."),
    ("file", "Bytes of the stored adapter, or of the whole model."),
    (
        "peak memory",
        "Peak memory while training, above that of libraries and data, without what evaluations leave allocated.",
    ),
    ("step", "Median seconds of an optimizer step, in the seed that other work disturbed least."),
    ("tokens/s", "Source and target tokens per second of training in that seed, padding not counted."),
    ("to best", "Seconds of training until the best score on validation."),
    ("answer", "Seconds to generate 16 tokens for one example; after merging in brackets."),
    ("rate", "Learning rate, chosen by the loss on validation."),
)


def cells(row: Row) -> dict[str, Cell]:
    """Return the cells of a row by column; a cell without a figure says why."""
    found = {"method": Cell(row.label)}
    rate = "none finished" if row.learning_rate is None else f"{row.learning_rate:g}"
    found["rate"] = Cell(rate + (" (end of the grid)" if row.grid_end_won else ""), row.learning_rate)
    if row.test is not None and is_baseline(row.method):
        score = Cell(row.test.text(1, row.factor).rpartition(" ")[0], row.test.mean)
        known = found | {"score": score, "against full": _difference(row)}
        return {name: known.get(name, Cell("–", title="not trained")) for name, _ in COLUMNS} | {
            "rate": Cell("–", title="not trained")
        }
    if row.test is None:
        missing = Cell(row.reason or "not run")
        return {
            name: found.get(name, missing if name == "score" else Cell("–", title=missing.text)) for name, _ in COLUMNS
        }
    return found | {
        "score": Cell(row.test.text(1, row.factor), row.test.mean, "; ".join(row.failed)),
        "against full": _difference(row),
        "trained": Cell(f"{row.trainable:,}", row.trainable),
        "file": Cell(bytes_text(row.stored_bytes or 0), row.stored_bytes),
        "peak memory": _mean_cell(row.peak_bytes, bytes_text),
        "step": _mean_cell(row.step_seconds, seconds_text),
        "tokens/s": _mean_cell(row.tokens_per_second, lambda value: f"{value:,.0f}"),
        "to best": _mean_cell(row.to_best_seconds, seconds_text),
        "answer": _latency(row),
    }


def _difference(row: Row) -> Cell:
    if row.method == "full":
        return Cell("reference", 0.0)
    if row.difference is None:
        return Cell("no run of full", title="full fine-tuning has no finished run with the same seed")
    return difference_cell(row.difference)


def difference_cell(found: Difference | None) -> Cell:
    """Return the cell of a difference, or a dash where there is none."""
    return Cell("–") if found is None else Cell(str(found), found.mean)


def _mean_cell(value: MeanStd | None, text: Callable[[float], str]) -> Cell:
    return Cell("–") if value is None else Cell(text(value.mean), value.mean)


def _latency(row: Row) -> Cell:
    if row.latency_seconds is None:
        return Cell("–")
    seconds = row.latency_seconds.mean
    if isinstance(row.merged_latency, MeanStd):
        return Cell(f"{seconds_text(seconds)} ({seconds_text(row.merged_latency.mean)})", seconds)
    return Cell(seconds_text(seconds), seconds, row.merged_latency or "")


def header(metric: str) -> list[str]:
    """Return the column names, with the metric in the place of "score"."""
    return [metric if name == "score" else name for name, _ in COLUMNS]


def markdown(table: TaskTable) -> str:
    """Return the table of one task under its conditions."""
    text = markdown_table(header(table.metric), [[cells(row)[name] for name, _ in COLUMNS] for row in table.rows])
    note = (
        ""
        if table.metric in PER_EXAMPLE
        else f"; differences are averages of per-example scores, {table.metric} is that of the corpus"
    )
    return f"**{table.task}**, {conditions_text(table)}{note}\n\n{text}"


def conditions_text(table: TaskTable) -> str:
    """Return backbone, budget and data in one line."""
    conditions, machine = table.conditions, table.conditions["machine"]
    examples = ", ".join(f"{count:,} {split}" for split, count in conditions["examples"].items())
    seeds = len(conditions["seeds"])
    at_once = f", {machine['runs_at_once']} runs at once" if machine.get("runs_at_once", 1) > 1 else ""
    budget = f"{conditions['steps']:,} steps of {conditions['examples_per_step']} examples ({examples})"
    return (
        f"backbone {backbone_text(table)}, {budget}, "
        f"{seeds} seed{'s' if seeds > 1 else ''}; {machine.get('name', 'unknown device')}, "
        f"{machine.get('threads', '?')} thread{'s' if machine.get('threads') != 1 else ''}{at_once}"
        f"{left_out_text(table.left_out)}"
    )


def left_out_text(count: int) -> str:
    """Return the end of the line of conditions if records were made under others."""
    return f"; {count:,} record{'s' if count != 1 else ''} made under other conditions left out" if count else ""


def backbone_text(table: TaskTable) -> str:
    """Name the backbone with the beginning of its fingerprint, because weights change under a name."""
    return f"{table.conditions['backbone']} ({table.conditions['backbone_fingerprint'][:8]})"


def markdown_table(names: Sequence[str], rows: Sequence[Sequence[Cell | str]], *, words: int = 1) -> str:
    """Return a table in Markdown.

    Args:
        names: Those of the columns.
        rows: Their cells.
        words: Number of columns at the left that hold words; the others hold numbers, which are aligned at the right.
    """
    texts = [[cell if isinstance(cell, str) else cell.text for cell in row] for row in rows]
    lines = [names, ["---"] * words + ["---:"] * (len(names) - words), *texts]
    return "\n".join(f"| {' | '.join(text.replace('|', BAR) for text in line)} |" for line in lines)


def csv_text(tables: Sequence[TaskTable]) -> str:
    """Return every row with plain numbers, one line for each method and task."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(
        ["task", "metric", "method", "options", "mean", "deviation", "seeds", "difference_to_full", "low", "high",
         "trainable_parameters", "stored_bytes", "peak_memory_above_libraries_and_data_bytes", "seconds_per_step",
         "tokens_per_second", "seconds_to_best", "latency_seconds", "learning_rate", "reason"]
    )  # fmt: skip
    for row in (row for table in tables for row in table.rows):
        test, to_full = row.test, row.difference
        writer.writerow(
            [row.task, row.metric, row.method, " ".join(f"{k}={v}" for k, v in sorted(row.options.items())),
             test and test.mean, test and test.deviation, test.n if test else 0,
             *((value / row.factor for value in (to_full.mean, to_full.low, to_full.high)) if to_full else [None] * 3),
             row.trainable, row.stored_bytes, *(value and value.mean for value in (
                 row.peak_bytes, row.step_seconds, row.tokens_per_second, row.to_best_seconds, row.latency_seconds)),
             row.learning_rate, row.reason or "; ".join(row.failed)]
        )  # fmt: skip
    return file.getvalue()


def fill_markers(path: Path, texts: Mapping[str, str]) -> None:
    """Put each text between ``<!-- table:NAME -->`` and ``<!-- /table -->`` of a Markdown file, if it has such markers.

    Args:
        path: The file.
        texts: By name.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file does not have markers for any of them.
    """
    with path.open(encoding="utf-8", newline="") as file:  # so that ends of lines stay what they are
        content, filled = file.read(), 0
    end = "\r\n" if "\r\n" in content else "\n"
    for name, text in texts.items():
        pattern = re.compile(rf"(<!-- table:{re.escape(name)} -->\r?\n).*?(<!-- /table -->)", re.DOTALL)
        content, found = pattern.subn(partial(_between, f"{text}\n".replace("\n", end)), content)
        filled += found
    if not filled:
        others = ", ".join(re.findall(r"<!-- table:(\S+) -->", content)) or "none"
        raise ValueError(
            f"Got the tables {', '.join(map(repr, texts))} for {path}, which has places for {others}; expected a place for one. "
            f"Write `<!-- table:{next(iter(texts))} -->` and `<!-- /table -->` on two lines where the table belongs."
        )
    write_whole(path, content)


def _between(text: str, match: re.Match[str]) -> str:
    return f"{match[1]}{text}{match[2]}"
