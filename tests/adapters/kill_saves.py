"""Kill saves at their file operations, and check what each leaves. A script, as a process must die for each.

    python kill_saves.py FOLDER FIRST STRIDE

A save is killed at its operations FIRST, FIRST + STRIDE and so on, in each mode: "exchange", "two renames" (a system without the
exchange), "fill" (a folder that cannot be moved) and "model" (a fully tuned model in a folder with other files). It prints the
number of kills in each mode.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from tiny import tiny_t5, tiny_tokenizer
from transformers import PreTrainedModel

from t5peft import load_adapter, load_backbone, lora_wrap, save_adapter
from t5peft.adapters import save_model
from t5peft.models import folders
from t5peft.models.manifest import verify

OPERATIONS = {
    "open",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.mkdir",
    "os.listdir",
    "os.scandir",
    "os.fsync",
    "exchange",
}


def die_at(number: int, root: Path) -> None:
    """Kill this process just before its file operation ``number`` below ``root``."""
    count = 0

    def step(event: str, args: tuple[Any, ...]) -> None:
        nonlocal count
        if event in OPERATIONS and (event in ("os.fsync", "exchange") or str(args[0]).startswith(str(root))):
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)

    fsync, exchange = os.fsync, folders.exchange

    def counted_fsync(descriptor: int) -> None:
        step("os.fsync", ())
        fsync(descriptor)

    def counted_exchange(first: Path, second: Path) -> bool:
        step("exchange", ())
        return exchange(first, second)

    # Assigned by name: this process is killed, and counts the calls of everyone.
    setattr(os, "fsync", counted_fsync)  # noqa: B010
    setattr(folders, "exchange", counted_exchange)  # noqa: B010
    sys.addaudithook(step)


def killed_at(number: int, root: Path, save: Callable[[], Any]) -> bool:
    """Return whether ``save``, in a process of its own, got as far as its operation ``number``."""
    pid = os.fork()
    if pid == 0:
        die_at(number, root)
        save()
        os._exit(0)
    status = os.waitpid(pid, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the save failed"
    return os.WIFSIGNALED(status)


def adapter(value: float) -> PeftModel:
    model = lora_wrap(tiny_t5(), rank=1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.fill_(value)
    return model


def whole_model(value: float) -> PreTrainedModel:
    model = tiny_t5()
    with torch.no_grad():
        model.encoder.final_layer_norm.weight.fill_(value)
    return model


def value_of(mode: str, folder: Path) -> float:
    """Return what the saved weights were filled with, as our loaders read them."""
    if mode == "model":
        return float(load_backbone(folder)[0].get_parameter("encoder.final_layer_norm.weight")[0])
    loaded = load_adapter(folder, model=tiny_t5(), trainable=True)[0]
    (value,) = {float(v) for p in loaded.parameters() if p.requires_grad for v in p.flatten().unique()}
    return value


def kill_all(root: Path, mode: str, first: int, stride: int) -> int:
    root.mkdir()
    folder = root / "adapter"
    old, new, newest = [whole_model(value) if mode == "model" else adapter(value) for value in (1.0, 2.0, 3.0)]
    if mode == "fill":
        folder.mkdir()

    def save(model: PreTrainedModel | PeftModel) -> None:
        if not isinstance(model, PeftModel):
            save_model(model, folder, tokenizer=tiny_tokenizer())
        else:
            save_adapter(model, folder, tokenizer=tiny_tokenizer() if model is old else None)

    kills, number = 0, first
    save(old)
    before = sorted(path.name for path in root.iterdir())
    if mode == "model":
        (folder / "notes.txt").write_text("mine")
    while killed_at(number, root, lambda: save(new)):
        kills += 1
        if mode == "exchange":  # which needs no recovery
            assert verify(folder) == [], (number, verify(folder))
        value = value_of(mode, folder)
        assert value in (1.0, 2.0), (number, value)
        assert verify(folder) == [], (number, verify(folder))
        if mode == "model":
            assert (folder / "notes.txt").read_text() == "mine"
        else:
            assert (folder / "tokenizer_config.json").exists() == (value == 1.0), number
        save(newest)
        assert value_of(mode, folder) == 3.0, number
        left = [path for place in (root, folder) for path in place.glob(".*")]
        assert left == [], (number, left)
        save(old)
        assert sorted(path.name for path in root.iterdir()) == before
        number += stride
    return kills


def main(root: Path, first: int, stride: int) -> None:
    print("exchange", kill_all(root / "a", "exchange", first, stride))
    print("model", kill_all(root / "b", "model", first, stride))
    folders.exchange = lambda first, second: False
    print("two renames", kill_all(root / "c", "two renames", first, stride))
    folders._cannot_be_moved = lambda folder: True
    print("fill", kill_all(root / "d", "fill", first, stride))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
