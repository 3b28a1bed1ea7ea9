"""Narrow results of torch, transformers and peft, whose annotations are wider than what a test gets; anything else fails."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray
from peft import LoraConfig, PeftModel
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase, T5Config, Trainer

from t5peft.models.unwrap import unwrap_t5

Module = TypeVar("Module", bound=nn.Module)


def array(value: object) -> NDArray[Any]:
    assert isinstance(value, np.ndarray)
    return value


def text(value: object) -> str:
    assert isinstance(value, str)
    return value


def gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def t5_config(model: nn.Module) -> T5Config:
    config = unwrap_t5(model).config
    assert isinstance(config, T5Config)
    return config


def model_of(trainer: Trainer) -> nn.Module:
    assert trainer.model is not None
    return trainer.model


def on_device(model: Module, device: str) -> Module:
    """Move ``model`` in place; the ``to`` of transformers is wrapped, so that its annotations ask for the model again."""
    cast(nn.Module, model).to(device)
    return model


def generate(model: nn.Module, **options: Any) -> Tensor:
    """Return the token ids that ``model`` generates; its class does not say that it can."""
    ids = cast(Any, model).generate(**options)
    assert isinstance(ids, Tensor)
    return ids


def as_dataset(records: Sequence[Any] | Any) -> Dataset[Any]:
    """Return ``records`` as they are; the Trainer takes a list, but its annotations ask for torch's ``Dataset``."""
    return cast("Dataset[Any]", records)


def ids_of(tokenizer: PreTrainedTokenizerBase, tokens: list[str]) -> list[int]:
    ids = tokenizer.convert_tokens_to_ids(tokens)
    assert isinstance(ids, list)
    return ids


def rank_of(model: PeftModel) -> int:
    config = model.peft_config["default"]
    assert isinstance(config, LoraConfig)
    return config.r


def as_peft(model: nn.Module) -> PeftModel:
    assert isinstance(model, PeftModel)
    return model
