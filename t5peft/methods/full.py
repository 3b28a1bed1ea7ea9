"""Full fine-tuning: every weight is trained. The reference of every table."""

from __future__ import annotations

from transformers import PreTrainedModel

from t5peft.models.backbone import correct_config, ensure_trainable_dtype
from t5peft.models.unwrap import ensure_unwrapped


def full_wrap(model: PreTrainedModel) -> PreTrainedModel:
    """Make every weight of ``model`` trainable, in place. Raises ValueError for a wrapped or a quantised model."""
    ensure_unwrapped(model)
    if getattr(model, "is_quantized", False):
        raise ValueError(
            "Quantised weights cannot be trained; load the backbone without quantize for full fine-tuning."
        )
    ensure_trainable_dtype(model)
    correct_config(model)
    return model.requires_grad_(True)
