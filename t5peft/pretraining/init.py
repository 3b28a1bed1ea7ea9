"""Make a new T5, and count the arithmetic of one of its steps."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, T5Config, T5ForConditionalGeneration


@dataclass(frozen=True)
class Shape:
    """The shape of a T5 v1.0: relu, and one table for input and output. The defaults are those of ``mini``."""

    d_model: int = 256
    d_ff: int = 1024
    layers: int = 4
    heads: int = 4
    d_kv: int = 64


def new_model(
    tokenizer: PreTrainedTokenizerBase, shape: Shape, *, embeddings: Tensor | None = None, seed: int = 0
) -> T5ForConditionalGeneration:
    """Return a T5 with random weights, initialized as T5 does, without dropout.

    Args:
        tokenizer: The tokenizer whose vocabulary the model gets.
        shape: Sizes of the model.
        embeddings: A table [V, H] that replaces the random one.
        seed: Seed of the random weights.

    Raises:
        ValueError: The embeddings have another shape.
    """
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=shape.d_model,
        d_kv=shape.d_kv,
        d_ff=shape.d_ff,
        num_layers=shape.layers,
        num_decoder_layers=shape.layers,
        num_heads=shape.heads,
        feed_forward_proj="relu",
        dropout_rate=0.0,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    config.decoder_start_token_id = tokenizer.pad_token_id
    if embeddings is not None and embeddings.shape != (len(tokenizer), shape.d_model):
        raise ValueError(f"Got embeddings {list(embeddings.shape)}; expected [{len(tokenizer)}, {shape.d_model}].")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = T5ForConditionalGeneration(config)
    if embeddings is not None:
        model.shared.weight.data.copy_(embeddings)
    return model


def step_flops(config: T5Config, *, source_tokens: int, target_tokens: int) -> float:
    """Count the multiplications and additions of a forward and a backward pass, without attention scores.

    A weight costs 6 for each token that meets it. The encoder and the cross-attention's keys and values meet source tokens; the
    rest of the decoder and the head meet target tokens.
    """
    attention = config.d_model * config.num_heads * config.d_kv
    feed_forward = config.d_model * config.d_ff * (3 if config.is_gated_act else 2)
    decoder_layers = config.num_decoder_layers or config.num_layers
    per_source = config.num_layers * (4 * attention + feed_forward) + decoder_layers * 2 * attention
    per_target = decoder_layers * (6 * attention + feed_forward) + config.vocab_size * config.d_model
    return 6.0 * (per_source * source_tokens + per_target * target_tokens)


def matmul_flops_per_second(device: torch.device, precision: str, *, seconds: float = 0.5) -> float:
    """Measure what a large matrix product reaches on this machine, with the threads that training has."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    left, right = (torch.randn(2048, 1024, device=device, dtype=dtype) for _ in range(2))
    best, deadline = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < deadline:
        start = time.perf_counter()
        product = left @ right.t()
        float(product[0, 0])  # waits for the device
        best = max(best, 2.0 * 2048 * 2048 * 1024 / (time.perf_counter() - start))
    return best
