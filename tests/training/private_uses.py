"""Each private touch of transformers and accelerate, with the reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from accelerate.data_loader import BatchSamplerShard, IterableDatasetShard
from transformers import GenerationMixin, Seq2SeqTrainer, TrainingArguments


@dataclass(frozen=True)
class PrivateUse:
    """A name of another library that is not offered for use.

    Args:
        owner: Class or module that has the name.
        name: The name.
        parameters: Parameters of the function that are relied on; None for an attribute.
        reason: Why no public name, callback, sampler or collator could do it.
        overridden: Whether it is overridden, and not only called or read.
    """

    owner: Any
    name: str
    parameters: tuple[str, ...] | None
    reason: str
    overridden: bool = False


PRIVATE_USES = (
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
    PrivateUse(
        BatchSamplerShard,
        "__init__",
        ("self", "batch_sampler", "num_processes", "process_index", "split_batches", "even_batches"),
        "It repeats examples so that all processes get as many. Only it knows how it deals them out: the remainder that "
        "accelerate keeps for this is lost when a run is resumed, and wrong for a sampler of another length than the data.",
    ),
    PrivateUse(
        IterableDatasetShard,
        "__init__",
        ("self", "dataset", "batch_size", "drop_last", "num_processes", "process_index", "split_batches"),
        "The same for a stream, whose length is known at its end only.",
    ),
)
