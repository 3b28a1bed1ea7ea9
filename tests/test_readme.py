"""The README shows what the records say, and its code runs as it stands."""

from __future__ import annotations

import csv
import re
import sys
from pathlib import Path

import pytest
import yaml

from t5peft.benchmark.advice import advice
from t5peft.benchmark.recommendation import EVIDENCE
from t5peft.benchmark.records import RunRecords
from t5peft.benchmark.suites import load_suite
from t5peft.benchmark.summary import summarize

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.fixture(scope="module")
def script() -> object:
    sys.path.insert(0, str(ROOT / "scripts"))
    import readme

    return readme


@pytest.mark.parametrize("name", ["headlines", "reliability"])
def test_the_figures_are_those_of_the_records(name: str, script: object) -> None:
    shown = README.split(f"<!-- table:{name} -->\n")[1].split("\n<!-- /table -->")[0]
    assert shown == getattr(script, name)()


def test_the_table_of_the_load_is_that_of_the_records(script: object) -> None:
    page = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    shown = page.split("<!-- table:load -->\n")[1].split("\n<!-- /table -->")[0]
    assert shown == script.load()  # type: ignore[attr-defined]


def test_the_table_of_the_engines_is_that_of_the_record(script: object) -> None:
    page = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")
    shown = page.split("<!-- table:engines -->\n")[1].split("\n<!-- /table -->")[0]
    assert shown == script.engines()  # type: ignore[attr-defined]


def test_the_picture_shows_the_points_of_the_records(script: object) -> None:
    drawn = (ROOT / "docs" / "methods.svg").read_text(encoding="utf-8")
    for point in script.points():  # type: ignore[attr-defined]
        label = f"score: {point['score']:g}; kind: {point['kind']}; method: {point['method']}"
        assert f'"trained parameters: {point["trained"]}; {label}"' in drawn
        assert f'"peak memory of training, full fine-tuning = 1: {point["memory"]:g}; {label}"' in drawn


def test_the_recommendation_is_that_of_the_records(script: object) -> None:
    page = (ROOT / "benchmarks" / "RESULTS.md").read_text(encoding="utf-8")
    shown = page.split("<!-- table:recommendation -->\n")[1].split("\n<!-- /table -->")[0]
    assert shown == script.recommended()  # type: ignore[attr-defined]
    assert EVIDENCE.read_text(encoding="utf-8") == script.stored_evidence()  # type: ignore[attr-defined]


def test_the_demo_orders_the_methods_as_all_tasks_do() -> None:
    """Its task and steps were chosen for that; what is clearly behind over all tasks is clearly behind in the demo."""
    known = yaml.safe_load(EVIDENCE.read_text(encoding="utf-8"))["methods"]
    (table,) = summarize(RunRecords(ROOT / "benchmarks" / "records" / "bench" / "quick").load())
    shown = {row.label: row.difference for row in table.rows if row.label in known}
    assert shown.keys() == {method.label for method in load_suite("quick").methods} - {"full"}
    for label, found in shown.items():
        assert found is not None
        assert (found.high < 0) == (known[label]["mean"] < -5), label
    order = [sorted(shown, key=key) for key in (lambda one: shown[one].mean, lambda one: known[one]["mean"])]  # type: ignore[union-attr]
    assert order[0][0] == order[1][0] == "prompt"
    assert "lora-all" in order[0][-2:]
    assert not any("take full fine-tuning" in sentence for sentence in advice(table))


def test_the_load_is_drawn_from_its_records(script: object) -> None:
    import serving  # of benchmarks, which the script has put into the path

    drawn = (ROOT / "docs" / "load.svg").read_text(encoding="utf-8")
    points = serving.points()
    assert {point["figure"] for point in points} == {"requests a second", "p50, ms", "p95, ms", "p99, ms"}
    for point in points:
        label = f"clients: {point['clients']}; {point['figure']}: {point['value']:.12g}; adapters: {point['adapters']}"
        assert f'"{label}"' in drawn


def test_every_link_leads_to_a_file() -> None:
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]
    missing = [
        f"{page.name}: {link}"
        for page in pages
        for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8"))
        if not link.startswith("http") and not (page.parent / link).exists()
    ]
    assert not missing


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 150


def test_the_code_runs_from_a_csv_to_an_answer_and_a_pool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with (tmp_path / "reviews.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["review", "stars"])
        writer.writerows([[f"{'good' if i % 2 else 'bad'} film number {i}", 5 if i % 2 else 1] for i in range(16)])
    for block in BLOCKS:
        if "openai" not in block:  # which needs a server: tests/serving has it
            code = block.replace("max_steps=150", 'max_steps=2, report_to="none", disable_tqdm=True')
            exec(compile(code, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert printed.count("['") >= 3
    assert (tmp_path / "adapters" / "reviews" / "task.yaml").is_file()
