"""Plan the memory of a training run, before it is started and without the weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import torch

from t5peft.methods import METHODS
from t5peft.planning.geometry import config_of
from t5peft.planning.job import Job
from t5peft.planning.settings import command
from t5peft.planning.simulate import StepBytes, StepShape, simulate_step
from t5peft.planning.units import bytes_text


@lru_cache(maxsize=64)
def step_bytes(job: Job) -> StepBytes:
    """Return the bytes of one step.

    Args:
        job: The run.

    Raises:
        FileNotFoundError: The backbone's configuration was not found.
        ValueError: The backbone is not a T5, or the method refuses it or its options.
    """
    shape = StepShape(
        batch=job.micro_batch,
        source_tokens=job.source_tokens,
        target_tokens=job.target_tokens,
        quantize=job.quantization,
        dtype=job.weights_dtype,
        checkpointing=job.checkpointing,
        accumulation=job.batch // job.micro_batch,
        device=job.device,
    )
    return simulate_step(config_of(job.backbone), partial(METHODS[job.method].wrap, **dict(job.method_options)), shape)


@dataclass(frozen=True)
class Change:
    """A change that makes a job fit: its text, the changed job, and the bytes of that."""

    text: str
    job: Job
    bytes: StepBytes


def largest_micro_batch(job: Job, memory_bytes: int) -> Change | None:
    """Return the largest micro-batch whose step fits, or None if a single row does not fit.

    The peak is nearly linear in the rows, which finds the candidate; the candidate is then simulated.

    Args:
        job: The run.
        memory_bytes: The memory.
    """
    if job.micro_batch == 1 or step_bytes(job).held_bytes > memory_bytes:
        return None
    one = step_bytes(replace(job, micro_batch=1))
    if one.needed_bytes > memory_bytes:
        return None
    per_row = (step_bytes(job).needed_bytes - one.needed_bytes) / (job.micro_batch - 1)
    for rows in sorted((rows for rows in range(1, job.micro_batch) if job.batch % rows == 0), reverse=True):
        if one.needed_bytes + (rows - 1) * per_row > 1.05 * memory_bytes:
            continue
        candidate = replace(job, micro_batch=rows)
        if step_bytes(candidate).needed_bytes <= memory_bytes:
            text = f"micro-batches of {rows}, {job.batch // rows} of them a step: the same gradient"
            return Change(text, candidate, step_bytes(candidate))
    return None


def changes(job: Job, memory_bytes: int) -> list[Change]:
    """Return changes that make ``job`` fit, from the least intrusive to the first that suffices; empty if it fits."""
    return list(_changes(job, memory_bytes))


def _changes(job: Job, memory_bytes: int) -> Iterator[Change]:
    if step_bytes(job).needed_bytes <= memory_bytes:
        return
    for text, changed in _alternatives(job):
        bytes_ = step_bytes(changed)
        if bytes_.needed_bytes <= memory_bytes:
            yield Change(text, changed, bytes_)
            return
        if (smaller := largest_micro_batch(changed, memory_bytes)) is not None:
            yield replace(smaller, text=f"{text}, and {smaller.text}" if text else smaller.text)


def fits(job: Job, memory_bytes: int) -> bool:
    """Return whether ``job`` fits, as it is or with one of the changes."""
    return step_bytes(job).needed_bytes <= memory_bytes or bool(changes(job, memory_bytes))


def _alternatives(job: Job) -> list[tuple[str, Job]]:
    """Return the job itself (for smaller micro-batches), then with checkpointing, then with smaller weights."""
    checkpointed = replace(job, checkpointing=True)
    found = [("", job)]
    if not job.checkpointing:
        found.append(("gradient checkpointing: the same gradient, about a third more time", checkpointed))
    if job.weights_dtype == torch.float32:
        found.append(("weights in bfloat16, gradient checkpointing", replace(checkpointed, dtype=torch.bfloat16)))
    if job.quantization != "nf4":
        quantized = next(name for name, method in METHODS.items() if method.quantize)
        smaller = replace(checkpointed, method=quantized, quantize="nf4", method_options=())
        found.append((f"method {quantized} with nf4, gradient checkpointing", smaller))
    return found


def plan_lines(job: Job, memory_bytes: int | None) -> Iterator[str]:
    """Yield the plan line by line: bytes with and without checkpointing, whether they fit, and what to change.

    Args:
        job: The run.
        memory_bytes: The memory that there is; None only counts.
    """
    yield from (job.describe(), "")
    columns = {"plain": step_bytes(replace(job, checkpointing=False))}
    columns["checkpointing"] = step_bytes(replace(job, checkpointing=True))
    steps = columns.values()
    rows = {
        "": list(columns),
        "weights of the backbone": [bytes_text(step.weights_bytes) for step in steps],
        f"adapter ({columns['plain'].trainable_parameters:,} trained)": [
            bytes_text(step.adapter_bytes) for step in steps
        ],
        "optimizer (AdamW)": [bytes_text(step.optimizer_bytes) for step in steps],
        "activations kept for backward": [bytes_text(step.activations_bytes) for step in steps],
        "gradients, loss, one layer's work": [bytes_text(step.transient_bytes) for step in steps],
        "peak of a step": [bytes_text(step.peak_bytes) for step in steps],
    }
    if memory_bytes is not None:
        verdicts = ["fits" if step.needed_bytes <= memory_bytes else "does not fit" for step in steps]
        rows[f"in {bytes_text(memory_bytes)}"] = verdicts
    yield from (f"{label:34}" + "".join(f"{cell:>16}" for cell in cells) for label, cells in rows.items())
    if memory_bytes is not None:
        yield ""
        yield from _advice(job, memory_bytes)


def _advice(job: Job, memory_bytes: int) -> Iterator[str]:
    if step_bytes(job).needed_bytes <= memory_bytes:
        left = memory_bytes - step_bytes(job).needed_bytes
        yield f"It fits, with {bytes_text(left)} to spare."
        return
    found = 0
    for change in _changes(job, memory_bytes):
        if not found:
            yield "To make it fit:"
        found += 1
        yield f"  - {change.text} ({bytes_text(change.bytes.peak_bytes)})"
        yield f"      {command(job, change.job)}"
    if not found:
        yield "Nothing tried makes it fit: take a smaller backbone, or shorter sources."
