"""From the records of a suite to the report: Markdown, CSV, one HTML page."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from t5peft.benchmark.advice import advice
from t5peft.benchmark.baselines import is_baseline
from t5peft.benchmark.html_report import INSTALL, html_report
from t5peft.benchmark.overview import overviews
from t5peft.benchmark.published import HEADER, verdicts
from t5peft.benchmark.recommendation import cited, recommendation
from t5peft.benchmark.records import RunRecord, RunRecords
from t5peft.benchmark.suites import Expected
from t5peft.benchmark.summary import summarize
from t5peft.benchmark.tables import csv_text, markdown, markdown_table
from t5peft.compat.filesystem import write_whole

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Report:
    """The tables as Markdown, and the files that hold them.

    Attributes:
        overview: What to take, and all tasks in one table; empty for a single task.
        details: A table for each task.
        paths: The files by their content.
    """

    overview: str
    details: str
    paths: dict[str, Path]

    @property
    def text(self) -> str:
        """Overview and details."""
        return "\n\n".join(part for part in (self.overview, self.details) if part)


def write_report(
    folder: Path,
    output: Path,
    *,
    title: str,
    about: str,
    command: str,
    tasks: Sequence[str] | None = None,
    methods: Sequence[str] | None = None,
    asked: Sequence[RunRecord] = (),
    expected: Sequence[Expected] = (),
) -> Report:
    """Write report.md, report.csv and, if Jinja2 is installed, report.html.

    Args:
        folder: The folder of a suite, with its records.
        output: The folder for the files.
        title: Heading of the page.
        about: One line under the heading.
        command: The command that made the records.
        tasks: Only these tasks. None: all.
        methods: Only these methods, and the baselines. None: all.
        asked: Records whose conditions the tables show. For a task without one, the newest record's conditions.
        expected: Published figures, which a table compares with those of the records.

    Raises:
        FileNotFoundError: There are no records in the folder.
        ValueError: There are no records of these tasks and methods, or some are damaged.
    """
    records = _records_of(folder, tasks, methods)
    tables = summarize(records, asked)
    found = verdicts(expected, asked or records)
    details = [part for table in tables for part in (markdown(table), _listed(advice(table) + cited(tables)))]
    if found:
        details.append(f"Against the published figures:\n\n{markdown_table(HEADER, found, words=3)}")
    overview = [part for one in overviews(tables) for part in (_listed(recommendation(one)), one.markdown())]
    output.mkdir(parents=True, exist_ok=True)
    report = Report("\n\n".join(overview), "\n\n".join(details), {})
    contents = {
        "table": ("report.md", report.text + "\n"),
        "CSV": ("report.csv", csv_text(tables)),
        "page": ("report.html", html_report(tables, title=title, about=about, command=command, published=found)),
    }
    for kind, (name, content) in contents.items():
        if content is None:
            logger.warning("Wrote no page, because Jinja2 is not installed: %s.", INSTALL)
        else:
            report.paths[kind] = output / name
            write_whole(report.paths[kind], content)
    return report


def _listed(sentences: Sequence[str]) -> str:
    return "\n".join(f"- {sentence}" for sentence in sentences)


def _records_of(folder: Path, tasks: Sequence[str] | None, methods: Sequence[str] | None) -> list[RunRecord]:
    """Return the records of these tasks and methods, and refuse a folder without one."""
    wanted_tasks = [Path(task).name for task in tasks or ()]
    records = [
        record
        for record in RunRecords(folder).load()
        if (not wanted_tasks or Path(record["config"]["task"]).name in wanted_tasks)
        and (not methods or (method := record["config"]["method"]) in methods or is_baseline(method))
    ]
    if not records:
        narrowed = "".join(
            f", {kind} {', '.join(names)}" for kind, names in (("tasks", tasks), ("methods", methods)) if names
        )
        raise ValueError(
            f"Got no such records in {folder}{narrowed}; expected some. Run `t5peft bench` with them first."
        )
    return records
