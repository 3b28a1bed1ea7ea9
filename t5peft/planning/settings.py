"""The settings of ``t5peft train`` in which a job differs from another, and the command to copy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from t5peft.planning.job import Job


def settings_of(job: Job, changed: Job) -> dict[str, Any]:
    """Return the fields of ``TrainConfig`` in which a changed job differs from a job.

    Args:
        job: The run.
        changed: The run that fits.
    """
    settings: dict[str, Any] = {}
    if changed.method != job.method:
        settings["method"] = changed.method
    if changed.quantize != job.quantize:
        settings["quantize"] = changed.quantize
    if changed.dtype is not None and changed.dtype != job.dtype:
        settings["dtype"] = str(changed.dtype).removeprefix("torch.")
    if changed.checkpointing and not job.checkpointing:
        settings["gradient_checkpointing"] = True
    if changed.micro_batch != job.micro_batch:
        # The trainer cuts a step by tokens; the examples of the step and its gradient stay the same.
        tokens = changed.micro_batch * (job.source_tokens + job.target_tokens)
        settings["training_options"] = {"tokens_per_micro_batch": tokens}
    return settings


def options_text(settings: Mapping[str, Any]) -> str:
    """Return settings as options of ``t5peft train``, to copy.

    Args:
        settings: As ``settings_of`` returns them.
    """
    words = []
    for name, value in settings.items():
        if name == "training_options":
            words += [f"--training-option {option}={number}" for option, number in value.items()]
        else:
            flag = f"--{name.replace('_', '-')}"
            words.append(flag if value is True else f"{flag} {value}")
    return " ".join(words)


def command(job: Job, changed: Job) -> str:
    """Return the command of a changed run, without its data.

    Args:
        job: The run.
        changed: The run that fits.
    """
    settings: dict[str, Any] = {"backbone": job.backbone, "method": job.method, "batch_size": job.batch}
    if job.dtype is not None:
        settings["dtype"] = str(job.dtype).removeprefix("torch.")
    if job.quantize is not None:
        settings["quantize"] = job.quantize
    limits = {"max_source_length": job.source_tokens, "max_target_length": job.target_tokens}
    return f"t5peft train {options_text({**settings, **limits, **settings_of(job, changed)})}"
