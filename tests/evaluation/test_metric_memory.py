"""Scores of millions of answers hold no copies of them, and an evaluation set keeps what grows with the records in files."""

from __future__ import annotations

import tracemalloc

import pytest
from tiny import tiny_tokenizer

from t5peft import Task
from t5peft.data.on_disk import ValueFile, gathered_values
from t5peft.evaluation import EvaluationSet, compute


@pytest.mark.parametrize("name", ["accuracy", "f1", "f1_binary", "matthews", "exact_match", "token_f1"])
def test_a_metric_holds_no_copy_of_the_answers(name: str) -> None:
    count = 20_000
    predictions, references = ["0", "1"] * (count // 2), [["0"]] * count
    tracemalloc.start()
    compute(name, predictions, references)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak / count < 20  # bytes; two lists of the answers have 16


@pytest.mark.parametrize("name", ["accuracy", "f1", "f1_binary", "matthews", "exact_match", "token_f1"])
def test_a_metric_of_values_in_files_holds_none_of_them(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("t5peft.data.on_disk._VALUES_AT_ONCE", 100)
    count = 20_000
    predictions, references = ["0", "1"] * (count // 2), [["0"]] * count
    monkeypatch.setattr("t5peft.data.on_disk.VALUES_IN_MEMORY", 1)
    files = gathered_values(predictions), gathered_values(references)
    assert [type(values) for values in files] == [ValueFile, ValueFile]
    wanted = compute(name, predictions, references)
    tracemalloc.start()
    found = compute(name, *files)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found == wanted
    assert peak / count < 7  # bytes; a list of the answers has 8


def test_an_evaluation_set_keeps_references_answers_and_scores_in_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("t5peft.data.on_disk.VALUES_IN_MEMORY", 500)
    monkeypatch.setattr("t5peft.data.on_disk._VALUES_AT_ONCE", 100)
    count = 4_000
    task = Task("echo", "echo: {text}", "{target}", metrics=("accuracy",))
    records = [{"text": "film", "target": f"film {i}"} for i in range(count)]
    held = EvaluationSet(task, records, tiny_tokenizer())
    answers = (reference[0] if i % 4 else "" for i, reference in enumerate(held.references))
    tracemalloc.start()
    found = held.score_answers(answers)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak / count < 40  # bytes; the texts of a list take 60 and more
    assert (type(held.references), type(found.per_example)) == (ValueFile, ValueFile)
    assert found.scores == {"accuracy": 0.75}
    assert found.per_example == [0.0, 1.0, 1.0, 1.0] * (count // 4)
