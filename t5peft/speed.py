"""Speed of training steps: which kernels a model runs on, and how many tokens a micro-batch has.

Nothing here changes what is learned: results and gradients are those of the plain model, up to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from peft.tuners.lora import Linear as PeftLoraLinear
from torch import nn
from transformers.models.mt5.modeling_mt5 import MT5Attention, MT5LayerNorm
from transformers.models.t5.modeling_t5 import T5Attention, T5LayerNorm
from transformers.models.umt5.modeling_umt5 import UMT5Attention, UMT5LayerNorm

from t5peft.attention import use_attention
from t5peft.backbone import t5_of
from t5peft.kernels.attention import BiasByDistance
from t5peft.kernels.dropout import Dropout
from t5peft.kernels.linear import Linear, LoraLinear
from t5peft.kernels.norm import OneStepNorm


def _with(mixin: type, base: type) -> type:
    return type(base.__name__, (mixin, base), {"__module__": __name__})


FASTER: dict[type, type] = {
    nn.Linear: Linear,
    nn.Dropout: Dropout,
    PeftLoraLinear: LoraLinear,
    **{norm: _with(OneStepNorm, norm) for norm in (T5LayerNorm, MT5LayerNorm, UMT5LayerNorm)},
    **{attention: _with(BiasByDistance, attention) for attention in (T5Attention, MT5Attention, UMT5Attention)},
}


@contextmanager
def kernels(model: nn.Module) -> Iterator[None]:
    """Inside the block, leaves and attentions of `model` are subclasses with the same parameters and cheaper passes.

    Names, hooks and adapters stay what they are; no forward pass of T5's blocks is replaced; a module of another class stays
    as it is. `model` may be wrapped (PeftModel, DistributedDataParallel).
    """
    t5 = t5_of(model)
    implementation = t5.config._attn_implementation
    swapped = [(module, type(module)) for module in model.modules() if type(module) in FASTER]
    use_attention(t5)
    for module, plain in swapped:
        module.__class__ = FASTER[plain]
    try:
        yield
    finally:
        for module, plain in swapped:
            module.__class__ = plain
        t5.set_attn_implementation(implementation)
