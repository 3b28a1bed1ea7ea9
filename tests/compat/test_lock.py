"""Locks on output folders: two runs never write to one place, and no dead process keeps a lock."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from commands import held_elsewhere

from t5peft.compat.lock import LOCK, FolderInUseError, hold_file, hold_folder


@pytest.fixture
def without_flock(monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)


@pytest.mark.parametrize("hold", [hold_folder, hold_file])
def test_what_another_process_holds_is_refused_by_its_name_until_that_is_killed(
    hold: Callable[[Path], AbstractContextManager[None]], tmp_path: Path
) -> None:
    path = tmp_path / "runs" / "one"
    with held_elsewhere(path, hold.__name__) as process:
        with pytest.raises(FolderInUseError) as refused, hold(path):
            pytest.fail("held twice")
        for part in (str(path), f"process {process.pid} on host {socket.gethostname()}", "another output"):
            assert part in str(refused.value)
        process.send_signal(signal.SIGKILL)
        process.wait()
        with hold(path):
            pass
    assert not list(tmp_path.rglob("*.lock"))


WITH_A_WORKER = """
import os, sys, time
from t5peft.compat.lock import hold_folder

with hold_folder(sys.argv[1]):
    worker = os.fork()  # as a data loader does
    if worker == 0:
        print(os.getpid(), flush=True)
        time.sleep(30)
        os._exit(0)
    time.sleep(30)
"""


def test_a_worker_that_outlives_its_killed_parent_holds_nothing(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", WITH_A_WORKER, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    worker = int(process.stdout.readline())
    try:
        with pytest.raises(FolderInUseError), hold_folder(tmp_path / "run"):
            pytest.fail("held twice")
        process.kill()
        process.wait()
        os.kill(worker, 0)  # it is alive
        with hold_folder(tmp_path / "run"):
            pass
    finally:
        os.kill(worker, signal.SIGKILL)
        process.stdout.close()


def test_a_forked_process_that_leaves_the_block_does_not_free_it(tmp_path: Path) -> None:
    with hold_folder(tmp_path):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                with hold_folder(tmp_path):
                    pass
            except FolderInUseError:  # its parent holds it
                status = 0
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
        assert (tmp_path / LOCK).is_file()


def test_blocks_of_one_thread_nest_and_another_thread_is_refused(tmp_path: Path) -> None:
    errors: list[Exception] = []

    def hold() -> None:
        try:
            with hold_folder(tmp_path / "run"):
                pass
        except FolderInUseError as error:
            errors.append(error)

    def in_a_thread() -> None:
        thread = threading.Thread(target=hold)
        thread.start()
        thread.join()

    with hold_folder(tmp_path / "run"):
        with hold_folder(str(tmp_path / "run")):
            pass
        in_a_thread()
        assert len(errors) == 1
    in_a_thread()
    assert len(errors) == 1


def test_a_folder_in_which_nothing_was_written_goes_again_and_no_other(tmp_path: Path) -> None:
    with hold_folder(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b" / LOCK).is_file()
    assert not (tmp_path / "a").exists()
    with hold_folder(tmp_path / "a" / "b"):
        (tmp_path / "a" / "note").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "note"]
    (tmp_path / "empty").mkdir()
    with hold_folder(tmp_path / "empty"):
        pass
    assert (tmp_path / "empty").is_dir()


def entry(**changes: object) -> str:
    import psutil

    process = psutil.Process(os.getppid())
    own = {"pid": process.pid, "host": socket.gethostname(), "created": process.create_time()}
    return json.dumps(own | changes)


@pytest.mark.usefixtures("without_flock")
@pytest.mark.parametrize(
    ("content", "free"),
    [
        (entry(), False),
        (entry(host="elsewhere"), False),
        (entry(pid=2**22 + 1), True),
        (entry(created=0.0), True),  # the number went to another process meanwhile
        ("", True),
        ("{", True),
        ("[1]", True),
    ],
    ids=["alive", "other host", "dead", "number taken again", "empty", "cut", "foreign"],
)
def test_without_flock_only_the_lock_of_a_process_that_may_live_counts(
    content: str, free: bool, tmp_path: Path
) -> None:
    (tmp_path / LOCK).write_text(content)
    if free:
        with hold_folder(tmp_path):
            assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
        assert not (tmp_path / LOCK).exists()
    else:
        with pytest.raises(FolderInUseError, match="delete"), hold_folder(tmp_path):
            pytest.fail("held twice")
        assert (tmp_path / LOCK).read_text() == content


def test_a_lock_file_that_its_holder_deletes_meanwhile_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between opening the file and locking it: the lock would be one on a file that nobody else can see."""
    flock = fcntl.flock
    calls: list[int] = []

    def slow(descriptor: int, operation: int) -> None:
        if not calls:
            (tmp_path / LOCK).unlink()
        calls.append(operation)
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", slow)
    with hold_folder(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    assert len(calls) == 2


@pytest.mark.parametrize("name", ["RANK", "OMPI_COMM_WORLD_RANK"])
def test_of_a_distributed_run_rank_0_holds_the_folder_for_all(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with held_elsewhere(tmp_path):
        monkeypatch.setenv(name, "1")
        with hold_folder(tmp_path):
            pass
        monkeypatch.setenv(name, "0")
        with pytest.raises(FolderInUseError), hold_folder(tmp_path):
            pytest.fail("held twice")


def test_a_lock_that_cannot_be_deleted_ends_nothing_and_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path, missing_ok: bool = False) -> None:
        raise OSError(5, "Input/output error", str(path))

    monkeypatch.setattr(Path, "unlink", fail)
    for _ in range(2):
        with hold_folder(tmp_path):
            pass
    assert (tmp_path / LOCK).exists()


def test_a_place_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("a")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere" / "x")
    held: list[tuple[Callable[[Path], AbstractContextManager[None]], Path, str]] = [
        (hold_folder, tmp_path / "table.csv", "table.csv is a file; expected one to write to"),
        (hold_folder, tmp_path / "table.csv" / "run", "table.csv is a file; expected one to write to"),
        (hold_folder, tmp_path / "link", "link is a file"),
        (hold_file, tmp_path / "table.csv" / "out.csv", "table.csv is a file; expected one to write to"),
        (hold_folder, Path("/proc/run"), "which cannot be created .No such file"),
        (hold_file, Path("/proc/out.csv"), "which cannot be written to .No such file"),
    ]
    for hold, path, message in held:
        with pytest.raises(OSError, match=f"^Got the (folder|file) .*{message}"), hold(path):
            pass
    with pytest.raises(ValueError, match="Got an empty name of a folder"), hold_folder(""):
        pass
    assert (tmp_path / "table.csv").read_text() == "a"
