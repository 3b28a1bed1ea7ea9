"""Threads leave the cores to other programs: what is set before torch is loaded, and what is watched afterwards."""

from __future__ import annotations

import logging
import os
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from t5peft.compat import threads
from t5peft.compat.threads import COUNTS, VARIABLES, Watcher, available_cores, is_loaded, settings, warn_if_late

SECOND = 1_000_000_000


@pytest.fixture
def four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


@pytest.mark.usefixtures("four_cores")
@pytest.mark.parametrize(
    ("limit", "cores"), [("max 100000", 4), ("200000 100000", 2), ("150000 100000", 2), ("5000 100000", 1), ("odd", 4)]
)
def test_the_quota_of_a_container_is_counted_in_cores(limit: str, cores: int, tmp_path: Path) -> None:
    write(tmp_path / "v2" / "job", cpu__max=limit)
    write(tmp_path, membership="0::/job/run\n")
    assert available_cores(tmp_path / "v2", tmp_path / "membership") == cores


@pytest.mark.usefixtures("four_cores")
@pytest.mark.parametrize(("limit", "cores"), [("-1", 4), ("300000", 3), ("250000", 3)])
def test_the_first_version_of_control_groups_is_read_too(limit: str, cores: int, tmp_path: Path) -> None:
    write(tmp_path / "v1" / "cpu" / "job", cpu__cfs_quota_us=limit, cpu__cfs_period_us="100000")
    write(tmp_path, membership="4:memory:/job\n3:cpu,cpuacct:/job\n")
    assert available_cores(tmp_path / "v1", tmp_path / "membership") == cores


@pytest.mark.usefixtures("four_cores")
def test_without_control_groups_the_affinity_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 3}, raising=False)
    assert available_cores(tmp_path, tmp_path / "none") == 2


@pytest.mark.usefixtures("four_cores")
@pytest.mark.parametrize(("load", "loaded"), [(0.0, False), (3.9, False), (4.0, True), (20.0, True)])
def test_a_machine_is_loaded_when_programs_want_all_cores(load: float, loaded: bool) -> None:
    assert is_loaded(load) == loaded


@pytest.mark.usefixtures("four_cores")
def test_only_what_is_needed_is_set() -> None:
    assert settings({}, cores=4, loaded=False, watched=True) == {}
    assert settings({}, cores=4, loaded=True, watched=True) == {}
    assert settings({}, cores=2, loaded=False, watched=True) == dict.fromkeys(COUNTS, "2")
    assert settings({}, cores=4, loaded=True, watched=False)["OMP_WAIT_POLICY"] == "PASSIVE"


@pytest.mark.usefixtures("four_cores")
@pytest.mark.parametrize("name", VARIABLES)
def test_the_settings_of_the_user_stay(name: str) -> None:
    assert settings({name: "x"}, cores=4, loaded=True, watched=False) == {}
    counts = settings({"OMP_NUM_THREADS": "3"}, cores=2, loaded=False, watched=True)
    assert counts == {"MKL_NUM_THREADS": "2", "RAYON_NUM_THREADS": "2"}


class Looked(Watcher):
    """A watcher that only counts what it would do."""

    def __init__(self) -> None:
        super().__init__()
        self.time = {"1": (0, 0), "2": (0, 0)}
        self._times = dict(self.time)

    def _shorten(self) -> None:
        self.shortened = True

    def _lengthen(self) -> None:
        self.shortened = False

    def see(self, ran: float, waited: float) -> bool:
        """One more look, after both threads ran and waited for so many seconds."""
        self.time = {task: (r + round(ran * SECOND), w + round(waited * SECOND)) for task, (r, w) in self.time.items()}
        self.look(self.time)
        return self.shortened


def test_threads_that_wait_for_a_core_wait_for_each_other_in_short_loops() -> None:
    watcher = Looked()
    assert not watcher.see(0.25, 0.0)
    assert not watcher.see(0.25, 0.02)
    assert watcher.see(0.13, 0.12)


def test_loops_are_long_again_when_the_neighbor_is_gone_for_a_while() -> None:
    watcher = Looked()
    assert watcher.see(0.13, 0.12)
    assert all(watcher.see(0.2, 0.02) for _ in range(20)), "a share in between changes nothing"
    assert [watcher.see(0.2, 0.001) for _ in range(6)] == [True] * 5 + [False]


def test_one_crowded_look_starts_the_count_anew() -> None:
    watcher = Looked()
    watcher.see(0.13, 0.12)
    for _ in range(5):
        watcher.see(0.2, 0.0)
    watcher.see(0.2, 0.02)
    assert watcher.see(0.2, 0.0)


def test_a_process_at_rest_tells_nothing() -> None:
    watcher = Looked()
    assert not watcher.see(0.001, 0.02)


def test_a_thread_that_is_new_counts_and_one_that_is_gone_does_not() -> None:
    before = {"1": (10, 1), "2": (50, 50)}
    assert threads._since(before, {"1": (30, 4), "3": (5, 6)}) == (25, 9)


def test_a_team_lives_until_it_is_released(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real threads, with a torch that tells which of them computed."""
    computed = threading.Event()

    class Zeros:
        def add_(self, _: int) -> None:
            computed.set()

    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(zeros=lambda _: Zeros()))
    watcher = Watcher()
    watcher._shorten()
    assert computed.wait(10)
    [team] = [thread for thread in threading.enumerate() if thread.name == "t5peft-team"]
    watcher._lengthen()
    team.join(10)
    assert not team.is_alive()


def test_users_settings_and_second_calls_start_no_watcher(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    monkeypatch.setattr(threads, "_watcher", None)
    monkeypatch.setattr(threads, "can_watch", lambda: True)
    monkeypatch.setattr(Watcher, "run", lambda self: started.append(self))
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    threads.watch()
    assert threads._watcher is None
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    threads.watch()
    threads.watch()
    for thread in threading.enumerate():
        if thread.name == "t5peft-threads":
            thread.join(10)
    assert len(started) == 1


@pytest.mark.parametrize(("load", "count", "logged"), [(9.0, 2, True), (0.5, 2, False), (9.0, 1, False)])
def test_a_late_import_on_a_busy_machine_says_so_by_logging(
    load: float, count: int, logged: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Not as a warning, which ``-W error`` would turn into a failure that depends on the load."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(os, "getloadavg", lambda: (load, load, load), raising=False)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(get_num_threads=lambda: count))
    with caplog.at_level(logging.WARNING):
        warn_if_late()
    assert ("OMP_WAIT_POLICY=PASSIVE" in caplog.text) == logged
    monkeypatch.delitem(sys.modules, "torch")
    caplog.clear()
    warn_if_late()
    assert not caplog.text
