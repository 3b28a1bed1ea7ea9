"""Fingerprints of a backbone, by which an adapter knows the weights that it was trained on."""

from __future__ import annotations

import hashlib
import json

import torch
from peft import PeftConfig, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from t5peft.compat.peft import AuxiliaryTrainingWrapper, adapter_modules
from t5peft.methods.base import AdapterLayer
from t5peft.models.families import family_of
from t5peft.models.unwrap import unwrap_t5

_SAMPLES = 256
# Starts of LoRA that take a part out of the weights, by the beginning of their names.
_STARTS_FROM_WEIGHTS = ("pissa", "olora", "corda", "loftq")


def fingerprint(model: PreTrainedModel | PeftModel) -> str:
    """Return a hash that tells one backbone from another.

    It is taken of the geometry and, in bfloat16, of weights that are never quantized: embeddings and final norms of the backbone.
    So it is the same for float32, bfloat16 and quantized copies of a backbone.
    """
    t5 = unwrap_t5(model)
    digest = hashlib.sha256()
    digest.update(json.dumps(family_of(t5.config).identity(t5.config)).encode())
    table = backbone_embeddings(t5)
    digest.update(_bytes(table[:: max(1, len(table) // _SAMPLES)][:_SAMPLES]))
    for weight in _final_norms(t5):
        digest.update(_bytes(weight.detach()))
    return digest.hexdigest()[:16]


def fingerprint_of_maps(model: PreTrainedModel | PeftModel) -> str | None:
    """Return a hash of samples of the linear maps of all layers.

    A backbone with an adapter merged into it has another one than the plain backbone.

    Returns:
        None where the maps are not those of the backbone: quantized, with an adapter merged into them for the time being, or
        changed by how an adapter starts (PiSSA and the like).
    """
    t5 = unwrap_t5(model)
    if any(changes_maps(config) for config in getattr(model, "peft_config", {}).values()):
        return None
    if getattr(t5, "is_quantized", False) or any(m.merged for m in t5.modules() if isinstance(m, BaseTunerLayer)):
        return None
    adapters, layers = adapter_modules(t5), f".{family_of(t5.config).layers}."
    digest = hashlib.sha256()
    for name, module in t5.named_modules():
        if isinstance(module, nn.Linear) and layers in name and module not in adapters:
            weight = module.weight.detach().flatten()
            digest.update(_bytes(weight[:: max(1, len(weight) // _SAMPLES)][:_SAMPLES]))
    return digest.hexdigest()[:16]


def backbone_embeddings(model: PreTrainedModel | PeftModel) -> Tensor:
    """Return the embeddings of the backbone itself: an adapter that trains the table, or rows of it, shows its own in its place.

    Shapes:
        Returned: [V, H].
    """
    table = unwrap_t5(model).get_input_embeddings()
    return (
        (table.original_module if isinstance(table, AuxiliaryTrainingWrapper) else table)
        .get_parameter("weight")
        .detach()
    )


def changes_maps(config: PeftConfig) -> bool:
    """Return whether an adapter of ``config`` takes a part out of the weights of the backbone when it is made."""
    start = getattr(config, "init_lora_weights", True)
    return isinstance(start, str) and start.lower().startswith(_STARTS_FROM_WEIGHTS)


def _final_norms(t5: PreTrainedModel) -> list[Tensor]:
    """Return the weight of the last norm of each stack of the backbone, not of an adapter that holds stacks or norms of its own."""
    adapters, norm = adapter_modules(t5), family_of(t5.config).final_norm
    return [
        _plain_weight(module)
        for name, module in t5.named_modules()
        if name.endswith(f".{norm}") and module not in adapters
    ]


def _plain_weight(norm: nn.Module) -> Tensor:
    """Return the backbone's weight of ``norm``, which may be in an adapter."""
    if isinstance(norm, AdapterLayer) and norm.unmerged_weight is not None:
        return norm.unmerged_weight
    if isinstance(norm, AuxiliaryTrainingWrapper):
        norm = norm.original_module
    return (norm.get_base_layer() if isinstance(norm, BaseTunerLayer) else norm).get_parameter("weight")


def _bytes(tensor: Tensor) -> bytes:
    return tensor.to("cpu", torch.bfloat16).contiguous().view(torch.uint8).numpy().tobytes()
