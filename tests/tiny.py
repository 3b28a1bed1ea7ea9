"""Tiny T5s with fixed uneven weights, and batches with padding, for the tests.

The letters of shapes are those of the package: B batch, S source tokens, T target tokens, H d_model, N heads, D d_kv,
P prefix or prompt length, R rank, V vocabulary, L layers.

Weights are not the default initialization: a model whose norms are all ones, whose rows are all alike and whose
relative position biases are negligible lets too many mistakes pass.
"""

from __future__ import annotations

import zlib
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from transformers import (
    ByT5Tokenizer,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
    T5ForSequenceClassification,
)

Geometry = Literal["v1.0", "v1.1", "wide"]
GEOMETRIES: tuple[Geometry, ...] = ("v1.0", "v1.1", "wide")

Model = TypeVar("Model", bound=PreTrainedModel)

VOCABULARY = 384  # as many ids as the ByT5 tokenizer has, which needs no files
PAD, EOS = 0, 1

_SHAPES: dict[Geometry, dict[str, Any]] = {
    "v1.0": {"d_model": 32, "d_kv": 8, "num_heads": 4, "d_ff": 48, "num_layers": 2},
    "v1.1": {
        "d_model": 32,
        "d_kv": 8,
        "num_heads": 4,
        "d_ff": 48,
        "num_layers": 2,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
    },
    # num_heads * d_kv = 30 is not d_model, and the decoder is deeper than the encoder
    "wide": {
        "d_model": 24,
        "d_kv": 10,
        "num_heads": 3,
        "d_ff": 40,
        "num_layers": 2,
        "num_decoder_layers": 3,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
    },
}


def tiny_config(geometry: Geometry = "v1.0", **changes: Any) -> T5Config:
    """The configuration of one tiny geometry, without dropout; ``changes`` go to ``T5Config``."""
    common = {
        "vocab_size": VOCABULARY,
        "dropout_rate": 0.0,
        # few buckets and a short reach, so that short sequences meet exact, logarithmic and clipped buckets
        "relative_attention_num_buckets": 8,
        "relative_attention_max_distance": 12,
        "decoder_start_token_id": PAD,
    }
    return T5Config(**(common | _SHAPES[geometry] | changes))


def tiny_t5(geometry: Geometry = "v1.0", *, seed: int = 0, **changes: Any) -> T5ForConditionalGeneration:
    """A tiny T5 in eval mode; the head of "v1.1" and "wide" is untied and differs from the embeddings."""
    config = tiny_config(geometry, **changes)
    model = T5ForConditionalGeneration(config)
    if not config.scale_decoder_outputs:
        # T5Config forces tying (post_init has just tied), so the head gets its own parameter afterwards
        model.lm_head.weight = nn.Parameter(torch.empty_like(model.lm_head.weight))
    return fill_unevenly(model, seed).eval()


def tiny_classifier(
    geometry: Geometry = "v1.0", *, num_labels: int = 3, seed: int = 0, **changes: Any
) -> T5ForSequenceClassification:
    """A tiny T5 with a classification head, in eval mode."""
    model = T5ForSequenceClassification(tiny_config(geometry, num_labels=num_labels, **changes))
    return fill_unevenly(model, seed).eval()


@torch.no_grad()
def fill_unevenly(model: Model, seed: int = 0) -> Model:
    """Fills every parameter by its name and ``seed``: normal numbers of T5's own size, with rows of unlike size."""
    for name, parameter in model.named_parameters():
        generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))
        if parameter.dim() == 1:  # norms around one, biases of a head too
            parameter.copy_(0.5 + torch.rand(parameter.shape, generator=generator))
            continue
        rows = torch.linspace(0.6, 1.4, parameter.shape[0])[torch.randperm(parameter.shape[0], generator=generator)]
        normal = torch.randn(parameter.shape, generator=generator) * rows[:, None]
        parameter.copy_(normal * _size_of_weight(name, parameter, model.config.d_kv))
    return model


def _size_of_weight(name: str, weight: Tensor, d_kv: int) -> float:
    if "relative_attention_bias" in name or "shared" in name:
        return 1.0
    if name.endswith("SelfAttention.q.weight") or name.endswith("EncDecAttention.q.weight"):
        return 1.5 * (weight.shape[1] * d_kv) ** -0.5  # T5 does not scale scores, its query weights are small
    return weight.shape[1] ** -0.5


def tiny_records(count: int = 8, *, seed: int = 0, shortest: int = 2, longest: int = 11) -> list[dict[str, list[int]]]:
    """Records with ``input_ids`` and ``labels``, both ending in ``</s>``, of uneven lengths."""
    generator = torch.Generator().manual_seed(1000 + seed)

    def ids() -> list[int]:
        length = int(torch.randint(shortest, longest + 1, (), generator=generator))
        return [*torch.randint(3, VOCABULARY, (length,), generator=generator).tolist(), EOS]

    records = [{"input_ids": ids(), "labels": ids()} for _ in range(count)]
    # unequal by construction, whatever was drawn: the first target is the shortest, the last the longest
    records[0]["labels"] = [7, EOS]
    records[-1]["labels"] = [*range(10, 10 + longest + 2), EOS]
    return records


def tiny_batch(
    count: int = 4, *, side: Literal["right", "left"] = "right", seed: int = 0, extra_pads: int = 0
) -> dict[str, Tensor]:
    """A padded batch of ``tiny_records``: input_ids, attention_mask [B, S], labels [B, T] with -100 on padding."""
    records = tiny_records(count, seed=seed)
    sources = [torch.tensor(record["input_ids"]) for record in records]
    targets = [torch.tensor(record["labels"]) for record in records]
    source_length = max(map(len, sources)) + extra_pads
    return {
        "input_ids": torch.stack([_pad(source, source_length, PAD, side) for source in sources]),
        "attention_mask": torch.stack([_pad(torch.ones_like(s), source_length, 0, side) for s in sources]),
        "labels": torch.stack([_pad(target, max(map(len, targets)), -100, "right") for target in targets]),
    }


def tiny_classifier_batch(count: int = 4, *, num_labels: int = 3, seed: int = 0) -> dict[str, Tensor]:
    """A padded batch for ``tiny_classifier``, with labels [B]."""
    batch = tiny_batch(count, seed=seed)
    return batch | {"labels": torch.arange(count) % num_labels}


def _pad(ids: Tensor, length: int, value: int, side: Literal["right", "left"]) -> Tensor:
    missing = length - len(ids)
    return nn.functional.pad(ids, (0, missing) if side == "right" else (missing, 0), value=value)


def tiny_tokenizer() -> ByT5Tokenizer:
    """A tokenizer of bytes, ``VOCABULARY`` ids, that needs no files."""
    return ByT5Tokenizer()
