"""The advice of a report."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import synthetic

from t5peft.benchmark.advice import advice
from t5peft.benchmark.records import RunRecords
from t5peft.benchmark.summary import TaskTable, summarize
from t5peft.benchmark.tables import (
    bytes_text,
)


def test_the_advice_names_what_is_not_clearly_worse_and_what_is_cheapest(tables: list[TaskTable]) -> None:
    said = " ".join(advice(tables[0]))
    assert "Not clearly worse than full fine-tuning (90.5 ± 0.5 (3)): lora, lora (rank=64), qlora." in said
    assert "Least memory: qlora, 128 MB at the peak (41% of full fine-tuning)." in said
    assert "Clearly below full fine-tuning here: lora (rank=4) (-2.0), prefix" in said
    assert "peft" not in said.replace(
        "Against peft's own methods under Seq2SeqTrainer: prefix +18.0 [+13.2, +23.4].", ""
    )


def test_the_advice_does_not_recommend_what_saves_nothing(tmp_path: Path) -> None:
    for method, peak in (("full", 400), ("qlora", 600)):
        made = synthetic.config(method)
        RunRecords(tmp_path).append(made, synthetic.finished(made, 0.9, parameters=1000, peak=peak, seconds=0.1))
    (table,) = summarize(RunRecords(tmp_path).load())
    (memory,) = [sentence for sentence in advice(table) if sentence.startswith("Least memory")]
    assert re.fullmatch(
        r"Least memory: none of these saves any; qlora takes \d+ MB at the peak \(1\d\d% of full fine-tuning\)\.",
        memory,
    )


def test_the_advice_does_not_compare_seeds_that_full_fine_tuning_has_not(tmp_path: Path) -> None:
    for method, seed, accuracy in (("full", 0, 0.9), ("lora", 1, 0.5)):
        made = synthetic.config(method, seed=seed)
        RunRecords(tmp_path).append(made, synthetic.finished(made, accuracy, parameters=1000, peak=100, seconds=0.1))
    (table,) = summarize(RunRecords(tmp_path).load())
    said = advice(table)
    assert "Not compared, because full fine-tuning has no run with their seeds: lora." in said
    assert not any(
        sentence.startswith(("Not clearly worse", "Every adapter", "Least", "Smallest")) for sentence in said
    )


def test_the_advice_without_full_fine_tuning_compares_with_the_best(tmp_path: Path) -> None:
    for method, accuracy, peak in (("lora", 0.9, 200), ("prompt", 0.3, 100)):
        made = synthetic.config(method)
        RunRecords(tmp_path).append(made, synthetic.finished(made, accuracy, parameters=1, peak=peak, seconds=1.0))
    said = " ".join(advice(summarize(RunRecords(tmp_path).load())[0]))
    assert "Clearly below lora here: prompt (-60.0)." in said
    assert "Least memory: lora" in said


def test_the_advice_says_so_where_nothing_tells_the_methods_apart(tmp_path: Path) -> None:
    for method in ("full", "lora", "ia3"):
        for seed in range(3):
            made = synthetic.config(method, seed=seed)
            record = synthetic.finished(made, 0.5, parameters=1000, peak=100, seconds=0.1)
            RunRecords(tmp_path).append(made, record)
    (table,) = summarize(RunRecords(tmp_path).load())
    said = advice(table)
    assert said[0] == (
        "Every method scores the same on every test example (50.0 ± 0.0 (3) accuracy); only their costs differ."
    )
    assert not any("Highest" in sentence or "Not clearly worse" in sentence for sentence in said)


def test_the_advice_says_nothing_of_adapters_that_did_not_run(tmp_path: Path) -> None:
    full = synthetic.config("full")
    RunRecords(tmp_path).append(full, synthetic.finished(full, 0.9, parameters=1, peak=100, seconds=1.0))
    RunRecords(tmp_path).append(synthetic.config("lora"), {"outcome": "failed", "reason": "no"})
    (table,) = summarize(RunRecords(tmp_path).load())
    assert not any("adapter" in sentence for sentence in advice(table))


def test_the_advice_does_not_say_that_nothing_finished_where_peers_did(tmp_path: Path) -> None:
    made = synthetic.config("peft-lora")
    RunRecords(tmp_path).append(made, synthetic.finished(made, 0.9, parameters=1, peak=100, seconds=1.0))
    assert advice(summarize(RunRecords(tmp_path).load())[0]) == [
        "No run of a method of this library finished, so there is no recommendation; the table gives the reasons."
    ]


def test_the_advice_says_so_where_nothing_finished(tmp_path: Path) -> None:
    RunRecords(tmp_path).append(synthetic.config(), {"outcome": "failed", "reason": "no data"})
    (table,) = summarize(RunRecords(tmp_path).load())
    assert advice(table) == ["No run finished, so there is no recommendation; the table gives the reasons."]


@pytest.mark.parametrize(
    ("amount", "text"), [(999, "999 B"), (792_576, "793 kB"), (1.616e9, "1.62 GB"), (1.5e7, "15 MB")]
)
def test_bytes_are_written_with_three_digits(amount: float, text: str) -> None:
    assert bytes_text(amount) == text
