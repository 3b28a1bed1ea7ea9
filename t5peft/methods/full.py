"""Full fine-tuning: every weight is trained. It is the reference of every table."""

from __future__ import annotations

from transformers import PreTrainedModel

from t5peft.models.backbone import correct_config, ensure_trainable_dtype
from t5peft.models.families import family_of
from t5peft.models.unwrap import ensure_unwrapped


def full_wrap(model: PreTrainedModel) -> PreTrainedModel:
    """Make every weight of the text stacks and heads of ``model`` trainable, in place.

    Args:
        model: A T5.

    Returns:
        The model.

    Raises:
        ValueError: The model is already wrapped, or quantized.
    """
    ensure_unwrapped(model)
    if getattr(model, "is_quantized", False):
        raise ValueError(
            "Got a quantized model; expected one in float32 or bfloat16, as quantized weights cannot be trained. Load the "
            "backbone without quantize for full fine-tuning."
        )
    ensure_trainable_dtype(model)
    correct_config(model)
    family = family_of(model.config)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(family.is_tuned(name))
    return model
