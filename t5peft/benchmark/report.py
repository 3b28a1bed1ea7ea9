"""From a folder of records to the report: Markdown, CSV, one HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t5peft.benchmark.advice import advice
from t5peft.benchmark.html_report import html_report
from t5peft.benchmark.records import load_records
from t5peft.benchmark.summary import summarize
from t5peft.benchmark.tables import csv_text, markdown, overview_markdown


@dataclass(frozen=True)
class Report:
    """The tables as Markdown, all tasks in one (empty for one task) and each by itself, and the files by what they hold."""

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
    asked: Sequence[Mapping[str, Any]] = (),
) -> Report:
    """Writes report.md, report.csv and report.html into `output`, of these tasks and methods alone (None: of all).

    Tables are of the conditions under which the records `asked` were made; of tasks that are not among them, of the newest.

    Raises:
        FileNotFoundError: there is no such folder of records.
        ValueError: the folder holds no records of them, or files that are no records.
    """
    records = [
        record
        for record in load_records(folder)
        if record["config"]["task"] in ([Path(task).name for task in tasks or ()] or [record["config"]["task"]])
        and record["config"]["method"] in (methods or [record["config"]["method"]])
    ]
    if not records:
        narrowed = "".join(
            f", {what} {', '.join(names)}" for what, names in (("tasks", tasks), ("methods", methods)) if names
        )
        raise ValueError(f"{folder} holds no records{narrowed}: run `t5peft bench` first")
    tables = summarize(records, asked)
    details = [part for table in tables for part in (markdown(table), "\n".join(f"- {line}" for line in advice(table)))]
    output.mkdir(parents=True, exist_ok=True)
    paths = {"table": output / "report.md", "CSV": output / "report.csv", "page": output / "report.html"}
    report = Report(overview_markdown(tables), "\n\n".join(details), paths)
    contents = (report.text + "\n", csv_text(tables), html_report(tables, title=title, about=about, command=command))
    for path, content in zip(paths.values(), contents, strict=True):
        path.write_text(content, encoding="utf-8")
    return report
