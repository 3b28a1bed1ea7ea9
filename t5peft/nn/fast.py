"""Speed of training steps: the kernels a model runs on, and how a step's examples are laid out in micro-batches.

Nothing here changes what is learned: results and gradients are those of the plain model on padded batches, up to rounding.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from peft.tuners.lora import Linear as PeftLoraLinear
from torch import nn
from transformers.models.mt5.modeling_mt5 import MT5Attention, MT5LayerNorm
from transformers.models.t5.modeling_t5 import T5Attention, T5LayerNorm
from transformers.models.umt5.modeling_umt5 import UMT5Attention, UMT5LayerNorm

from t5peft.models.unwrap import unwrap_t5
from t5peft.nn.attention import use_attention
from t5peft.nn.kernels.attention import BiasByDistance
from t5peft.nn.kernels.dropout import Dropout
from t5peft.nn.kernels.linear import Linear, LoraLinear
from t5peft.nn.kernels.norm import OneStepNorm

logger = logging.getLogger("t5peft")


def _with(mixin: type, base: type) -> type:
    return type(base.__name__, (mixin, base), {"__module__": __name__})


# For modules of exactly these classes; `faster` adds those of bitsandbytes.
FASTER: dict[type, type] = {
    nn.Linear: Linear,
    nn.Dropout: Dropout,
    PeftLoraLinear: LoraLinear,
    **{norm: _with(OneStepNorm, norm) for norm in (T5LayerNorm, MT5LayerNorm, UMT5LayerNorm)},
    **{attention: _with(BiasByDistance, attention) for attention in (T5Attention, MT5Attention, UMT5Attention)},
}


def faster() -> dict[type, type]:
    """FASTER, with the 8-bit map where it is loaded; a model that holds one has loaded it."""
    if "bitsandbytes" not in sys.modules:
        return FASTER
    from t5peft.nn.kernels.int8 import Int8Linear, Linear8bitLt

    return {**FASTER, Linear8bitLt: Int8Linear}


@contextmanager
def kernels(model: nn.Module) -> Iterator[None]:
    """Inside the block, leaves and attentions of `model` are subclasses with the same parameters and cheaper passes.

    Names, hooks and adapters stay what they are; no forward pass of T5's blocks is replaced; a module of another class
    stays as it is. `model` may be wrapped (PeftModel, DistributedDataParallel).
    """
    classes = faster()
    swapped = [(module, type(module)) for module in model.modules() if type(module) in classes]
    with our_attention(model):
        for module, plain in swapped:
            module.__class__ = classes[plain]
        try:
            yield
        finally:
            for module, plain in swapped:
                if type(module) is classes[plain]:
                    module.__class__ = plain


@contextmanager
def our_attention(model: nn.Module) -> Iterator[None]:
    """Inside the block `model` calls the attention function "t5peft", without which packed examples would see each other."""
    t5 = unwrap_t5(model)
    implementation = t5.config._attn_implementation
    use_attention(t5)
    try:
        yield
    finally:
        t5.set_attn_implementation(implementation)
