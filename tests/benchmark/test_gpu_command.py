"""``make gpu`` where there is no GPU: what it says, and its measurement rehearsed at a tiny shape."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from paths import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.processes]


@pytest.mark.skipif(torch.cuda.is_available() or shutil.which("make") is None, reason="there is a GPU, or no make")
def test_without_a_gpu_it_is_said_in_one_line() -> None:
    installed = ["-o", f"{sys.prefix}/.installed"]  # nothing is installed
    done = subprocess.run(
        ["make", "gpu", f"VENV={sys.prefix}", *installed], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert "make gpu: Got no GPU that torch can use; expected one." in done.stderr.splitlines()


def test_speed_and_memory_are_measured_without_data_at_a_shape(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "T5PEFT_DATA"}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, (ROOT, *sys.path)))
    record = tmp_path / "gpu.json"
    options = ["--shapes", "mini", "--examples", "4", "--limit", "8", "--repeats", "1", "--threads", "1"]
    command = [sys.executable, str(ROOT / "benchmarks" / "throughput.py"), *options, "--record", str(record)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(record.read_text())
    (run,) = found["results"]["mini"]["runs"]
    assert set(run) == {"t5peft", "peft", "peft-grouped"}
    for cell in run.values():
        assert cell["outcome"] == "finished"
        assert cell["seconds"] > 0
        assert cell["peak_bytes"] > 1e6
    assert found["machine"]["device"] == "cpu"
    assert f"{found['machine']['name']}\n" in done.stdout
    assert "| mini | peft-grouped |" in done.stdout
