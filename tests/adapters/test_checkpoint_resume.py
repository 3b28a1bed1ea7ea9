"""Checkpoints of the trainer that are whole, damaged or of an earlier run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from damaged_adapters import flip_a_bit, lose_the_weights, train

from t5peft.adapters.checkpoints import newest_complete
from t5peft.adapters.manifest import MANIFEST


@pytest.mark.parametrize(
    "damage", [lambda f: (f / MANIFEST).unlink(), flip_a_bit, lose_the_weights, lambda f: (f / "optimizer.pt").unlink()]
)
def test_resuming_passes_over_a_checkpoint_that_is_not_whole(damage: Callable[[Path], None], tmp_path: Path) -> None:
    trainer = train(tmp_path)
    trainer.train()
    whole = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    damage(tmp_path / "checkpoint-6")
    assert newest_complete(tmp_path) == tmp_path / "checkpoint-4"
    resumed = train(tmp_path)
    resumed.train(resume_from_checkpoint=True)
    assert [entry["loss"] for entry in resumed.state.log_history if "loss" in entry] == whole


def test_a_damaged_checkpoint_that_is_named_is_refused(tmp_path: Path) -> None:
    train(tmp_path).train()
    flip_a_bit(tmp_path / "checkpoint-6")
    with pytest.raises(ValueError, match=r"cannot be resumed from: adapter_model\.safetensors was changed or damaged"):
        train(tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))


def test_resuming_from_nothing_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Got no complete checkpoint to resume from in"):
        train(tmp_path).train(resume_from_checkpoint=True)


def test_checkpoints_of_an_earlier_run_in_the_folder_are_older_and_go_first(tmp_path: Path) -> None:
    train(tmp_path, steps=10).train()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-8"]
    train(tmp_path, steps=4).train()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-2", "checkpoint-4"]
    train(tmp_path, steps=2).train()
    assert newest_complete(tmp_path) == tmp_path / "checkpoint-2"
