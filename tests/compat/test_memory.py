"""The memory that is free, within the limits of a container."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
import torch

from t5peft.compat import containers
from t5peft.compat.containers import free_memory_bytes
from t5peft.compat.memory import available_bytes, free_bytes

GIB = 2**30


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".", 1)).write_text(text)


def second_version(folder: Path, limit: str, used: int, inactive: int) -> None:
    write(
        folder,
        memory__max=f"{limit}\n",
        memory__current=f"{used}\n",
        memory__stat=f"anon 5\ninactive_file {inactive}\n",
    )


def first_version(folder: Path, limit: str, used: int, inactive: int) -> None:
    statistics = f"cache 3\ninactive_file 1\ntotal_inactive_file {inactive}\n"
    write(folder, memory__limit_in_bytes=limit, memory__usage_in_bytes=f"{used}", memory__stat=statistics)


def test_the_limit_of_a_container_counts_and_files_that_can_be_dropped_are_free(tmp_path: Path) -> None:
    second_version(tmp_path / "job", str(8 * GIB), 5 * GIB, GIB)
    second_version(tmp_path / "job" / "run", "max", GIB, 0)
    write(tmp_path, membership="0::/job/run\n")
    assert free_memory_bytes(tmp_path, tmp_path / "membership") == 4 * GIB


def test_the_tightest_of_several_limits_counts(tmp_path: Path) -> None:
    second_version(tmp_path / "job", str(8 * GIB), 7 * GIB, 0)
    second_version(tmp_path / "job" / "run", str(4 * GIB), GIB, 0)
    write(tmp_path, membership="0::/job/run\n")
    assert free_memory_bytes(tmp_path, tmp_path / "membership") == GIB


def test_the_first_version_of_control_groups_is_read_too(tmp_path: Path) -> None:
    first_version(tmp_path / "memory" / "job", str(2 * GIB), 2 * GIB, GIB // 2)
    write(tmp_path, membership="4:memory:/job\n3:cpu,cpuacct:/other\n")
    assert free_memory_bytes(tmp_path, tmp_path / "membership") == GIB // 2


@pytest.mark.parametrize("limit", ["max", "odd", ""])
def test_no_limit_is_none(limit: str, tmp_path: Path) -> None:
    second_version(tmp_path, limit, 1, 1)
    assert free_memory_bytes(tmp_path, tmp_path / "none") is None
    assert free_memory_bytes(tmp_path / "none", tmp_path / "none") is None


def test_more_than_the_limit_in_use_leaves_nothing(tmp_path: Path) -> None:
    second_version(tmp_path, "100", 200, 0)
    assert free_memory_bytes(tmp_path, tmp_path / "none") == 0


def test_a_container_leaves_less_than_its_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr(containers, "free_memory_bytes", lambda: 123)
    assert available_bytes(cpu) == free_bytes(cpu) == 123
    monkeypatch.setattr(containers, "free_memory_bytes", lambda: None)
    assert available_bytes(cpu) == pytest.approx(psutil.virtual_memory().available, rel=0.3)
    assert free_bytes(cpu) >= 0.7 * available_bytes(cpu)
