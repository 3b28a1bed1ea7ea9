"""T5's layer norm, y = w x / sqrt(mean(x^2) + eps), in few passes over the activations.

transformers writes it as five operations, each with its own backward pass. Here it is one: with r = 1 / sqrt(mean(x^2) + eps)
and h = w g, dx = r h - x r^3 mean(h x), dw = sum of g x r over all tokens. Frozen weights get no dw.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """x [.., H], weight [H] -> [.., H]."""
        inverse = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        return (x * inverse).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight, inverse = ctx.saved_tensors
        grad_x = grad_weight = None
        if ctx.needs_input_grad[1]:
            grad_weight = (grad * x).mul_(inverse).flatten(0, -2).sum(0)
        if ctx.needs_input_grad[0]:
            grad_x = grad * weight
            pull = torch.linalg.vecdot(grad_x, x).unsqueeze_(-1).mul_(inverse**3).div_(-x.shape[-1])
            grad_x.mul_(inverse).addcmul_(x, pull)
        return grad_x, grad_weight, None


class OneStepNorm(nn.Module):
    """A norm of T5 in one operation, for fp32 on a CPU; whatever else comes takes the way of transformers."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """hidden_states [.., H] to [.., H]."""
        plain = hidden_states.dtype == self.weight.dtype == torch.float32
        if not plain or hidden_states.device.type != "cpu":
            return super().forward(hidden_states)
        return _RMSNorm.apply(hidden_states, self.weight, self.variance_epsilon)
