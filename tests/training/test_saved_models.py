"""Folders of ``T5PeftTrainer.save_model`` and its checkpoints: they hold a manifest, and no path of the machine."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from narrow import model_of
from safetensors.torch import load_file
from test_drop_in import trainer_of
from tiny import tiny_batch, tiny_t5, tiny_tokenizer

from t5peft import T5PeftTrainer, load_adapter, load_backbone, lora_wrap
from t5peft.adapters import base_of, save_model
from t5peft.models.backbone import MINI
from t5peft.models.manifest import MANIFEST, verify


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 64
    path.write_bytes(content)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_model_that_the_trainer_saved_is_verified_when_it_is_loaded(method: str, tmp_path: Path) -> None:
    model = tiny_t5() if method == "full" else lora_wrap(tiny_t5())
    trainer = trainer_of(T5PeftTrainer, model, tmp_path / "run", save_strategy="steps", save_steps=1)
    trainer.train()
    trainer.save_model()
    # what the example scripts write beside it
    trainer.save_state()
    trainer.save_metrics("train", {"loss": 1.0})
    trainer.create_model_card(tasks="summarization")
    (tmp_path / "run" / "checkpoint-1" / "scheduler.pt").unlink()
    assert verify(tmp_path / "run") == []
    weights = "model.safetensors" if method == "full" else "adapter_model.safetensors"

    def load() -> Any:
        if method == "full":
            return load_backbone(tmp_path / "run")[0]
        return load_adapter(tmp_path / "run", model=tiny_t5())[0]

    batch = tiny_batch()
    assert torch.equal(load().eval()(**batch).logits, model_of(trainer).eval()(**batch).logits)
    flip_a_bit(tmp_path / "run" / weights)
    with pytest.raises(ValueError, match=f"{weights} was changed or damaged since it was saved"):
        load()


def test_a_model_is_saved_by_the_trainer_as_by_the_library(tmp_path: Path) -> None:
    trainer = trainer_of(T5PeftTrainer, tiny_t5(), tmp_path)
    trainer.save_model(str(tmp_path / "ours"))
    save_model(tiny_t5(), tmp_path / "library", tokenizer=tiny_tokenizer())
    ours, library = ({path.name for path in (tmp_path / name).iterdir()} for name in ("ours", "library"))
    assert ours == library | {"training_args.bin"}


def test_saving_again_replaces_the_model_and_keeps_what_else_is_in_the_folder(tmp_path: Path) -> None:
    trainer = trainer_of(T5PeftTrainer, tiny_t5(), tmp_path)
    trainer.save_model()
    (tmp_path / "notes.txt").write_text("of the user")
    with torch.no_grad():
        model_of(trainer).get_parameter("shared.weight").mul_(2)
    trainer.save_model()
    kept = model_of(trainer).get_parameter("shared.weight")
    assert torch.equal(load_file(tmp_path / "model.safetensors")["shared.weight"], kept)
    assert verify(tmp_path) == []
    assert (tmp_path / "notes.txt").read_text() == "of the user"
    assert not list(tmp_path.glob(".*"))


def test_a_model_card_of_the_user_stays(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("What it is for.")
    trainer = trainer_of(T5PeftTrainer, lora_wrap(tiny_t5()), tmp_path)
    trainer.save_model()
    assert "What it is for." in (tmp_path / "README.md").read_text()


def test_a_save_of_the_users_own_is_part_of_the_saved_model(tmp_path: Path) -> None:
    class Own(T5PeftTrainer):
        def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
            super()._save(output_dir, state_dict)
            assert output_dir is not None
            (Path(output_dir) / "own.txt").write_text("own")

    trainer_of(Own, tiny_t5(), tmp_path).save_model()
    assert (tmp_path / "own.txt").read_text() == "own"
    assert verify(tmp_path) == []


@pytest.mark.parametrize("kind", ["checkpoint", "saved model", "second adapter"])
def test_what_is_saved_beside_mini_names_it_and_not_its_path(kind: str, tmp_path: Path) -> None:
    model = lora_wrap(load_backbone("mini")[0], rank=2)
    if kind == "second adapter":
        model.add_adapter("second", copy.deepcopy(model.peft_config["default"]))
        model.set_adapter("second")
    given = {"max_steps": 1, "per_device_train_batch_size": 1, "save_strategy": "steps", "save_steps": 1}
    trainer = trainer_of(T5PeftTrainer, model, tmp_path, **given)
    trainer.train()
    folder = tmp_path / "checkpoint-1"
    if kind != "checkpoint":
        trainer.save_model(str(tmp_path / "saved"))
        folder = tmp_path / "saved"
    named = folder / "second" if kind == "second adapter" else folder
    assert base_of(named) == "mini"
    place = str(MINI).encode()
    assert [path for path in folder.rglob("*") if path.is_file() and place in path.read_bytes()] == []
    assert model.peft_config["default"].base_model_name_or_path == str(MINI), "the model in memory stays as it is"
    assert verify(folder) == []
    assert (folder / MANIFEST).is_file()
