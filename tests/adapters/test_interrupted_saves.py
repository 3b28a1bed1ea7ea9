"""A save that is killed leaves the old adapter or the new one, and what it leaves beside them goes with the next save."""

from __future__ import annotations

import sys
from pathlib import Path

import narrow
import pytest
import torch
from fresh import run_fresh
from tiny import tiny_records, tiny_t5

from t5peft import T5PeftTrainer, T5PeftTrainingArguments, load_adapter, lora_wrap, save_adapter
from t5peft.adapters import check_output
from t5peft.compat.filesystem import claim, exchange
from t5peft.compat.lock import hold_folder
from t5peft.models import folders
from t5peft.models.folders import replacing
from t5peft.models.manifest import verify, write_manifest_file


@pytest.mark.skipif(sys.platform != "linux", reason="the exchange of two folders is of Linux")
@pytest.mark.parametrize(
    ("first", "stride", "fewest"), [(9, 17, 2), pytest.param(1, 1, 40, marks=pytest.mark.slow)], ids=["some", "all"]
)
@pytest.mark.processes
def test_a_save_that_is_killed_loses_nothing(first: int, stride: int, fewest: int, tmp_path: Path) -> None:
    done = run_fresh(Path(__file__).with_name("kill_saves.py"), tmp_path, first, stride, timeout=1200)
    assert done.returncode == 0, done.stderr[-3000:]
    kills = [int(line.split()[-1]) for line in done.stdout.splitlines()]
    assert len(kills) == 4
    assert min(kills) >= fewest


def saved(folder: Path, rank: int = 1) -> Path:
    return save_adapter(lora_wrap(tiny_t5(), rank=rank), folder)


def rank_of(folder: Path) -> int:
    return narrow.rank_of(load_adapter(folder, model=tiny_t5())[0])


def test_what_0_1_left_hidden_comes_back_at_the_next_load_and_goes_at_the_next_save(tmp_path: Path) -> None:
    folder = saved(tmp_path / "adapter")
    (tmp_path / ".adapter-old-abcd1234").mkdir()
    folder.rename(tmp_path / ".adapter-old-abcd1234" / "adapter")
    (tmp_path / ".adapter-efgh5678" / "new").mkdir(parents=True)
    assert rank_of(folder) == 1
    saved(folder, rank=2)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_a_damaged_old_version_does_not_come_back(tmp_path: Path) -> None:
    folder = saved(tmp_path / "adapter")
    (folder / "adapter_config.json").write_text("{")
    (tmp_path / ".adapter-old-abcd1234").mkdir()
    folder.rename(tmp_path / ".adapter-old-abcd1234" / "adapter")
    with pytest.raises(FileNotFoundError, match="holds no adapter"):
        rank_of(folder)


@pytest.mark.parametrize(
    "name", [".adapter-settings", ".adapter-old-settings", ".other-abcd1234", ".adapter-abcd12345"]
)
def test_a_hidden_folder_of_another_stays(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "notes.txt").write_text("mine")
    saved(saved(tmp_path / "adapter"))
    assert (tmp_path / name / "notes.txt").read_text() == "mine"


def test_a_save_that_still_runs_is_left_alone(tmp_path: Path) -> None:
    running = tmp_path / ".adapter-abcd1234"
    (running / "new").mkdir(parents=True)
    with claim(running) as is_free:
        assert is_free
        saved(tmp_path / "adapter")
        assert (running / "new").is_dir()
    saved(tmp_path / "adapter")
    assert not running.exists()


def test_what_an_interruption_leaves_in_a_folder_is_not_taken_for_a_file_of_another(tmp_path: Path) -> None:
    folder = saved(tmp_path / "adapter")
    (folder / ".adapter-abcd1234" / "new").mkdir(parents=True)
    (folder / ".adapter-abcd1234" / "new" / "adapter_config.json").write_text("{")
    (folder / ".t5peft.json").write_text("{")
    check_output(folder)
    saved(folder, rank=2)
    assert not list(folder.glob(".*"))
    assert rank_of(folder) == 2


def test_a_folder_that_the_system_cannot_move_is_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lower layer of a container's file system, say."""
    folder = saved(tmp_path / "adapter")

    def busy(first: Path, second: Path) -> bool:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(folders, "exchange", busy)
    saved(folder, rank=2)
    assert rank_of(folder) == 2
    assert verify(folder) == []
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_a_failure_between_the_two_renames_puts_the_old_adapter_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, rename = saved(tmp_path / "adapter"), Path.replace

    def fails_once(path: Path, target: Path) -> Path:
        if path.name == folders.NEW and Path(target) == folder:
            raise OSError(5, "Input/output error")
        return rename(path, target)

    monkeypatch.setattr(folders, "exchange", lambda first, second: False)
    monkeypatch.setattr(Path, "replace", fails_once)
    saved(folder, rank=2)  # file by file, as the folder cannot be moved
    assert rank_of(folder) == 2


def test_a_link_to_a_folder_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "adapter").symlink_to(tmp_path / "elsewhere")
    saved(saved(tmp_path / "adapter"), rank=2)
    assert (tmp_path / "adapter").is_symlink()
    assert rank_of(tmp_path / "elsewhere") == 2


def test_the_folder_that_a_process_works_in_is_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = saved(tmp_path / "adapter")
    monkeypatch.chdir(folder)
    saved(Path("."), rank=2)
    assert Path.cwd() == folder
    assert rank_of(Path(".")) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="the exchange of two folders is of Linux")
def test_two_folders_are_exchanged_in_one_step(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    if not exchange(tmp_path / "a", tmp_path / "b"):
        pytest.skip("this file system cannot exchange folders")
    assert (tmp_path / "a" / "b").exists()
    assert (tmp_path / "b" / "a").exists()
    with pytest.raises(FileNotFoundError):
        exchange(tmp_path / "a", tmp_path / "none")


def test_a_model_with_nan_is_not_saved(tmp_path: Path) -> None:
    model = lora_wrap(tiny_t5())
    with torch.no_grad():
        next(p for p in model.parameters() if p.requires_grad).fill_(float("inf"))
    with pytest.raises(ValueError, match="Got an adapter that holds NaN or infinity in these tensors"):
        save_adapter(model, tmp_path / "adapter")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_nothing_but_an_earlier_save_is_exchanged_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "export"

    def save(text: str) -> None:
        with replacing(folder, keep_others=True) as staging:
            (staging / "deep").mkdir()
            for name in ("model.bin", "deep/parity.json"):
                (staging / name).write_text(text)
            write_manifest_file(staging, {})

    save("old")
    monkeypatch.setattr("t5peft.models.folders._fill", lambda *_: pytest.fail("moved file by file"))
    with hold_folder(folder):
        save("new")
    assert {path.read_text() for path in (folder / "model.bin", folder / "deep" / "parity.json")} == {"new"}
    monkeypatch.undo()
    (folder / "notes.txt").write_text("mine")
    save("newest")
    assert (folder / "notes.txt").read_text() == "mine"
    assert (folder / "model.bin").read_text() == "newest"
    assert not verify(folder)


def test_what_an_interrupted_save_left_in_a_checkpoint_goes_with_the_next_one(tmp_path: Path) -> None:
    left = tmp_path / "checkpoint-1"
    left.mkdir()
    (left / ".tmpAbCdEf").write_text("half")
    args = T5PeftTrainingArguments(str(tmp_path), max_steps=1, save_steps=1, report_to="none", use_cpu=True)
    T5PeftTrainer(lora_wrap(tiny_t5(), rank=2), args, train_dataset=tiny_records(3)).train()
    assert not (left / ".tmpAbCdEf").exists()
    assert not verify(left)
