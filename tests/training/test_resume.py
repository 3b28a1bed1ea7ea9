"""A run that is resumed is the run that was never interrupted, with any number of processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from distributed_resume import CASES, STEPS
from fresh import run_ranks


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    output = tmp_path_factory.mktemp("resume")
    script = Path(__file__).parent / "distributed_resume.py"
    run_ranks(script, output)
    found: dict[str, Any] = json.loads((output / "losses.json").read_text())
    return found


@pytest.mark.parametrize("step", [1, 2, 3, 5])
@pytest.mark.parametrize("name", CASES)
@pytest.mark.processes
def test_two_processes_resume_as_if_they_had_never_stopped(name: str, step: int, two_processes: dict[str, Any]) -> None:
    whole = two_processes[name]["whole"]
    assert len(whole) == STEPS
    assert two_processes[name][str(step)] == pytest.approx(whole, rel=1e-9)


@pytest.mark.processes
def test_a_sampler_of_fewer_examples_than_the_data_repeats_none(two_processes: dict[str, Any]) -> None:
    assert two_processes["subset"] == [4, 2]
