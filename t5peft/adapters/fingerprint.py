"""Fingerprints of a backbone, by which an adapter knows the weights that it was trained on."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator

import torch
from peft import PeftConfig, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from torch import Tensor, nn
from transformers import PreTrainedModel

from t5peft.compat.peft import adapter_modules
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
    digest.update(_bytes(_rows(backbone_embeddings(t5))))
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


def fingerprints_of_parts(model: PreTrainedModel | PeftModel) -> dict[str, str]:
    """Return a hash of each part that is not a linear map of a layer, such as the head, norms and relative position biases.

    Returns:
        The hashes by the name of the part, one for all layers. Parts are left out that an adapter brings or has changed.
    """
    t5 = unwrap_t5(model)
    head, layers = family_of(t5.config).head, f".{family_of(t5.config).layers}."
    has_other_maps = any(changes_maps(config) for config in getattr(model, "peft_config", {}).values())
    parts: dict[str, list[Tensor | None]] = defaultdict(list)
    for name, module, tensors in _modules_of_backbone(t5, has_other_maps):
        if tensors and not (isinstance(module, nn.Linear) and layers in name):
            # A head may be replaced by any module.
            is_head = f"{name}.".startswith(f"{head}.")
            parts[head if is_head else ".".join(w for w in name.split(".") if not w.isdecimal())] += tensors
    return {
        part: hashlib.sha256(b"".join(_bytes(_rows(t)) for t in tensors if t is not None)).hexdigest()[:16]
        for part, tensors in parts.items()
        if not any(t is None or not t.is_floating_point() for t in tensors)
    }


def _modules_of_backbone(
    module: nn.Module, has_other_maps: bool, name: str = ""
) -> Iterator[tuple[str, nn.Module, list[Tensor | None]]]:
    """Yield the modules by their names without wrappers, with their own tensors; None where an adapter has changed these."""
    if isinstance(module, ModulesToSaveWrapper):
        return
    if isinstance(module, AuxiliaryTrainingWrapper | BaseTunerLayer):
        inner = module.original_module if isinstance(module, AuxiliaryTrainingWrapper) else module.get_base_layer()
        unmerged = module.unmerged_weight if isinstance(module, AdapterLayer) else None
        is_merged = any(layer.merged for layer in module.modules() if isinstance(layer, BaseTunerLayer))
        if unmerged is not None or is_merged or has_other_maps:
            yield name, inner, [unmerged]
        else:
            yield from _modules_of_backbone(inner, has_other_maps, name)
        return
    own = {**module._parameters, **module._buffers}
    yield name, module, [t for key, t in own.items() if t is not None and key not in module._non_persistent_buffers_set]
    for key, child in module.named_children():
        yield from _modules_of_backbone(child, has_other_maps, f"{name}.{key}".lstrip("."))


def _rows(tensor: Tensor) -> Tensor:
    """Return a tensor, or rows of it that are evenly spaced."""
    return tensor.detach()[:: max(1, len(tensor) // _SAMPLES)][:_SAMPLES] if tensor.dim() > 1 else tensor.detach()


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
    return tensor.to("cpu", torch.bfloat16).contiguous().flatten().view(torch.uint8).numpy().tobytes()
