"""Shapes of models whose steps are measured: large enough for peaks that are not the libraries' own, small enough for a minute."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from planner_accuracy import Shape
from transformers import LongT5Config, T5Gemma2Config, T5GemmaConfig

_STACK: dict[str, Any] = {
    "vocab_size": 8192,
    "hidden_size": 384,
    "intermediate_size": 1024,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "query_pre_attn_scalar": 64,
    "sliding_window": 64,
}


def _longt5() -> Any:
    shape: dict[str, Any] = {
        "vocab_size": 8192,
        "d_model": 256,
        "d_ff": 512,
        "num_layers": 2,
        "num_heads": 2,
        "feed_forward_proj": "gated-gelu",
        "encoder_attention_type": "transient-global",
        "tie_word_embeddings": False,
        "decoder_start_token_id": 0,
    }
    return LongT5Config(**shape)


def _t5gemma2() -> Any:
    images = {"image_token_index": 8190, "eoi_token_index": 8189, "boi_token_index": 8188}
    sight = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    encoder = {"text_config": dict(_STACK), "vision_config": sight | {"image_size": 224, "patch_size": 14}, **images}
    return T5Gemma2Config(encoder=encoder, decoder=dict(_STACK), image_token_index=8190)


SHAPES: dict[str, tuple[Callable[[], Any], Shape]] = {
    "longt5-16000": (_longt5, Shape("longt5-16000", 1, 16_000, 64)),
    "t5gemma-small": (
        lambda: T5GemmaConfig(encoder=dict(_STACK), decoder=dict(_STACK), dropout_rate=0.1),
        Shape("t5gemma-small", 8, 128, 64),
    ),
    "t5gemma2-small": (_t5gemma2, Shape("t5gemma2-small", 8, 128, 64)),
}
