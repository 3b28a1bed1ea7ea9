"""Samples of the campaigns that fork: kills and faults of commands, and values that are not finite."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import faults
import non_finite


@pytest.mark.skipif(faults.why_not() is not None, reason=str(faults.why_not()))
@pytest.mark.parametrize("what", ["kills", "storage"])
@pytest.mark.parametrize(
    ("names", "count"),
    [
        (["merge over", "predict parquet"], 6),
        pytest.param(["train", "search", "pretrain", "bench", "continue", "export over"], 30, marks=pytest.mark.slow),
    ],
    ids=["few", "more"],
)
@pytest.mark.processes
def test_a_command_that_is_disturbed_loses_nothing_and_goes_on_to_the_same_result(
    what: str, names: list[str], count: int, tmp_path: Path
) -> None:
    record, outcomes = tmp_path / "record.json", tmp_path / "outcomes.jsonl"
    command = [sys.executable, str(Path(faults.__file__).with_name("operations.py")), what, "--count", str(count)]
    options = ["--only", *names, "--seed", "5", "--record", str(record), "--outcomes", str(outcomes)]
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(record.read_text())
    assert found["faults"] == []
    assert found["done"] == count
    assert ("full tmpfs" in found["by_fault"]) == (what == "storage" and faults.has_own_mounts())


def test_a_value_that_is_not_finite_stops_the_run_or_is_refused(tmp_path: Path) -> None:
    chosen = [
        case
        for case in non_finite.CASES
        if case.get("method", "lora") == "lora" and case.get("step", 2) == 2 and case["value"] in ("nan", "huge")
    ]
    found = non_finite.campaign(chosen, 5, tmp_path / "outcomes.jsonl")
    assert found["faults"] == []
    assert found["cases"] == len(chosen) > 10
    assert found["outcomes"]["stopped"] >= 6


@pytest.mark.slow
def test_every_value_in_every_place_stops_the_run_or_is_refused(tmp_path: Path) -> None:
    found = non_finite.campaign(non_finite.CASES, 30, tmp_path / "outcomes.jsonl")
    assert found["faults"] == []
