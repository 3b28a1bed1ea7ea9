"""The report's page: that it is complete in one file, and what it does in a browser."""

from __future__ import annotations

import json
import logging
import re
import shutil
import subprocess
import sys
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import synthetic

from t5peft.benchmark import html_report
from t5peft.benchmark.html_report import row_command
from t5peft.benchmark.records import RunRecords
from t5peft.benchmark.report import write_report
from t5peft.benchmark.summary import summarize

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome is installed"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("suite")
    synthetic.write_suite(made)
    synthetic.write_suite(made, task="topics", drop=0.1)
    for task in ("intents", "topics"):
        RunRecords(made).append(synthetic.config("untuned", rate=0.0, task=task), synthetic.baseline(0.5))
    return made


@pytest.fixture(scope="module")
def page(folder: Path) -> Path:
    pytest.importorskip("vl_convert")
    command = "t5peft bench --suite made-up"
    return write_report(folder, folder, title="Tuning T5", about="made up", command=command).paths["page"]


class Links(HTMLParser):
    """Collects what a page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if (
                name in ("src", "data")
                or (name == "href" and tag == "link")
                or (name == "href" and "://" in (value or ""))
            ):
                self.loaded.append(f"{tag} {value}")


def test_the_page_loads_nothing(page: Path) -> None:
    links = Links()
    links.feed(page.read_text(encoding="utf-8"))
    assert links.loaded == []
    assert page.stat().st_size < 2_000_000


def write_page(folder: Path, *made: tuple[Any, dict[str, Any]], **words: str) -> str:
    for config, record in made:
        RunRecords(folder).append(config, record)
    named: dict[str, Any] = {"title": "", "about": "", "command": ""} | words
    report = write_report(folder, folder, **named)
    return report.paths["page"].read_text(encoding="utf-8")


def finished(method: str, **changes: Any) -> tuple[Any, dict[str, Any]]:
    made = synthetic.config(method, **changes)
    return made, synthetic.finished(made, 0.9, parameters=1, peak=100, seconds=1.0)


def data_of(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def test_the_page_names_the_commits_of_every_task(tmp_path: Path) -> None:
    made = [finished("full", task=task) for task in ("first", "second")]
    commits = [
        (config, record | {"commit": commit}) for (config, record), commit in zip(made, ("aaaa", "bbbb"), strict=True)
    ]
    assert "Commit: aaaa, bbbb" in write_page(tmp_path, *commits)


def test_an_option_may_be_zero(tmp_path: Path) -> None:
    """Its chart cannot have a logarithmic axis then."""
    page = write_page(tmp_path, *(finished("lora", method_options={"dropout": dropout}) for dropout in (0.0, 0.1)))
    points = data_of(page)["charts"][0]["sensitivity"]
    assert [(point["x"], point["option"]) for point in points] == [(0.0, "dropout"), (0.1, "dropout")]


def test_what_users_name_is_text_on_the_page(tmp_path: Path) -> None:
    bad = "</script><script>alert(1)</script>"
    page = write_page(
        tmp_path, finished("full", task=bad), title=bad, about=bad, command=f"t5peft bench --task '{bad}'"
    )
    assert "<script>alert" not in page
    assert data_of(page)["charts"][0]["task"] == Path(bad).name  # tasks may be paths, and are known by their last part


def test_a_row_says_how_its_runs_are_made_again(folder: Path) -> None:
    row = summarize(RunRecords(folder).load())[0].rows[1]
    for given in (
        "t5peft bench --suite quick --seeds 0 1",
        "t5peft bench --suite quick --tasks a b --methods full --readme=README.md --report-only --seeds 0 1",
    ):
        found = "t5peft bench --suite quick --seeds 0 1 --tasks intents --methods lora"
        assert row_command(given, row) == found


@pytest.mark.parametrize(("missing", "page"), [("vl_convert", True), ("jinja2", False)])
def test_without_the_packages_of_the_page_the_report_says_how_to_get_them(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    missing: str,
    page: bool,
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    html_report._chart_library.cache_clear()
    with caplog.at_level(logging.WARNING):
        report = write_report(folder, tmp_path, title="", about="", command="")
    html_report._chart_library.cache_clear()
    assert {path.name for path in tmp_path.iterdir()} == {"report.md", "report.csv"} | (
        {"report.html"} if page else set()
    )
    words = 'pip install "t5peft[report]"'
    if page:
        text = unescape(report.paths["page"].read_text(encoding="utf-8"))
        assert f"This page has no charts: they need {words}." in text
        assert 'class="chart"' not in text
        assert "peak memory" in text
    else:
        assert [record.getMessage() for record in caplog.records] == [
            f"Wrote no page, because Jinja2 is not installed: {words}."
        ]


HARNESS = """<!doctype html><body><iframe id="page" src="report.html" style="border:0;width:%dpx;height:9000px"></iframe>
<pre id="result"></pre><script>
const frame = document.getElementById("page");
const errors = [];
const pause = (ms) => new Promise((done) => setTimeout(done, ms));
const until = async (test) => { for (let i = 0; i < 1500 && !test(); i++) await pause(50); };
frame.addEventListener("load", async () => {
  const page = frame.contentDocument, view = frame.contentWindow;
  view.addEventListener("error", (event) => errors.push(event.message));
  view.addEventListener("unhandledrejection", (event) => errors.push(String(event.reason)));
  const table = [...page.querySelectorAll("table")].find((t) => t.textContent.includes("peak memory"));
  const column = [...table.tHead.rows[0].cells].findIndex((c) => c.textContent === "peak memory");
  const order = () => [...table.tBodies[0].rows].map((row) => row.cells[0].textContent);
  const button = table.tHead.rows[0].cells[column].querySelector("button");
  button.click(); const once = order(); button.click(); const twice = order();

  const charts = () => [...page.querySelectorAll(".chart")].filter((chart) => chart.offsetParent);
  view.dispatchEvent(new view.Event("beforeprint"));  // which draws all of them, seen or not
  await until(() => charts().length && charts().every((chart) => chart.querySelector("svg")));
  const seen = (text) => text.textContent && Number(text.getAttribute("opacity") ?? 1) > 0;
  const texts = (svg) => [...svg.querySelectorAll("text")].filter(seen);
  const covered = [];
  for (const svg of page.querySelectorAll(".chart svg")) {
    const boxes = texts(svg).map((t) => [t.textContent, t.getBoundingClientRect()]);
    boxes.forEach(([a, p], i) => boxes.slice(0, i).forEach(([b, q]) => {
      const wide = Math.min(p.right, q.right) - Math.max(p.left, q.left);
      const high = Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top);
      if (wide > 1 && high > 4) covered.push([a, b]);
    }));
    const edge = svg.getBoundingClientRect();
    boxes.forEach(([a, p]) => { if (p.right > edge.right + 1 || p.left < edge.left - 1) covered.push(["outside", a]); });
  }
  const [all, first] = page.querySelectorAll('.chart[data-kind="rows"]');
  const points = () => [...first.querySelectorAll(".mark-symbol path")];
  const title = () => [...first.querySelectorAll(".role-axis-title text")].map((t) => t.textContent);
  const before = { charts: page.querySelectorAll(".chart svg").length,
    points: points().length, title: title(), named: texts(first).map((t) => t.textContent) };

  const shownTip = () => page.querySelector("#vg-tooltip-element.visible")?.textContent;
  all.querySelector(".mark-symbol path").focus();
  await until(shownTip);
  const focused = shownTip();
  all.querySelector(".mark-symbol path").blur();
  await until(() => !shownTip());

  const place = points()[0].getBoundingClientRect();
  const at = { bubbles: true, clientX: place.left + place.width / 2, clientY: place.top + place.height / 2, view };
  for (const kind of ["pointermove", "mousemove"]) points()[0].dispatchEvent(new view.PointerEvent(kind, at));
  await until(shownTip);
  const tooltip = shownTip();

  const choose = async (id, name) => {
    const control = page.getElementById(id);
    control.value = name; control.dispatchEvent(new view.Event("change"));
    await pause(300);
  };
  await choose("x", "trainable"); await choose("y", "step_seconds");
  await until(() => title().length && title().join() !== before.title.join());
  const chosen = title();
  const box = [...page.querySelectorAll("input[name=method]")].find((one) => one.value === "lora");
  box.checked = false; box.dispatchEvent(new view.Event("change"));
  await until(() => points().length && points().length < before.points);
  const filtered = { points: points().length, rows: order().filter((_, i) => !table.tBodies[0].rows[i].hidden) };
  await choose("task", "topics");
  const sections = [...page.querySelectorAll("section")].filter((section) => section.offsetParent).map((s) => s.id);
  document.getElementById("result").textContent = JSON.stringify({
    errors, once, twice, covered, before, focused, tooltip, chosen, filtered, sections,
    first: page.querySelector(".advice li").textContent,
    lines: Math.max(...[...page.querySelectorAll('.chart[data-kind="curves"]')]
      .map((chart) => chart.querySelectorAll(".mark-line path").length)),
    sorted: table.tHead.rows[0].cells[column].getAttribute("aria-sort"),
    font: Math.min(...[...page.querySelectorAll(".chart text")].map((t) => parseFloat(view.getComputedStyle(t).fontSize))),
    overflow: page.documentElement.scrollWidth - view.innerWidth,
  });
});
</script></body>"""


def in_browser(page: Path, width: int) -> dict[str, Any]:
    """Return what the page does at a width, and everything that the browser's console says."""
    harness = page.parent / f"harness-{width}.html"
    harness.write_text(HARNESS % width)
    done = subprocess.run(
        [
            str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files",
            "--enable-logging=stderr", "--virtual-time-budget=300000", f"--user-data-dir={page.parent / 'browser'}",
            "--window-size=1400,9000", "--dump-dom", harness.as_uri(),
        ],
        capture_output=True, text=True, timeout=300, check=True,
    )  # fmt: skip
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    match = re.search(r'<pre id="result">(.*?)</pre>', done.stdout, re.DOTALL)
    assert match, done.stdout[-2000:]
    assert match[1], console
    return json.loads(unescape(match[1])) | {"console": console}


@needs_chromium
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.processes
def test_the_page_works_in_a_browser_at_desk_and_telephone_width(page: Path, width: int) -> None:
    found = in_browser(page, width)
    assert found["errors"] == found["console"] == []
    assert found["sorted"] == "ascending"
    assert found["once"][:2] == ["full", "lora (rank=64)"]
    assert found["twice"][:2] == ["qlora", "lora (rank=4)"]
    assert sorted(found["once"][-3:]) == sorted(found["twice"][-3:]) == ["peft-lora", "peft-prompt", "untuned"]
    assert found["before"]["charts"] == 9
    assert found["first"].startswith("Take lora: ")  # the recommendation over all tasks
    assert found["lines"] <= 8
    assert "85.5 ± 0.2" in found["focused"]  # by keyboard, in the chart of all tasks
    assert found["covered"] == []
    assert found["font"] >= 11
    assert found["overflow"] <= 0
    assert found["before"]["title"] == ["peak memory, bytes", "test accuracy"]
    assert found["before"]["points"] == 9  # the rows with a score, each drawn as a point
    assert {"full", "lora", "qlora", "prompt", "untuned, no training"} <= set(found["before"]["named"])
    assert "90.5 ± 0.5 (3)" in found["tooltip"]
    assert "t5peft bench --suite made-up --tasks intents --methods full" in found["tooltip"]
    assert found["chosen"] == ["trained parameters (log)", "step, seconds"]
    assert found["filtered"]["points"] == 6  # without lora and its two variants
    assert not any(row.startswith("lora") for row in found["filtered"]["rows"])
    assert found["sections"] == ["task-topics"]
