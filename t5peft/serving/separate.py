"""Adapters whose rows are computed by themselves within a call: ladders, and LoRA with trained tokens.

A ladder is a network with caches of its own, and trained tokens change both ends of the model. Such an adapter sits on a copy of
the backbone's modules, which shares the backbone's weights. So it costs its own weights and nothing more, and answers as
``load_adapter`` does.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from t5peft.adapters.load import load_adapter
from t5peft.evaluation.inference import padded
from t5peft.methods.ladder import LadderConfig
from t5peft.models.unwrap import unwrap_t5
from t5peft.serving.requests import Ids

_HOOKS = (
    "_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs",
    "_forward_hooks_always_called",
)  # fmt: skip


def is_separate(config: PeftConfig) -> bool:
    """Return whether the rows of an adapter cannot be computed beside those of others.

    Args:
        config: Of the adapter.
    """
    return isinstance(config, LadderConfig) or (
        isinstance(config, LoraConfig) and config.trainable_token_indices is not None
    )


def load_separate(folder: Path, t5: PreTrainedModel) -> PeftModel:
    """Load an adapter on a copy of a backbone that shares its weights.

    Args:
        folder: The adapter.
        t5: The backbone, whose hooks are not copied.

    Returns:
        The adapter on its copy, in evaluation mode.

    Raises:
        ValueError: The adapter is damaged or does not fit.
    """
    shared: dict[int, Any] = {id(tensor): tensor for tensor in (*t5.parameters(), *t5.buffers())}
    for module in t5.modules():
        shared |= {id(getattr(module, name)): OrderedDict() for name in _HOOKS}
        if (state := getattr(module, "state", None)) is not None:  # of 8-bit maps, which hold their weights there
            shared[id(state)] = state
    model, _ = load_adapter(folder, model=copy.deepcopy(t5, shared))
    return model.eval().to(t5.device)


@torch.inference_mode()
def generate_separately(model: PeftModel, sources: Ids, options: dict[str, Any]) -> list[list[int]]:
    """Generate an answer for each source, as ``MixedModel.generate`` does.

    Args:
        model: From ``load_separate``.
        sources: Token ids of each row.
        options: For ``generate`` of transformers.

    Returns:
        Token ids of each row, the start token first.
    """
    t5: Any = unwrap_t5(model)
    ids, mask = padded(sources, t5.config.pad_token_id, t5.device)
    found: Tensor = t5.generate(input_ids=ids, attention_mask=mask, **options)
    return found.tolist()


@torch.inference_mode()
def encode_separately(model: PeftModel, sources: Ids) -> tuple[PreTrainedModel, Tensor, Tensor]:
    """Encode sources.

    Args:
        model: From ``load_separate``.
        sources: Token ids of each row.

    Returns:
        The T5 of the adapter, the states and their mask.
    """
    t5 = unwrap_t5(model)
    ids, mask = padded(sources, t5.config.pad_token_id, t5.device)
    return t5, t5.get_encoder()(input_ids=ids, attention_mask=mask).last_hidden_state, mask
