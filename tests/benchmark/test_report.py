"""The report: rows from records, tables, and advice."""

from __future__ import annotations

import csv
import errno
import importlib
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import synthetic
from paths import ROOT

from t5peft.benchmark.advice import advice
from t5peft.benchmark.overview import Overview
from t5peft.benchmark.records import RunRecords
from t5peft.benchmark.report import write_report
from t5peft.benchmark.statistics import MeanStd
from t5peft.benchmark.summary import Row, TaskTable, summarize
from t5peft.benchmark.tables import (
    COLUMNS,
    cells,
    conditions_text,
    csv_text,
    fill_markers,
    markdown,
    seconds_text,
)
from t5peft.cli import main
from t5peft.compat.disk import DiskError


def test_a_report_of_some_tasks_and_methods(folder: Path, tmp_path: Path) -> None:
    def text_of(tasks: list[str] | None, methods: list[str] | None) -> str:
        report = write_report(folder, tmp_path, title="", about="", command="", tasks=tasks, methods=methods)
        return report.text

    text = text_of(["topics"], ["full", "lora"])
    assert "**topics**" in text
    assert "| full |" in text
    assert "| lora (rank=4) |" in text
    assert "| prompt |" not in text
    assert len(summarize(RunRecords(folder).load())) == 2
    assert text.count("backbone ") == 1
    with pytest.raises(
        ValueError, match=r", tasks other, methods full; expected some\. Run `t5peft bench` with them first"
    ):
        text_of(["other"], ["full"])


TABLES = {
    "quick": ["benchmarks/RESULTS.md#quick"],
    "real": ["benchmarks/RESULTS.md#real"],
    "embedded": ["benchmarks/RESULTS.md#embedded"],
    "real_long": ["benchmarks/RESULTS.md#trec"],
    "files_sst2": ["benchmarks/RESULTS.md#sst2_glue"],
    "real_tasks": ["benchmarks/RESULTS.md#real_tasks"],
    "sensitivity": ["benchmarks/RESULTS.md#sensitivity"],
    "quantization": ["benchmarks/RESULTS.md#quantization"],
    "eight_bits": ["benchmarks/RESULTS.md#eight_bits"],
    "ladder": ["benchmarks/RESULTS.md#ladder"],
    "starts": ["benchmarks/RESULTS.md#starts"],
    "starts_low": ["benchmarks/RESULTS.md#starts_low"],
}
"""The tables of a folder's records, as document#name."""


@pytest.mark.parametrize("suite", TABLES)
def test_the_tables_in_the_documents_are_those_of_their_records(suite: str, tmp_path: Path) -> None:
    records = ROOT / "benchmarks" / "records" / "bench" / suite
    report = write_report(records, tmp_path, title="", about="", command="")
    for place in TABLES[suite]:
        document, name = place.split("#")
        text = (ROOT / document).read_text(encoding="utf-8")
        shown = text.split(f"<!-- table:{name} -->\n")[1].split("\n<!-- /table -->")[0]
        assert shown == report.text


# --- rows


def test_full_comes_first_peers_last_and_variants_behind_their_method(tables: list[TaskTable]) -> None:
    assert [row.label for row in tables[0].rows] == [
        "full", "lora", "lora (rank=4)", "lora (rank=64)", "prefix", "prompt", "qlora", "ia3", "peft-lora", "peft-prefix",
        "peft-prompt",
    ]  # fmt: skip


def test_a_row_holds_every_seed_at_the_rate_that_won_on_validation(tables: list[TaskTable]) -> None:
    lora = next(row for row in tables[0].rows if row.label == "lora")
    assert lora.learning_rate == 3e-3
    assert lora.test is not None
    assert lora.test.n == 3
    assert [point.learning_rate for point in lora.sweep] == [1e-3, 3e-3, 1e-2]
    assert not lora.grid_end_won
    assert lora.difference is not None
    assert lora.difference.mean == pytest.approx(100 * (lora.test.mean - tables[0].rows[0].test.mean))  # type: ignore[union-attr]


def test_seconds_of_training_are_those_of_its_last_step(tables: list[TaskTable]) -> None:
    full = tables[0].rows[0]
    assert full.train_seconds is not None
    assert full.step_seconds is not None
    assert full.train_seconds.mean == pytest.approx(300 * full.step_seconds.mean)


def test_no_cell_is_empty_and_what_did_not_finish_says_why(tables: list[TaskTable]) -> None:
    for row in tables[0].rows:
        for name, _ in COLUMNS:
            cell = cells(row)[name]
            assert cell.text
            assert cell.text != "–" or cell.title
    text = markdown(tables[0])
    assert "| peft-prompt | diverged: the loss is nan at step 12 |" in text
    assert "| peft-lora | out of memory: the system killed the process (signal 9) |" in text


def test_a_table_says_which_weights_its_backbone_had(tables: list[TaskTable]) -> None:
    fingerprint = tables[0].conditions["backbone_fingerprint"]
    assert len(fingerprint) >= 4
    assert f"backbone mini ({fingerprint[:8]}), 300 steps of 16 examples (" in markdown(tables[0])


def test_records_made_under_other_conditions_are_left_out_and_counted(tmp_path: Path) -> None:
    old, new = synthetic.config(steps=100), synthetic.config(seed=1)
    for made in (old, new):
        RunRecords(tmp_path).append(made, synthetic.finished(made, 0.9, parameters=1, peak=1, seconds=1.0))
    (table,) = summarize(RunRecords(tmp_path).load())
    assert (table.left_out, table.conditions["steps"], table.conditions["seeds"]) == (1, 300, [1])
    assert "; 1 record made under other conditions left out\n" in markdown(table)


def rows_by_method(table: TaskTable) -> dict[str, Row]:
    return {row.label: row for row in table.rows}


def test_examples_that_were_scored_differently_are_not_compared(tmp_path: Path) -> None:
    for method in ("full", "lora"):
        made = synthetic.config(method)
        record = synthetic.finished(made, 0.9, parameters=1, peak=1, seconds=1.0)
        form = {"example_metric": "sentence_bleu"} if method == "lora" else {}
        RunRecords(tmp_path).append(made, record | form)
    (table,) = summarize(RunRecords(tmp_path).load())
    assert rows_by_method(table)["lora"].difference is None
    assert not any("scores the same" in sentence for sentence in advice(table))


def test_methods_with_other_scores_are_not_said_to_be_the_same(tmp_path: Path) -> None:
    for method, accuracy in (("full", 0.9), ("lora", 0.5)):
        made = synthetic.config(method)
        record = synthetic.finished(made, accuracy, parameters=1, peak=1, seconds=1.0)
        RunRecords(tmp_path).append(made, record | {"test_score_by_example": [0.0] * 200})
    (table,) = summarize(RunRecords(tmp_path).load())
    assert not any("scores the same" in sentence for sentence in advice(table))


@pytest.mark.parametrize("change", [{"threads": 16}, {"runs_at_once": 2}], ids=str)
def test_costs_are_those_of_one_machine_and_of_the_seed_disturbed_least(change: dict[str, int], tmp_path: Path) -> None:
    for seed, seconds in ((0, 3.0), (1, 2.0), (2, 4.0)):
        made = synthetic.config("full", seed=seed)
        RunRecords(tmp_path).append(made, synthetic.finished(made, 0.9, parameters=1, peak=100, seconds=seconds))
    elsewhere = synthetic.config("lora")
    record = synthetic.finished(elsewhere, 0.9, parameters=1, peak=10, seconds=0.1)
    record["machine"] = record["machine"] | change
    record["started"] = "2025-01-01T00:00:00Z"
    RunRecords(tmp_path).append(elsewhere, record)
    (table,) = summarize(RunRecords(tmp_path).load())
    full, lora = (cells(row) for row in table.rows)
    assert (full["step"].text, full["tokens/s"].text) == ("2.00 s", "200")
    assert (lora["step"].text, lora["peak memory"].text, lora["answer"].text) == ("–", "–", "–")
    assert lora["trained"].text == "1"
    assert not any(sentence.startswith("Least") for sentence in advice(table))


def test_runs_at_once_are_named_where_there_were_some(tmp_path: Path) -> None:
    made = synthetic.config("full")
    record = synthetic.finished(made, 0.9, parameters=1, peak=100, seconds=1.0)
    for count, shown in ((1, "a processor, 2 threads"), (3, "a processor, 2 threads, 3 runs at once")):
        record["machine"] = record["machine"] | {"runs_at_once": count}
        (table,) = summarize([record | {"config": vars(made)}])
        assert conditions_text(table).endswith(shown)


def test_costs_are_those_of_the_machine_that_measured_full_fine_tuning(tmp_path: Path) -> None:
    """Not of the newest record's: where a suite goes on elsewhere, what was measured before would be lost."""
    for task, name in (("one", "a processor"), ("two", "another")):
        for method, machine, day in (("full", "a processor", 1), ("ia3", "a processor", 2), ("lora", name, 3)):
            made = synthetic.config(method, task=task)
            record = synthetic.finished(made, 0.9, parameters=1, peak=100, seconds=1.0)
            record["machine"] = record["machine"] | {"name": machine}
            record["started"] = f"2026-01-0{day}T00:00:00Z"
            RunRecords(tmp_path).append(made, record)
    one, two = summarize(RunRecords(tmp_path).load())
    for table, lora in ((one, "1.00 s"), (two, "–")):
        assert table.conditions["machine"]["name"] == "a processor"
        steps = {row.method: cells(row)["step"].text for row in table.rows}
        assert steps == {"full": "1.00 s", "lora": lora, "ia3": "1.00 s"}
    assert "geometric means over one, where" in Overview((one, two)).note()


def test_the_csv_has_a_line_a_row_with_plain_numbers(tables: list[TaskTable]) -> None:
    rows = list(csv.DictReader(io.StringIO(csv_text(tables))))
    assert len(rows) == sum(len(table.rows) for table in tables)
    assert float(rows[0]["mean"]) == pytest.approx(0.905)
    assert rows[0]["stored_bytes"] == "37604000"
    assert {row["reason"] for row in rows if not row["mean"]} == {
        "diverged: the loss is nan at step 12",
        "out of memory: the system killed the process (signal 9)",
    }


def test_a_peak_that_counts_what_evaluations_left_is_not_shown(tmp_path: Path) -> None:
    for seed, metered in ((0, True), (1, False)):
        made = synthetic.config("lora", seed=seed)
        record = synthetic.finished(made, 0.9, parameters=1, peak=100 + 100 * seed, seconds=1.0)
        if not metered:
            del record["memory"]["left_by_evaluation_bytes"]
        RunRecords(tmp_path).append(made, record)
    records = RunRecords(tmp_path).load()
    (both,) = summarize(records)
    assert cells(both.rows[0])["peak memory"].text == "100 MB"
    (unmetered,) = summarize([record for record in records if record["config"]["seed"] == 1])
    assert cells(unmetered.rows[0])["peak memory"].text == "–"
    assert not any("memory" in sentence for sentence in advice(unmetered))


def test_answers_after_merging_are_timed_over_the_seeds_that_were_merged(tmp_path: Path) -> None:
    for seed, merged in ((0, 0.1), (1, None)):
        made = synthetic.config(seed=seed)
        record = synthetic.finished(made, 0.9, parameters=1, peak=1, seconds=1.0)
        record["latency"] |= {"merged_seconds": merged}
        RunRecords(tmp_path).append(made, record)
    ((row,),) = (table.rows for table in summarize(RunRecords(tmp_path).load()))
    assert isinstance(row.merged_latency, MeanStd)
    assert row.merged_latency.n == 1


def test_a_bar_in_a_name_does_not_end_a_cell(tmp_path: Path) -> None:
    for task in ("yes|no", "other"):
        made = synthetic.config("full", task=task)
        RunRecords(tmp_path).append(made, synthetic.finished(made, 0.9, parameters=1, peak=100, seconds=1.0))
    lost = synthetic.config("lora", task="other")
    RunRecords(tmp_path).append(lost, {"outcome": "failed", "reason": "a|b"})
    tables = summarize(RunRecords(tmp_path).load())
    assert Overview(tuple(tables)).markdown().split("\n\n")[1].splitlines()[0].count(" | ") == 7
    assert r"yes\|no, accuracy" in Overview(tuple(tables)).markdown()
    assert r"| lora | failed: a\|b | –" in "".join(map(markdown, tables))


def test_the_tables_are_of_the_conditions_that_were_asked_for(tmp_path: Path) -> None:
    """Not of the newest records, where those that were asked for are older."""
    asked, other = synthetic.config("full", steps=100), synthetic.config("full", steps=200, seed=1)
    for made in (asked, other):
        RunRecords(tmp_path).append(made, synthetic.finished(made, 0.9, parameters=1, peak=100, seconds=1.0))
    found = RunRecords(tmp_path).load()
    named: dict[str, Any] = {"title": "", "about": "", "command": ""}
    text = write_report(tmp_path, tmp_path, **named, asked=[r for r in found if r["config"]["steps"] == 100]).text
    assert "100 steps" in text
    assert "200 steps" not in text
    assert "200 steps" in write_report(tmp_path, tmp_path, **named).text


def test_seconds_are_written_with_their_unit() -> None:
    assert [seconds_text(value) for value in (0.0123, 0.31, 48.2)] == ["12 ms", "0.31 s", "48 s"]


def test_tables_go_between_their_markers_and_nothing_else_changes(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- table:quick -->\nold\n<!-- /table -->\nafter\n")
    fill_markers(readme, {"quick": "| a\\1 |", "other": "b"})
    assert readme.read_text() == "before\n<!-- table:quick -->\n| a\\1 |\n<!-- /table -->\nafter\n"
    readme.write_bytes(b"before\r\n<!-- table:quick -->\r\nold\r\n<!-- /table -->\r\n")
    fill_markers(readme, {"quick": "a\nb"})
    assert readme.read_bytes() == b"before\r\n<!-- table:quick -->\r\na\r\nb\r\n<!-- /table -->\r\n"
    with pytest.raises(
        ValueError, match=r"Got the tables 'real' for .*README\.md, which has places for quick; expected a place"
    ):
        fill_markers(readme, {"real": ""})


def test_a_full_disk_is_told_with_its_folder_and_the_earlier_files_stay(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("<!-- table:one -->\n<!-- /table -->\n")
    write_report(folder, tmp_path, title="", about="", command="")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}

    def write_half(self: Path, text: str, **options: Any) -> int:
        self.write_bytes(text[: len(text) // 2].encode())
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", write_half)
    message = f"no space left on the disk of the folder {tmp_path}"
    with pytest.raises(DiskError, match=message):
        write_report(folder, tmp_path, title="another", about="", command="", methods=["lora"])
    with pytest.raises(DiskError, match=message):
        fill_markers(readme, {"one": "a table"})
    assert {path: path.read_bytes() for path in before} == before


def test_bench_prints_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(ROOT / "benchmarks" / "records" / "bench" / "quick", tmp_path / "quick")
    assert main(["bench", "--suite", "quick", "--report-only", "--output", str(tmp_path / "quick"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["suite"], sorted(told["paths"])) == ("quick", ["CSV", "page", "table"])
    assert "lora-all" in Path(told["paths"]["table"]).read_text()


@pytest.mark.parametrize("suite", ["embedded", "real", "real_tasks"])
def test_the_table_of_auto_is_that_of_its_record(suite: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    auto_scores = importlib.import_module("auto_scores")
    text = (ROOT / "benchmarks" / "RESULTS.md").read_text(encoding="utf-8")
    shown = text.split(f"<!-- table:auto {suite} -->\n")[1].split("\n<!-- /table -->")[0]
    record = auto_scores.RECORDS / f"auto_{suite}.json"
    assert shown == auto_scores.report(json.loads(record.read_text(encoding="utf-8")))
