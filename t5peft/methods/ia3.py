"""IA3 (Liu et al. 2022, https://arxiv.org/abs/2205.05638) on T5, by peft.

Three vectors a layer, all ones at the start, scale the keys, the values, and the hidden units of the feed-forward (as the input of
``wo``, for relu and gated ones alike), in the encoder, the decoder and the cross-attention.
"""

from __future__ import annotations

from peft import IA3Config, PeftModel
from transformers import PreTrainedModel

from t5peft.methods.wrapping import check_plain, wrap


def ia3_wrap(model: PreTrainedModel) -> PeftModel:
    """Wrap ``model`` for IA3, in place. Raises ValueError for a wrapped model."""
    check_plain(model)
    return wrap(model, IA3Config(target_modules=["k", "v", "wo"], feedforward_modules=["wo"]))
