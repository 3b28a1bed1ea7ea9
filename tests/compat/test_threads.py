"""Threads leave the cores to other programs: what is set before torch is loaded."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from t5peft.compat import threads
from t5peft.compat.threads import COUNTS, VARIABLES, available_cores, is_loaded, settings, warn_if_late


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
@pytest.mark.parametrize(("load", "loaded"), [(0.0, False), (1.9, False), (2.0, True), (20.0, True)])
def test_a_machine_is_loaded_when_programs_want_half_of_the_cores(load: float, loaded: bool) -> None:
    assert is_loaded(load) == loaded


@pytest.mark.usefixtures("four_cores")
def test_only_what_is_needed_is_set() -> None:
    assert settings({}, cores=4, loaded=False) == {}
    assert settings({}, cores=2, loaded=False) == dict.fromkeys(COUNTS, "2")
    assert settings({}, cores=4, loaded=True)["OMP_WAIT_POLICY"] == "PASSIVE"


@pytest.mark.usefixtures("four_cores")
@pytest.mark.parametrize("name", VARIABLES)
def test_the_settings_of_the_user_stay(name: str) -> None:
    assert settings({name: "x"}, cores=4, loaded=True) == {}
    counts = settings({"OMP_NUM_THREADS": "3"}, cores=2, loaded=False)
    assert counts == {"MKL_NUM_THREADS": "2", "RAYON_NUM_THREADS": "2"}


def test_threads_that_run_at_this_moment_count(tmp_path: Path) -> None:
    (tmp_path / "loadavg").write_text("0.10 0.20 0.30 3/345 12345\n")
    assert threads._running_now(tmp_path / "loadavg") == 2
    assert threads._running_now(tmp_path / "none") == 0


@pytest.mark.parametrize(("load", "count", "logged"), [(9.0, 2, True), (0.5, 2, False), (9.0, 1, False)])
def test_a_late_import_on_a_busy_machine_says_so_by_logging(
    load: float, count: int, logged: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Not as a warning, which ``-W error`` would turn into a failure that depends on the load."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(threads, "_running_now", lambda: load)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(get_num_threads=lambda: count))
    with caplog.at_level(logging.WARNING):
        warn_if_late()
    assert ("OMP_WAIT_POLICY=PASSIVE" in caplog.text) == logged
    monkeypatch.delitem(sys.modules, "torch")
    caplog.clear()
    warn_if_late()
    assert not caplog.text
