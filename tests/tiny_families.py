"""Tiny models of the families beside T5, with uneven weights as in ``tiny``, and what the families have."""

from __future__ import annotations

import zlib
from typing import Any, Literal, TypeVar

import pytest
import torch
from tiny import EOS, PAD, VOCABULARY, tiny_batch
from torch import Tensor
from transformers import (
    LongT5Config,
    LongT5ForConditionalGeneration,
    PreTrainedModel,
    T5Gemma2Config,
    T5Gemma2ForConditionalGeneration,
    T5Gemma2ForSequenceClassification,
    T5GemmaConfig,
    T5GemmaForConditionalGeneration,
    T5GemmaForSequenceClassification,
)

from t5peft.models.families import family_of
from t5peft.models.unwrap import unwrap_t5
from t5peft.nn.attention import use_attention

Other = Literal["t5gemma", "t5gemma2", "longt5-local", "longt5-tglobal"]
OTHERS: tuple[Other, ...] = ("t5gemma", "t5gemma2", "longt5-local", "longt5-tglobal")
GEMMAS: tuple[Other, ...] = ("t5gemma", "t5gemma2")

_FAST = {
    ("t5gemma", "lora"),
    ("t5gemma", "prefix"),
    ("t5gemma2", "prefix"),
    ("t5gemma2", "norm"),
    ("longt5-tglobal", "prompt"),
}


def case_of(family: Other, method: str, *more: Any) -> Any:
    """A parameter of pytest; each family and each kind of method runs fast once, and the rest of the table with the slow tests."""
    name = "-".join(map(str, (family, *(more or (method,)))))
    marks = [] if (family, method) in _FAST else [pytest.mark.slow]
    return pytest.param(family, *(more or (method,)), id=name, marks=marks)


Model = TypeVar("Model", bound=PreTrainedModel)

START = 2
# a window that is shorter than the texts, and half as many heads of keys as of queries
_GEMMA: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "query_pre_attn_scalar": 8,
    "sliding_window": 5,
    "layer_types": ["sliding_attention", "full_attention"],
    "max_position_embeddings": 512,
    "pad_token_id": PAD,
    "eos_token_id": EOS,
    "bos_token_id": START,
}


def other_config(family: Other, **changes: Any) -> Any:
    """The configuration of a tiny model, without dropout."""
    if family == "t5gemma":  # with softcaps that bend, and a decoder that is narrower than the encoder
        stack = _GEMMA | {"final_logit_softcapping": 3.0, "attn_logit_softcapping": 2.0}
        return T5GemmaConfig(encoder=dict(stack), decoder=stack | {"hidden_size": 24}, **changes)
    if family == "t5gemma2":
        images = {"image_token_index": 380, "eoi_token_index": 381, "boi_token_index": 382, "mm_tokens_per_image": 4}
        sight = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
        encoder = {"text_config": dict(_GEMMA), "vision_config": sight | {"image_size": 8, "patch_size": 4}, **images}
        return T5Gemma2Config(encoder=encoder, decoder=dict(_GEMMA), image_token_index=380, **changes)
    kind = {"longt5-local": "local", "longt5-tglobal": "transient-global"}[family]
    common: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "d_model": 32,
        "d_kv": 8,
        "num_heads": 4,
        "d_ff": 48,
        "num_layers": 2,
        "dropout_rate": 0.0,
        "relative_attention_num_buckets": 8,
        "relative_attention_max_distance": 12,
        "decoder_start_token_id": PAD,
        "feed_forward_proj": "gated-gelu",
        "local_radius": 3,
        "global_block_size": 4,
    }
    return LongT5Config(**(common | {"encoder_attention_type": kind} | changes))


_CLASSES: dict[str, Any] = {
    "t5gemma": T5GemmaForConditionalGeneration,
    "t5gemma2": T5Gemma2ForConditionalGeneration,
    "longt5-local": LongT5ForConditionalGeneration,
    "longt5-tglobal": LongT5ForConditionalGeneration,
}
_CLASSIFIERS: dict[str, Any] = {
    "t5gemma": T5GemmaForSequenceClassification,
    "t5gemma2": T5Gemma2ForSequenceClassification,
}


def tiny_other(family: Other, *, seed: int = 0, **changes: Any) -> Any:
    """A tiny model in eval mode."""
    return fill(_CLASSES[family](other_config(family, **changes)), seed).eval()


def tiny_other_classifier(family: Other, *, num_labels: int = 3) -> Any:
    """A tiny model with a classification head, in eval mode."""
    return fill(_CLASSIFIERS[family](other_config(family, num_labels=num_labels))).eval()


@torch.no_grad()
def fill(model: Model, seed: int = 0) -> Model:
    """Fill every parameter by its name and ``seed``, with rows of unlike size."""
    for name, parameter in model.named_parameters():
        generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))
        if parameter.dim() == 1:
            parameter.copy_(0.5 + torch.rand(parameter.shape, generator=generator))
            continue
        normal = torch.randn(parameter.shape, generator=generator)
        normal *= torch.linspace(0.6, 1.4, parameter.shape[0]).view(-1, *[1] * (parameter.dim() - 1))
        is_table = "embed" in name or "shared" in name or "bias" in name
        parameter.copy_(normal * (0.3 if is_table else parameter[0].numel() ** -0.5))
    return model


def precise(model: Any) -> Any:
    """``model`` in double precision.

    The plain attention of T5Gemma takes its softmax in single precision, where a row that sees nothing, as padding may, is NaN
    for masks of double precision. So a Gemma gets the attention function of this library, which is tested to be equal.
    """
    t5 = unwrap_t5(model.double())
    if family_of(t5.config).positions == "rotary":
        use_attention(t5)
    return model


def other_batch(count: int = 4, **options: Any) -> dict[str, Tensor]:
    """A padded batch, as ``tiny_batch``."""
    return tiny_batch(count, **options)
