"""A T5 with a small tokenizer, and tokens to add to it."""

from __future__ import annotations

import torch
from peft import PeftModel
from tiny import Geometry, tiny_batch, tiny_t5
from torch import Tensor
from transformers import PreTrainedModel, T5Tokenizer
from vocabulary import small_tokenizer

from t5peft.methods import lora_wrap
from t5peft.models.tokens import add_tokens, train_tokens

SHAPES: tuple[Geometry, ...] = ("v1.0", "v1.1")
NEW = ["{", "<br>", "positively"]


def small_t5(shape: Geometry) -> tuple[PreTrainedModel, T5Tokenizer]:
    tokenizer = T5Tokenizer(vocab=small_tokenizer()._vocab_scores)
    return tiny_t5(shape, vocab_size=len(tokenizer)), tokenizer


def batch_with(ids: list[int]) -> dict[str, Tensor]:
    batch = tiny_batch()
    for name in ("input_ids", "labels"):
        batch[name] = torch.where(batch[name] > 3, batch[name] % 150 + 3, batch[name])
        batch[name][:, 0] = ids[0]
        batch[name][0, 1] = ids[1]
    return batch


def logits(model: torch.nn.Module, batch: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return model(**batch).logits


def trained(shape: Geometry) -> tuple[PeftModel, T5Tokenizer, list[int]]:
    model, tokenizer = small_t5(shape)
    ids = add_tokens(model, tokenizer, NEW)
    wrapped = lora_wrap(model, rank=2)
    train_tokens(wrapped, ids)
    return wrapped, tokenizer, ids


def step(model: PeftModel, batch: dict[str, Tensor]) -> None:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model(**batch).loss.backward()
    torch.optim.SGD(parameters, lr=0.5).step()
    model.zero_grad()
