"""The order of a suite's runs, and what is left after it was killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest
import synthetic
from fake_worker import work
from paths import ROOT

from t5peft.benchmark.process import RunProcesses
from t5peft.benchmark.records import RunConfig, RunRecords
from t5peft.benchmark.schedule import Progress, Sweep, best_rate, next_rate, run_suite

TESTS = Path(__file__).parent


def record_of(made: RunConfig, accuracy: float = 0.9) -> dict[str, Any]:
    return synthetic.finished(made, accuracy, parameters=1000, peak=100, seconds=0.1)


def sweep(best_at: float, rates: tuple[float, ...], seeds: tuple[int, ...] = (0,), **kwargs: Any) -> list[RunConfig]:
    """Runs of a method whose score falls with the distance of the rate from ``best_at``."""
    asked: list[RunConfig] = []

    def execute(made: RunConfig) -> dict[str, Any]:
        asked.append(made)
        ratio = max(made.learning_rate / best_at, best_at / made.learning_rate)
        return record_of(made, round(0.9 / ratio, 4))

    run_suite([Sweep(synthetic.config(), rates, seeds)], RunRecords(kwargs["folder"]), execute, log=lambda text: None)
    return asked


def test_the_rate_is_chosen_on_validation_and_every_seed_runs_at_it(tmp_path: Path) -> None:
    asked = sweep(1e-3, (3e-4, 1e-3, 3e-3), (0, 1, 2), folder=tmp_path)
    assert [(made.learning_rate, made.seed) for made in asked] == [
        (3e-4, 0), (1e-3, 0), (3e-3, 0), (1e-3, 1), (1e-3, 2),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("best_at", "tried"), [(1e-2, [1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2]), (4e-4, [1e-3, 2e-3, 5e-4, 2.5e-4])]
)
def test_a_grid_whose_end_won_grows_until_it_does_not(tmp_path: Path, best_at: float, tried: list[float]) -> None:
    asked = sweep(best_at, (1e-3, 2e-3), folder=tmp_path)
    assert [made.learning_rate for made in asked] == pytest.approx(tried)


def test_a_single_rate_is_fixed_and_does_not_grow(tmp_path: Path) -> None:
    assert len(sweep(1.0, (1e-3,), (0, 1), folder=tmp_path)) == 2


def test_the_rate_is_that_of_the_lowest_loss_whatever_chance_the_score_had() -> None:
    low, high = (record_of(synthetic.config(rate=rate), score) for rate, score in ((1e-3, 0.7), (1e-2, 0.74)))
    assert best_rate({1e-3: low | {"validation_loss": 0.27}, 1e-2: high | {"validation_loss": 0.33}}) == 1e-3
    assert best_rate({1e-3: low | {"validation_loss": 0.3}, 1e-2: high | {"validation_loss": 0.3}}) == 1e-3
    assert best_rate({1e-3: {"outcome": "diverged", "reason": "nan"}}) is None
    assert next_rate([1e-3, 1e-2], None) is None


def test_a_method_that_never_finishes_runs_no_further_seeds(tmp_path: Path) -> None:
    asked: list[RunConfig] = []

    def execute(made: RunConfig) -> dict[str, Any]:
        asked.append(made)
        return {"outcome": "diverged", "reason": "the loss is nan"}

    said: list[str] = []
    grid = Sweep(synthetic.config(), (1e-3, 1e-2), (0, 1, 2))
    records = run_suite([grid], RunRecords(tmp_path), execute, log=said.append)
    assert len(asked) == len(records) == 2
    assert "diverged: the loss is nan" in said[0]


def test_what_is_recorded_is_not_run_again(tmp_path: Path) -> None:
    first = sweep(1e-3, (3e-4, 1e-3, 3e-3), (0, 1), folder=tmp_path)
    assert len(first) == 4
    assert sweep(1e-3, (3e-4, 1e-3, 3e-3), (0, 1), folder=tmp_path) == []


def test_a_run_that_another_process_recorded_meanwhile_stands(tmp_path: Path) -> None:
    def execute(made: RunConfig) -> dict[str, Any]:
        RunRecords(tmp_path).append(made, record_of(made, 0.7))
        return record_of(made, 0.8)

    records = run_suite(
        [Sweep(synthetic.config(), (1e-3,), (0, 1))], RunRecords(tmp_path), execute, log=lambda text: None
    )
    assert [record["scores"]["validation"]["accuracy"] for record in records] == [0.7, 0.7]


def test_the_time_left_follows_from_the_runs_that_were_timed() -> None:
    progress = Progress(runs=10, done=4)
    assert progress.line() == "4/10 runs"
    progress.seconds += [10.0, 30.0]
    assert progress.line() == "4/10 runs, about 2 min left"


GRID = [Sweep(synthetic.config(method), (1e-3, 2e-3), (0, 1)) for method in ("lora", "ia3")]


def run_at_once(folder: Path, execute: RunProcesses[RunConfig]) -> list[dict[str, Any]]:
    with ThreadPoolExecutor(2) as executor, ExitStack() as opened:
        opened.callback(execute.stop)
        settings: dict[str, Any] = {"executor": executor, "workers": 2}
        return run_suite(GRID, RunRecords(folder), execute, log=lambda text: None, **settings)


@pytest.mark.processes
def test_runs_of_two_methods_are_made_at_once_with_the_records_of_one_by_one(tmp_path: Path) -> None:
    most = 0

    def count(step: int, steps: int) -> None:
        nonlocal most
        most = max(most, len(list(tmp_path.glob("pid-*"))))

    execute = RunProcesses(work, log=tmp_path / "log.txt", threads=1, on_progress=count)
    found = run_at_once(tmp_path / "two", execute)
    assert most == 2
    assert [record["machine"].pop("runs_at_once") for record in found] == [2] * len(found)
    assert found == run_suite(GRID, RunRecords(tmp_path / "one"), finished_run, log=lambda text: None)


def finished_run(made: RunConfig) -> dict[str, Any]:
    return synthetic.finished(made, made.learning_rate * 100, parameters=1, peak=1, seconds=0.05)


def test_runs_that_are_made_at_once_end_with_the_command(tmp_path: Path) -> None:
    once = threading.Lock()  # a second interrupt would stop the stopping

    def interrupt(step: int, steps: int) -> None:
        if step == 3 and once.acquire(blocking=False):
            main = threading.main_thread().ident
            assert main is not None
            signal.pthread_kill(main, signal.SIGINT)  # as a terminal does, so that it wakes

    execute = RunProcesses(work, log=tmp_path / "log.txt", threads=1, on_progress=interrupt)
    start = time.monotonic()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            run_at_once(tmp_path / "two", execute)
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - start < 30
    left = [int(path.name[4:]) for path in tmp_path.glob("pid-*")]
    assert left, "the runs were cut off"
    assert not any(map(psutil.pid_exists, left))
    assert RunRecords(tmp_path / "two").path.exists() is False


# --- kills


SUITE_SCRIPT = """
import sys
from pathlib import Path

if __name__ == "__main__":  # each run imports this file, and needs none of these
    import synthetic
    from fake_worker import work
    from t5peft.benchmark.process import RunProcesses
    from t5peft.benchmark.records import RunRecords
    from t5peft.benchmark.schedule import Sweep, run_suite

    folder = Path(sys.argv[1])
    execute = RunProcesses(work, log=folder / "log.txt", threads=1)
    grid = Sweep(synthetic.config(), (1e-3, 2e-3, 4e-3), (0, 1, 2))
    run_suite([grid], RunRecords(folder), execute, log=lambda text: print(text, flush=True))
"""


def start_suite(folder: Path) -> subprocess.Popen[str]:
    folder.mkdir(exist_ok=True)
    script = folder / "suite.py"
    script.write_text(SUITE_SCRIPT)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests", TESTS)))}
    command = [sys.executable, str(script), str(folder)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def records_of(folder: Path) -> dict[str, None]:
    lines = RunRecords(folder).path.read_text(encoding="utf-8").splitlines()
    return dict.fromkeys(lines)


@pytest.mark.processes
def test_a_suite_that_is_killed_twice_ends_with_the_same_records(tmp_path: Path) -> None:
    """Once in the middle of a run, once right after one; the third call finishes what is left."""
    whole = start_suite(tmp_path / "whole")
    output, _ = whole.communicate(timeout=120)
    assert whole.returncode == 0, output
    expected = records_of(tmp_path / "whole")
    assert len(expected) == 8  # three rates, three more as the upper end won each time, two more seeds

    cut = tmp_path / "cut"
    for kill_after in ("start of run 2", "record 3"):
        suite = start_suite(cut)
        wait_for(cut, kill_after)
        suite.send_signal(signal.SIGKILL)
        suite.communicate()
        assert wait_until(lambda: not running_workers(cut)), "a run outlived the suite that asked for it"
    found = records_of(cut)
    assert 3 <= len(found) < len(expected)
    last = start_suite(cut)
    output, _ = last.communicate(timeout=120)
    assert last.returncode == 0, output
    assert records_of(cut) == expected
    starts = (cut / "starts").read_text().split()
    assert len(set(starts)) == len(expected)
    assert len(starts) - len(expected) in (1, 2), "only what was cut off is run again"


def wait_for(folder: Path, moment: str) -> None:
    what, number = moment.rsplit(" ", 1)
    starts = folder / "starts"
    if what == "record":
        done = lambda: (folder / "records.jsonl").exists() and len(records_of(folder)) >= int(number)  # noqa: E731
    else:
        done = lambda: starts.exists() and len(starts.read_text().split()) >= int(number)  # noqa: E731
    assert wait_until(done), f"{moment} never came"


def wait_until(done: Any, seconds: float = 60) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if done():
            return True
        time.sleep(0.01)
    return False


def running_workers(folder: Path) -> list[int]:
    """Processes of fake runs that are still at work."""
    pids = [int(path.name.removeprefix("pid-")) for path in folder.glob("pid-*")]
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]
