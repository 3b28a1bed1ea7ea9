"""Shapes of the published LongT5, T5Gemma and T5Gemma 2 checkpoints.

A test counts the weights of each and compares with the number that its paper gives (Guo et al. 2022; Zhang et al. 2025, of both
versions of T5Gemma).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from transformers import LongT5Config, PretrainedConfig, T5Gemma2Config, T5GemmaConfig

# d_model, d_ff, layers, heads
_LONGT5 = {
    "local-base": (768, 2048, 12, 12),
    "local-large": (1024, 2816, 24, 16),
    "tglobal-base": (768, 2048, 12, 12),
    "tglobal-large": (1024, 2816, 24, 16),
    "tglobal-xl": (2048, 5120, 24, 32),
}
# hidden size, intermediate size, layers, heads, heads of keys and values
_GEMMA_2 = {"2b": (2304, 9216, 26, 8, 4), "9b": (3584, 14336, 42, 16, 8)}
_GEMMA_3 = {"270m": (640, 2048, 18, 4, 1), "1b": (1152, 6912, 26, 4, 1), "4b": (2560, 10240, 34, 8, 4)}


def _longt5(size: str) -> PretrainedConfig:
    d_model, d_ff, layers, heads = _LONGT5[size]
    shape: dict[str, Any] = {
        "d_model": d_model,
        "d_ff": d_ff,
        "num_layers": layers,
        "num_heads": heads,
        "feed_forward_proj": "gated-gelu",
        "encoder_attention_type": "local" if size.startswith("local") else "transient-global",
        "tie_word_embeddings": False,
        "decoder_start_token_id": 0,
    }
    return LongT5Config(**shape)


def _stack(shape: tuple[int, int, int, int, int]) -> dict[str, Any]:
    hidden, inner, layers, heads, key_heads = shape
    return {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_heads,
        "head_dim": 256,
    }


def _t5gemma(encoder: str, decoder: str) -> PretrainedConfig:
    return T5GemmaConfig(encoder=_stack(_GEMMA_2[encoder]), decoder=_stack(_GEMMA_2[decoder]))


def _t5gemma2(size: str) -> PretrainedConfig:
    vision = {
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "image_size": 896,
        "patch_size": 14,
    }
    stack = _stack(_GEMMA_3[size]) | {"sliding_window": 512 if size != "4b" else 1024}
    return T5Gemma2Config(encoder={"text_config": stack, "vision_config": vision}, decoder=dict(stack))


OTHER_CHECKPOINTS: dict[str, Callable[[], PretrainedConfig]] = {
    **{f"google/long-t5-{size}": partial(_longt5, size) for size in _LONGT5},
    **{
        f"google/t5gemma-{encoder}-{decoder}-{kind}": partial(_t5gemma, encoder, decoder)
        for encoder, decoder in (("2b", "2b"), ("9b", "2b"), ("9b", "9b"))
        for kind in ("ul2", "prefixlm")
    },
    **{f"google/t5gemma-2-{size}-{size}": partial(_t5gemma2, size) for size in _GEMMA_3},
}
"""A function to the configuration of each known checkpoint, by its name on the hub."""
