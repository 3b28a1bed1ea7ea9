"""Metrics as modules of evaluate, loaded by their paths."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from t5peft.evaluation import (
    METRICS,
)

LOAD_EVERY_MODULE = """
import json, sys
import evaluate
from t5peft.evaluation import METRICS, compute
p, r, s = ["a cat sat on mats", "dog", ""], ["a cat sat on mats", "a dog", "x"], ["a cats sat on mats", "dog", "y"]
for name, metric in METRICS.items():
    module = evaluate.load(str(metric.module))
    if name == "perplexity":
        assert module.compute(predictions=[1.0, 2.0], references=[3, 4]) == compute(name, [1.0, 2.0], [3, 4])
        continue
    more = {"sources": s} if metric.needs_sources else {}
    if name == "f1_binary":
        p, r = ["0", "1", "1"], ["0", "1", "0"]
    assert module.compute(predictions=p, references=r, **more) == compute(name, p, r, **more), name
    several = [[one, one] if name not in ("f1", "f1_binary", "matthews") else [one] for one in r]
    assert module.compute(predictions=p, references=several, **more) == compute(name, p, several, **more), name
print(len(METRICS))
"""


@pytest.mark.processes
def test_every_module_loads_by_its_path_without_a_network_and_leaves_the_package_as_it_was(tmp_path: Path) -> None:
    package = Path(METRICS["rouge"].module).parents[1]
    before = sorted(path for path in package.rglob("*") if "__pycache__" not in path.parts)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PYTHONWARNINGS": "ignore"}
    environment["PYTHONPATH"] = str(package.parents[1])
    done = subprocess.run(
        [sys.executable, "-c", LOAD_EVERY_MODULE],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(len(METRICS))
    assert before == sorted(path for path in package.rglob("*") if "__pycache__" not in path.parts)
