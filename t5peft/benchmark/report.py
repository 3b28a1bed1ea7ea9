"""From a folder of records to the report: Markdown, CSV, one HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from t5peft.benchmark.advice import advice
from t5peft.benchmark.page import page
from t5peft.benchmark.records import load_records
from t5peft.benchmark.summary import TaskTable, summarise
from t5peft.benchmark.tables import csv_text, markdown, means_markdown


def write_report(
    folder: Path,
    output: Path,
    *,
    title: str,
    about: str,
    command: str,
    tasks: Sequence[str] | None = None,
    methods: Sequence[str] | None = None,
) -> tuple[str, dict[str, Path]]:
    """Writes report.md, report.csv and report.html into `output`, of these tasks and methods alone (None: of all).

    Returns:
        The Markdown text, and the paths by what they hold.

    Raises:
        FileNotFoundError: there is no such folder of records.
        ValueError: the folder holds no records of them, or files that are no records.
    """
    records = [
        record
        for record in load_records(folder)
        if record["config"]["task"] in (tasks or [record["config"]["task"]])
        and record["config"]["method"] in (methods or [record["config"]["method"]])
    ]
    if not records:
        asked = "".join(
            f", {what} {', '.join(names)}" for what, names in (("tasks", tasks), ("methods", methods)) if names
        )
        raise ValueError(f"{folder} holds no records{asked}: run `t5peft bench` first")
    tables = summarise(records)
    text = markdown_report(tables)
    output.mkdir(parents=True, exist_ok=True)
    contents = {
        "table": ("report.md", text + "\n"),
        "CSV": ("report.csv", csv_text(tables)),
        "page": ("report.html", page(tables, title=title, about=about, command=command)),
    }
    paths = {}
    for what, (name, content) in contents.items():
        paths[what] = output / name
        paths[what].write_text(content, encoding="utf-8")
    return text, paths


def markdown_report(tables: list[TaskTable]) -> str:
    """Means over tasks, then every task with its recommendation."""
    parts = [means_markdown(tables)]
    for table in tables:
        parts += [markdown(table), "\n".join(f"- {sentence}" for sentence in advice(table))]
    return "\n\n".join(part for part in parts if part)
