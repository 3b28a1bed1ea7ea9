"""The projection that a checkpoint of sentence-transformers, such as sentence-t5 or GTR, brings beside its encoder."""

from __future__ import annotations

import json

import torch
from safetensors.torch import load_file
from torch import Tensor

from t5peft.compat.hub import optional_file


def stored_projection(path: str, revision: str | None) -> Tensor | None:
    """Return the weight of the linear map after the mean, or None where a checkpoint has none.

    Args:
        path: A folder, or a name on the hub.
        revision: As ``load_backbone`` takes it.

    Raises:
        ValueError: The map is not linear, or has a bias, which Sentence-T5 has not.
        FileNotFoundError: The checkpoint names a map, and its weights are not there.

    Shapes:
        Returned: [E, H].
    """
    modules = optional_file(path, "modules.json", revision)
    if modules is None:
        return None
    dense = [part["path"] for part in json.loads(modules.read_text(encoding="utf-8")) if part["type"].endswith("Dense")]
    if not dense:
        return None
    settings = optional_file(path, f"{dense[0]}/config.json", revision)
    safe, pickled = (
        optional_file(path, f"{dense[0]}/{name}", revision) for name in ("model.safetensors", "pytorch_model.bin")
    )
    if settings is None or (safe is None and pickled is None):
        raise FileNotFoundError(
            f"Got {path} without the weights of {dense[0]}, which {modules} names; expected them beside the encoder. Download the "
            "whole repository, or give embedding_size, for a new map."
        )
    config = json.loads(settings.read_text(encoding="utf-8"))
    if config.get("bias") or not str(config.get("activation_function")).endswith("Identity") or len(dense) > 1:
        raise ValueError(
            f"Got {path}, whose {dense} is not one linear map without a bias; expected such a map, or none. Give embedding_size, "
            "for a new one."
        )
    state = load_file(safe) if safe is not None else torch.load(str(pickled), map_location="cpu", weights_only=True)
    weight: Tensor = state["linear.weight"]
    return weight.float()
