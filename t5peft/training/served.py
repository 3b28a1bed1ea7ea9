"""Refuse by name what is not served here of the arguments of transformers' Trainer.

``tests/training/served_names.py`` lists all others, so that a new one has to be decided on.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from peft import PeftModel
from transformers import TrainingArguments

from t5peft.compat.peft import adds_to_loss
from t5peft.methods.base import has_peft_prompt
from t5peft.models.unwrap import takes_labels
from t5peft.training.contrastive import EmbeddingHead
from t5peft.training.evaluation_loop import EvaluatingTrainer
from t5peft.training.head import Head
from t5peft.training.heads import SequenceHead, SpanHead, TextHead, head_of

REFUSED_ARGUMENTS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "fp16": (bool, "T5 overflows in it"),
    "fp16_full_eval": (bool, "T5 overflows in it"),
    "bf16_full_eval": (bool, "bf16=True evaluates in bfloat16 too"),
    "batch_eval_metrics": (bool, "compute_metrics is called once, with all rows"),
    "neftune_noise_alpha": (
        lambda value: value is not None,
        "transformers adds the noise to a table that T5's stacks do not read",
    ),
    "use_liger_kernel": (bool, "liger has no kernels for T5"),
    "liger_kernel_config": (bool, "liger has no kernels for T5"),
    "optim": (lambda value: "lomo" in str(value), "it updates weights before the gradient of the step is complete"),
    "parallelism_config": (bool, "T5 has no plan for tensor, context or sequence parallelism"),
    "sortish_sampler": (bool, "transformers ignores it; bucket_by_length does the same"),
}
"""Arguments of which some values are refused, with a function that tells these, and the reason. Other values are served."""


def refused_arguments(args: TrainingArguments) -> list[str]:
    """Return each argument with a value that is refused, with the reason."""
    return [
        f"{name} ({reason})"
        for name, (is_given, reason) in REFUSED_ARGUMENTS.items()
        if is_given(getattr(args, name, None))
    ]


def check_served(trainer: EvaluatingTrainer) -> None:
    """Check that a Trainer serves its arguments and its model.

    Raises:
        ValueError: It does not; names all of them.
    """
    problems = refused_arguments(trainer.args)
    head = head_of(trainer.t5)
    if head is None:
        problems.append(f"{type(trainer.t5).__name__} (expected a T5 with a head for text, classes or spans)")
    else:
        problems += _unserved_by_head(trainer, head)
    if trainer.own.lora_plus_ratio != 1 and trainer.optimizer is not None:
        problems.append("lora_plus_ratio with your own optimizer (set the learning rates of its groups)")
    if isinstance(trainer.model, PeftModel) and has_peft_prompt(trainer.model):
        kind = trainer.model.active_peft_config.peft_type.value
        problems.append(f"peft's own {kind} (wrap with prompt_wrap or prefix_wrap)")
    # accelerate launch sets the variable
    asked_for_fsdp = trainer.args.fsdp or os.environ.get("ACCELERATE_USE_FSDP") == "true"
    if asked_for_fsdp and not trainer.is_fsdp_enabled:
        problems.append("fsdp on a CPU (accelerate would train a whole copy in each process)")
    if trainer.accelerator.num_processes > 1 and trainer.accelerator.dispatch_batches:
        problems.append("dispatch_batches in several processes (each reads its own part of the data)")
    if problems:
        raise ValueError(
            f"Got arguments that T5PeftTrainer does not support: {'; '.join(problems)}; expected none of them. Leave them out."
        )


def _unserved_by_head(trainer: EvaluatingTrainer, head: Head) -> list[str]:
    problems = []
    if not isinstance(head, TextHead) and trainer.own.z_loss:
        problems.append("z_loss for a classification head (it applies to logits of the vocabulary)")
    regression = isinstance(head, SequenceHead) and head.problem([]) == "regression"
    if trainer.args.label_smoothing_factor and (regression or isinstance(head, SpanHead | EmbeddingHead)):
        problems.append("label_smoothing_factor for numbers, spans or pairs (it applies to classes)")
    if not {*(trainer.args.label_names or ())} <= {*head.labels} and not trainer.has_own_loss():
        names = ", ".join(head.labels)
        problems.append(f"label_names={trainer.args.label_names} (the labels of this model are {names})")
    if isinstance(head, SpanHead) and adds_to_loss(trainer.wrapped_model):
        problems.append("a tuner that adds to the loss of T5ForQuestionAnswering (padding changes that loss)")
    if isinstance(head, EmbeddingHead) and adds_to_loss(trainer.wrapped_model):
        problems.append("a tuner that adds to the loss of a model that makes embeddings (the model has no loss)")
    if isinstance(head, EmbeddingHead) and takes_labels(trainer.wrapped_model) and not trainer.has_own_loss():
        problems.append(
            "a model that makes embeddings and takes labels (its own loss would not count; override compute_loss)"
        )
    micro_batches = trainer.args.gradient_accumulation_steps * trainer.accelerator.num_processes
    if isinstance(head, EmbeddingHead) and trainer.args.train_batch_size * micro_batches < 2:
        problems.append("steps of one pair, which has no negatives (raise per_device_train_batch_size)")
    return problems
