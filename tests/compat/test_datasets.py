"""Chosen rows are those that ``select`` of datasets gives, in its place and in less memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset

from t5peft.compat.datasets import chosen_rows


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    Dataset.from_list([{"text": f"film {i}", "label": i % 2} for i in range(40)]).save_to_disk(str(tmp_path / "films"))
    return Dataset.load_from_disk(str(tmp_path / "films"))


def test_rows_are_those_of_select_also_of_rows_that_were_chosen(dataset: Dataset) -> None:
    first, second = np.array([3, 30, 5, 7, 7, 39]), np.array([5, 0, 2])
    found, wanted = chosen_rows(dataset, first), dataset.select(first)
    assert found.to_list() == wanted.to_list()
    assert found.features == wanted.features
    assert chosen_rows(found, second).to_list() == wanted.select(second).to_list()
    assert [row["text"] for row in found.with_format("arrow")[1:3].to_pylist()] == ["film 30", "film 5"]
    assert chosen_rows(dataset, np.array([], np.int64)).to_list() == []


def test_the_fingerprint_follows_the_rows(dataset: Dataset) -> None:
    names = {chosen_rows(dataset, np.array(rows))._fingerprint for rows in ([1, 2], [2, 1], [1, 2])}
    assert len(names) == 2
    assert dataset._fingerprint not in names
