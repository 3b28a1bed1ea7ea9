"""Commands whose work is spread over two workers of a local Ray: what they give on one machine, also where a worker is killed."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest
import yaml
from films import TASK, records
from paths import ROOT

from t5peft.cli import main
from t5peft.compat.ray import RayExecutor

pytest.importorskip("ray")
pytestmark = [pytest.mark.slow, pytest.mark.processes]

MEASURED = ("started", "seconds", "memory", "tokens_per_second", "latency", "schema", "commit", "device", "versions")


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[None]:
    """A Ray that the commands find running, and leave running."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setenv("PYTHONPATH", os.pathsep.join(map(str, (ROOT, ROOT / "tests"))))
        patch.setenv("OMP_NUM_THREADS", "1")
        with RayExecutor(2, threads=1):
            yield


def workers_with_a_run() -> list[psutil.Process]:
    """The workers that have a process of a run."""
    found = [one for one in psutil.Process().children(recursive=True) if one.name().startswith("ray::_call")]
    return [worker for worker in found if len(worker.children(recursive=True)) >= 3]


SUITE: dict[str, Any] = {
    "backbone": "mini", "seeds": [0, 1], "steps": 6, "examples_per_step": 8, "evaluations": 2,
    "limits": {"validation": 10, "test": 20}, "tasks": ["support_intent"],
    "methods": [{"method": name, "learning_rates": [1e-2]} for name in ("lora", "ia3", "norm")],
}  # fmt: skip


def figures(folder: Path) -> list[dict[str, Any]]:
    """The records without what is measured anew in each run."""
    rows = [json.loads(line) for line in (folder / "records.jsonl").read_text(encoding="utf-8").splitlines()]
    for row in rows:
        for point in row.get("curve", ()):
            point.pop("seconds")
        row.get("machine", {}).pop("runs_at_once", None)
        for name in MEASURED:
            row.pop(name, None)
    return sorted(rows, key=json.dumps)


def test_a_suite_of_which_a_worker_is_killed_has_the_records_of_one_machine(tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(SUITE))
    command = ["bench", "--suite", str(tmp_path / "small.yaml"), "--threads", "1", "--quiet", "--output"]
    killed, done = [], threading.Event()

    def kill_one() -> None:
        while not done.wait(0.2):
            if running := workers_with_a_run():
                running[0].kill()
                killed.append(running[0].pid)
                return

    killer = threading.Thread(target=kill_one)
    killer.start()
    try:
        assert main([*command, str(tmp_path / "two"), "--workers", "2"]) == 0
    finally:
        done.set()
        killer.join()
    assert len(killed) == 1
    assert main([*command, str(tmp_path / "one")]) == 0
    assert figures(tmp_path / "two") == figures(tmp_path / "one")
    assert {row["outcome"] for row in figures(tmp_path / "two")} == {"finished"}


def film_files(folder: Path) -> list[str]:
    task, data = folder / "film.yaml", folder / "films.jsonl"
    TASK.to_yaml(task)
    data.write_text("".join(json.dumps(record) + "\n" for record in records(60)))
    return ["--task", str(task)]


def test_answers_are_those_of_one_machine_byte_for_byte(
    backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("t5peft.cli.predict.TOKENS_AT_ONCE", 1000)
    task = film_files(tmp_path)
    command = ["predict", backbone, *task, "--data", str(tmp_path / "films.jsonl"), "--quiet", "--output"]
    assert main([*command, str(tmp_path / "one.jsonl")]) == 0
    assert main([*command, str(tmp_path / "two.jsonl"), "--workers", "2"]) == 0
    assert (tmp_path / "two.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()
    assert len((tmp_path / "two.jsonl").read_bytes().splitlines()) == 60


def test_trials_of_two_workers_are_those_of_one_machine(backbone: str, tmp_path: Path) -> None:
    task = film_files(tmp_path)
    data = ["--train", str(tmp_path / "films.jsonl"), "--validation", str(tmp_path / "films.jsonl")]
    more = ["--backbone", backbone, "--steps", "2", "--batch-size", "4", "--evaluations", "1", "--quiet"]
    command = ["search", *task, *data, *more, "--trials", "3", "--output"]
    assert main([*command, str(tmp_path / "one")]) == 0
    assert main([*command, str(tmp_path / "two"), "--workers", "2"]) == 0
    one, two = (
        [(trial.params, trial.value, trial.intermediate_values) for trial in study.trials]
        for study in (
            optuna.load_study(study_name=None, storage=f"sqlite:///{tmp_path / name / 'study.db'}")
            for name in ("one", "two")
        )
    )
    assert len(one) == 3
    assert two == one  # the first ten draws do not depend on other trials
    assert not list((tmp_path / "two").glob("trial-*"))
