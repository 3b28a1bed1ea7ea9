"""One, two and three processes train the same, whatever the data divide by, and go on from each other's checkpoints."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from distributed_numbers import EXAMPLES, RESUMED, STEPS

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("numbers")
    command = [sys.executable, str(Path(__file__).parent / "distributed_numbers.py"), str(output)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return output


@pytest.fixture(scope="module")
def losses(output: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((output / "losses.json").read_text())
    return found


@pytest.mark.parametrize("case", EXAMPLES)
@pytest.mark.parametrize("name", ["2", "3", *(f"{before} then {after}" for before, after in RESUMED)])
def test_the_number_of_processes_does_not_change_the_run(case: str, name: str, losses: dict[str, Any]) -> None:
    whole = losses[case]["1"]
    assert len(whole) == STEPS + STEPS // 2  # and the evaluations
    assert losses[case][name] == pytest.approx(whole, rel=1e-6)


def test_fsdp_on_a_cpu_is_refused_in_each_process(output: Path) -> None:
    for rank in (0, 1):
        assert "fsdp on a CPU (accelerate would train a whole copy" in (output / f"refused-{rank}.txt").read_text()
