"""The report: rows from records, tables, and the page in a browser."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import synthetic
from paths import ROOT

from t5peft.benchmark.advice import advice
from t5peft.benchmark.records import load_records, write_record
from t5peft.benchmark.report import write_report
from t5peft.benchmark.statistics import mean_std, paired_bootstrap
from t5peft.benchmark.summary import Row, TaskTable, means_over_tasks, summarize
from t5peft.benchmark.svg import Axis, Point, scatter
from t5peft.benchmark.tables import (
    COLUMNS,
    bytes_text,
    cells,
    csv_text,
    fill_markers,
    markdown,
    overview_markdown,
    overview_rows,
    seconds_text,
)

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome is installed"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("suite")
    synthetic.write_suite(made / "records")
    synthetic.write_suite(made / "records", task="topics", drop=0.1)
    return made


@pytest.fixture(scope="module")
def tables(folder: Path) -> list[TaskTable]:
    return summarize(load_records(folder / "records"))


@pytest.fixture(scope="module")
def page(folder: Path) -> Path:
    return write_report(folder / "records", folder, title="Tuning T5", about="made up", command="t5peft bench").paths[
        "page"
    ]


def test_a_report_of_some_tasks_and_methods(folder: Path, tmp_path: Path) -> None:
    def text_of(tasks: list[str] | None, methods: list[str] | None) -> str:
        report = write_report(
            folder / "records", tmp_path, title="", about="", command="", tasks=tasks, methods=methods
        )
        return report.text

    text = text_of(["topics"], ["full", "lora"])
    assert "**topics**" in text
    assert "| full |" in text
    assert "| lora (rank=4) |" in text
    assert "| prompt |" not in text
    assert len(summarize(load_records(folder / "records"))) == 2
    assert text.count("backbone ") == 1
    with pytest.raises(ValueError, match=r"holds no records, tasks other, methods full: run `t5peft bench` first"):
        text_of(["other"], ["full"])


@pytest.mark.parametrize(
    ("document", "name", "folder"),
    [
        ("README.md", "quick", "quick"),
        ("README.md", "real-overview", "real"),
        ("README.md", "embedded-overview", "embedded"),
        ("benchmarks/RESULTS.md", "embedded", "embedded"),
        ("benchmarks/RESULTS.md", "real", "real"),
        ("benchmarks/RESULTS.md", "trec", "real_long"),
        ("benchmarks/RESULTS.md", "sst2_glue", "files_sst2"),
        ("benchmarks/RESULTS.md", "real_tasks", "real_tasks"),
        ("benchmarks/RESULTS.md", "sensitivity", "sensitivity"),
        ("benchmarks/RESULTS.md", "quantisation", "quantisation"),
        ("benchmarks/RESULTS.md", "eight_bits", "eight_bits"),
        ("benchmarks/RESULTS.md", "ladder", "ladder"),
    ],
)
def test_a_table_in_the_documents_is_that_of_its_records(document: str, name: str, folder: str, tmp_path: Path) -> None:
    records = ROOT / "benchmarks" / "records" / "bench" / folder / "records"
    report = write_report(records, tmp_path, title="", about="", command="")
    shown = (
        (ROOT / document).read_text(encoding="utf-8").split(f"<!-- table:{name} -->\n")[1].split("\n<!-- /table -->")[0]
    )
    assert shown == (report.overview if name.endswith("-overview") else report.text)


# --- statistics


def test_a_spread_is_mean_and_sample_deviation() -> None:
    found = mean_std([0.8, 0.9, 1.0])
    assert (found.mean, found.n) == (pytest.approx(0.9), 3)
    assert found.deviation == pytest.approx(np.std([0.8, 0.9, 1.0], ddof=1))
    assert found.text(1, 100) == "90.0 ± 10.0 (3)"
    assert mean_std([0.5]).text(1, 100) == "50.0 (1)"
    with pytest.raises(ValueError, match="at least one finite value"):
        mean_std([float("nan")])


def test_the_interval_of_a_difference_covers_it_as_often_as_it_says() -> None:
    """400 draws of 120 examples with a true difference of 5 points: 95 % of the intervals hold it, within chance."""
    generator = np.random.default_rng(1)
    covered = 0
    for _ in range(400):
        reference = (generator.random(120) < 0.8).astype(float)
        ours = np.where(generator.random(120) < 0.1, (generator.random(120) < 0.3).astype(float), reference)
        found = paired_bootstrap((ours[None], reference[None]), resamples=400)
        covered += found.low <= 0.1 * (0.3 - 0.8) <= found.high
    assert 0.91 <= covered / 400 <= 0.98


def test_the_interval_holds_the_chance_of_training() -> None:
    """A method whose seeds deviate by 3 points, against itself: three seeds each, 200 examples."""
    generator = np.random.default_rng(1)
    right = generator.beta(4, 1.5, size=200)

    def seeds() -> np.ndarray:
        return generator.random((3, 200)) < right + generator.normal(0, 0.03, size=(3, 1))

    found = [paired_bootstrap((seeds().astype(float), seeds().astype(float)), resamples=400) for _ in range(300)]
    assert sum(difference.clear for difference in found) / 300 < 0.08


def test_equal_methods_do_not_differ_and_the_interval_repeats() -> None:
    scores = np.array([[0.0, 1.0, 1.0, 0.0]])
    found = paired_bootstrap((scores, scores))
    assert (found.mean, found.low, found.high, found.clear) == (0, 0, 0, False)
    other = paired_bootstrap((scores, 1 - scores))
    assert other == paired_bootstrap((scores, 1 - scores))
    with pytest.raises(ValueError, match="scores of the same examples"):
        paired_bootstrap((scores, scores[:, :2]))


def test_the_interval_of_a_mean_over_tasks_covers_it_as_often_as_it_says() -> None:
    """Three tasks with true differences of 0, 5 and 10 points and two seeds; their examples are drawn apart."""
    generator = np.random.default_rng(1)

    def task(gain: float) -> tuple[np.ndarray, np.ndarray]:
        return tuple((generator.random((2, 80)) < chance).astype(float) for chance in (0.7 + gain, 0.7))

    found = [paired_bootstrap(task(0.0), task(0.05), task(0.1), resamples=400) for _ in range(400)]
    assert 0.91 <= sum(difference.low <= 0.05 <= difference.high for difference in found) / 400 <= 0.99
    widths = [difference.high - difference.low for difference in found]
    alone = [paired_bootstrap(task(0.05), resamples=400) for _ in range(400)]
    ratio = np.mean([difference.high - difference.low for difference in alone]) / np.mean(widths)
    assert ratio == pytest.approx(math.sqrt(3), rel=0.1)
    with pytest.raises(ValueError, match="at least one task, got none"):
        paired_bootstrap()


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
    assert lora.difference.mean == pytest.approx(lora.test.mean - tables[0].rows[0].test.mean)  # type: ignore[union-attr]


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
        write_record(tmp_path, made, synthetic.finished(made, 0.9, parameters=1, peak=1, seconds=1.0))
    (table,) = summarize(load_records(tmp_path))
    assert (table.left_out, table.conditions["steps"], table.conditions["seeds"]) == (1, 300, [1])
    assert "; 1 record made under other conditions left out\n" in markdown(table)


def rows_by_method(table: TaskTable) -> dict[str, Row]:
    return {row.label: row for row in table.rows}


def test_means_are_over_tasks_that_a_method_finished_all_of(tables: list[TaskTable]) -> None:
    (means,) = means_over_tasks(tables)
    assert (means.metric, means.tables) == ("accuracy", tuple(tables))
    full, deviations = means.by_label["full"], [table.rows[0].test.deviation for table in tables]
    assert full.value == pytest.approx((0.905 + 0.805) / 2)
    assert full.error == pytest.approx(math.sqrt(sum(deviation**2 / 3 for deviation in deviations)) / 2)
    assert "peft-lora" not in means.by_label
    assert full.difference is None
    assert means.by_label["ia3"].difference == paired_bootstrap(
        *(
            tuple(np.stack(list(found[m].by_example.values())) for m in ("ia3", "full"))
            for found in map(rows_by_method, tables)
        )
    )
    mean = f"{full.value * 100:.1f} ± {full.error * 100:.1f} | reference"
    assert f"| full | 90.5 ± 0.5 | 80.5 ± 0.5 | {mean} | 9,400,000 | 1.00 | 1.00 |" in overview_markdown(tables)


def test_examples_that_were_scored_differently_are_not_compared(tmp_path: Path) -> None:
    for method in ("full", "lora"):
        made = synthetic.config(method)
        record = synthetic.finished(made, 0.9, parameters=1, peak=1, seconds=1.0)
        form = {"example_metric": "sentence_bleu"} if method == "lora" else {}
        write_record(tmp_path, made, record | form)
    (table,) = summarize(load_records(tmp_path))
    assert rows_by_method(table)["lora"].difference is None
    assert not any("scores the same" in sentence for sentence in advice(table))


def test_methods_with_other_scores_are_not_said_to_be_the_same(tmp_path: Path) -> None:
    for method, accuracy in (("full", 0.9), ("lora", 0.5)):
        made = synthetic.config(method)
        record = synthetic.finished(made, accuracy, parameters=1, peak=1, seconds=1.0)
        write_record(tmp_path, made, record | {"test_score_by_example": [0.0] * 200})
    (table,) = summarize(load_records(tmp_path))
    assert not any("scores the same" in sentence for sentence in advice(table))


def test_costs_are_compared_over_the_tasks_that_every_method_ran(tmp_path: Path) -> None:
    for task, tokens in (("short", 1), ("long", 10)):
        for method, peak in (("full", 400), ("lora", 100 * tokens ** (1 / 3)), ("ia3", 100)):
            if (method, task) != ("ia3", "long"):
                made = synthetic.config(method, task=task)
                record = synthetic.finished(made, 0.9, parameters=1, peak=round(peak), seconds=1.0)
                write_record(tmp_path, made, record)
    tables = summarize(load_records(tmp_path))
    assert [row[-2].text for row in overview_rows(tables)] == ["1.00", "0.25", "0.25"]
    assert "geometric mean over short, on which every method was measured" in overview_markdown(tables)


def test_a_variant_that_ran_on_some_tasks_alone_is_not_in_the_overview(tmp_path: Path) -> None:
    for task in ("short", "long"):
        for method, options in (("full", {}), ("lora", {}), ("lora", {"rank": 4}), ("peft-lora", {})):
            if task == "short" or not (options or method == "peft-lora"):
                made = synthetic.config(method, task=task, method_options=options)
                write_record(tmp_path, made, synthetic.finished(made, 0.9, parameters=1, peak=100, seconds=1.0))
    tables = summarize(load_records(tmp_path))
    assert [row[0].text for row in overview_rows(tables)] == ["full", "lora", "peft-lora"]
    assert "lora (rank=4)" in rows_by_method(next(table for table in tables if table.task == "short"))


def test_costs_are_those_of_one_machine_and_of_the_seed_disturbed_least(tmp_path: Path) -> None:
    for seed, seconds in ((0, 3.0), (1, 2.0), (2, 4.0)):
        made = synthetic.config("full", seed=seed)
        write_record(tmp_path, made, synthetic.finished(made, 0.9, parameters=1, peak=100, seconds=seconds))
    elsewhere = synthetic.config("lora")
    record = synthetic.finished(elsewhere, 0.9, parameters=1, peak=10, seconds=0.1)
    record["machine"] = record["machine"] | {"threads": 16}
    record["started"] = "2025-01-01T00:00:00Z"
    write_record(tmp_path, elsewhere, record)
    (table,) = summarize(load_records(tmp_path))
    full, lora = (cells(row) for row in table.rows)
    assert (full["step"].text, full["tokens/s"].text) == ("2.00 s", "200")
    assert (lora["step"].text, lora["peak memory"].text, lora["answer"].text) == ("–", "–", "–")
    assert lora["trained"].text == "1"
    assert not any(sentence.startswith("Short of") for sentence in advice(table))


def test_costs_are_those_of_the_machine_that_measured_full_fine_tuning(tmp_path: Path) -> None:
    """Not of the newest record's: where a suite goes on elsewhere, what was measured before would be lost."""
    for task, name in (("one", "a processor"), ("two", "another")):
        for method, machine, day in (("full", "a processor", 1), ("ia3", "a processor", 2), ("lora", name, 3)):
            made = synthetic.config(method, task=task)
            record = synthetic.finished(made, 0.9, parameters=1, peak=100, seconds=1.0)
            record["machine"] = record["machine"] | {"name": machine}
            record["started"] = f"2026-01-0{day}T00:00:00Z"
            write_record(tmp_path, made, record)
    one, two = summarize(load_records(tmp_path))
    for table, lora in ((one, "1.00 s"), (two, "–")):
        assert table.conditions["machine"]["name"] == "a processor"
        steps = {row.method: cells(row)["step"].text for row in table.rows}
        assert steps == {"full": "1.00 s", "lora": lora, "ia3": "1.00 s"}
    assert "geometric mean over one, on which" in overview_markdown([one, two])


def test_the_overview_has_a_row_a_method_with_costs_against_full_fine_tuning(tables: list[TaskTable]) -> None:
    _, overview, peers = overview_markdown(tables).split("\n\n")
    lines = overview.splitlines()
    assert (
        lines[0]
        == "| method | intents, accuracy | topics, accuracy | mean accuracy | against full | trained | memory | time |"
    )
    labels = [line.split(" | ")[0].removeprefix("| ") for line in lines[2:]]
    assert labels == list(dict.fromkeys(row.label for table in tables for row in table.rows))
    qlora = next(line for line in lines if line.startswith("| qlora |"))
    assert qlora.endswith(f"| 720,000 | {128 / 310:.2f} | {0.23 / 0.21:.2f} |")
    failed = next(line for line in lines if line.startswith("| peft-lora |"))
    assert failed.split(" | ")[1:4] == ["–", "–", "–"]
    assert overview_markdown(tables[:1]) == ""
    ours, theirs = (
        [row.test.mean for table in tables for row in table.rows if row.method == method]
        for method in ("prefix", "peft-prefix")
    )
    gains = [100 * (a - b) for a, b in zip(ours, theirs, strict=True)]
    assert peers.splitlines()[0] == "| against peft's own | intents, accuracy | topics, accuracy | mean accuracy |"
    cells_of_prefix = peers.splitlines()[2].strip("| ").split(" | ")
    assert [cell.split()[0] for cell in cells_of_prefix] == ["prefix", *(f"{g:+.1f}" for g in [*gains, sum(gains) / 2])]
    assert len(peers.splitlines()) == 3


def test_matthews_correlation_and_accuracy_have_one_mean_as_in_glue(tables: list[TaskTable]) -> None:
    mixed = [tables[0], replace(tables[1], metric="matthews")]
    (means,) = means_over_tasks(mixed)
    assert means.metric == "accuracy or matthews"
    assert means_over_tasks([tables[0], replace(tables[1], metric="bleu")]) == []


def test_the_csv_has_a_line_a_row_with_plain_numbers(tables: list[TaskTable]) -> None:
    rows = list(csv.DictReader(io.StringIO(csv_text(tables))))
    assert len(rows) == sum(len(table.rows) for table in tables)
    assert float(rows[0]["mean"]) == pytest.approx(0.905)
    assert rows[0]["stored_bytes"] == "37604000"
    assert {row["reason"] for row in rows if not row["mean"]} == {
        "diverged: the loss is nan at step 12",
        "out of memory: the system killed the process (signal 9)",
    }


def test_the_advice_names_what_is_not_clearly_worse_and_what_is_cheapest(tables: list[TaskTable]) -> None:
    said = " ".join(advice(tables[0]))
    assert "Not clearly worse than full fine-tuning (90.5 ± 0.5 (3)): lora, lora (rank=64), qlora." in said
    assert "Short of memory: qlora, 128 MB at the peak (41% of full fine-tuning)." in said
    assert "Clearly below full fine-tuning here: lora (rank=4) (-2.0), prefix" in said
    assert "peft" not in said.replace("Against peft's own under Seq2SeqTrainer: prefix +18.0 [+13.2, +23.4].", "")


def test_a_peak_that_counts_what_evaluations_left_is_not_shown(tmp_path: Path) -> None:
    for seed, metered in ((0, True), (1, False)):
        made = synthetic.config("lora", seed=seed)
        record = synthetic.finished(made, 0.9, parameters=1, peak=100 + 100 * seed, seconds=1.0)
        if not metered:
            del record["memory"]["left_by_evaluation_bytes"]
        write_record(tmp_path, made, record)
    records = load_records(tmp_path)
    (both,) = summarize(records)
    assert cells(both.rows[0])["peak memory"].text == "100 MB"
    (unmetered,) = summarize([record for record in records if record["config"]["seed"] == 1])
    assert cells(unmetered.rows[0])["peak memory"].text == "–"
    assert not any("memory" in sentence for sentence in advice(unmetered))


def test_the_advice_does_not_recommend_what_saves_nothing(tmp_path: Path) -> None:
    for method, peak in (("full", 400), ("qlora", 600)):
        made = synthetic.config(method)
        write_record(tmp_path, made, synthetic.finished(made, 0.9, parameters=1000, peak=peak, seconds=0.1))
    (table,) = summarize(load_records(tmp_path))
    (memory,) = [sentence for sentence in advice(table) if sentence.startswith("Short of memory")]
    assert re.fullmatch(
        r"Short of memory: none of these saves any; qlora takes \d+ MB at the peak \(1\d\d% of full fine-tuning\)\.",
        memory,
    )


def test_the_advice_does_not_compare_seeds_that_full_fine_tuning_has_not(tmp_path: Path) -> None:
    for method, seed, accuracy in (("full", 0, 0.9), ("lora", 1, 0.5)):
        made = synthetic.config(method, seed=seed)
        write_record(tmp_path, made, synthetic.finished(made, accuracy, parameters=1000, peak=100, seconds=0.1))
    (table,) = summarize(load_records(tmp_path))
    said = advice(table)
    assert "Not compared, as full fine-tuning has no run with their seeds: lora." in said
    assert not any(sentence.startswith(("Not clearly worse", "Every adapter", "Short of")) for sentence in said)


def test_the_advice_without_full_fine_tuning_compares_with_the_best(tmp_path: Path) -> None:
    for method, accuracy, peak in (("lora", 0.9, 200), ("prompt", 0.3, 100)):
        made = synthetic.config(method)
        write_record(tmp_path, made, synthetic.finished(made, accuracy, parameters=1, peak=peak, seconds=1.0))
    said = " ".join(advice(summarize(load_records(tmp_path))[0]))
    assert "Clearly below lora here: prompt (-60.0)." in said
    assert "Short of memory: lora" in said


def test_the_advice_says_so_where_nothing_tells_the_methods_apart(tmp_path: Path) -> None:
    for method in ("full", "lora", "ia3"):
        for seed in range(3):
            made = synthetic.config(method, seed=seed)
            record = synthetic.finished(made, 0.5, parameters=1000, peak=100, seconds=0.1)
            write_record(tmp_path, made, record)
    (table,) = summarize(load_records(tmp_path))
    said = advice(table)
    assert said[0] == (
        "Every method scores the same on every test example (50.0 ± 0.0 (3) accuracy): nothing here tells them apart but "
        "what they cost."
    )
    assert not any("Highest" in sentence or "Not clearly worse" in sentence for sentence in said)


def test_the_advice_says_nothing_of_adapters_that_did_not_run(tmp_path: Path) -> None:
    full = synthetic.config("full")
    write_record(tmp_path, full, synthetic.finished(full, 0.9, parameters=1, peak=100, seconds=1.0))
    write_record(tmp_path, synthetic.config("lora"), {"outcome": "failed", "reason": "no"})
    (table,) = summarize(load_records(tmp_path))
    assert not any("adapter" in sentence for sentence in advice(table))


def test_the_advice_does_not_say_that_nothing_finished_where_peers_did(tmp_path: Path) -> None:
    made = synthetic.config("peft-lora")
    write_record(tmp_path, made, synthetic.finished(made, 0.9, parameters=1, peak=100, seconds=1.0))
    assert advice(summarize(load_records(tmp_path))[0]) == [
        "No run of a method of this library finished, so nothing can be recommended; the table gives the reasons."
    ]


def test_an_option_may_be_zero(tmp_path: Path) -> None:
    """Its plot cannot have a logarithmic axis then."""
    for dropout in (0.0, 0.1):
        made = synthetic.config(method_options={"dropout": dropout})
        write_record(tmp_path / "records", made, synthetic.finished(made, 0.9, parameters=1, peak=100, seconds=1.0))
    report = write_report(tmp_path / "records", tmp_path, title="", about="", command="")
    page = report.paths["page"].read_text(encoding="utf-8")
    assert ">dropout</text>" in page
    assert "Sensitivity to dropout" in page


def test_answers_after_merging_are_timed_over_the_seeds_that_were_merged(tmp_path: Path) -> None:
    for seed, merged in ((0, 0.1), (1, None)):
        made = synthetic.config(seed=seed)
        record = synthetic.finished(made, 0.9, parameters=1, peak=1, seconds=1.0)
        record["latency"] |= {"merged_seconds": merged}
        write_record(tmp_path, made, record)
    ((row,),) = (table.rows for table in summarize(load_records(tmp_path)))
    assert row.merged_latency.n == 1


def test_a_bar_in_a_name_does_not_end_a_cell(tmp_path: Path) -> None:
    for task in ("yes|no", "other"):
        made = synthetic.config("full", task=task)
        write_record(tmp_path, made, synthetic.finished(made, 0.9, parameters=1, peak=100, seconds=1.0))
    lost = synthetic.config("lora", task="other")
    write_record(tmp_path, lost, {"outcome": "failed", "reason": "a|b"})
    tables = summarize(load_records(tmp_path))
    assert overview_markdown(tables).split("\n\n")[1].splitlines()[0].count(" | ") == 7
    assert r"yes\|no, accuracy" in overview_markdown(tables)
    assert r"| lora | failed: a\|b | –" in "".join(map(markdown, tables))


def test_the_page_names_the_commits_of_every_task(tmp_path: Path) -> None:
    for task, commit in (("first", "aaaa"), ("second", "bbbb")):
        made = synthetic.config("full", task=task)
        record = synthetic.finished(made, 0.9, parameters=1, peak=100, seconds=1.0)
        write_record(tmp_path / "records", made, record | {"commit": commit})
    page = write_report(tmp_path / "records", tmp_path, title="", about="", command="").paths["page"]
    assert "Commit: aaaa, bbbb" in page.read_text(encoding="utf-8")


def test_the_tables_are_of_the_conditions_that_were_asked_for(tmp_path: Path) -> None:
    """Not of the newest records, where those that were asked for are older."""
    asked, other = synthetic.config("full", steps=100), synthetic.config("full", steps=200, seed=1)
    for made in (asked, other):
        write_record(tmp_path / "records", made, synthetic.finished(made, 0.9, parameters=1, peak=100, seconds=1.0))
    found = load_records(tmp_path / "records")
    named = {"title": "", "about": "", "command": ""}
    text = write_report(
        tmp_path / "records", tmp_path, **named, asked=[r for r in found if r["config"]["steps"] == 100]
    ).text
    assert "100 steps" in text
    assert "200 steps" not in text
    assert "200 steps" in write_report(tmp_path / "records", tmp_path, **named).text


def test_the_advice_says_so_where_nothing_finished(tmp_path: Path) -> None:
    write_record(tmp_path, synthetic.config(), {"outcome": "failed", "reason": "no data"})
    (table,) = summarize(load_records(tmp_path))
    assert advice(table) == ["No run finished, so nothing can be recommended; the table gives the reasons."]


@pytest.mark.parametrize(
    ("amount", "text"), [(999, "999 B"), (792_576, "793 kB"), (1.616e9, "1.62 GB"), (1.5e7, "15 MB")]
)
def test_bytes_are_written_with_three_digits(amount: float, text: str) -> None:
    assert bytes_text(amount) == text


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
    with pytest.raises(ValueError, match="no place for the table of 'real', but for quick"):
        fill_markers(readme, {"real": ""})


# --- plots


@pytest.mark.parametrize(("low", "high"), [(5e3, 9e6), (128e6, 310e6), (50, 75), (0.01, 0.011)])
def test_an_axis_has_several_round_ticks_within_its_range(low: float, high: float) -> None:
    for log in (False, True):
        axis = Axis.over("x", [low, high], text=str, log=log)
        ticks = axis.ticks()
        assert 3 <= len(ticks) <= 9
        assert all(axis.low <= tick <= axis.high for tick in ticks)
        assert all(tick == pytest.approx(float(f"{tick:.3g}")) for tick in ticks)


def test_labels_of_points_in_one_place_do_not_cover_each_other() -> None:
    points = [Point(1.0 + i / 1000, 0.9, f"method {i}", i) for i in range(9)]
    x = Axis.over("x", [0.5, 2.0], text=str)
    y = Axis.over("y", [0.5, 1.0], text=str)
    svg = scatter(points, x, y, title="crowded")
    boxes = []
    for left, bottom, label in re.findall(r'<text x="([\d.]+)" y="([\d.]+)">(method \d)</text>', svg):
        boxes.append((float(left), float(bottom) - 10, float(left) + 6 * len(label), float(bottom)))
    assert len(boxes) == 9
    for i, one in enumerate(boxes):
        for other in boxes[:i]:
            apart = one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
            assert apart


# --- the page


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
    links.feed(page.read_text())
    assert links.loaded == []
    assert page.stat().st_size < 300_000


HARNESS = """<!doctype html><body><iframe id="page" src="report.html" style="border:0;width:%dpx;height:900px"></iframe>
<pre id="result"></pre><script>
const frame = document.getElementById("page");
const errors = [];
frame.addEventListener("load", () => {
  const page = frame.contentDocument, view = frame.contentWindow;
  view.addEventListener("error", (event) => errors.push(event.message));
  const table = [...page.querySelectorAll("table")].find((t) => t.textContent.includes("peak memory"));
  const column = [...table.tHead.rows[0].cells].findIndex((c) => c.textContent === "peak memory");
  const order = () => [...table.tBodies[0].rows].map((row) => row.cells[0].textContent);
  const before = order();
  const button = table.tHead.rows[0].cells[column].querySelector("button");
  button.click(); const once = order(); button.click(); const twice = order();
  const covered = [];
  for (const svg of page.querySelectorAll("svg")) {
    const boxes = [...svg.querySelectorAll("text")].map((t) => [t.textContent, t.getBoundingClientRect()]);
    boxes.forEach(([a, p], i) => boxes.slice(0, i).forEach(([b, q]) => {
      const wide = Math.min(p.right, q.right) - Math.max(p.left, q.left);
      const high = Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top);
      if (wide > 1 && high > 3) covered.push([svg.getAttribute("aria-label"), a, b]);
    }));
    const frameBox = svg.getBoundingClientRect();
    boxes.forEach(([a, p]) => { if (p.right > frameBox.right + 1 || p.left < frameBox.left - 1) covered.push(["outside", a]); });
  }
  document.getElementById("result").textContent = JSON.stringify({
    errors, before, once, twice, covered,
    sorted: table.tHead.rows[0].cells[column].getAttribute("aria-sort"),
    plots: [...page.querySelectorAll("svg")].map((s) => s.querySelectorAll("circle,path[transform]").length),
    font: Math.min(...[...page.querySelectorAll("svg")].map((s) => 12 * s.getBoundingClientRect().width / 420)),
    overflow: page.documentElement.scrollWidth - view.innerWidth,
  });
});
</script></body>"""


def in_browser(page: Path, width: int) -> dict[str, Any]:
    """What the page does at a width, and everything that the browser's console says."""
    harness = page.parent / f"harness-{width}.html"
    harness.write_text(HARNESS % width)
    done = subprocess.run(
        [
            str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files",
            "--enable-logging=stderr", "--virtual-time-budget=5000", f"--user-data-dir={page.parent / 'browser'}",
            "--window-size=1400,1000", "--dump-dom", harness.as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    match = re.search(r'<pre id="result">(.*?)</pre>', done.stdout, re.DOTALL)
    assert match, done.stdout[-2000:]
    return json.loads(match[1].replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">")) | {"console": console}


@needs_chromium
@pytest.mark.parametrize("width", [1300, 360])
def test_the_page_works_in_a_browser_at_desk_and_telephone_width(page: Path, width: int) -> None:
    found = in_browser(page, width)
    assert found["errors"] == found["console"] == []
    assert found["sorted"] == "ascending"
    assert found["once"][:2] == ["full", "lora (rank=64)"]
    assert found["twice"][:2] == ["qlora", "lora (rank=4)"]
    assert sorted(found["once"][-2:]) == sorted(found["twice"][-2:]) == ["peft-lora", "peft-prompt"]
    assert len(found["plots"]) == 12
    assert min(found["plots"]) >= 2
    assert found["covered"] == []
    assert found["font"] >= 9
    assert found["overflow"] <= 0
