"""One HTML page with everything: tables that sort, interactive charts, and advice. It loads nothing from the network.

Jinja2 fills the template. The charts are drawn in the browser by Vega-Lite, which ``vl-convert-python`` brings as one
script; without that package the page has its tables only.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from t5peft.benchmark.advice import advice
from t5peft.benchmark.baselines import is_baseline
from t5peft.benchmark.overview import Overall, Overview, overviews
from t5peft.benchmark.published import HEADER
from t5peft.benchmark.recommendation import cited, recommendation
from t5peft.benchmark.statistics import MeanStd
from t5peft.benchmark.summary import Row, TaskTable
from t5peft.benchmark.tables import COLUMNS, Cell, cells, conditions_text, header

HERE = Path(__file__).parent
INSTALL = 'pip install "t5peft[report]"'


def html_report(
    tables: Sequence[TaskTable], *, title: str, about: str, command: str, published: Sequence[Sequence[str]] = ()
) -> str | None:
    """Return the report as one HTML document, or None if Jinja2 is not installed.

    Args:
        tables: The tables of the tasks.
        title: Heading of the page.
        about: One line under the heading.
        command: The command that made the records.
        published: Rows that compare figures with published ones.
    """
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    except ImportError:
        return None
    found = overviews(tables)
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("html_report.html.j2").render(
        title=title,
        about=about,
        command=command,
        overviews=found,
        recommendation=recommendation,
        cited=cited(tables),
        published_header=HEADER,
        published=[[Cell(text) for text in row] for row in published],
        sections=[_section(table) for table in tables],
        backbones=list(dict.fromkeys(table.conditions["backbone"] for table in tables)),
        tasks=list(dict.fromkeys(table.task for table in tables)),
        columns=COLUMNS,
        methods=list(dict.fromkeys(row.method for table in tables for row in table.rows)),
        axes=[{"name": name, "text": text} for name, (text, _) in AXES.items()],
        charts=[_chart_of_all(one) for one in found] + [_chart_data(table, command) for table in tables],
        library=_chart_library(),
        install=INSTALL,
        versions=list(dict.fromkeys(_versions(tables))),
        commits=sorted({commit for table in tables for commit in table.conditions["commits"]}),
        left_out=sum(table.left_out for table in tables),
        style=(HERE / "html_report.css").read_text(encoding="utf-8"),
        script=(HERE / "html_report.js").read_text(encoding="utf-8"),
    )


@lru_cache(maxsize=1)
def _chart_library() -> str | None:
    """Return Vega, Vega-Lite and vega-embed as one script that sets ``window.vegaEmbed``; None if not installed."""
    try:
        from vl_convert import javascript_bundle
    except ImportError:
        return None
    # Its annotation lacks the None that gives the whole library.
    return javascript_bundle(snippet=None).replace("</script", r"<\/script")  # type: ignore[arg-type]


def _versions(tables: Sequence[TaskTable]) -> list[str]:
    return [
        f"{name} {version}" for table in tables for name, version in table.conditions["versions"].items() if version
    ]


def _section(table: TaskTable) -> dict[str, Any]:
    names = [name for name, _ in COLUMNS]
    return {
        "task": table.task,
        "backbone": table.conditions["backbone"],
        "anchor": "task-" + "".join(c if c.isalnum() else "-" for c in table.task),
        "conditions": conditions_text(table),
        "advice": advice(table),
        "header": header(table.metric),
        "rows": [
            [cells(row)[name] for name in (names if row.test is not None else ("method", "score"))]
            for row in table.rows
        ],
        "methods": [row.method for row in table.rows],
    }


def _mean(value: MeanStd | None) -> float | None:
    return None if value is None else value.mean


AXES: dict[str, tuple[str, Callable[[Row], float | None]]] = {
    "score": ("score on test", lambda row: None if row.test is None else row.test.mean * row.factor),
    "loss": ("loss on validation", lambda row: _mean(row.loss)),
    "trainable": ("trained parameters", lambda row: row.trainable),
    "peak_bytes": ("peak memory, bytes", lambda row: _mean(row.peak_bytes)),
    "train_seconds": ("training, seconds", lambda row: _mean(row.train_seconds)),
    "step_seconds": ("step, seconds", lambda row: _mean(row.step_seconds)),
    "stored_bytes": ("file, bytes", lambda row: row.stored_bytes),
    "latency_seconds": ("answer, seconds", lambda row: _mean(row.latency_seconds)),
    "tokens_per_second": ("tokens per second", lambda row: _mean(row.tokens_per_second)),
    "to_best_seconds": ("seconds to the best score", lambda row: _mean(row.to_best_seconds)),
    "learning_rate": ("learning rate", lambda row: row.learning_rate),
}
"""The axes of the first chart: a text, and the figure of a finished row."""


_AXES_OF_ALL: dict[str, tuple[str, Callable[[Overall], float | None]]] = {
    "score": ("mean over tasks, points", lambda one: one.mean),
    "trainable": ("trained parameters", lambda one: one.trained),
    "peak_bytes": ("peak memory, share of full fine-tuning", lambda one: one.memory),
    "step_seconds": ("step, share of full fine-tuning", lambda one: one.time),
    "stored_bytes": ("file, share of full fine-tuning", lambda one: one.file),
}
"""The axes of the chart over all tasks, by the names of ``AXES``."""


def _chart_of_all(overview: Overview) -> dict[str, Any]:
    """Return what the page's script draws of all tasks."""
    rows: list[dict[str, Any]] = []
    for one in overview.methods.values():
        if one.mean is None or is_baseline(one.method):
            continue
        error = one.error or 0.0
        to_full = "reference" if one.method == "full" else str(one.to_full or "–")
        rows.append(
            {
                "label": one.label,
                "method": one.method,
                "shown": f"{one.mean:.1f} ± {error:.1f}",
                "against full": to_full,
            }
            | ({"low": one.mean - error, "high": one.mean + error} if error else {})
            | {name: figure(one) for name, (_, figure) in _AXES_OF_ALL.items()}
        )
    return {"rows": rows, "titles": {name: text for name, (text, _) in _AXES_OF_ALL.items()}}


def _chart_data(table: TaskTable, command: str) -> dict[str, Any]:
    """Return what the page's script draws of one task."""
    finished = [row for row in table.rows if row.test is not None and not is_baseline(row.method)]
    baseline = table.strongest_baseline
    return {
        "task": table.task,
        "titles": {"score": f"test {table.metric}"},
        "metric": table.metric,
        "baseline": {"label": baseline.label, "score": AXES["score"][1](baseline)} if baseline else None,
        "rows": [_row_data(row, command) for row in finished],
        "curves": [
            {"label": row.label, "method": row.method, "x": step, "y": score * row.factor}
            for row in finished
            for step, score in (row.curves[0] if len(row.curves[0]) > 1 else ())
        ],
        "sweep": [
            {"label": row.label, "method": row.method, "x": point.learning_rate, "y": point.score * row.factor}
            for row in finished
            for point in (row.sweep if len(row.sweep) > 1 else ())
            if point.score is not None
        ],
        "sensitivity": _sensitivity(finished),
    }


def _row_data(row: Row, command: str) -> dict[str, Any]:
    shown = cells(row)
    low_high = {}
    if row.test is not None and row.test.deviation is not None:
        low_high = {
            "low": (row.test.mean - row.test.deviation) * row.factor,
            "high": (row.test.mean + row.test.deviation) * row.factor,
        }
    return {
        "label": row.label,
        "method": row.method,
        "shown": shown["score"].text,
        "against full": shown["against full"].text,
        "command": row_command(command, row),
        **low_high,
        **{name: figure(row) for name, (_, figure) in AXES.items()},
    }


def row_command(command: str, row: Row) -> str:
    """Return the command that makes the runs of one method on one task again.

    Args:
        command: The command that made the records.
        row: A row of their table.
    """
    kept, dropping = [], False
    for token in shlex.split(command):
        if token.startswith("--"):
            dropping = token.partition("=")[0] in ("--report-only", "--readme", "--tasks", "--methods")
        if not dropping:
            kept.append(token)
    return shlex.join([*kept, "--tasks", row.task, "--methods", row.method])


def _sensitivity(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return scores against an option that is all in which several rows of a method differ, such as rank or length."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        if len(row.options) == 1 and row.test is not None:
            ((name, value),) = row.options.items()
            if isinstance(value, int | float) and not isinstance(value, bool):
                label = f"{row.method} ({name})"
                point = {"label": label, "method": row.method, "option": name, "x": value}
                found.setdefault((row.method, name), []).append(point | {"y": row.test.mean * row.factor})
    return [point for points in found.values() if len(points) > 1 for point in sorted(points, key=lambda p: p["x"])]
