"""Linear maps and LoRA branches as one operation each.

On a CPU the product is that of oneDNN where that is faster (``choice.py``): with AVX-512 by 10 to 100 % at the sizes of T5
(benchmarks/SPEED.md). Elsewhere it is ``torch.nn.functional.linear``, which calls MKL. oneDNN keeps a kernel of 0.6 MB for each
row count, up to a thousand of them. So rows are padded until their count is one of a few. The branch of LoRA, y = W x + s B A x,
adds to the result in place and shares its products between gradients. That of peft takes four more passes over the activations in
each direction.

Letters: M tokens, I inputs, O outputs, R rank.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from peft.tuners.lora import Linear as PeftLoraLinear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from t5peft.compat.torch import is_hooked
from t5peft.nn.half_frozen import HalfFrozenLinear
from t5peft.nn.kernels.choice import by_onednn, takes_onednn
from t5peft.nn.kernels.module import FastModule, runs_on_cpu

# The size of a product from which oneDNN is faster than MKL, whose calls cost less (benchmarks/SPEED.md).
MULTIPLICATIONS = 2_000_000


def row_multiple(rows: int) -> int:
    """Return the multiple to which a row count is rounded up: about eight sizes per doubling, and at most 32 up to 2,048 rows."""
    multiple = 1 << max(0, (rows // 8).bit_length() - 1)
    return multiple if rows > 2048 else min(32, multiple)


def product(x: Tensor, weight: Tensor) -> Tensor:
    """Return ``x @ weight.T``, without a gradient.

    Shapes:
        x: [.., I].
        weight: [O, I].
        Output: [.., O].
    """
    rows = x.shape[:-1].numel()
    fp32 = x.dtype == weight.dtype == torch.float32
    small = rows * weight.numel() < MULTIPLICATIONS
    if small or not runs_on_cpu(x) or not fp32 or not torch.backends.mkldnn.is_available():
        return nn.functional.linear(x, weight)
    flat = x.reshape(rows, -1)
    if not takes_onednn(flat, weight):
        return nn.functional.linear(x, weight)
    if not (weight.is_contiguous() or weight.t().is_contiguous()):
        # On a part of wider rows oneDNN falls back to a kernel that takes hundreds of times as long.
        weight = weight.contiguous()
    missing = -rows % row_multiple(rows)
    # Without values nothing is filled up: the planner counts the rows that there are, and AdaLoRA changes the result in place.
    if not missing or x.is_meta:
        return by_onednn(x, weight)
    return by_onednn(nn.functional.pad(flat, (0, 0, 0, missing)), weight)[:rows].view(*x.shape[:-1], -1)


def without_base(result: Tensor) -> Tensor:
    """Return the same numbers in the same memory, but not as a view.

    torch refuses to change in place what an autograd function returns as a view, and AdaLoRA does so with the output of a map.
    """
    if not result._is_view():
        return result
    return result.new_empty(0).set_(result.untyped_storage(), result.storage_offset(), result.shape, result.stride())


def product_over_rows(left: Tensor, right: Tensor) -> Tensor:
    """Return ``left.T @ right``, without a gradient.

    Shapes:
        left: [M, O].
        right: [M, I].
        Output: [O, I].
    """
    whole = len(left) - len(left) % row_multiple(len(left))
    result = product(left[:whole].t(), right[:whole].t())
    return result if whole == len(left) else result.addmm_(left[whole:].t(), right[whole:])


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        """Map x [.., I], weight [O, I] -> [.., O]."""
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        return without_base(product(x, weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        grad_x = product(grad, weight.t()) if ctx.needs_input_grad[0] else None
        grad_weight = product_over_rows(grad.flatten(0, -2), x.flatten(0, -2)) if ctx.needs_input_grad[1] else None
        return grad_x, grad_weight


class _LoraLinear(torch.autograd.Function):
    """Base map and branch together. The base weight is frozen."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
        """Map x [.., I], weight [O, I], a [R, I], b [O, R] -> [.., O]."""
        inner = x.flatten(0, -2) @ a.t()
        result = product(x, weight)
        result.view(-1, result.shape[-1]).addmm_(inner, b.t(), alpha=scale)
        ctx.save_for_backward(x, weight, a, b, inner)
        ctx.scale = scale
        return without_base(result)

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
    return runs_on_cpu(x) and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")


class FastLinear(FastModule, nn.Linear):
    """``nn.Linear`` by oneDNN, forward and backward. A frozen weight keeps no input and gets no gradient."""

    def forward(self, x: Tensor) -> Tensor:
        """Map x [.., I] to [.., O]."""
        if self.bias is not None or not _takes_kernels(x) or self.weight.dtype != x.dtype:
            return super().forward(x)
        return cast(Tensor, _Linear.apply(x, self.weight)) if torch.is_grad_enabled() else product(x, self.weight)


_PLAIN_MAPS = (nn.Linear, FastLinear, HalfFrozenLinear)


class FastLoraLinear(FastModule, PeftLoraLinear):
    """The LoRA layer of peft with base map and branch in one operation, where the layer does nothing else."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Map x [.., I] to [.., O]."""
        adapter = self._adapter_to_fuse()
        if adapter is None or args or kwargs or not _takes_kernels(x):
            return super().forward(x, *args, **kwargs)
        a, b = (cast(nn.Linear, branch[adapter]).weight for branch in (self.lora_A, self.lora_B))
        return cast(Tensor, _LoraLinear.apply(x, self.base_layer.weight, a, b, self.scaling[adapter]))

    def _adapter_to_fuse(self) -> str | None:
        """Return the active adapter if it is one plain LoRA in float32 on a frozen map, without biases and without hooks."""
        names = [name for name in self.active_adapters if name in self.lora_A]
        if self.disable_adapters or self.merged or len(names) != 1 or names[0] in self.lora_variant:
            return None
        dropout, a, b = (part[names[0]] for part in (self.lora_dropout, self.lora_A, self.lora_B))
        maps = (self.base_layer, a, b)
        # A subclass may compute something else than its weight says.
        if not all(type(module) in _PLAIN_MAPS for module in maps) or is_hooked(dropout, *maps):
            return None
        drops = not isinstance(dropout, nn.Identity) and (getattr(dropout, "p", 1.0) > 0 and dropout.training)
        if drops or any(module.bias is not None or module.weight.dtype != torch.float32 for module in maps):
            return None
        return None if self.base_layer.weight.requires_grad else names[0]
