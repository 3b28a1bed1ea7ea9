"""The layer norm of T5, y = w x / sqrt(mean(x^2) + eps), in few passes over the activations.

transformers writes it as five operations, each with its own backward pass. Here it is one. With r = 1 / sqrt(mean(x^2) + eps)
and h = w g, dx = r h - x r^3 mean(h x), and dw is the sum of g x r over all tokens. Frozen weights get no dw.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from t5peft.nn.kernels.module import FastModule, runs_on_cpu
from t5peft.nn.kernels.native import call, takes_native


def _normalize(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return the output [.., H] of x [.., H], and 1 / sqrt(mean(x^2) + eps) [.., 1]."""
    if takes_native(x, weight):
        inverse, result = x.new_empty(*x.shape[:-1], 1), torch.empty_like(x)
        call("norm_forward", x, weight, inverse.numel(), x.shape[-1], eps, inverse, result, torch.get_num_threads())
        return result, inverse
    inverse = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    return (x * inverse).mul_(weight), inverse


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Map x [.., H], weight [H] -> [.., H]."""
        result, inverse = _normalize(x, weight, eps)
        ctx.save_for_backward(x, weight, inverse)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight, inverse = ctx.saved_tensors
        grad_x = grad_weight = None
        if ctx.needs_input_grad[1]:
            grad_weight = (grad * x).mul_(inverse).flatten(0, -2).sum(0)
        if ctx.needs_input_grad[0] and takes_native(grad, x, weight, inverse):
            grad_x, threads = torch.empty_like(x), torch.get_num_threads()
            call("norm_backward", grad, x, weight, inverse, inverse.numel(), x.shape[-1], grad_x, threads)
        elif ctx.needs_input_grad[0]:
            grad_x = grad * weight
            pull = torch.linalg.vecdot(grad_x, x).unsqueeze_(-1).mul_(inverse**3).div_(-x.shape[-1])
            grad_x.mul_(inverse).addcmul_(x, pull)
        return grad_x, grad_weight, None


class FastNorm(FastModule):
    """A norm of T5 in one operation, for float32 on a CPU. Other inputs take the way of transformers."""

    weight: Tensor
    variance_epsilon: float

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Normalize.

        Shapes:
            hidden_states: [.., H].
            Output: [.., H].
        """
        is_float32 = hidden_states.dtype == self.weight.dtype == torch.float32
        if not is_float32 or not runs_on_cpu(hidden_states):
            return super().forward(hidden_states)
        if not torch.is_grad_enabled():
            return _normalize(hidden_states, self.weight, self.variance_epsilon)[0]
        return cast(Tensor, _RMSNorm.apply(hidden_states, self.weight, self.variance_epsilon))
