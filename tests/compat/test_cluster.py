"""Work spread over two workers of a local Ray, of which one is killed: the results of one machine."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import synthetic
from fake_worker import work
from paths import ROOT

from t5peft.benchmark.process import run_in_process
from t5peft.benchmark.records import RunConfig, RunRecords
from t5peft.benchmark.schedule import Sweep, run_suite
from t5peft.compat.ray import RayExecutor

pytest.importorskip("ray")
pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayExecutor]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setenv("PYTHONPATH", os.pathsep.join(map(str, (ROOT, ROOT / "tests", Path(__file__).parent))))
        with RayExecutor(2, threads=1) as executor:
            yield executor


def ray_workers() -> list[psutil.Process]:
    """The processes of tasks that run, of this test's Ray only."""
    return [one for one in psutil.Process().children(recursive=True) if _is_at_work(one)]


def _is_at_work(process: psutil.Process) -> bool:
    try:
        return any("ray::_call" in word for word in process.cmdline())
    except psutil.Error:
        return False


def wait_until(done: Callable[[], Any], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.02)


def double(number: int) -> int:
    return 2 * number


def folder_of_call(name: str) -> tuple[str, str | None]:
    return os.getcwd(), os.environ.get(name)


def refuse(number: int) -> int:
    raise ValueError(f"Got {number}; expected another.")


def test_results_come_in_order_and_errors_as_they_are(cluster: RayExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(cluster.in_order(double, range(7))) == [0, 2, 4, 6, 8, 10, 12]
    with pytest.raises(ValueError, match=r"^Got 3; expected another\.$"):
        cluster.submit(refuse, 3).result()
    monkeypatch.setenv("T5PEFT_DATA", "/there")
    assert cluster.submit(folder_of_call, "T5PEFT_DATA").result() == (os.getcwd(), "/there")
    asked: list[int] = []

    def jobs() -> Iterator[int]:
        for number in range(1000):
            asked.append(number)
            yield number

    results = cluster.in_order(double, jobs())
    assert next(results) == 0
    assert len(asked) <= 5, "jobs are read only a few ahead"


GRID = [Sweep(synthetic.config(method), (1e-3, 2e-3, 4e-3), (0, 1, 2)) for method in ("lora", "ia3", "prefix")]


def records_of(folder: Path) -> list[str]:
    return sorted(RunRecords(folder).path.read_text(encoding="utf-8").splitlines())


def run_grid(folder: Path, execute: Callable[[RunConfig], dict[str, Any]], **settings: Any) -> list[dict[str, Any]]:
    return run_suite(GRID, RunRecords(folder), execute, log=lambda text: None, **settings)


def made_up(made: RunConfig) -> dict[str, Any]:
    return synthetic.finished(made, made.learning_rate * 100, parameters=1, peak=1, seconds=0.05)


def test_a_suite_on_two_workers_of_which_one_is_killed_has_the_records_of_one_machine(
    cluster: RayExecutor, tmp_path: Path
) -> None:
    expected = run_grid(tmp_path / "one", made_up)
    log = tmp_path / "two" / "log.txt"
    killed: list[int] = []

    def kill_in_the_middle() -> None:
        wait_until(lambda: len(list(log.parent.glob("pid-*"))) == 2 and len(ray_workers()) == 2)
        victim = ray_workers()[0]
        victim.kill()
        killed.append(victim.pid)

    killer = threading.Thread(target=kill_in_the_middle)
    killer.start()
    execute = partial(run_in_process, work, log=log, threads=1)
    found = run_grid(tmp_path / "two", execute, executor=cluster, workers=2)
    killer.join()
    assert [record["machine"].pop("runs_at_once") for record in found] == [2] * len(expected)
    assert found == expected
    at_once = [line.replace(', "runs_at_once": 2', "") for line in records_of(tmp_path / "two")]
    assert sorted(at_once) == records_of(tmp_path / "one")
    assert len(killed) == 1
    starts = (tmp_path / "two" / "starts").read_text().split()
    assert set(starts) == {
        RunConfig(**record["config"]).identity() for record in map(json.loads, records_of(tmp_path / "two"))
    }
    assert len(starts) == len(expected) + 1, "only the lost run is made again"
    assert not [pid for pid in log.parent.glob("pid-*") if psutil.pid_exists(int(pid.name[4:]))]
    assert len(run_grid(tmp_path / "two", refuse_run, executor=cluster, workers=2)) == len(expected)


def refuse_run(made: RunConfig) -> dict[str, Any]:
    raise AssertionError("what is recorded is not run again")
