"""Optimizers for pretraining on few tokens, and their schedule.

* ``muon``: momentum whose matrix updates are orthogonalized by a Newton-Schulz iteration (Jordan et al. 2024), for all
  matrices of the stacks; AdamW for embeddings, position tables and norms. Differs from ``torch.optim.Muon``: matrices of
  one shape are orthogonalized together, in bfloat16 where the machine computes in it. Queries move less, because T5 does not
  divide attention logits by sqrt(D) and initializes queries sqrt(D) smaller.
* ``adafactor``: ``torch.optim.Adafactor``, updates scaled by the parameters' RMS, as T5 was trained.
* ``adamw``: ``torch.optim.AdamW`` with betas (0.9, 0.98).

The schedule is T5's inverse square root with a linear warm-up and an optional linear decay to zero over the last ``cooldown``
steps. A run can be continued from before its cooldown, and cooled down at any other step.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

OptimizerName = Literal["muon", "adafactor", "adamw"]
LEARNING_RATES: dict[OptimizerName, float] = {"muon": 2e-2, "adafactor": 1e-2, "adamw": 2e-3}
ADAM_SCALE = 0.25  # of the learning rate, for what Muon leaves to AdamW
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def orthogonalized(matrices: Tensor, *, steps: int = 5) -> Tensor:
    """Push the singular values of each matrix in [K, R, C] to about 1."""
    a, b, c = _NEWTON_SCHULZ
    x = matrices.mT if matrices.shape[1] > matrices.shape[2] else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x.mT if matrices.shape[1] > matrices.shape[2] else x


class Muon(torch.optim.Optimizer):
    """Muon for groups with ``muon=True``, AdamW for the others; one learning rate for both, scaled by a group's ``scale``."""

    def __init__(self, groups: Iterable[dict[str, Any]], *, lr: float, momentum: float = 0.95) -> None:
        super().__init__(groups, {"lr": lr, "momentum": momentum, "betas": (0.9, 0.98), "scale": 1.0, "muon": False})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not group["muon"]:
                for parameter in parameters:
                    self._adamw(parameter, group)
                continue
            shapes: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for parameter in parameters:
                shapes[parameter.shape].append(parameter)
            for same in shapes.values():
                self._muon(same, group)

    def _muon(self, parameters: list[nn.Parameter], group: dict[str, Any]) -> None:
        averaged = []
        for parameter in parameters:
            gradient = cast(Tensor, parameter.grad)
            average = self.state[parameter].setdefault("average", torch.zeros_like(parameter))
            average.lerp_(gradient, 1 - group["momentum"])
            averaged.append(gradient.lerp(average, group["momentum"]))
        updates = orthogonalized(torch.stack(averaged).bfloat16())
        rows, columns = parameters[0].shape
        rate = group["lr"] * group["scale"] * max(1.0, rows / columns) ** 0.5
        for parameter, update in zip(parameters, updates, strict=True):
            parameter.sub_(update.to(parameter.dtype), alpha=rate)

    def _adamw(self, parameter: nn.Parameter, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state.update(step=0, first=torch.zeros_like(parameter), second=torch.zeros_like(parameter))
        state["step"] += 1
        fast, slow = group["betas"]
        state["first"].lerp_(parameter.grad, 1 - fast)
        state["second"].mul_(slow).addcmul_(parameter.grad, parameter.grad, value=1 - slow)
        denominator = (state["second"] / (1 - slow ** state["step"])).sqrt_().add_(1e-10)
        rate = group["lr"] * group["scale"] / (1 - fast ** state["step"])
        parameter.addcdiv_(state["first"], denominator, value=-rate)


def parameter_groups(model: nn.Module, *, d_kv: int) -> list[dict[str, Any]]:
    """Return the groups for ``Muon``: matrices of the stacks, their queries, and everything else."""
    matrices, queries, others = [], [], []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if parameter.ndim != 2 or ".block." not in name or "relative_attention_bias" in name:
            others.append(parameter)
        elif name.endswith(".q.weight"):
            queries.append(parameter)
        else:
            matrices.append(parameter)
    return [
        {"params": matrices, "muon": True},
        {"params": queries, "muon": True, "scale": 1 / math.sqrt(d_kv)},
        {"params": others, "scale": ADAM_SCALE},
    ]


def make_optimizer(
    model: PreTrainedModel, name: OptimizerName, learning_rate: float | None = None
) -> torch.optim.Optimizer:
    """Return the optimizer ``name`` for a T5; a learning rate of None takes that of ``LEARNING_RATES``."""
    rate = LEARNING_RATES[name] if learning_rate is None else learning_rate
    if name == "muon":
        return Muon(parameter_groups(model, d_kv=model.config.d_kv), lr=rate)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if name == "adafactor":
        return torch.optim.Adafactor(trained, lr=rate, beta2_decay=-0.8, d=1.0, weight_decay=0.0)
    return torch.optim.AdamW(trained, lr=rate, betas=(0.9, 0.98), weight_decay=0.0)


def rate_factor(step: int, *, warmup: int, decay_start_step: int, steps: int, cooldown: int) -> float:
    """Return the factor of the learning rate at ``step``, counted from 0.

    The phases are warm-up, constant to ``decay_start_step``, inverse square root, cooldown.
    """
    factor = min(1.0, (step + 1) / max(1, warmup)) * math.sqrt(decay_start_step / max(step, decay_start_step))
    if cooldown:
        factor *= min(1.0, max(0.0, (steps - step) / cooldown))
    return factor
