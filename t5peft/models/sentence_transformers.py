"""The projection that a checkpoint of sentence-transformers, such as sentence-t5 or GTR, brings beside its encoder."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers.utils import cached_file


def stored_projection(path: str, revision: str | None) -> Tensor | None:
    """Return the weight of the linear map after the mean, or None where a checkpoint has none.

    Args:
        path: A folder, or a name on the hub.
        revision: As ``load_backbone`` takes it.

    Raises:
        ValueError: The map is not linear, or has a bias, which Sentence-T5 has not.

    Shapes:
        Returned: [E, H].
    """
    modules = _file(path, "modules.json", revision)
    if modules is None:
        return None
    dense = [part["path"] for part in json.loads(modules.read_text(encoding="utf-8")) if part["type"].endswith("Dense")]
    if not dense:
        return None
    settings, weights = (_file(path, f"{dense[0]}/{name}", revision) for name in ("config.json", "model.safetensors"))
    if settings is None:
        return None
    config = json.loads(settings.read_text(encoding="utf-8"))
    if config.get("bias") or not str(config.get("activation_function")).endswith("Identity") or len(dense) > 1:
        raise ValueError(
            f"Got {path}, whose {dense} is not one linear map without a bias; expected such a map, or none. Give embedding_size, "
            "for a new one."
        )
    if weights is not None:
        state = load_file(weights)
    else:
        pickled = _file(path, f"{dense[0]}/pytorch_model.bin", revision)
        if pickled is None:
            return None
        state = torch.load(pickled, map_location="cpu", weights_only=True)
    return state["linear.weight"].float()


def _file(path: str, name: str, revision: str | None) -> Path | None:
    """Return a file of a folder or of the hub, or None where there is none."""
    if Path(path).is_dir():
        found = Path(path) / name
        return found if found.is_file() else None
    cached = cached_file(
        path,
        name,
        revision=revision,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return None if cached is None else Path(cached)
