"""Run a model on the kernels of ``t5peft.nn.kernels``.

They do not change what is learned: results and gradients are those of the plain model on padded batches, up to rounding.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from peft.tuners.lora import Linear as PeftLoraLinear
from torch import nn
from transformers import PreTrainedConfig
from transformers.models.mt5.modeling_mt5 import MT5Attention, MT5LayerNorm
from transformers.models.t5.modeling_t5 import T5Attention, T5LayerNorm
from transformers.models.umt5.modeling_umt5 import UMT5Attention, UMT5LayerNorm

from t5peft.models.families import family_of
from t5peft.models.unwrap import unwrap_t5
from t5peft.nn.attention import NAME, use_attention
from t5peft.nn.kernels.attention import BiasByDistance
from t5peft.nn.kernels.dropout import FastDropout
from t5peft.nn.kernels.linear import FastLinear, FastLoraLinear
from t5peft.nn.kernels.module import FastModule
from t5peft.nn.kernels.norm import FastNorm
from t5peft.nn.notes import say_once


def _with(fast: type[FastModule], plain: type[nn.Module]) -> type[nn.Module]:
    return type(plain.__name__, (fast, plain), {"__module__": __name__})


FAST_CLASSES: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: FastLinear,
    nn.Dropout: FastDropout,
    PeftLoraLinear: FastLoraLinear,
    **{norm: _with(FastNorm, norm) for norm in (T5LayerNorm, MT5LayerNorm, UMT5LayerNorm)},
    **{attention: _with(BiasByDistance, attention) for attention in (T5Attention, MT5Attention, UMT5Attention)},
}
"""The fast class of each plain class, without those of bitsandbytes. Modules of a subclass stay as they are."""


def fast_classes() -> dict[type[nn.Module], type[nn.Module]]:
    """Return ``FAST_CLASSES`` with the 8-bit map, where bitsandbytes is loaded. A model that holds such a map has loaded it."""
    if "bitsandbytes" not in sys.modules:
        return FAST_CLASSES
    from t5peft.nn.kernels.int8 import FastLinear8bit, Linear8bitLt

    return {**FAST_CLASSES, Linear8bitLt: FastLinear8bit}


class _Lent(str):
    """The name of our attention function, of which copies and pickles are the name of another."""

    def __new__(cls, plain: str) -> _Lent:
        name = super().__new__(cls, NAME)
        name.plain = plain
        return name

    plain: str

    def __deepcopy__(self, memo: object) -> str:
        return self.plain

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        return str, (str(self.plain),)


@contextmanager
def fast_kernels(model: nn.Module) -> Iterator[None]:
    """Run ``model`` on cheaper passes inside the block.

    Leaves and attentions become subclasses of their classes, with the same parameters, names and adapters. Hooks are called as
    ever: a module that a kernel would skip takes the plain way while it has hooks. The blocks of T5 keep their forward. A copy or
    a pickle that is made inside the block is the plain model.

    Args:
        model: A T5, plain or wrapped (PeftModel, DistributedDataParallel).
    """
    classes = fast_classes()
    swapped = [(module, type(module)) for module in model.modules() if type(module) in classes]
    with t5peft_attention(model):
        for module, plain in swapped:
            module.__class__ = classes[plain]
        try:
            yield
        finally:
            for module, plain in swapped:
                if type(module) is classes[plain]:
                    module.__class__ = plain


@contextmanager
def t5peft_attention(model: nn.Module) -> Iterator[None]:
    """Let ``model`` call the attention function "t5peft" inside the block. With any other, packed examples see each other.

    A copy that is made inside the block calls the function that ``model`` called before. Families without our kernels keep theirs.
    """
    t5 = unwrap_t5(model)
    implementation, family = t5.config._attn_implementation, family_of(t5.config)
    if "kernels" in family.lacks:
        say_once(f"{family.title} runs on the attention of transformers, as {family.lacks['kernels']}.")
        yield
        return
    if implementation == NAME:
        yield
        return
    use_attention(t5)
    for module in t5.modules():
        config = getattr(module, "config", None)
        if isinstance(config, PreTrainedConfig) and config._attn_implementation == NAME:
            config._attn_implementation = _Lent(implementation)
    try:
        yield
    finally:
        t5.set_attn_implementation(implementation)
