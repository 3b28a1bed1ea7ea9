"""Reach the T5 inside wrappers, and refuse a model that is already wrapped."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from transformers import PreTrainedModel

from t5peft.models.families import FAMILIES

_LIBRARIES = ("torch", "transformers", "peft", "accelerate", "deepspeed", "t5peft")


def unwrap_t5(model: nn.Module) -> PreTrainedModel:
    """Return the T5 inside of DistributedDataParallel, torch.compile and PeftModel, or ``model`` itself.

    Args:
        model: A T5, plain or wrapped.

    Returns:
        The model of transformers.

    Raises:
        ValueError: There is no T5 in it.
    """
    if not isinstance(model, nn.Module):
        raise _no_module(model)
    *_, inner = _chain(model)
    if not isinstance(inner, PreTrainedModel):
        raise ValueError(
            f"Got a {type(inner).__name__}; expected a T5, plain or wrapped. load_backbone(name) returns one."
        )
    return inner


def _chain(model: nn.Module) -> Iterator[nn.Module]:
    """Yield ``model`` and what is inside of each wrapper, down to the T5."""
    inner: nn.Module | None = model
    while inner is not None:
        yield inner
        # Read from what the module itself holds: peft's modules answer for attributes of the model inside of them too.
        parts = {} if isinstance(inner, PreTrainedModel) else inner.__dict__.get("_modules", {})
        inner = next((parts[name] for name in ("module", "_orig_mod", "base_model", "model") if name in parts), None)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put ``model`` in evaluation mode for the block; after it every module has its own training flag again."""
    flags = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, training in flags:
            module.training = training


def has_own_forward(model: nn.Module) -> bool:
    """Return whether code of the user's may change what a model returns, such as its loss.

    That is a class of the user's with a ``forward``, a ``forward`` set on an instance, or a forward hook on the model itself.

    Args:
        model: A T5, plain or wrapped.
    """
    return any(map(_is_changed, _chain(model)))


def takes_labels(model: nn.Module) -> bool:
    """Return whether the forward of a T5, or of a user's wrapper of one, names labels among its arguments.

    Args:
        model: A T5, plain or wrapped.
    """
    own = (module for module in _chain(model) if _is_changed(module) or isinstance(module, PreTrainedModel))
    return any("labels" in inspect.signature(module.forward).parameters for module in own)


def _is_changed(module: nn.Module) -> bool:
    """Return whether the forward of one module, or a hook on it, is neither torch's, transformers' or peft's, nor ours."""
    owner = next(kind for kind in type(module).__mro__ if "forward" in vars(kind))
    if not _is_of_library(owner):
        return True
    # Accelerate keeps what it has replaced, and torch.compile sets its own.
    forward = module.__dict__.get("_original_forward", module.__dict__.get("forward"))
    replaced = forward is not None and getattr(forward, "__func__", None) is not owner.__dict__["forward"]
    if replaced and "_hf_hook" not in module.__dict__ and not owner.__module__.startswith("torch."):
        return True
    return not all(map(_is_of_library, module._forward_hooks.values()))


def _is_of_library(code: object) -> bool:
    return str(getattr(code, "__module__", "")).partition(".")[0] in _LIBRARIES


def ensure_unwrapped(model: nn.Module) -> PreTrainedModel:
    """Return ``model`` if it is a plain T5.

    Args:
        model: Any model.

    Returns:
        The same model.

    Raises:
        ValueError: It is already wrapped, or not a T5.
    """
    if not isinstance(model, nn.Module):
        raise _no_module(model)
    # Here and not above: importing peft imports our methods, which import the module that imports this one.
    from peft import PeftModel
    from peft.tuners.tuners_utils import BaseTunerLayer

    # A wrap changes its argument in place: the model inside of a PeftModel is wrapped as well.
    if isinstance(model, PeftModel) or any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        adapters = sorted(getattr(model, "peft_config", {}))
        raise ValueError(
            f"Got a model that is already wrapped with the adapter(s) {adapters}; expected a plain T5. Call model.unload() or "
            "load_backbone() first, or model.add_adapter(name, config) for a second adapter."
        )
    if not isinstance(model, PreTrainedModel) or model.config.model_type not in FAMILIES:
        kind = f" of type {model.config.model_type!r}" if isinstance(model, PreTrainedModel) else ""
        raise ValueError(
            f"Got a {type(model).__name__}{kind}; expected a T5 of transformers (model type {', '.join(FAMILIES)}). "
            "load_backbone(name) returns one."
        )
    return model


def ensure_unmerged(model: nn.Module) -> None:
    """Refuse to train a model whose adapter is merged, as its weights then get no gradient.

    Args:
        model: A T5, plain or wrapped.

    Raises:
        ValueError: An adapter is merged into the weights.
    """
    if merged := sorted(
        {name for module in model.modules() for name in getattr(module, "merged_adapters", None) or ()}
    ):
        raise ValueError(
            f"Got a model into whose weights the adapter(s) {merged} are merged; expected them beside the weights, to train. Call "
            "model.unmerge_adapter()."
        )


def _no_module(given: object) -> ValueError:
    """Return the error for what is not a model, such as the pair that ``load_backbone`` returns."""
    advice = (
        "Give the first of its two."
        if isinstance(given, tuple)
        else "load_backbone(name) returns one, and its tokenizer."
    )
    return ValueError(f"Got {given!r:.60} ({type(given).__name__}) as model; expected a T5. {advice}")
