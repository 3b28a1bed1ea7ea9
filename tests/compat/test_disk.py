"""A full, read-only or broken disk is told as such, whatever library meets it."""

from __future__ import annotations

import errno
import shutil
import sqlite3
import subprocess
import tempfile
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import safetensors.torch
import torch
from tiny import tiny_t5

from t5peft import T5PeftTrainer, T5PeftTrainingArguments, lora_wrap, save_adapter
from t5peft.compat.disk import DiskError, as_disk_error, disk_errors
from t5peft.compat.filesystem import write_whole
from t5peft.compat.lock import hold_folder

KIB = 1024


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a small file system is not allowed here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def by_torch(path: Path) -> None:
    torch.save({"a": torch.zeros(KIB * 256)}, path)


def by_safetensors(path: Path) -> None:
    safetensors.torch.save_file({"a": torch.zeros(KIB * 256)}, path)


def by_pyarrow(path: Path) -> None:
    parquet.write_table(pa.table({"a": [str(i) * 50 for i in range(9000)]}), path, compression="NONE")


def by_sqlite(path: Path) -> None:
    connection = sqlite3.connect(path)
    try:
        connection.execute("CREATE TABLE a (b TEXT)")
        connection.executemany("INSERT INTO a VALUES (?)", (("b" * KIB,) for _ in range(512)))
        connection.commit()
    finally:
        connection.close()


def by_python(path: Path) -> None:
    path.write_text("a" * KIB * 512)


@pytest.mark.parametrize("write", [by_torch, by_safetensors, by_pyarrow, by_sqlite, by_python])
@pytest.mark.parametrize("free_kib", [200, 40, 4, 0])
def test_a_full_disk_is_told_with_its_folder_whoever_writes(
    write: Callable[[Path], None], free_kib: int, small_disk: Path
) -> None:
    (small_disk / "ballast").write_bytes(b"0" * (256 - free_kib) * KIB)
    with pytest.raises(DiskError) as told, disk_errors(small_disk):
        write(small_disk / "file")
    assert str(told.value).startswith(f"Got no space left on the disk of the folder {small_disk} (0.")
    assert str(told.value).endswith("what was saved before stays.")
    assert (told.value.errno, told.value.filename) == (errno.ENOSPC, str(small_disk))


@pytest.mark.parametrize("free_kib", [4, 60, 120, 200])
def test_training_on_a_full_disk_ends_in_an_error_that_says_so(free_kib: int, small_disk: Path) -> None:
    (small_disk / "ballast").write_bytes(b"0" * (256 - free_kib) * KIB)
    rows = [{"input_ids": [5, 6, 1], "labels": [7, 1]}] * 4
    arguments = T5PeftTrainingArguments(str(small_disk / "run"), max_steps=4, save_steps=1, report_to="none")
    trainer = T5PeftTrainer(lora_wrap(tiny_t5(), rank=32), arguments, train_dataset=rows)
    with pytest.raises(DiskError, match=f"no space left on the disk of the folder {small_disk}"):
        trainer.train()


def test_an_adapter_that_does_not_fit_is_not_saved_and_the_disk_is_told(small_disk: Path) -> None:
    model = lora_wrap(tiny_t5(), rank=2)
    save_adapter(model, small_disk / "adapter")
    before = {path.name: path.read_bytes() for path in (small_disk / "adapter").iterdir()}
    used = shutil.disk_usage(small_disk).used
    (small_disk / "ballast").write_bytes(b"0" * (256 * KIB - used - 8 * KIB))
    with pytest.raises(DiskError, match=f"no space left on the disk of the folder {small_disk}"):
        save_adapter(model, small_disk / "adapter")
    assert {path.name: path.read_bytes() for path in (small_disk / "adapter").iterdir()} == before


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (OSError(errno.EDQUOT, "Disk quota exceeded", "/a/b"), errno.EDQUOT),
        (OSError(errno.EROFS, "Read-only file system", "/a/b"), errno.EROFS),
        (OSError(errno.EIO, "Input/output error", b"/a/b"), errno.EIO),
        (OSError("I/O error: No space left on device (os error 28)"), errno.ENOSPC),
        (RuntimeError("attempt to write a readonly database"), errno.EROFS),
        (OSError(errno.EFBIG, "File too large"), errno.EFBIG),
        (RuntimeError("Error while serializing: I/O error: File too large (os error 27)"), errno.EFBIG),
        (OSError(errno.ENOENT, "No such file or directory", "/a/b"), None),
        (PermissionError(errno.EACCES, "Permission denied", "/a/b"), None),
        (ValueError("the column 'disk is full' is missing"), None),
        (RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"), errno.EIO),
        (RuntimeError("basic_ios::clear: iostream error"), errno.EIO),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), None),
    ],
)
def test_only_errors_of_the_disk_are_taken_for_such(error: Exception, number: int | None, tmp_path: Path) -> None:
    found = as_disk_error(error, tmp_path)
    assert (found.errno if found else None) == number
    if found is not None:
        named = Path("/a") if isinstance(error, OSError) and error.filename else tmp_path
        assert f"of the folder {named}" in str(found)
        assert as_disk_error(RuntimeError("around it"), tmp_path) is None
        around = RuntimeError("around it")
        around.__cause__ = error
        assert str(as_disk_error(around, tmp_path)) == str(found)


def test_an_error_that_was_dealt_with_is_not_the_cause(tmp_path: Path) -> None:
    error = KeyError("other")
    error.__context__ = OSError(errno.ENOSPC, "No space left on device")
    assert as_disk_error(error, tmp_path) is not None
    error.__suppress_context__ = True  # as ``raise ... from None`` does
    assert as_disk_error(error, tmp_path) is None


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
def test_the_disk_is_asked_for_the_reason_that_torchs_writer_loses(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(dir: Path) -> None:
        raise OSError(number, "as the disk says", str(dir))

    monkeypatch.setattr(tempfile, "TemporaryFile", fail)
    found = as_disk_error(RuntimeError("basic_ios::clear: iostream error"), tmp_path)
    assert found is not None
    assert (found.errno, found.filename) == (number, str(tmp_path))


def test_a_folder_that_goes_away_is_told_as_such(tmp_path: Path) -> None:
    folder = tmp_path / "mounted"
    folder.mkdir()

    def write_while_it_goes_away() -> None:
        with disk_errors(folder):
            folder.rename(tmp_path / "elsewhere")
            (folder / "file").write_text("a")

    with pytest.raises(DiskError, match=f"Got the loss of the folder {folder} while it was written to; expected it"):
        write_while_it_goes_away()
    with pytest.raises(FileNotFoundError), disk_errors(tmp_path):
        (folder / "file").write_text("a")  # it was never there


def test_torchs_writer_is_believed_where_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(100, 100, 0))
    found = as_disk_error(RuntimeError("[enforce fail at inline_container.cc:783] unexpected pos 64 vs 0"), tmp_path)
    assert found is not None
    assert found.errno == errno.ENOSPC


def test_a_folder_that_went_away_and_was_made_anew_by_the_writer_is_told_as_gone(tmp_path: Path) -> None:
    folder = tmp_path / "run"

    def write_while_it_goes_away() -> None:
        with hold_folder(folder):
            folder.rename(tmp_path / "elsewhere")
            folder.mkdir()
            raise ValueError("Got no weights in the run.")

    with pytest.raises(DiskError, match=f"Got the loss of the folder {folder}"):
        write_while_it_goes_away()


def test_a_file_whose_folder_went_away_before_it_was_written_is_told_as_such(tmp_path: Path) -> None:
    with pytest.raises(DiskError, match=f"Got the loss of the folder {tmp_path / 'gone'}"):
        write_whole(tmp_path / "gone" / "task.yaml", "name: task")
