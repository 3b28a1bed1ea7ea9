"""Norm tuning (Zhao et al. 2024, https://arxiv.org/abs/2312.11420; for T5 Liu et al. 2022, https://arxiv.org/abs/2205.05638).

Every layer norm ``w * x / rms(x)`` of encoder and decoder, the last ones too, trains its weight w. The weight starts from that of
the backbone, so wrapping changes nothing. T5 has no biases that BitFit could train; its norms are the nearest relative.

peft has the method too. Differs from it: the weights are trained in float32 beside a bfloat16 backbone, where steps below half a
percent of a weight would round to nothing. Merging also hands back a new head.

Letters: H d_model.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import cast

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import check_adapters_to_merge
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.t5.modeling_t5 import T5LayerNorm

from t5peft.compat.peft import register
from t5peft.methods.base import AdapterConfig, AdapterLayer, AdapterTuner, wrap
from t5peft.models.families import modules_pattern, names_pattern
from t5peft.models.unwrap import ensure_unwrapped


@dataclass
class NormConfig(AdapterConfig):
    """The config of norm tuning, which has no options: every norm is trained."""

    def __post_init__(self) -> None:
        """Target the norms."""
        super().__post_init__()
        names = names_pattern(lambda family: family.norms, lambda family: family.final_norm)
        self.set_targets("t5_norm", modules_pattern(rf".*\.{names}"))


class NormLayer(AdapterLayer):
    """A norm of T5 and its trained copies, one per adapter."""

    adapter_layer_names = ("t5norm",)
    kind = "norm"
    merges = True
    base_layer: T5LayerNorm  # Those of the other families have a weight too.

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Normalize, and return the dtype that the norm of the backbone returns.

        Shapes:
            hidden_states: [.., H].
            Output: [.., H].
        """
        names = self.active_adapters_here()
        if not names or self.merged:
            return cast(Tensor, self.base_layer(hidden_states))
        output, dtype = cast(Tensor, self.adapters[_only(names)](hidden_states)), self.base_layer.weight.dtype
        # Beside weights of half precision the norm of the backbone returns these, and a trained one in float32 does not.
        return output.to(dtype) if dtype in (torch.bfloat16, torch.float16) else output

    def enable_adapters(self, enabled: bool) -> None:
        """Switch the adapters on or off. A merged adapter is taken out before it is off."""
        if not enabled and self.merged:
            self.unmerge()
        super().enable_adapters(enabled)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Put the trained weight in the place of that of the backbone."""
        names = check_adapters_to_merge(self, adapter_names)
        if names:
            trained = cast(T5LayerNorm, self.adapters[_only([*self.merged_adapters, *names])]).weight
            self.unmerged_weight = self.base_layer.weight.detach().clone()
            self.base_layer.weight.data.copy_(trained)
            self.merged_adapters.extend(names)

    def unmerge(self) -> None:
        """Put the weight of the backbone back, bit for bit."""
        if self.unmerged_weight is not None:
            self.base_layer.weight.data.copy_(self.unmerged_weight)
            self.unmerged_weight = None
            self.merged_adapters.clear()


def _only(names: list[str]) -> str:
    if len(names) > 1:
        raise ValueError(f"Got the adapters {names}; expected one, as a norm has one weight. Activate one of them.")
    return names[0]


class NormTuner(AdapterTuner[NormLayer, NormConfig]):
    """The tuner that puts a ``NormLayer`` around every norm."""

    prefix = "t5norm"
    tuner_layer_cls = NormLayer

    def new_adapter(self, layer: NormLayer, config: NormConfig, adapter_name: str) -> nn.Module:
        """Return a copy of the norm of the backbone."""
        norm = deepcopy(layer.base_layer)
        if layer.unmerged_weight is not None:
            norm.weight.data.copy_(layer.unmerged_weight)
        return norm


def norm_wrap(model: PreTrainedModel) -> PeftModel:
    """Wrap ``model`` for norm tuning, in place.

    Args:
        model: A T5.

    Returns:
        The wrapped model.

    Raises:
        ValueError: The model is already wrapped.
    """
    ensure_unwrapped(model)
    return wrap(model, NormConfig())


register("t5_norm", NormConfig, NormTuner)
