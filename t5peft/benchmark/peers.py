"""Peers: peft's own methods under the plain ``Seq2SeqTrainer``, put together as their users do by hand.

They show what the corrections of this library change. Hyperparameters, data and steps are the same. Prefix and prompt
tuning are peft's, and the loss is that of ``Seq2SeqTrainer``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from peft import LoraConfig, PeftModel, PrefixTuningConfig, PromptTuningConfig, TaskType, get_peft_model
from torch import nn
from torch.utils.data import Dataset
from transformers import (
    DataCollatorForSeq2Seq,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    TrainerCallback,
)

PREFIX = "peft-"


def is_peer(method: str) -> bool:
    """Return whether a method's name is that of a peer."""
    return method.startswith(PREFIX)


def peft_lora(model: PreTrainedModel, *, rank: int = 16, **options: Any) -> PeftModel:
    """Wrap with peft's LoRA on query and value."""
    return _wrap(model, LoraConfig(task_type=TaskType.SEQ_2_SEQ_LM, r=rank, lora_alpha=2 * rank, **options))


def peft_prefix(model: PreTrainedModel, *, length: int = 20, **options: Any) -> PeftModel:
    """Wrap with peft's prefix tuning, which reaches decoder self-attention only."""
    return _wrap(model, PrefixTuningConfig(task_type=TaskType.SEQ_2_SEQ_LM, num_virtual_tokens=length, **options))


def peft_prompt(model: PreTrainedModel, *, length: int = 20, **options: Any) -> PeftModel:
    """Wrap with peft's prompt tuning, with its own defaults."""
    return _wrap(model, PromptTuningConfig(task_type=TaskType.SEQ_2_SEQ_LM, num_virtual_tokens=length, **options))


def _wrap(model: PreTrainedModel, config: LoraConfig | PrefixTuningConfig | PromptTuningConfig) -> PeftModel:
    wrapped = get_peft_model(model, config)
    assert isinstance(wrapped, PeftModel)  # a PeftMixedModel only where it is asked for
    return wrapped


PEERS: dict[str, Callable[..., PeftModel]] = {
    "peft-lora": peft_lora,
    "peft-prefix": peft_prefix,
    "peft-prompt": peft_prompt,
}


def plain_trainer(
    model: nn.Module,
    arguments: dict[str, Any],
    train: Dataset[dict[str, Any]] | None,
    tokenizer: PreTrainedTokenizerBase,
    callbacks: Sequence[TrainerCallback] = (),
) -> Seq2SeqTrainer:
    """Return a ``Seq2SeqTrainer`` with the collator of its examples.

    Args:
        model: A model that a peer wrapped.
        arguments: Those of ``Seq2SeqTrainingArguments``.
        train: Tokenized examples.
        tokenizer: The backbone's tokenizer.
        callbacks: Those of the trainer.
    """
    return Seq2SeqTrainer(
        model=model,
        args=Seq2SeqTrainingArguments(**arguments),
        train_dataset=train,
        data_collator=DataCollatorForSeq2Seq(tokenizer, model=model),
        processing_class=tokenizer,
        callbacks=list(callbacks),
    )
