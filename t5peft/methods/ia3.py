"""IA3 (Liu et al. 2022, https://arxiv.org/abs/2205.05638) on T5, by peft.

Three vectors a layer, all ones at the start, scale the keys, the values, and the hidden units of the feed-forward (as the input of
``wo``, for relu and gated ones alike), in the encoder, the decoder and the cross-attention.

Differs from peft: ``adapter_names=``, which peft's IA3 ignores, is an error.
"""

from __future__ import annotations

from peft import IA3Config, IA3Model, PeftModel
from transformers import PreTrainedModel

from t5peft.methods.registration import no_mixed_batches
from t5peft.methods.wrapping import check_plain, wrap


def ia3_wrap(model: PreTrainedModel) -> PeftModel:
    """Wrap ``model`` for IA3, in place. Raises ValueError for a wrapped model."""
    check_plain(model)
    return without_mixed_batches(wrap(model, IA3Config(target_modules=["k", "v", "wo"], feedforward_modules=["wo"])))


def without_mixed_batches(model: PeftModel) -> PeftModel:
    """``model``, which, if it is peft's IA3, refuses ``adapter_names`` from here on."""
    if isinstance(model.base_model, IA3Model):
        model.base_model._enable_peft_forward_hooks = no_mixed_batches
    return model
