"""Models and batches for the tests of kernels and budgets."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import (
    MT5Config,
    MT5ForConditionalGeneration,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
    UMT5Config,
    UMT5ForConditionalGeneration,
)

from t5peft.nn.loss import target_loss

PADS = {"pad_token_id": 0, "decoder_start_token_id": 0}
SHAPE = {
    "vocab_size": 97,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 0,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 16,
}
FAMILIES = {
    "t5": (T5Config, T5ForConditionalGeneration, {"feed_forward_proj": "relu"}),
    "t5 v1.1": (T5Config, T5ForConditionalGeneration, {"feed_forward_proj": "gated-gelu"}),
    "mt5": (MT5Config, MT5ForConditionalGeneration, {}),
    "umt5": (UMT5Config, UMT5ForConditionalGeneration, {}),
}


def tiny(family: str = "t5", dropout_rate: float = 0.0) -> PreTrainedModel:
    torch.manual_seed(0)
    config, model, options = FAMILIES[family]
    t5 = model(config(**SHAPE, dropout_rate=dropout_rate, **options))
    for name, parameter in t5.named_parameters():
        if "layer_norm" in name:
            nn.init.uniform_(parameter, 0.5, 1.5)
    return t5.train()


def features(count: int = 12, longest_source: int = 17, longest_target: int = 9) -> list[dict[str, list[int]]]:
    generator = torch.Generator().manual_seed(1)

    def tokens(longest: int) -> list[int]:
        length = int(torch.randint(1, longest + 1, (), generator=generator))
        return torch.randint(2, 97, (length,), generator=generator).tolist()

    return [{"input_ids": tokens(longest_source), "labels": tokens(longest_target)} for _ in range(count)]


def gradients(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    loss, _ = target_loss(model, batch)
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(ours: tuple[Tensor, dict[str, Tensor]], plain: tuple[Tensor, dict[str, Tensor]]) -> None:
    torch.testing.assert_close(ours[0], plain[0])
    assert ours[1].keys() == plain[1].keys()
    for name, grad in plain[1].items():
        scale = grad.abs().max().item()
        torch.testing.assert_close(ours[1][name], grad, rtol=1e-4, atol=2e-5 * scale, msg=name)
