"""Ways to damage a saved adapter or checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tiny import tiny_records, tiny_t5

from t5peft import (
    T5PeftTrainer,
    T5PeftTrainingArguments,
    lora_wrap,
)
from t5peft.adapters import write_manifest
from t5peft.adapters.manifest import MANIFEST, WEIGHTS


def edit_manifest(folder: Path, **fields: Any) -> None:
    """Write fields into a manifest, and leave out what is None and the checksum, as 0.1.0 did."""
    content = json.loads((folder / MANIFEST).read_text()) | fields | {"checksum": None}
    (folder / MANIFEST).write_text(json.dumps({name: value for name, value in content.items() if value is not None}))


def flip_a_bit(folder: Path) -> None:
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[-1] ^= 1
    (folder / WEIGHTS).write_bytes(content)


def put_nan(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    next(iter(weights.values()))[0] = float("nan")
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    write_manifest(folder, tiny_t5())


def scale_alpha(folder: Path) -> None:
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": config["lora_alpha"] * 1000}))


def drop_a_tensor(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    weights.pop(next(iter(weights)))
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    write_manifest(folder, tiny_t5())


def rename_every_tensor(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    save_file(
        {f"foreign.{name}": value for name, value in weights.items()}, folder / WEIGHTS, metadata={"format": "pt"}
    )
    write_manifest(folder, tiny_t5())


def lose_the_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()


def train(folder: Path, steps: int = 6) -> T5PeftTrainer:
    args = T5PeftTrainingArguments(
        str(folder), max_steps=steps, per_device_train_batch_size=2, save_strategy="steps", save_steps=2, disable_tqdm=True,
        report_to="none", use_cpu=True, save_total_limit=2, logging_steps=1,
    )  # fmt: skip
    torch.manual_seed(0)
    return T5PeftTrainer(lora_wrap(tiny_t5()), args, train_dataset=tiny_records(8))
