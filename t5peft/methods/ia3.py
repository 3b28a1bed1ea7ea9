"""IA3 (Liu et al. 2022, https://arxiv.org/abs/2205.05638) on T5, by peft.

Three vectors per layer scale the keys, the values, and the hidden units of the feed-forward. They start as ones. The third one
scales the input of ``wo``, for relu and gated feed-forwards alike. All three stand in the encoder, in the decoder, and in the
cross-attention.

Differs from peft: ``adapter_names=``, which the IA3 of peft ignores, is an error. Beside quantized weights the scaled values keep
the dtype of the input; those of peft turn into float32, and attention then refuses them. Both hold for every model that peft
wraps for IA3 once t5peft is imported, also by ``PeftModel.from_pretrained``.
"""

from __future__ import annotations

from typing import Any

from peft import IA3Config, IA3Model, PeftModel
from torch import nn
from transformers import PreTrainedModel

from t5peft.compat.peft import replace_tuner
from t5peft.methods.base import keep_dtype, no_mixed_batches, wrap
from t5peft.models.families import family_of, untuned_pattern
from t5peft.models.unwrap import ensure_unwrapped


class IA3Tuner(IA3Model):
    """The IA3 of peft with what this module changes."""

    _enable_peft_forward_hooks = staticmethod(no_mixed_batches)

    @staticmethod
    def _create_new_module(ia3_config: IA3Config, adapter_name: str, target: nn.Module, **kwargs: Any) -> nn.Module:
        return keep_dtype(IA3Model._create_new_module(ia3_config, adapter_name, target, **kwargs))


def ia3_wrap(model: PreTrainedModel) -> PeftModel:
    """Wrap ``model`` for IA3, in place.

    Args:
        model: A T5.

    Returns:
        The wrapped model.

    Raises:
        ValueError: The model is already wrapped.
    """
    ensure_unwrapped(model)
    family = family_of(model.config)
    _, key, value, _ = family.attention
    output = family.feed_forward_maps(model.config)[-1]
    config = IA3Config(
        target_modules=[key, value, output], feedforward_modules=[output], exclude_modules=untuned_pattern(family)
    )
    return wrap(model, config)


replace_tuner("IA3", IA3Tuner)
