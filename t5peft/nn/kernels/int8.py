"""The 8-bit linear map of bitsandbytes in training on a CPU, without the input that it keeps.

There bitsandbytes multiplies by the dequantised weight, W = codes * scale / 127, and so does this, to the same result; but it
keeps the input of every frozen map for a gradient that nobody asks for.
"""

from __future__ import annotations

from typing import Any

import torch
from bitsandbytes.nn import Linear8bitLt
from torch import Tensor
from torch.autograd.function import once_differentiable

from t5peft.nn.kernels.linear import product


def _dequantized(codes: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """codes [O, I] int8 and scale [O] to the weight [O, I]."""
    return codes.to(dtype).mul_(scale[:, None] * (1 / 127))


class _Int8Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
        """x [.., I], codes [O, I], scale [O] -> [.., O]."""
        ctx.save_for_backward(codes, scale)
        return product(x, _dequantized(codes, scale, x.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        codes, scale = ctx.saved_tensors
        return product(grad, _dequantized(codes, scale, grad.dtype).t()), None, None


class Int8Linear(Linear8bitLt):
    """`Linear8bitLt` that keeps no input; outside of training, with a bias or on another device it is that of bitsandbytes."""

    def forward(self, x: Tensor) -> Tensor:
        """x [.., I] to [.., O]."""
        if self.weight.CB is not None:
            self.init_8bit_state()
        plain = self.bias is None and not self.state.has_fp16_weights and self.state.CB is not None
        if not self.training or not plain or x.device.type != "cpu":
            return super().forward(x)
        return _Int8Linear.apply(x, self.state.CB, self.state.SCB)
