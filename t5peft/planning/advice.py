"""Turn a plan into the settings of a run: what to ask of ``t5peft train`` so that the run stays within a memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from t5peft.planning.job import Job
from t5peft.planning.plan import changes, step_bytes
from t5peft.planning.settings import settings_of
from t5peft.planning.units import bytes_text


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
    if step_bytes(job).peak_bytes <= memory_bytes:
        return Advice({}, "it fits as it is", step_bytes(job).peak_bytes)
    for change in changes(job, memory_bytes):
        if change.job.method == job.method:
            return Advice(settings_of(job, change.job), change.text, change.bytes.peak_bytes)
    raise ValueError(
        f"Got {bytes_text(memory_bytes)} for {job.describe()}, whose step takes {bytes_text(step_bytes(job).peak_bytes)}; expected "
        "more memory. Take a smaller backbone, shorter sources or method qlora; t5peft plan shows what each takes."
    )
