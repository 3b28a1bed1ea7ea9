"""All tasks in one table, the baselines, and what is recommended over all tasks."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import synthetic

from t5peft.benchmark.advice import advice
from t5peft.benchmark.overview import Overview, overviews
from t5peft.benchmark.recommendation import cited, evidence, recommendation
from t5peft.benchmark.records import RunRecords
from t5peft.benchmark.statistics import paired_bootstrap
from t5peft.benchmark.summary import Row, TaskTable, difference, summarize
from t5peft.benchmark.tables import cells, csv_text


def rows_by_method(table: TaskTable) -> dict[str, Row]:
    return {row.label: row for row in table.rows}


def add(folder: Path, method: str, accuracy: float, *, seeds: int = 3, shift: int = 0, **changes: Any) -> None:
    """Records of a method that answers a share of the examples rightly, or of a baseline."""
    costs = changes.pop("costs", {"parameters": 100, "peak": 100, "seconds": 1.0})
    for seed in range(seeds):
        made = synthetic.config(method, seed=seed, **changes)
        RunRecords(folder).append(made, synthetic.finished(made, accuracy - 0.005 * seed, **costs))


def add_baseline(folder: Path, method: str, accuracy: float, **changes: Any) -> None:
    made = synthetic.config(method, rate=0.0, **changes)
    RunRecords(folder).append(made, synthetic.baseline(accuracy))


def test_means_are_over_tasks_that_a_method_finished_all_of(tables: list[TaskTable]) -> None:
    overview = Overview(tuple(tables))
    full = overview.methods["full"]
    tests = [table.rows[0].test for table in tables]
    deviations = [test.deviation for test in tests if test is not None]
    assert full.mean == pytest.approx((90.5 + 80.5) / 2)
    assert full.error is not None
    assert full.error == pytest.approx(100 * math.sqrt(sum(d**2 / 3 for d in deviations if d is not None)) / 2)
    assert overview.methods["peft-lora"].mean is None
    assert full.to_full is None
    assert overview.methods["ia3"].to_full == paired_bootstrap(
        *(
            tuple(100 * np.stack(list(found[label].by_example.values())) for label in ("ia3", "full"))  # type: ignore[arg-type]
            for found in map(rows_by_method, tables)
        )
    )
    mean = f"{full.mean:.1f} ± {full.error:.1f} | reference"
    assert f"| full | 90.5 ± 0.5 | 80.5 ± 0.5 | {mean} | 9,400,000 | 1.00 | 1.00 |" in overview.markdown()


def test_costs_are_compared_over_the_tasks_that_every_method_ran(tmp_path: Path) -> None:
    for task, tokens in (("short", 1), ("long", 10)):
        for method, peak in (("full", 400), ("lora", 100 * tokens ** (1 / 3)), ("ia3", 100)):
            if (method, task) != ("ia3", "long"):
                made = synthetic.config(method, task=task)
                record = synthetic.finished(made, 0.9, parameters=1, peak=round(peak), seconds=1.0)
                RunRecords(tmp_path).append(made, record)
    tables = summarize(RunRecords(tmp_path).load())
    assert [row[-2].text for row in Overview(tuple(tables)).cells()] == ["1.00", "0.25", "0.25"]
    assert "geometric means over short, where one machine measured every method" in Overview(tuple(tables)).note()


def test_a_variant_that_ran_on_some_tasks_alone_is_not_in_the_overview(tmp_path: Path) -> None:
    for task in ("short", "long"):
        for method, options in (("full", {}), ("lora", {}), ("lora", {"rank": 4}), ("peft-lora", {})):
            if task == "short" or not (options or method == "peft-lora"):
                made = synthetic.config(method, task=task, method_options=options)
                RunRecords(tmp_path).append(made, synthetic.finished(made, 0.9, parameters=1, peak=100, seconds=1.0))
    tables = summarize(RunRecords(tmp_path).load())
    assert [row[0].text for row in Overview(tuple(tables)).cells()] == ["full", "lora", "peft-lora"]
    assert "lora (rank=4)" in rows_by_method(next(table for table in tables if table.task == "short"))


def test_the_overview_has_a_row_a_method_with_costs_against_full_fine_tuning(tables: list[TaskTable]) -> None:
    _, overview, peers = Overview(tuple(tables)).markdown().split("\n\n")
    lines = overview.splitlines()
    assert (
        lines[0] == "| method | intents, accuracy | topics, accuracy | mean | against full | trained | memory | time |"
    )
    labels = [line.split(" | ")[0].removeprefix("| ") for line in lines[2:]]
    assert labels == list(dict.fromkeys(row.label for table in tables for row in table.rows))
    qlora = next(line for line in lines if line.startswith("| qlora |"))
    assert qlora.endswith(f"| 720,000 | {128 / 310:.2f} | {0.23 / 0.21:.2f} |")
    failed = next(line for line in lines if line.startswith("| peft-lora |"))
    assert failed.split(" | ")[1:4] == ["–", "–", "–"]
    assert overviews(tables[:1]) == []
    ours, theirs = (
        [row.test.mean for table in tables for row in table.rows if row.method == method and row.test is not None]
        for method in ("prefix", "peft-prefix")
    )
    gains = [100 * (a - b) for a, b in zip(ours, theirs, strict=True)]
    assert peers.splitlines()[0] == "| against peft's own | intents, accuracy | topics, accuracy | mean |"
    cells_of_prefix = peers.splitlines()[2].strip("| ").split(" | ")
    assert [cell.split()[0] for cell in cells_of_prefix] == ["prefix", *(f"{g:+.1f}" for g in [*gains, sum(gains) / 2])]
    assert len(peers.splitlines()) == 3


# --- baselines, and tasks that tell nothing


def test_a_task_on_which_no_method_beats_the_baseline_is_left_out_of_the_means_by_name(tmp_path: Path) -> None:
    for task, accuracy in (("tells", 0.9), ("chance", 0.5)):
        add(tmp_path, "full", accuracy, task=task)
        add(tmp_path, "lora", accuracy - 0.2 * (task == "tells"), task=task)
        add_baseline(tmp_path, "constant", 0.3, task=task)
        add_baseline(tmp_path, "untuned", 0.5, task=task)
    tables = summarize(RunRecords(tmp_path).load())
    overview = Overview(tuple(tables))
    assert [table.task for table in overview.telling] == ["tells"]
    assert (
        "Left out of the means and differences: chance, where no method is clearly above untuned (50.0)."
        in overview.note()
    )
    shown = overview.markdown()
    assert "| lora | 49.5 ± 0.5 | 69.5 ± 0.5 | 69.5 ± 0.3 | -20.0 [" in shown
    assert "| constant | 30.0 | 30.0 | 30.0 | -59.5 [" in shown
    chance = next(table for table in tables if table.task == "chance")
    assert advice(chance) == [
        "This task does not tell the methods apart: no method is clearly above untuned (50.0). There is no recommendation."
    ]


def test_a_baseline_has_one_run_that_stands_for_every_seed(tmp_path: Path) -> None:
    add(tmp_path, "full", 0.9)
    add_baseline(tmp_path, "constant", 0.4)
    (table,) = summarize(RunRecords(tmp_path).load())
    full, constant = table.rows
    found = difference((full, constant))
    assert found is not None
    assert found.mean == pytest.approx(100 * (0.895 - 0.4))
    assert constant.difference is not None
    assert constant.difference.mean == pytest.approx(-found.mean)
    assert [cells(constant)[name].text for name in ("score", "trained", "step", "rate")] == ["40.0", "–", "–", "–"]
    assert table.conditions["seeds"] == [0, 1, 2]
    assert csv_text([table]).splitlines()[2].startswith("intents,accuracy,constant,,0.4,,1,-0.495")


def test_what_is_not_above_the_baseline_is_not_recommended(tmp_path: Path) -> None:
    """Its interval to full fine-tuning is wide, because few examples differ; that does not speak for it."""
    add(tmp_path, "full", 0.62, seeds=1)
    add(tmp_path, "lora", 0.61, seeds=1)
    add(tmp_path, "ia3", 0.58, seeds=1)
    add_baseline(tmp_path, "untuned", 0.58)
    (table,) = summarize(RunRecords(tmp_path).load())
    said = " ".join(advice(table))
    assert "Not clearly above untuned, which needs no training: ia3." in said
    assert "Not clearly worse than full fine-tuning (62.0 (1)): lora." in said


# --- over all tasks


def all_tasks(folder: Path, accuracies: dict[str, float], peaks: dict[str, int], tasks: int = 3) -> Overview:
    for number in range(tasks):
        for method, accuracy in accuracies.items():
            costs = {"parameters": 100, "peak": peaks[method], "seconds": peaks[method] / 100}
            add(folder, method, accuracy, task=f"task-{number}", costs=costs)
    return Overview(tuple(summarize(RunRecords(folder).load())))


def test_the_cheapest_method_is_taken_whose_interval_excludes_a_loss_above_the_margin(tmp_path: Path) -> None:
    found = all_tasks(
        tmp_path,
        {"full": 0.9, "lora-all": 0.9, "lora": 0.9, "ia3": 0.8},
        {"full": 400, "lora-all": 300, "lora": 200, "ia3": 100},
    )
    said = recommendation(found)
    assert said[0].startswith("Take lora: +0.0 [")
    assert said[0].endswith(
        "points against full fine-tuning, over 3 tasks and 3 seeds. The interval excludes a loss of more than 3 points. It takes "
        "50% of its memory, 50% of its step time, 100% of its file."
    )
    assert said[1].startswith("A loss of more than 3 points is excluded for these too: lora-all +0.0 [")
    assert said[2].startswith("If 50% of the memory is too much: ia3 takes 25%, at -10.0 [")
    assert evidence(found)["methods"]["ia3"]["memory"] == 0.25


def test_no_adapter_is_taken_whose_interval_allows_a_loss_above_the_margin(tmp_path: Path) -> None:
    said = recommendation(all_tasks(tmp_path, {"full": 0.9, "lora": 0.86}, {"full": 400, "lora": 200}))
    assert said[0].startswith(
        "Take full fine-tuning if it fits: over 3 tasks and 3 seeds, no adapter's interval excludes a loss of more than 3 points. "
        "The nearest is lora with -4.0 ["
    )
    assert said[1].startswith("If 100% of the memory is too much: lora takes 50%, at -4.0 [")


def test_there_is_no_recommendation_without_full_fine_tuning_or_a_task_that_tells(tmp_path: Path) -> None:
    lone = all_tasks(tmp_path / "a", {"lora": 0.9}, {"lora": 200})
    assert recommendation(lone) == [
        "Full fine-tuning did not finish on every task that can tell, so there is no recommendation."
    ]
    add(tmp_path / "b", "full", 0.5)
    add_baseline(tmp_path / "b", "untuned", 0.5)
    tables = tuple(summarize(RunRecords(tmp_path / "b").load()))
    assert recommendation(Overview(tables)) == ["No task can tell the methods apart, so there is no recommendation."]


def test_small_and_large_training_sets_have_a_sentence_each(tmp_path: Path) -> None:
    found = all_tasks(tmp_path, {"full": 0.9, "lora": 0.9}, {"full": 400, "lora": 200}, tasks=2)
    assert not any("training examples" in sentence for sentence in recommendation(found))
    found.tables[1].conditions["examples"]["train"] = 5000
    few, many = (sentence for sentence in recommendation(found) if "training examples" in sentence)
    assert few.startswith("With fewer than 1,000 training examples (task-0): take lora, at +0.0 [")
    assert many.startswith("With at least 1,000 training examples (task-1): take lora, at +0.0 [")


def test_one_task_cites_the_recommendation_over_all_tasks_of_its_backbone(tables: list[TaskTable]) -> None:
    assert cited(tables[:1]) == []  # of another backbone
    known = {**tables[0].conditions, "backbone_fingerprint": "8174e2646ad54544"}
    shown = cited([TaskTable("t", "accuracy", tables[0].rows, known, 0)])
    assert shown[0].startswith(
        "One task does not decide for others. Over all tasks (benchmarks/RESULTS.md): Take lora-all: "
    )


def test_backbones_have_tables_and_overviews_of_their_own(tmp_path: Path) -> None:
    for backbone in ("mini", "other"):
        for task in ("one", "two"):
            add(tmp_path, "full", 0.9, task=task, backbone=backbone)
    tables = summarize(RunRecords(tmp_path).load())
    shown = {(table.task, table.conditions["backbone"], table.left_out) for table in tables}
    assert shown == {(task, backbone, 0) for task in ("one", "two") for backbone in ("mini", "other")}
    assert [sorted(table.task for table in found.tables) for found in overviews(tables)] == [["one", "two"]] * 2
