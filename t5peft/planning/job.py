"""The training run whose memory is planned."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from t5peft.methods import METHODS
from t5peft.methods.registry import method_label
from t5peft.models.backbone import Quantization, computes_bfloat16


@dataclass(frozen=True)
class Job:
    """The parts of a training run that decide its memory: one optimizer step of ``batch`` examples in micro-batches.

    Attributes:
        dtype: That of the weights. None: as ``load_backbone`` chooses, which is float32, or bfloat16 for a quantized
            backbone if it is fast.
    """

    backbone: str
    method: str
    source_tokens: int
    target_tokens: int
    batch: int
    micro_batch: int
    device: str = "cuda"
    quantize: Quantization | None = None
    dtype: torch.dtype | None = None
    checkpointing: bool = False
    method_options: tuple[tuple[str, Any], ...] = field(default_factory=tuple)

    def __post_init__(self) -> None:
        problems = [
            f"Got {getattr(self, name)} as {name}; expected at least 1."
            for name in ("source_tokens", "target_tokens", "batch", "micro_batch")
            if getattr(self, name) < 1
        ]
        if self.method not in METHODS:
            problems.append(f"Got method {self.method!r}; expected one of {', '.join(METHODS)}.")
        if self.batch % max(1, self.micro_batch):
            problems.append(f"Got micro-batches of {self.micro_batch} for {self.batch} examples; expected a divisor.")
        if problems:
            raise ValueError("\n".join(problems))

    @property
    def quantization(self) -> Quantization | None:
        """The quantization of the backbone: the method's own unless chosen."""
        return self.quantize or METHODS[self.method].quantize

    @property
    def weights_dtype(self) -> torch.dtype:
        """The dtype of the weights that are not quantized."""
        if self.dtype is not None:
            return self.dtype
        fast = self.device == "cuda" or computes_bfloat16()
        return torch.bfloat16 if self.quantization and fast else torch.float32

    def describe(self) -> str:
        """Return the job in one line."""
        parts = [self.backbone, method_label(self.method, dict(self.method_options))]
        parts += [self.quantization or "", str(self.weights_dtype).removeprefix("torch."), self.device]
        parts.append(f"{self.batch} examples of {self.source_tokens} -> {self.target_tokens} tokens a step")
        if self.micro_batch != self.batch:
            parts.append(f"in micro-batches of {self.micro_batch}")
        if self.checkpointing:
            parts.append("gradient checkpointing")
        return ", ".join(part for part in parts if part)
