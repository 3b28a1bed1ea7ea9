"""Peers: peft's own methods under the plain `Seq2SeqTrainer`, put together as their users do by hand.

They stand in the tables so that one sees what the corrections of this library change: the same hyperparameters, data and
steps, but peft's prefix and prompt tuning, and the loss as `Seq2SeqTrainer` takes it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from peft import LoraConfig, PeftModel, PrefixTuningConfig, PromptTuningConfig, TaskType, get_peft_model
from transformers import DataCollatorForSeq2Seq, PreTrainedModel, Seq2SeqTrainer, Seq2SeqTrainingArguments


def peft_lora(model: PreTrainedModel, *, rank: int = 16, **options: Any) -> PeftModel:
    """peft's LoRA on query and value."""
    config = LoraConfig(task_type=TaskType.SEQ_2_SEQ_LM, r=rank, lora_alpha=2 * rank, **options)
    return get_peft_model(model, config)


def peft_prefix(model: PreTrainedModel, *, length: int = 20, **options: Any) -> PeftModel:
    """peft's prefix tuning, which reaches decoder self-attention alone."""
    return get_peft_model(
        model, PrefixTuningConfig(task_type=TaskType.SEQ_2_SEQ_LM, num_virtual_tokens=length, **options)
    )


def peft_prompt(model: PreTrainedModel, *, length: int = 20, **options: Any) -> PeftModel:
    """peft's prompt tuning with its own defaults."""
    return get_peft_model(
        model, PromptTuningConfig(task_type=TaskType.SEQ_2_SEQ_LM, num_virtual_tokens=length, **options)
    )


BASELINES: dict[str, Callable[..., PeftModel]] = {
    "peft-lora": peft_lora,
    "peft-prefix": peft_prefix,
    "peft-prompt": peft_prompt,
}


def plain_trainer(
    model: PeftModel, arguments: dict[str, Any], train: Any, tokenizer: Any, **more: Any
) -> Seq2SeqTrainer:
    """`Seq2SeqTrainer` with the collator of its examples."""
    return Seq2SeqTrainer(
        model=model,
        args=Seq2SeqTrainingArguments(**arguments),
        train_dataset=train,
        data_collator=DataCollatorForSeq2Seq(tokenizer, model=model),
        processing_class=tokenizer,
        **more,
    )
