"""The 8-bit linear map of bitsandbytes in training on a CPU, without the copy of its input.

bitsandbytes multiplies by the dequantized weight there, W = codes * scale / 127. So does this, to the same result. But
bitsandbytes keeps the input of every frozen map for a gradient that nobody asks for.

Letters: I inputs, O outputs.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from bitsandbytes.nn import Linear8bitLt
from torch import Tensor
from torch.autograd.function import once_differentiable

from t5peft.nn.kernels.linear import product, without_base
from t5peft.nn.kernels.module import FastModule, runs_on_cpu


def _dequantized(codes: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the weight [O, I] of codes [O, I], int8, and scale [O]."""
    return codes.to(dtype).mul_(scale[:, None] * (1 / 127))


class _Int8Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
        """Map x [.., I], codes [O, I], scale [O] -> [.., O]."""
        ctx.save_for_backward(codes, scale)
        return without_base(product(x, _dequantized(codes, scale, x.dtype)))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        codes, scale = ctx.saved_tensors
        return product(grad, _dequantized(codes, scale, grad.dtype).t()), None, None


class FastLinear8bit(FastModule, Linear8bitLt):
    """``Linear8bitLt`` that keeps no input. Outside of training, with a bias or on another device it is that of bitsandbytes."""

    # bitsandbytes has no types.
    weight: Any
    state: Any
    init_8bit_state: Any

    def forward(self, x: Tensor) -> Tensor:
        """Map x [.., I] to [.., O]."""
        if self.weight.CB is not None:
            self.init_8bit_state()
        is_plain = self.bias is None and not self.state.has_fp16_weights and self.state.CB is not None
        if not self.training or not is_plain or not runs_on_cpu(x):
            return cast(Tensor, super().forward(x))
        return cast(Tensor, _Int8Linear.apply(x, self.state.CB, self.state.SCB))
