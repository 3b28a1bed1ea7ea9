"""One HTML page that holds everything: tables that sort, plots as SVG, and the words. It loads nothing from anywhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from html import escape
from pathlib import Path

import yaml

from t5peft.benchmark.advice import advice
from t5peft.benchmark.statistics import MeanStd
from t5peft.benchmark.summary import Row, TaskTable
from t5peft.benchmark.svg import Axis, Line, Point, lines, scatter
from t5peft.benchmark.tables import (
    COLUMNS,
    Cell,
    bytes_text,
    cells,
    conditions_text,
    header,
    overview_header,
    overview_note,
    overview_rows,
    peers_header,
    peers_rows,
    seconds_text,
)

HERE = Path(__file__).parent


def html_report(tables: Sequence[TaskTable], *, title: str, about: str, command: str) -> str:
    """The report as one HTML document."""
    body = [f"<h1>{escape(title)}</h1>", f"<p>{escape(about)}</p>" if about else ""]
    body += [f"<nav>{' '.join(_link(table) for table in tables)}</nav>" if len(tables) > 1 else ""]
    body += list(_overview(tables))
    for table in tables:
        body += list(_section(table))
    body += list(_conditions(tables, command))
    style, script = ((HERE / name).read_text(encoding="utf-8") for name in ("html_report.css", "html_report.js"))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{style}</style></head>\n<body><main>\n"
        + "\n".join(part for part in body if part)
        + f"\n</main><script>{script}</script></body></html>\n"
    )


def _link(table: TaskTable) -> str:
    return f'<a href="#{_anchor(table)}">{escape(table.task)}</a>'


def _anchor(table: TaskTable) -> str:
    return "task-" + "".join(c if c.isalnum() else "-" for c in table.task)


def _overview(tables: Sequence[TaskTable]) -> Iterator[str]:
    if len(tables) > 1:
        yield f"<h2>All tasks</h2><p>{escape(overview_note(tables))}</p>"
        yield _table(overview_header(tables), overview_rows(tables))
        if peers := peers_rows(tables):
            yield _table(peers_header(tables), peers)


def _section(table: TaskTable) -> Iterator[str]:
    yield f'<section id="{_anchor(table)}"><h2>{escape(table.task)}</h2>'
    yield f'<p class="conditions">{escape(conditions_text(table))}</p>'
    yield '<div class="advice"><h3>What to take</h3><ul>'
    yield "".join(f"<li>{escape(sentence)}</li>" for sentence in advice(table)) + "</ul></div>"
    yield _rows_table(table)
    yield from _published(table)
    yield "<h3>What quality costs</h3><p>Up is better, left is cheaper. Full fine-tuning is the circle.</p>"
    yield '<div class="plots">' + "".join(_costs(table)) + "</div>"
    yield '<div class="plots">' + "".join([*_curves(table), *_sweeps(table), *_sensitivity(table)]) + "</div>"
    yield "</section>"


def _rows_table(table: TaskTable) -> str:
    names = [name for name, _ in COLUMNS]
    rows = [
        [cells(row)[name] for name in (names if row.test is not None else ("method", "score"))] for row in table.rows
    ]
    titles = [title for _, title in COLUMNS]
    words = "".join(f"<dt>{escape(name)}</dt><dd>{escape(title)}</dd>" for name, title in COLUMNS)
    note = f"<details><summary>What the columns say; a touch on a name sorts</summary><dl>{words}</dl></details>"
    return _table(header(table.metric), rows, titles) + note


def _table(names: Sequence[str], rows: Sequence[Sequence[Cell]], titles: Sequence[str] = ()) -> str:
    """A sortable table."""
    heads = "".join(
        f'<th scope="col"><button title="{escape(titles[i]) if titles else ""}">{escape(name)}</button></th>'
        for i, name in enumerate(names)
    )
    body = "".join(f"<tr>{''.join(_cells_of(row, len(names)))}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>'


def _cells_of(row: Sequence[Cell], columns: int) -> Iterator[str]:
    """The cells of a row; the last of a short one, a reason, takes all columns that are left."""
    yield from (_cell(cell) for cell in row[:-1])
    left = columns - len(row) + 1
    yield _cell(row[-1], "" if left == 1 else f' class="reason" colspan="{left}"')


def _cell(cell: Cell, attributes: str = "") -> str:
    data = "" if cell.value is None else f' data-value="{cell.value!r}"'
    title = f' title="{escape(cell.title)}"' if cell.title else ""
    return f"<td{attributes}{data}{title}>{escape(cell.text)}</td>"


def _published(table: TaskTable) -> Iterator[str]:
    known = yaml.safe_load((HERE / "published.yaml").read_text(encoding="utf-8"))
    here = [n for n in known if n["task"] == table.task and n["backbone"] == table.conditions["backbone"]]
    if here:
        yield "<h3>Published, not measured here</h3>"
        rows = [
            [Cell(n["method"]), Cell(n["metric"]), Cell(str(n["value"]), n["value"]), Cell(n["source"])] for n in here
        ]
        yield _table(["method", "metric", "value", "source"], rows)


def _finished(table: TaskTable) -> list[tuple[int, Row, MeanStd]]:
    """Rows with a score, numbered by their place in the table, which picks their style."""
    return [(i, row, row.test) for i, row in enumerate(table.rows) if row.test is not None]


def _score_text(row: Row) -> Callable[[float], str]:
    return lambda value: f"{value * row.factor:.3g}"


def _mean(value: MeanStd | None) -> float | None:
    return None if value is None else value.mean


def _costs(table: TaskTable) -> Iterator[str]:
    costs: list[tuple[str, str, Callable[[Row], float | None], Callable[[float], str]]] = [
        ("trained parameters", "trained parameters", lambda row: row.trainable, _count_text),
        ("peak memory above libraries and data", "memory", lambda row: _mean(row.peak_bytes), bytes_text),
        ("seconds of training", "time", lambda row: _mean(row.train_seconds), seconds_text),
    ]
    finished = _finished(table)
    if not finished:
        return
    y = Axis.over(f"test {table.metric}", [t.mean for _, _, t in finished], text=_score_text(finished[0][1]))
    for name, short, figure, text in costs:
        points = [
            Point(value, test.mean, row.label, style, test.deviation)
            for style, row, test in finished
            if (value := figure(row))
        ]
        if points:
            x = Axis.over(f"{name} (log scale)", [point.x for point in points], text=text, log=True)
            yield _figure(
                scatter(points, x, y, title=f"{table.task}: quality against {short}"), f"Quality against {short}"
            )


def _count_text(count: float) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return f"{count:.3g}"


def _curves(table: TaskTable) -> Iterator[str]:
    series = [Line(row.curves[0], row.label, style) for style, row, _ in _finished(table) if len(row.curves[0]) > 1]
    if not series:
        return
    row = next(row for _, row, _ in _finished(table))
    values = [point for line in series for point in line.points]
    x = Axis.over("optimizer steps", [0, *(p[0] for p in values)], text=lambda value: f"{value:,.0f}")
    y = Axis.over(f"validation {table.metric}", [p[1] for p in values], text=_score_text(row))
    yield _figure(lines(series, x, y, title=f"{table.task}: learning curves"), "Learning curves, first seed")


def _sweeps(table: TaskTable) -> Iterator[str]:
    series = [
        Line(points, row.label, style)
        for style, row, _ in _finished(table)
        if len(points := [(p.learning_rate, p.score) for p in row.sweep if p.score is not None]) > 1
    ]
    if not series:
        return
    row = next(row for _, row, _ in _finished(table))
    values = [point for line in series for point in line.points]
    x = Axis.over("learning rate (log scale)", [p[0] for p in values], text=lambda value: f"{value:g}", log=True)
    y = Axis.over(f"validation {table.metric}", [p[1] for p in values], text=_score_text(row))
    yield _figure(lines(series, x, y, title=f"{table.task}: learning-rate sweep"), "Learning rates tried")


def _sensitivity(table: TaskTable) -> Iterator[str]:
    """Score against an option that several rows of one method differ in alone, such as rank or length."""
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    style_of: dict[str, int] = {}
    for style, row, test in _finished(table):
        style_of.setdefault(row.method, style)
        if len(row.options) == 1:
            name, value = next(iter(row.options.items()))
            if isinstance(value, int | float) and not isinstance(value, bool):
                found.setdefault((row.method, name), []).append((float(value), test.mean))
    series = [
        (name, Line(sorted(points), method, style_of[method]))
        for (method, name), points in found.items()
        if len(points) > 1
    ]
    if not series:
        return
    row = next(row for _, row, _ in _finished(table))
    values = [point for _, line in series for point in line.points]
    names = " or ".join(dict.fromkeys(name for name, _ in series))
    log = all(p[0] > 0 for p in values)
    name = f"{names} (log scale)" if log else names
    x = Axis.over(name, [p[0] for p in values], text=lambda value: f"{value:g}", log=log)
    y = Axis.over(f"test {table.metric}", [p[1] for p in values], text=_score_text(row))
    title = f"{table.task}: sensitivity to {names}"
    yield _figure(lines([line for _, line in series], x, y, title=title), f"Sensitivity to {names}")


def _figure(svg: str, caption: str) -> str:
    return f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>"


def _conditions(tables: Sequence[TaskTable], command: str) -> Iterator[str]:
    yield "<h2>How it was measured</h2><ul>"
    yield f"<li>Command: <code>{escape(command)}</code></li>"
    versions = {
        f"{name} {version}": None
        for table in tables
        for name, version in table.conditions["versions"].items()
        if version
    }
    commits = sorted({commit for table in tables for commit in table.conditions["commits"]})
    yield f"<li>Versions: {escape(', '.join(versions))}</li>"
    yield f"<li>Commit: {escape(', '.join(commits))} (+ where the source was changed)</li>"
    yield (
        "<li>Every method gets the same examples, steps and seeds; its learning rate is chosen by the loss on validation, "
        "the score is of the last step on test. One process a run; peak memory is that process's while it trains.</li>"
        "<li>Intervals: 95 %, paired bootstrap over test examples and seeds. Where the metric is one "
        "of the whole corpus (BLEU, Matthews, F1), the difference is that of the mean of examples, each scored alone.</li>"
    )
    left_out = sum(table.left_out for table in tables)
    if left_out:
        yield f"<li>{left_out} records made under other conditions are left out.</li>"
    yield "</ul>"
