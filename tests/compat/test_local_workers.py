"""Work spread over processes of this machine: in order, errors as they are, a process that dies."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator

import pytest

from t5peft.compat.ray import has_cluster, open_workers
from t5peft.compat.threads import available_cores
from t5peft.compat.workers import LocalWorkers, threads_of_each


@pytest.fixture(scope="module")
def workers() -> Iterator[LocalWorkers]:
    with LocalWorkers(2, threads=3) as opened:
        yield opened


def double(number: int) -> int:
    return 2 * number


def refuse(number: int) -> int:
    raise ValueError(f"Got {number}; expected another.")


def state(number: int) -> tuple[int, str, bool]:
    return os.getpid(), os.environ["OMP_NUM_THREADS"], "torch" in sys.modules


def die(number: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def wait_for_ever(number: int) -> None:
    signal.pause()


def test_results_come_in_order_and_errors_as_they_are(workers: LocalWorkers) -> None:
    asked: list[int] = []

    def jobs() -> Iterator[int]:
        for number in range(1000):
            asked.append(number)
            yield number

    results = workers.in_order(double, jobs())
    assert [next(results) for _ in range(7)] == [0, 2, 4, 6, 8, 10, 12]
    assert len(asked) <= 12, "jobs are read only a few ahead"
    with pytest.raises(ValueError, match=r"^Got 3; expected another\.$"):
        workers.submit(refuse, 3).result()


def test_a_worker_has_its_threads_before_torch_is_imported(workers: LocalWorkers) -> None:
    process, threads, imported = workers.submit(state, 0).result()
    assert process != os.getpid()
    assert (threads, imported) == ("3", False)


def test_a_worker_that_dies_is_one_clear_error_and_the_others_go_on() -> None:
    with LocalWorkers(2) as opened:
        waiting = opened.submit(wait_for_ever, 0)
        with pytest.raises(ChildProcessError, match="killed, as the system does when memory runs out"):
            opened.submit(die, 0).result(timeout=60)
        assert opened.submit(double, 1).result(timeout=60) == 2
    with pytest.raises(ChildProcessError):
        waiting.result(timeout=60)


def test_calls_that_run_end_with_the_workers() -> None:
    with LocalWorkers(1) as opened:
        process, *_ = opened.submit(state, 0).result()
        opened.submit(wait_for_ever, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def test_the_cores_are_shared_and_ray_is_taken_where_there_is_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    assert threads_of_each(1) == available_cores()
    assert threads_of_each(1000) == 1
    with pytest.raises(ValueError, match=r"^Got workers=0; expected at least 1\.$"):
        open_workers(0)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    ray = sys.modules.get("ray")
    assert has_cluster() == (ray is not None and ray.is_initialized())
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert has_cluster()
