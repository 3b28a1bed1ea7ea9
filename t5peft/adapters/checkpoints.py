"""Checkpoints of a training run: find the newest complete one, delete old ones, and tell whether training can go on from one."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import PreTrainedModel

from t5peft.adapters.manifest import CONFIG, backbone_problems, read_config
from t5peft.models.manifest import MANIFEST, read_manifest, saved_at, verify
from t5peft.models.tokens import NOT_FOR_PEFT

logger = logging.getLogger("t5peft")

# Settings of an adapter that may change when its training goes on: its weights stay what they are.
_FREE_SETTINGS = {
    "auto_mapping", "base_model_name_or_path", "inference_mode", "init_ia3_weights", "init_lora_weights", "lora_dropout",
    "peft_version", "rank_pattern", "revision",
}  # fmt: skip


def newest_complete(run_folder: str | Path) -> Path | None:
    """Return the ``checkpoint-N`` that was saved last and is intact; log those that are passed over.

    Args:
        run_folder: The output folder of a run.

    Returns:
        None if there is no such checkpoint.
    """
    for folder in reversed(_checkpoints(run_folder)):
        problems = verify(folder) if (folder / MANIFEST).exists() else ["its save was not finished"]
        if not problems:
            return folder
        logger.warning("Passing over %s: %s.", folder, "; ".join(problems))
    return None


def rotate(run_folder: str | Path, limit: int | None, best: str | None) -> None:
    """Delete the oldest checkpoints, but never the newest and the best.

    Args:
        run_folder: The output folder of a run.
        limit: How many to keep; None or 0: all.
        best: The checkpoint with the best score.
    """
    folders = _checkpoints(run_folder)
    surplus = max(0, len(folders) - limit) if limit and limit > 0 else 0
    for folder in [path for path in folders[:-1] if best is None or path != Path(best)][:surplus]:
        shutil.rmtree(folder, ignore_errors=True)


def read_run_state(checkpoint: Path) -> Mapping[str, Any]:
    """Return what the run that saved ``checkpoint`` wrote down to find unchanged when it resumes.

    Raises:
        ValueError: The manifest is damaged.
    """
    manifest = read_manifest(checkpoint)
    return (manifest.data if manifest else None) or {}


def folder_of(checkpoint: Path, adapter: str) -> Path:
    """Return where peft saves ``adapter`` in ``checkpoint``: all but ``default`` have a folder of their own."""
    return checkpoint if adapter == "default" else checkpoint / adapter


def of_another_model(checkpoint: Path, model: PreTrainedModel | PeftModel) -> list[str]:
    """Return why training of ``model`` cannot go on from ``checkpoint``; empty if it can.

    Args:
        checkpoint: A checkpoint that was verified.
        model: The model to train, plain or with adapters.

    Returns:
        Problems: other adapters, another frozen backbone, or a damaged configuration.
    """
    if not isinstance(model, PeftModel):
        return ["it contains an adapter, but the model has none"] if (checkpoint / CONFIG).is_file() else []
    problems: list[str] = []
    for name in model.active_adapters:
        folder = folder_of(checkpoint, name)
        if not (folder / CONFIG).is_file():
            problems.append(f"it has no adapter {name!r}")
            continue
        try:
            saved = read_config(folder)
        except ValueError as error:
            problems.append(str(error).rstrip("."))
            continue
        if not problems:
            problems += backbone_problems(checkpoint, saved.get("base_model_name_or_path"), model)
        own = model.peft_config[name].to_dict()
        pairs = {
            key: (_comparable(saved[key]), _comparable(own[key]))
            for key in sorted((saved.keys() & own.keys()) - _FREE_SETTINGS)
        }
        if changed := {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}:
            problems.append(f"the settings of its adapter differ from the model's ({changed})")
    return problems


def _comparable(setting: Any) -> Any:
    """Return a setting as JSON holds it: of a set, which has no order, and of an enumeration too."""
    if isinstance(setting, list | tuple | set):
        return sorted(map(str, setting))
    if isinstance(setting, dict):  # of rows, which 0.1.0 saved without the mark
        return {name: value for name, value in setting.items() if name != NOT_FOR_PEFT}
    return getattr(setting, "value", setting)


def _checkpoints(run_folder: str | Path) -> list[Path]:
    """Return each ``checkpoint-N``, oldest first; those without a manifest that can be read come before all others.

    The order is that of the times in the manifests, as an earlier run may have left higher numbers.
    """
    folders = [
        path for path in Path(run_folder).glob("checkpoint-*") if path.is_dir() and path.name.split("-")[-1].isdecimal()
    ]
    return sorted(folders, key=lambda path: (saved_at(path), int(path.name.split("-")[-1])))
