"""Continued training of a saved adapter, and its replacement."""

from __future__ import annotations

import json
from dataclasses import replace as replace_fields
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import held_elsewhere
from films import TASK, config, records
from safetensors.torch import load_file
from tiny import tiny_t5
from transformers import TrainerCallback

from t5peft import METHODS, T5PeftTrainingArguments, load_adapter, load_backbone, lora_wrap, save_adapter
from t5peft.cli import main
from t5peft.compat.lock import FolderInUseError
from t5peft.evaluation import evaluate_task
from t5peft.training.continue_training import ContinuedTraining, continue_training, replace
from t5peft.training.train import TrainConfig, train


def test_continued_training_saves_a_new_version_with_both_scores_and_leaves_the_old_one(
    backbone: str, tmp_path: Path
) -> None:
    old = save_adapter(lora_wrap(load_backbone(backbone)[0]), tmp_path / "v1")
    before = {path.name: path.read_bytes() for path in old.iterdir()}
    tests = {"new_test": records(6, 300), "old_test": records(6, 400)}
    given: dict[str, Any] = {
        **tests,
        "config": replace_fields(config(backbone), learning_rate=0.1, steps=6),
        "output": tmp_path / "v2",
    }
    task = replace_fields(TASK, metrics=("perplexity", "accuracy"))
    report = continue_training(old, task, records(12, 200), records(12), **given)
    assert {path.name: path.read_bytes() for path in old.iterdir()} == before
    scores = {}
    for folder in (old, tmp_path / "v2"):
        model, tokenizer = load_adapter(folder)
        scores[folder.name] = [evaluate_task(model, tokenizer, task, test)["perplexity"] for test in tests.values()]
    assert [report.new_before, report.old_before] == pytest.approx(scores["v1"])
    assert [report.new_after, report.old_after] == pytest.approx(scores["v2"])
    assert report.new_after < report.new_before - 1, "the training must show"
    assert ContinuedTraining(**json.loads((tmp_path / "v2" / "retuning.json").read_text())) == report
    assert sorted(path.name for path in tmp_path.iterdir()) == ["backbone", "v1", "v2"]


def test_an_adapter_in_the_output_is_replaced_only_where_that_is_asked_for(backbone: str, tmp_path: Path) -> None:
    old = save_adapter(lora_wrap(load_backbone(backbone)[0]), tmp_path / "v1")
    other = save_adapter(lora_wrap(load_backbone(backbone)[0]), tmp_path / "v2")
    before = (other / "adapter_model.safetensors").read_bytes()
    given: dict[str, Any] = {
        "new_test": records(2),
        "old_test": records(2),
        "config": config(backbone),
        "output": other,
    }
    with pytest.raises(ValueError, match=r"Got the output .*v2, which holds an adapter; .* --overwrite"):
        continue_training(old, TASK, records(4, 20), records(4), **given)
    assert (other / "adapter_model.safetensors").read_bytes() == before
    continue_training(old, TASK, records(4, 20), records(4), **given, overwrite=True)
    assert (other / "adapter_model.safetensors").read_bytes() != before


def test_two_runs_do_not_train_into_one_output(backbone: str, tmp_path: Path) -> None:
    old = save_adapter(lora_wrap(load_backbone(backbone)[0]), tmp_path / "v1")
    given: dict[str, Any] = {
        "new_test": records(2),
        "old_test": records(2),
        "config": config(backbone),
        "output": tmp_path / "v2",
    }
    with held_elsewhere(tmp_path / ".v2-work"), pytest.raises(FolderInUseError):
        continue_training(old, TASK, records(4, 20), records(4), **given)


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if name != "full" and not method.quantize])
def test_an_adapter_is_tuned_again_at_its_own_methods_learning_rate(
    method: str, backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stop(Exception):
        pass

    def stop(args: T5PeftTrainingArguments, **_: Any) -> None:
        raise Stop(args.learning_rate)

    monkeypatch.setattr("t5peft.training.train.T5PeftTrainer", stop)
    old = save_adapter(METHODS[method].wrap(load_backbone(backbone)[0]), tmp_path / "v1")
    given: dict[str, Any] = {
        "new_test": records(2),
        "old_test": records(2),
        "config": TrainConfig(steps=1),
        "output": tmp_path / "v2",
    }
    with pytest.raises(Stop) as rate:
        continue_training(old, TASK, records(8, 20), records(4), **given)
    assert rate.value.args == (METHODS[method].learning_rate,)


def test_a_worse_version_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "v1").mkdir()
    worse = ContinuedTraining(
        "accuracy", old_before=0.9, old_after=0.8, new_before=0.5, new_after=0.7, folder=str(tmp_path / "v2")
    )
    with pytest.raises(
        ValueError, match=r"that is worse than .*accuracy on the old records went from 0\.9000 to 0\.8000"
    ):
        replace(tmp_path / "v1", worse)
    assert [path.name for path in tmp_path.iterdir()] == ["v1"]
    assert worse.worse(tolerance=0.15) == []
    assert worse.forgotten == pytest.approx(0.1)


def test_a_better_version_takes_the_place_and_the_old_one_is_kept(tmp_path: Path) -> None:
    for name in ("v1", "v2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "which").write_text(name)
    better = ContinuedTraining(
        "accuracy", old_before=0.8, old_after=0.8, new_before=0.5, new_after=0.7, folder=str(tmp_path / "v2")
    )
    replace(tmp_path / "v1", better)
    assert (tmp_path / "v1" / "which").read_text() == "v2"
    assert (tmp_path / "v1.old" / "which").read_text() == "v1"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["v1", "v1.old", "v2"]


@pytest.mark.parametrize("folder", ["v1.old", "absent"])
def test_a_new_version_is_not_lost_where_it_takes_the_old_ones_place(folder: str, tmp_path: Path) -> None:
    for name in ("v1", "v1.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "which").write_text(name)
    better = ContinuedTraining(
        "accuracy", old_before=0.8, old_after=0.8, new_before=0.5, new_after=0.7, folder=str(tmp_path / folder)
    )
    if folder == "absent":
        with pytest.raises(FileNotFoundError):
            replace(tmp_path / "v1", better)
    else:
        replace(tmp_path / "v1", better)
    kept = {"v1": "v1", "v1.old": "v1.old"}
    if folder != "absent":
        kept = {"v1": "v1.old", "v1.old": "v1.old", "v1.old-2": "v1"}
    assert {path.name: (path / "which").read_text() for path in tmp_path.iterdir()} == kept


def test_a_new_record_without_text_is_named_by_its_row(backbone: str, tmp_path: Path) -> None:
    old = save_adapter(lora_wrap(load_backbone(backbone)[0]), tmp_path / "v1")
    new: list[dict[str, Any]] = [*records(4, 20)]
    column = TASK.columns[0]
    new[2] = {**new[2], column: None}
    given: dict[str, Any] = {
        "new_test": records(2),
        "old_test": records(2),
        "config": config(backbone),
        "output": tmp_path / "v2",
    }
    with pytest.raises(ValueError, match=rf"The column '{column}' holds NoneType in row 2;"):
        continue_training(old, TASK, new, records(4), **given)


def test_an_output_that_cannot_be_saved_to_is_told_before_the_training(
    backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    old = save_adapter(lora_wrap(load_backbone(backbone)[0]), tmp_path / "v1")
    for folder in (tmp_path / "v2", tmp_path / "run" / "adapter"):
        folder.mkdir(parents=True)
        (folder / "notes.txt").write_text("of the user")
    monkeypatch.setattr("t5peft.training.train.T5PeftTrainer", None)
    given: dict[str, Any] = {
        "new_test": records(2),
        "old_test": records(2),
        "config": config(backbone),
        "output": tmp_path / "v2",
    }
    with pytest.raises(ValueError, match=r"v2 to save an adapter to, which contains .*\['notes.txt'\]"):
        continue_training(old, TASK, records(4, 20), records(4), **given)
    (tmp_path / "films.csv").write_text("text,label\n" + "\n".join(f"film {i},{i % 2}" for i in range(24)))
    data = ["--task", "classification", "--train", str(tmp_path / "films.csv"), "--backbone", backbone]
    assert main(["train", *data, "--output", str(tmp_path / "run")]) == 2
    assert "which contains files that do not belong to an earlier adapter" in capsys.readouterr().err


def test_checkpoints_of_tuning_again_stay_until_the_new_version_is_saved(
    backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise OSError("disk full")

    old = save_adapter(lora_wrap(load_backbone(backbone)[0]), tmp_path / "v1")
    monkeypatch.setattr("t5peft.training.continue_training.save_adapter", broken)
    given: dict[str, Any] = {
        "new_test": records(2),
        "old_test": records(2),
        "config": config(backbone),
        "output": tmp_path / "v2",
    }
    with pytest.raises(OSError, match="disk full"):
        continue_training(old, TASK, records(8, 20), records(4), **given)
    assert list((tmp_path / ".v2-work").glob("checkpoint-*"))


def test_the_output_of_tuning_again_may_not_be_the_adapter_itself(backbone: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="which is the adapter itself"):
        continue_training(tmp_path, TASK, [], [], new_test=[], old_test=[], config=config(backbone), output=tmp_path)


@pytest.mark.parametrize(
    "changed", [None, "records", *(pytest.param(name, marks=pytest.mark.slow) for name in ("config", "adapter"))]
)
def test_an_interrupted_call_goes_on_where_it_was_killed(
    changed: str | None, backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    class Kill(TrainerCallback):
        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 2:
                raise Killed

    class Count(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            steps.append(state.global_step)

    steps: list[int] = []
    old = save_adapter(lora_wrap(load_backbone(backbone)[0]), tmp_path / "v1")
    settings = replace_fields(config(backbone), steps=6, evaluations=3)
    given: dict[str, Any] = {"new_test": records(4, 300), "old_test": records(4, 400), "config": settings}
    whole = continue_training(old, TASK, records(12, 20), records(6), **given, output=tmp_path / "whole")

    def train_with(callback: TrainerCallback) -> None:
        monkeypatch.setattr(
            "t5peft.training.continue_training.train",
            lambda *args, **kwargs: train(*args, callbacks=[callback], **kwargs),
        )

    train_with(Kill())
    with pytest.raises(Killed):
        continue_training(old, TASK, records(12, 20), records(6), **given, output=tmp_path / "v2")
    train_with(Count())
    new = records(12, 20)
    if changed == "records":
        new[3]["text"] = "another"
    if changed == "config":
        given["config"] = replace_fields(settings, learning_rate=2e-2)
    if changed == "adapter":
        save_adapter(lora_wrap(load_backbone(backbone)[0]), old)
    report = continue_training(old, TASK, new, records(6), **given, output=tmp_path / "v2")
    assert steps == list(range(2 if changed is None else 0, 6))
    assert not (tmp_path / ".v2-work").exists()
    if changed is None:
        assert replace_fields(report, folder="") == replace_fields(whole, folder="")
        ours, plain = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("v2", "whole"))
        assert all(torch.equal(ours[name], plain[name]) for name in plain)


def test_the_adapter_is_there_at_every_moment_of_its_replacement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("v1", "v2"):
        save_adapter(lora_wrap(tiny_t5()), tmp_path / name)
    new = (tmp_path / "v2" / "adapter_model.safetensors").read_bytes()
    old = (tmp_path / "v1" / "adapter_model.safetensors").read_bytes()
    moves: list[str] = []

    def watched(name: str) -> None:
        move = getattr(Path, name)

        def watch(path: Path, target: Any) -> Any:
            result = move(path, target)
            moves.append(name)
            assert (tmp_path / "v1" / "adapter_model.safetensors").read_bytes() in (old, new)
            return result

        monkeypatch.setattr(Path, name, watch)

    for name in ("rename", "replace"):
        watched(name)
    better = ContinuedTraining("accuracy", 0.8, 0.8, 0.5, 0.7, folder=str(tmp_path / "v2"))
    replace(tmp_path / "v1", better)
    assert moves
    assert (tmp_path / "v1" / "adapter_model.safetensors").read_bytes() == new
    assert (tmp_path / "v1.old" / "adapter_model.safetensors").read_bytes() == old
    assert sorted(path.name for path in tmp_path.iterdir()) == ["v1", "v1.old", "v2"]
