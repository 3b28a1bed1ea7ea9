"""The manifest and the configuration of an adapter's folder: write, read, and compare with a model."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import PreTrainedModel

from t5peft.adapters.fingerprint import backbone_embeddings, fingerprint, fingerprint_of_maps, fingerprints_of_parts
from t5peft.compat.paths import as_path
from t5peft.models.encoders import EncoderHead, head_of_class
from t5peft.models.manifest import MANIFEST, read_json, read_manifest, write_manifest_file
from t5peft.models.quantized import Quantization, quantization_of_model, quantizes_wo
from t5peft.models.unwrap import unwrap_t5

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
OLD_WEIGHTS = "adapter_model.bin"  # of early versions of peft

_TYPES: dict[str, tuple[type, ...]] = {
    "auto_mapping": (dict,),
    "base_model_name_or_path": (str,),
    "peft_type": (str,),
    "task_type": (str,),
    "trainable_token_indices": (dict, list),
}


def write_manifest(folder: Path, model: PreTrainedModel | PeftModel, data: Mapping[str, Any] | None = None) -> None:
    """Write the manifest of ``folder``, after all else is on disk.

    Args:
        folder: A complete folder.
        model: The model whose weights, or whose adapter, are in it.
        data: What a run that resumes must find unchanged.
    """
    write_manifest_file(folder, describe(model) | {"data": data})


def describe(model: PreTrainedModel | PeftModel) -> dict[str, Any]:
    """Return what a manifest says of the backbone of ``model``."""
    return {
        "backbone": fingerprint(model),
        "maps": fingerprint_of_maps(model),
        "parts": fingerprints_of_parts(model),
        "rows": len(backbone_embeddings(model)),
        "quantized": quantization_of_model(model),
        "quantized_wo": quantizes_wo(unwrap_t5(model)),
    }


def read_config(folder: Path) -> dict[str, Any]:
    """Read the configuration of the adapter in ``folder``.

    Raises:
        ValueError: The file is damaged, in whichever way.
    """
    config = read_json(folder / CONFIG)
    if wrong := [name for name, kinds in _TYPES.items() if not isinstance(config.get(name), (*kinds, type(None)))]:
        raise ValueError(
            f"Got {folder / CONFIG} with values of a wrong type for {', '.join(wrong)}; expected what peft wrote. Restore the "
            "folder as it was saved."
        )
    return config


def encoder_of(config: Mapping[str, Any]) -> EncoderHead | None:
    """Return the head of the encoder that an adapter was trained on; None for a whole T5.

    Args:
        config: What ``read_config`` returned.
    """
    if config.get("task_type") == "FEATURE_EXTRACTION":  # as peft saves the adapter of a plain encoder
        return "states"
    return head_of_class(str((config.get("auto_mapping") or {}).get("base_model_class", "")))


def manifest_sha256(folder: str | Path) -> str:
    """Return the SHA-256 of the manifest of ``folder``, which covers all files that the manifest lists.

    It changes whenever a file and the manifest change. Store it outside of the folder to detect a replaced adapter.

    Args:
        folder: An adapter or a model with a manifest.

    Raises:
        FileNotFoundError: There is no manifest.
    """
    path = as_path(folder) / MANIFEST
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise FileNotFoundError(
            f"Got {folder} without {MANIFEST} ({error.strerror}), which is needed for the hash; expected a folder "
            "from save_adapter. Load it and save it again."
        ) from error


def ensure_sha256(folder: Path, sha256: str) -> None:
    """Raise ValueError unless the manifest of ``folder`` has the SHA-256 that it is expected to have.

    Args:
        folder: An adapter or a model with a manifest.
        sha256: 64 hexadecimal digits, as ``manifest_sha256`` returned them.

    Raises:
        FileNotFoundError: There is no manifest.
        ValueError: It has another hash.
    """
    found = manifest_sha256(folder)
    if not hmac.compare_digest(found.encode(), str(sha256).strip().lower().encode()):
        raise ValueError(
            f"Got the adapter {folder}, whose manifest has the SHA-256 {found}; expected {sha256}. It is not the adapter that was "
            "pinned. Restore it, or pin the new one."
        )


def quantization_of(folder: str | Path) -> Quantization | None:
    """Return how the backbone was quantized that the adapter in ``folder`` was trained beside.

    Raises:
        ValueError: The manifest is damaged.
    """
    manifest = read_manifest(as_path(folder))
    return manifest.quantized if manifest else None


def backbone_problems(folder: Path, base_name: str | None, model: PreTrainedModel | PeftModel) -> list[str]:
    """Return why what is in ``folder`` was not trained on ``model``; empty if it was, or if the manifest does not say.

    Args:
        folder: A folder with an intact manifest, or without one.
        base_name: The name of the backbone in training.
        model: A backbone.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        return []
    problems = []
    for saved, own in ((manifest.backbone, fingerprint(model)), (manifest.maps, fingerprint_of_maps(model))):
        if None not in (saved, own) and saved != own:
            problems.append(
                f"it was trained on another backbone (fingerprint {saved}, {base_name!r}) than the given one ({own}, "
                f"{unwrap_t5(model).name_or_path!r})"
            )
            break
    if not problems and manifest.parts:
        own_parts = fingerprints_of_parts(model)
        if other := [part for part, saved in manifest.parts.items() if own_parts.get(part, saved) != saved]:
            problems.append(
                f"it was trained beside other weights of {', '.join(other)} than the given backbone has "
                f"({unwrap_t5(model).name_or_path!r})"
            )
    rows = len(backbone_embeddings(model))
    if manifest.rows > rows:
        problems.append(
            f"it was trained with an embedding table of {manifest.rows} tokens and the given one has {rows}: add the tokens "
            "first, or use load_with_tokens if add_tokens added them"
        )
    return problems
