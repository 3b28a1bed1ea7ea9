"""Dropout whose masks cost little on a CPU.

torch draws one float for each element. That took 9.6 ns per element on the machine of benchmarks/SPEED.md, where a matrix
product of the same layer takes 5. Here eight elements share one 64-bit word of the generator, and an element is kept if its
byte reaches a threshold. 256 p is rarely an integer, so each call draws its threshold from the two integers around it. Every
element is then dropped with probability p exactly. Elements of one call stay uncorrelated to within
1 / 256^2 / (4 p (1 - p)), 4e-5 for p = 0.1. Different calls are independent.

The words come from the default generator of torch, so seeds, resuming and gradient checkpointing work as with torch.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from t5peft.nn.kernels.module import FastModule, runs_on_cpu
from t5peft.nn.kernels.native import call, takes_native

_BYTES_PER_WORD = 8
_LOWEST_WORD = -(2**63)


class DropMask:
    """The elements that a call of dropout keeps: one random byte for each element, and a threshold."""

    def __init__(self, elements: int, p: float) -> None:
        words = torch.empty(elements // _BYTES_PER_WORD + 2, dtype=torch.int64)
        words.random_(_LOWEST_WORD, None)
        fraction = 256 * p - math.floor(256 * p)
        draw = (int(words[-1]) - _LOWEST_WORD) / 2**64
        self.threshold = math.floor(256 * p) + (draw < fraction)
        self.bytes = words.view(torch.uint8)
        self.scale = 1 / (1 - p)

    def factors(self, start: int, like: Tensor) -> Tensor:
        """Return a new tensor like ``like`` with the factors, 0 or 1 / (1 - p), of the elements from ``start`` on."""
        return self._kept(start, like).mul_(self.scale)

    def drop(self, x: Tensor, start: int = 0) -> Tensor:
        """Return x times the factors of the elements from ``start`` on."""
        if takes_native(x):
            result = torch.empty_like(x)
            drawn = self.bytes[start : start + x.numel()]
            call("dropout", x, drawn, x.numel(), self.threshold, self.scale, result, torch.get_num_threads())
            return result
        kept = self._kept(start, x)
        return torch.addcmul(x.new_zeros(()), kept, x, value=self.scale, out=kept)  # one pass less than two products

    def _kept(self, start: int, like: Tensor) -> Tensor:
        drawn = self.bytes[start : start + like.numel()].view(like.shape)
        return torch.ge(drawn, self.threshold, out=torch.empty_like(like))


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        ctx.mask = DropMask(x.numel(), p)
        return ctx.mask.drop(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.mask.drop(grad), None


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """Drop elements of x [..] as ``torch.nn.functional.dropout`` does, with cheap masks on a CPU."""
    if not training or p == 0:
        return x
    if not runs_on_cpu(x) or p > 255 / 256:  # The threshold would not fit into a byte.
        return nn.functional.dropout(x, p, training)
    return cast(Tensor, _Dropout.apply(x, p))


class FastDropout(FastModule, nn.Dropout):
    """``nn.Dropout`` with cheap masks."""

    def forward(self, x: Tensor) -> Tensor:
        """Drop elements of x [..]."""
        return dropout(x, self.p, self.training)
