"""The records of a made-up suite, and their tables."""

from __future__ import annotations

from pathlib import Path

import pytest
import synthetic

from t5peft.benchmark.records import RunRecords
from t5peft.benchmark.summary import TaskTable, summarize


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("suite")
    synthetic.write_suite(made)
    synthetic.write_suite(made, task="topics", drop=0.1)
    return made


@pytest.fixture(scope="module")
def tables(folder: Path) -> list[TaskTable]:
    return summarize(RunRecords(folder).load())
