"""What every ``*_wrap`` does: check the model, hand it to peft, keep its head trainable."""

from __future__ import annotations

import warnings

from peft import PeftConfig, PeftModel, TaskType, get_peft_model
from transformers import PreTrainedModel

from t5peft.models.backbone import correct_config, ensure_trainable_dtype

# The attribute of a model class that holds a head which pretraining did not train, by the peft task of that class.
_HEADS: dict[str, tuple[str, TaskType]] = {
    "ForConditionalGeneration": ("", TaskType.SEQ_2_SEQ_LM),
    "ForSequenceClassification": ("classification_head", TaskType.SEQ_CLS),
    "ForTokenClassification": ("classifier", TaskType.TOKEN_CLS),
    "ForQuestionAnswering": ("qa_outputs", TaskType.QUESTION_ANS),
    "EncoderModel": ("", TaskType.FEATURE_EXTRACTION),
}


def head_module_name(model: PreTrainedModel) -> str | None:
    """Name of the freshly initialised head of ``model``, which every method must train and save, or None."""
    return _kind(model)[0] or None


def wrap(model: PreTrainedModel, config: PeftConfig) -> PeftModel:
    """Wrap ``model`` in place by ``config``: task type and trained head are filled in, the backbone is frozen."""
    head, config.task_type = _kind(model)
    ensure_trainable_dtype(model)
    correct_config(model)
    if head:
        config.modules_to_save = sorted({*(config.modules_to_save or []), head})
    with warnings.catch_warnings():
        # peft reads a property that transformers 5 has renamed.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        return get_peft_model(model, config)


def _kind(model: PreTrainedModel) -> tuple[str, TaskType]:
    name = type(model).__name__
    for suffix, kind in _HEADS.items():
        if name.endswith(suffix):
            return kind
    raise ValueError(f"No adapter task is known for {name}; expected a class that ends in {', '.join(_HEADS)}.")
