"""A linear map of which one half is trained and the other half stays what it was."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear


class HalfFrozenLinear(nn.Module):
    """A linear map whose weight is a trained half and a frozen half.

    Its state has the weight as a whole, as that of ``nn.Linear`` has. So whatever saves and loads it knows nothing of the halves.

    Args:
        trained: Where the trained half starts.
        frozen: The frozen half, of the same shape.
        dim: 0 where the halves are rows of the weight, 1 where they are columns.

    Shapes:
        trained, frozen: [R, I] for rows, [O, R] for columns.
    """

    bias = None

    def __init__(self, trained: Tensor, frozen: Tensor, dim: int) -> None:
        super().__init__()
        self.trained = nn.Parameter(trained.clone())
        self.register_buffer("frozen", frozen.clone())
        self.dim = dim

    @property
    def weight(self) -> Tensor:
        """Both halves, [2R, I] or [O, 2R]."""
        return torch.cat([self.trained, self.get_buffer("frozen")], self.dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [.., I] to [.., O]."""
        return linear(x, self.weight)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        destination[f"{prefix}weight"] = self.weight if keep_vars else self.weight.detach()

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        name, own = f"{prefix}weight", self.weight
        given = state_dict.get(name)
        if given is None:
            missing_keys.append(name)
        elif given.shape != own.shape:
            error_msgs.append(f"Got {name} of shape {tuple(given.shape)}; expected {tuple(own.shape)}.")
        else:
            with torch.no_grad():
                for half, saved in zip(
                    (self.trained, self.get_buffer("frozen")), given.chunk(2, self.dim), strict=True
                ):
                    half.copy_(saved)
