"""Suites that repeat published tables: every recipe runs, and every figure gets its verdict."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import synthetic
import tiny

from t5peft.benchmark.configs import base_configs, baseline_runs
from t5peft.benchmark.published import verdicts
from t5peft.benchmark.records import RunRecord, RunRecords
from t5peft.benchmark.report import write_report
from t5peft.benchmark.runner import run
from t5peft.benchmark.schedule import run_suite, sweeps
from t5peft.benchmark.suites import Expected, load_suite, suite_from, suite_parts
from t5peft.cli import bench
from t5peft.data import registry

PARTS = suite_parts("published")


def records_of(folder: Path) -> list[RunRecord]:
    for task, full, lora in (("one", 0.9, 0.8), ("two", 0.7, 0.6)):
        for method, accuracy in (("full", full), ("lora", lora)):
            for seed in (0, 1):
                made = synthetic.config(method, task=task, seed=seed)
                record = synthetic.finished(made, accuracy + 0.01 * seed, parameters=1, peak=1, seconds=1.0)
                RunRecords(folder).append(made, record)
    return RunRecords(folder).load()


@pytest.mark.parametrize(
    ("expected", "measured", "verdict"),
    [
        (Expected("full", "accuracy", 90.0, 91.0, task="one"), "90.5", "inside"),
        (Expected("full", "accuracy", 91.0, 92.0, task="one"), "90.5", "outside"),
        (Expected("full", "accuracy", 91.0, 92.0, 0.6, task="one"), "90.5", "inside"),
        (Expected("full", "accuracy", 80.0, 81.0), "80.5", "inside"),  # over both tasks
        (Expected("lora", "difference", -10.0, -10.0, 0.1), "-10.0", "inside"),
        (Expected("full", "loss", 0.29, 0.30, task="one"), "0.295", "inside"),
        (Expected("ia3", "accuracy", 90.0, 91.0, task="one"), "–", "not run"),
        (Expected("full", "accuracy", 90.0, 91.0, task="one", options={"rank": 8}), "–", "not run"),
    ],
)
def test_a_published_figure_is_confirmed_within_its_range_and_tolerance(
    expected: Expected, measured: str, verdict: str, tmp_path: Path
) -> None:
    (row,) = verdicts([expected], records_of(tmp_path))
    assert row[-2:] == [measured, verdict]


def test_the_report_ends_with_the_verdicts(tmp_path: Path) -> None:
    records_of(tmp_path)
    expected = [Expected("full", "accuracy", 90.0, 91.0, task="one")]
    report = write_report(tmp_path, tmp_path, title="", about="", command="", expected=expected)
    assert report.text.endswith("| full | one | accuracy | 90 to 91 | 0 | 90.5 | inside |")


def test_a_wrong_expected_figure_is_refused() -> None:
    content = {"tasks": ["sst2"], "methods": [{"method": "full", "learning_rates": [1e-3]}], "steps": 1}
    with pytest.raises(
        ValueError, match=r"Got the expected figure \{'method': 'full'\} .* expected method, metric, low and high"
    ):
        suite_from("wrong", content | {"expected": [{"method": "full"}]})


def test_a_folder_of_suites_is_run_part_by_part(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen = []

    def note(args: argparse.Namespace) -> int:
        seen.append((args.suite, args.output.name))
        return 0

    monkeypatch.setattr(bench, "_run", note)
    assert bench.run(argparse.Namespace(suite="published", output=tmp_path, data_folder=None)) == 0
    assert seen == [(part, Path(part).stem) for part in PARTS]


@pytest.mark.parametrize("part", PARTS)
def test_every_published_figure_is_of_a_method_and_task_of_its_suite(part: str) -> None:
    suite = load_suite(part)
    tasks = {Path(task.name).stem for task in suite.tasks}
    rows = {(entry.method, tuple(sorted(entry.options.items()))) for entry in suite.methods} | {("untuned", ())}
    assert suite.expected
    for one in suite.expected:
        assert one.task is None or one.task in tasks
        assert (one.method, tuple(sorted(one.options.items()))) in rows
        assert one.low <= one.high


COLUMNS = (
    "document", "summary", "dialogue", "translation.en", "translation.fr", "sentence", "sentence1", "sentence2", "question",
    "question1", "question2", "premise", "hypothesis", "definition", "inputs", "targets",
)  # fmt: skip


def _rows_of_the_hub(data: Any, split: str) -> list[dict[str, Any]]:
    return [{name: f"{name} {i} is new" for name in COLUMNS} | {"label": str(i % 2)} for i in range(8)]


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
def test_every_recipe_runs_for_two_steps_on_random_weights(
    part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_read_hub", _rows_of_the_hub)
    backbone = tmp_path / "backbone"
    tiny.tiny_t5().save_pretrained(backbone)
    tiny.tiny_tokenizer().save_pretrained(backbone)
    suite = load_suite(part).narrowed(steps=2, seeds=[0], backbone=str(backbone))
    suite = replace(suite, examples_per_step=2, evaluations=1)
    base = base_configs(suite, "cpu")
    records = RunRecords(tmp_path / "records")
    grid = baseline_runs(suite, base) + sweeps(suite, base)
    found = run_suite(grid, records, lambda config: run(config, lambda step, steps: None), log=lambda text: None)
    assert {record["outcome"] for record in found} == {"finished"}, [record.get("reason") for record in found]
    rows = verdicts(suite.expected, found)
    assert len(rows) == len(suite.expected)
    assert {row[-1] for row in rows} <= {"inside", "outside"}
