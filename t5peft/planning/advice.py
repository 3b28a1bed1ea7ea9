"""Turn a plan into the settings of a run: what to ask of ``t5peft train`` so that the run stays within a memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from t5peft.data import Task
from t5peft.data.tokenized import lengths_of
from t5peft.planning.job import Job
from t5peft.planning.plan import changes, step_bytes
from t5peft.planning.settings import settings_of
from t5peft.planning.units import bytes_text
from t5peft.training.config import TrainConfig
from t5peft.training.train import Records

LIBRARIES_BYTES = 600_000_000
"""Bytes of memory that torch, transformers and peft take on a CPU. A constant, so that a resumed run gets the same advice."""


@dataclass(frozen=True)
class Advice:
    """Settings that fit into a memory, by the names of ``TrainConfig``.

    Attributes:
        settings: The fields to change; empty where the run fits as it is. ``training_options`` are to be added to those of
            the run.
        text: What is changed, for reading.
        peak_bytes: The planned peak.
    """

    settings: Mapping[str, Any]
    text: str
    peak_bytes: int


def advise(job: Job, memory_bytes: int) -> Advice:
    """Return the settings that let ``job`` stay within a memory, with as few changes as suffice.

    The method stays: another one would be another result. The first change that fits is taken: micro-batches cost the least time,
    then comes gradient checkpointing, then weights in bfloat16.

    Args:
        job: The run.
        memory_bytes: The memory that there is for the tensors of the run.

    Raises:
        ValueError: Nothing makes it fit.
    """
    if step_bytes(job).needed_bytes <= memory_bytes:
        return Advice({}, "it fits as it is", step_bytes(job).peak_bytes)
    for change in changes(job, memory_bytes):
        if change.job.method == job.method:
            return Advice(settings_of(job, change.job), change.text, change.bytes.peak_bytes)
    needed = bytes_text(step_bytes(job).needed_bytes)
    raise ValueError(
        f"Got {bytes_text(memory_bytes)} for {job.describe()}, whose step needs {needed}; expected "
        "more memory. Take a smaller backbone, shorter sources or method qlora; t5peft plan shows what each takes."
    )


def within_memory(
    config: TrainConfig,
    task: Task,
    records: Records,
    tokenizer: PreTrainedTokenizerBase,
    memory_bytes: int,
    *,
    device: str | None = None,
) -> tuple[TrainConfig, Advice]:
    """Return a config whose run stays within a memory, and the advice that it follows.

    Args:
        config: How to train.
        task: The task of the records.
        records: The training records, whose longest source and target are planned for.
        tokenizer: The tokenizer of the backbone.
        memory_bytes: The memory; on a CPU with that of the libraries.
        device: "cpu" or "cuda"; None takes the one that training takes.

    Raises:
        ValueError: Nothing makes it fit, or a record cannot be tokenized.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    tokens = task.tokenize(records, tokenizer)
    examples = config.batch_size * config.gradient_accumulation
    job = Job(
        backbone=config.backbone,
        method=config.method,
        source_tokens=max(lengths_of(tokens, "input_ids")),
        target_tokens=max(lengths_of(tokens, "labels")),
        batch=examples,
        micro_batch=examples,
        device=device,
        quantize=config.quantize,
        dtype=None if config.dtype is None else getattr(torch, config.dtype),
        checkpointing=config.gradient_checkpointing,
        method_options=tuple(
            (name, tuple(value) if isinstance(value, list) else value) for name, value in config.options.items()
        ),
    )
    libraries = LIBRARIES_BYTES if device == "cpu" else 0
    if memory_bytes <= libraries:
        raise ValueError(
            f"Got {bytes_text(memory_bytes)} of memory; expected more than the {bytes_text(libraries)} that torch, transformers "
            "and peft take on a CPU. Give more memory."
        )
    advice = advise(job, memory_bytes - libraries)
    settings = dict(advice.settings)
    options = {**config.training_options, **settings.pop("training_options", {})}
    return replace(config, training_options=options, **settings), advice
