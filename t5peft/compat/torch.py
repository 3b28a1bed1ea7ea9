"""Private parts of torch: the hooks of modules, learning rates of schedulers, and whether a processor computes in bfloat16."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules import module as torch_module
from torch.optim.lr_scheduler import LambdaLR

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
"""Attributes of a module that hold its hooks, by the names that ``nn.Module.__call__`` reads."""
GLOBAL_HOOKS = tuple(f"_global{name}" for name in HOOKS)
"""Variables of ``torch.nn.modules.module`` that hold the hooks of every module."""


def is_hooked(*modules: nn.Module) -> bool:
    """Return whether calling one of ``modules`` runs more than the ``forward`` of its class.

    That is a hook of the module, a hook of every module, or a ``forward`` set on the instance, as accelerate sets it.
    """
    return any(getattr(torch_module, name) for name in GLOBAL_HOOKS) or any(
        "forward" in module.__dict__ or any(module.__dict__[name] for name in HOOKS) for module in modules
    )


def set_rates(scheduler: object) -> None:
    """Set the learning rates of a schedule at the step that it has reached, after its state was loaded.

    The state holds the rates of the schedule that was saved. Another length of the run gives others.

    Args:
        scheduler: A scheduler. Only those that compute a rate from the step have rates to set.
    """
    if type(scheduler) is not LambdaLR:
        return
    factors = zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
    scheduler._last_lr = [base * factor(scheduler.last_epoch) for base, factor in factors]
    for group, rate in zip(scheduler.optimizer.param_groups, scheduler._last_lr, strict=True):
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def computes_bfloat16() -> bool:
    """Return whether this machine multiplies matrices in bfloat16 by hardware; in software it is some fifty times slower."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.cpu._is_avx512_bf16_supported()) or bool(torch.cpu._is_amx_tile_supported())
