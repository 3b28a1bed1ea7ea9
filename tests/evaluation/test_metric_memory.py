"""Metrics of millions of answers hold no copies of them."""

from __future__ import annotations

import tracemalloc

import pytest

from t5peft.evaluation import compute


@pytest.mark.parametrize("name", ["accuracy", "f1", "f1_binary", "matthews", "exact_match", "token_f1"])
def test_a_metric_holds_no_copy_of_the_answers(name: str) -> None:
    count = 20_000
    predictions, references = ["0", "1"] * (count // 2), [["0"]] * count
    tracemalloc.start()
    compute(name, predictions, references)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak / count < 20  # bytes; two lists of the answers have 16
