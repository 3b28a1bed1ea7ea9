"""From a folder of records to the report: Markdown, CSV, one HTML page."""

from __future__ import annotations

from pathlib import Path

from t5peft.benchmark.advice import advice
from t5peft.benchmark.page import page
from t5peft.benchmark.records import load_records
from t5peft.benchmark.summary import TaskTable, summarise
from t5peft.benchmark.tables import csv_text, markdown, means_markdown


def write_report(folder: Path, output: Path, *, title: str, about: str, command: str) -> tuple[str, dict[str, Path]]:
    """Writes report.md, report.csv and report.html into `output`.

    Returns:
        The Markdown text, and the paths by what they hold.

    Raises:
        FileNotFoundError: there is no such folder of records.
        ValueError: the folder is empty, or holds files that are no records.
    """
    records = load_records(folder)
    if not records:
        raise ValueError(f"{folder} holds no records: run `t5peft bench` first")
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
