"""Linear maps and LoRA branches as one operation each.

On a CPU the product is oneDNN's: at the sizes of T5 it is a tenth to twice faster than `torch.nn.functional.linear`, which
calls MKL (benchmarks/SPEED.md). oneDNN keeps a kernel of 0.6 MB for each number of rows, up to a thousand of them, so rows are
added until they are one of few numbers. LoRA's branch, y = W x + s B A x, adds to the result in place and shares
its products between gradients; peft's own takes four more passes over the activations in each direction.

Letters: M tokens, I inputs, O outputs, R rank.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import Linear as PeftLoraLinear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

MULTIPLICATIONS = 2_000_000  # from which oneDNN is faster than MKL, whose calls cost less (benchmarks/SPEED.md)


def row_multiple(rows: int) -> int:
    """What a number of rows is rounded up to a multiple of: some eight numbers from any to its double, every 32nd to 2,048."""
    multiple = 1 << max(0, (rows // 8).bit_length() - 1)
    return multiple if rows > 2048 else min(32, multiple)


def product(x: Tensor, weight: Tensor) -> Tensor:
    """x [.., I], weight [O, I] -> x @ weight.T [.., O]; no gradient."""
    rows = x.shape[:-1].numel()
    fp32 = x.dtype == weight.dtype == torch.float32
    small = rows * weight.numel() < MULTIPLICATIONS
    if small or x.device.type != "cpu" or not fp32 or not torch.backends.mkldnn.is_available():
        return nn.functional.linear(x, weight)
    if not (weight.is_contiguous() or weight.t().is_contiguous()):
        # Of a part of wider rows oneDNN's plainest kernel would take hundreds of times as long.
        weight = weight.contiguous()
    missing = -rows % row_multiple(rows)
    if not missing:
        return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
    filled = nn.functional.pad(x.reshape(rows, -1), (0, 0, 0, missing))
    result = torch.ops.mkldnn._linear_pointwise(filled, weight, None, "none", [], "")
    return result[:rows].view(*x.shape[:-1], -1)


def product_over_rows(left: Tensor, right: Tensor) -> Tensor:
    """left [M, O], right [M, I] -> left.T @ right [O, I]; no gradient."""
    whole = len(left) - len(left) % row_multiple(len(left))
    result = product(left[:whole].t(), right[:whole].t())
    return result if whole == len(left) else result.addmm_(left[whole:].t(), right[whole:])


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        """x [.., I], weight [O, I] -> [.., O]."""
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        return product(x, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        grad_x = product(grad, weight.t()) if ctx.needs_input_grad[0] else None
        grad_weight = product_over_rows(grad.flatten(0, -2), x.flatten(0, -2)) if ctx.needs_input_grad[1] else None
        return grad_x, grad_weight


class _LoraLinear(torch.autograd.Function):
    """Base map and branch together; the base weight is frozen."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
        """x [.., I], weight [O, I], a [R, I], b [O, R] -> [.., O]."""
        inner = x.flatten(0, -2) @ a.t()
        result = product(x, weight)
        result.view(-1, result.shape[-1]).addmm_(inner, b.t(), alpha=scale)
        ctx.save_for_backward(x, weight, a, b, inner)
        ctx.scale = scale
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, Tensor | None, Tensor | None, None]:
        x, weight, a, b, inner = ctx.saved_tensors
        rows = grad.flatten(0, -2)
        grad_inner = (rows @ b).mul_(ctx.scale)
        grad_x = grad_a = grad_b = None
        if ctx.needs_input_grad[0]:
            grad_x = product(grad, weight.t())
            grad_x.view(-1, grad_x.shape[-1]).addmm_(grad_inner, a)
        if ctx.needs_input_grad[2]:
            grad_a = grad_inner.t() @ x.flatten(0, -2)
        if ctx.needs_input_grad[3]:
            grad_b = (inner.t() @ rows).mul_(ctx.scale).t()
        return grad_x, None, grad_a, grad_b, None


def _takes_kernels(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")


class Linear(nn.Linear):
    """`nn.Linear` by oneDNN, forward and backward; a frozen weight keeps no input and gets no gradient."""

    def forward(self, x: Tensor) -> Tensor:
        """x [.., I] to [.., O]."""
        if self.bias is not None or not _takes_kernels(x) or self.weight.dtype != x.dtype:
            return super().forward(x)
        return _Linear.apply(x, self.weight) if torch.is_grad_enabled() else product(x, self.weight)


class LoraLinear(PeftLoraLinear):
    """peft's LoRA layer with base map and branch in one operation, where that is all the layer does."""

    def forward(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        """x [.., I] to [.., O]."""
        adapter = self._only_adapter()
        if adapter is None or args or kwargs or not _takes_kernels(x):
            return super().forward(x, *args, **kwargs)
        return _LoraLinear.apply(
            x,
            self.base_layer.weight,
            self.lora_A[adapter].weight,
            self.lora_B[adapter].weight,
            self.scaling[adapter],
        )

    def _only_adapter(self) -> str | None:
        """The active adapter, if it is one plain LoRA in fp32 on a frozen map without bias."""
        names = [name for name in self.active_adapters if name in self.lora_A]
        if self.disable_adapters or self.merged or len(names) != 1 or names[0] in self.lora_variant:
            return None
        dropout = self.lora_dropout[names[0]]
        drops = isinstance(dropout, nn.Dropout) and dropout.p > 0 and dropout.training
        base, a, b = self.base_layer, self.lora_A[names[0]], self.lora_B[names[0]]
        plain = isinstance(base, nn.Linear) and not any(layer.bias is not None for layer in (base, a, b))
        fp32 = plain and base.weight.dtype == a.weight.dtype == b.weight.dtype == torch.float32
        return names[0] if fp32 and not drops and not base.weight.requires_grad else None
