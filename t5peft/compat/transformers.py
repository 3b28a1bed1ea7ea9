"""List what is overridden, called and read of transformers that it does not offer for that."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from transformers import GenerationMixin, LogitsProcessorList, PreTrainedModel, Seq2SeqTrainer, TrainingArguments

from t5peft.compat.private import PrivateUse

PRIVATE = (
    PrivateUse(
        Seq2SeqTrainer,
        "_save_checkpoint",
        ("self", "model", "trial"),
        "A checkpoint counts when its manifest is written, and only then may an older one go. The Trainer deletes older ones "
        "before any callback hears of the new one.",
        overridden=True,
    ),
    PrivateUse(
        Seq2SeqTrainer,
        "_save",
        ("self", "output_dir", "state_dict"),
        "peft asks the hub whether the embeddings were resized unless it is told not to save them; no argument reaches it.",
        overridden=True,
    ),
    PrivateUse(
        Seq2SeqTrainer,
        "_load_best_model",
        ("self",),
        "The Trainer loads the adapter called `default`, whichever is trained, and does so after the last callback.",
        overridden=True,
    ),
    PrivateUse(
        Seq2SeqTrainer,
        "_load_from_checkpoint",
        ("self", "resume_from_checkpoint", "model"),
        "Of several active adapters the Trainer loads the first, and leaves only that one active.",
        overridden=True,
    ),
    PrivateUse(
        Seq2SeqTrainer,
        "_load_optimizer_and_scheduler",
        ("self", "checkpoint"),
        "The Trainer resumes with the rate at which the saved run ended, which is 0 for a run with more steps.",
        overridden=True,
    ),
    PrivateUse(
        Seq2SeqTrainer,
        "_issue_warnings_after_load",
        ("self", "load_result"),
        "The Trainer reports tied weights as missing, which a checkpoint holds under one of their names.",
        overridden=True,
    ),
    PrivateUse(
        Seq2SeqTrainer,
        "_get_output_dir",
        ("self", "trial"),
        "The folder of a trial of a search is known before its checkpoint is saved only here.",
    ),
    PrivateUse(
        Seq2SeqTrainer,
        "_prepare_inputs",
        ("self", "inputs"),
        "Micro-batches are made in the step itself and have to be moved to the device as batches of a loader are.",
    ),
    PrivateUse(
        Seq2SeqTrainer,
        "_gen_kwargs",
        None,
        "`evaluate` and `predict` keep the arguments of `generate` here for `prediction_step`.",
    ),
    PrivateUse(
        TrainingArguments,
        "_n_gpu",
        None,
        "Several devices in one process would be torch's DataParallel, which cannot share a step out exactly.",
    ),
    PrivateUse(
        GenerationMixin,
        "_prepare_generation_config",
        ("self", "generation_config", "kwargs"),
        "The engine applies what the generation config of a model asks for, with the defaults that `generate` fills in.",
    ),
    PrivateUse(
        GenerationMixin,
        "_prepare_special_tokens",
        ("self", "generation_config", "kwargs_has_attention_mask", "device", "batch_size"),
        "Processors of logits read the end tokens as tensors from where only this function puts them.",
    ),
    PrivateUse(
        GenerationMixin,
        "_get_logits_processor",
        (
            "self",
            "generation_config",
            "input_ids_seq_length",
            "encoder_input_ids",
            "prefix_allowed_tokens_fn",
            "logits_processor",
            "device",
            "model_kwargs",
            "negative_prompt_ids",
            "negative_prompt_attention_mask",
        ),
        "No public function says which processors `generate` would use.",
    ),
)
"""Each private touch of transformers, with the reason."""


def logits_processors(t5: PreTrainedModel, source_ids: Sequence[int], max_new_tokens: int) -> LogitsProcessorList:
    """Return what greedy search by ``generate`` does to the logits of one source, as the generation config says.

    Args:
        t5: The model.
        source_ids: Token ids of the source.
        max_new_tokens: Tokens of the longest answer.

    Returns:
        The processors; none for most models.
    """
    generator = cast(Any, t5)
    config, _ = generator._prepare_generation_config(None, max_new_tokens=max_new_tokens, num_beams=1, do_sample=False)
    generator._prepare_special_tokens(config, True, device=t5.device)
    # ``generate`` counts the start token.
    config.max_length = 1 + max_new_tokens
    if config.min_new_tokens is not None:
        config.min_length = 1 + config.min_new_tokens
    source = torch.tensor([source_ids], device=t5.device)
    processors: LogitsProcessorList = generator._get_logits_processor(
        config, input_ids_seq_length=1, encoder_input_ids=source, device=t5.device
    )
    return processors
