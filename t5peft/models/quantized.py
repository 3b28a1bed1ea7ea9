"""Backbones in 8 and 4 bits, by bitsandbytes."""

from __future__ import annotations

import logging
from typing import Literal

import torch
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from t5peft.compat.bitsandbytes import keep_4_bits, linear_nf4, maps_with_wrong_scales, silence_casts
from t5peft.models.families import Family
from t5peft.models.unwrap import unwrap_t5

logger = logging.getLogger("t5peft")

Quantization = Literal["int8", "nf4"]


def kept_maps(family: Family) -> list[str]:
    """Return the maps that stay as they are.

    bitsandbytes leaves out lm_head by itself only where no list is given. A new head must not be quantized either, and what no
    method tunes may hold maps that other code than a linear map's reads.
    """
    heads = ("lm_head", "classification_head", "classifier", "embedding_projection")
    return [*heads, "wo", *family.class_heads.values(), *family.untuned]


def quantization_config(quantize: Quantization, dtype: torch.dtype, family: Family) -> BitsAndBytesConfig:
    """Return how to load a backbone in 8 or 4 bits.

    Args:
        quantize: ``"int8"`` or ``"nf4"``.
        dtype: The dtype in which weights of 4 bits are multiplied.
        family: The family of the backbone.
    """
    if quantize == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=kept_maps(family))
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=kept_maps(family),
    )


def finish_quantization(
    model: PreTrainedModel, quantize: Quantization, dtype: torch.dtype, *, quantize_wo: bool
) -> None:
    """Correct a backbone that transformers has loaded by ``quantization_config``, in place.

    Args:
        model: The backbone.
        quantize: How it was quantized.
        dtype: The dtype of weights that are not quantized.
        quantize_wo: Whether to put the output maps of the feed-forward into nf4 too.
    """
    for module in model.modules():
        if type(module) is nn.Linear:
            module.to(dtype)  # transformers puts ``wo`` into float32, for float16's sake
    silence_casts()
    if quantize_wo:
        _quantize_wo(model, dtype)
    if quantize == "nf4":
        keep_4_bits(model)
        if wrong := maps_with_wrong_scales(model):
            logger.warning(
                "Got %s maps in nf4 whose inputs 64 does not divide, such as %s: bitsandbytes computes them with wrong scales on "
                "this processor. Use quantize='int8', a larger backbone, or another processor.",
                len(wrong),
                wrong[0],
            )


def quantization_of_model(model: nn.Module) -> Quantization | None:
    """Return how ``model``, plain or wrapped, is quantized."""
    t5 = unwrap_t5(model)
    if not getattr(t5, "is_quantized", False):
        return None
    return "int8" if t5.config.quantization_config.load_in_8bit else "nf4"


def quantizes_wo(model: PreTrainedModel) -> bool:
    """Return whether the output maps of the feed-forward are in nf4."""
    t5 = unwrap_t5(model)
    return quantization_of_model(t5) == "nf4" and "wo" not in t5.config.quantization_config.llm_int8_skip_modules


def _quantize_wo(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Put every ``wo`` into nf4, stored as ``dtype``: T5 casts its input to the dtype that ``wo.weight`` says it has."""
    model.config.quantization_config.llm_int8_skip_modules.remove("wo")
    for module in model.modules():
        if isinstance(plain := getattr(module, "wo", None), nn.Linear):
            module.wo = linear_nf4(plain, dtype)
