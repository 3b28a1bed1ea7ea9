"""IA3 (Liu et al. 2022, https://arxiv.org/abs/2205.05638) on T5, by peft.

Three vectors a layer, all ones at the start, scale the keys, the values, and the hidden units of the feed-forward (as the input of
``wo``, for relu and gated ones alike), in the encoder, the decoder and the cross-attention.

Differs from peft: ``adapter_names=``, which peft's IA3 ignores, is an error; beside quantised weights the scaled values keep
the dtype of what came in, where peft's turn into float32 and attention then refuses them.
"""

from __future__ import annotations

from typing import Any

import torch
from peft import IA3Config, IA3Model, PeftModel
from peft.tuners.ia3 import IA3Layer
from torch import Tensor, nn
from transformers import PreTrainedModel

from t5peft.methods.base import no_mixed_batches
from t5peft.methods.wrapping import wrap
from t5peft.models.unwrap import ensure_unwrapped


def ia3_wrap(model: PreTrainedModel) -> PeftModel:
    """Wrap ``model`` for IA3, in place. Raises ValueError for a wrapped model."""
    ensure_unwrapped(model)
    return patch_ia3(wrap(model, IA3Config(target_modules=["k", "v", "wo"], feedforward_modules=["wo"])))


def patch_ia3(model: PeftModel) -> PeftModel:
    """``model``, with what this module changes of peft's IA3 where it is one."""
    if isinstance(model.base_model, IA3Model):
        model.base_model._enable_peft_forward_hooks = no_mixed_batches
        for layer in model.modules():
            if isinstance(layer, IA3Layer) and type(layer.get_base_layer()) is not nn.Linear:
                layer.register_forward_hook(_in_the_dtype_that_came)
    return model


def _in_the_dtype_that_came(layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    return output if torch.is_autocast_enabled(output.device.type) else output.to(inputs[0].dtype)
