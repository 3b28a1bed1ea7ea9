"""Norm tuning (Zhao et al. 2024, https://arxiv.org/abs/2312.11420; for T5 Liu et al. 2022, https://arxiv.org/abs/2205.05638) on T5.

Every layer norm ``w * x / rms(x)`` of encoder and decoder, the last ones too, trains its weight w, starting from that of the
backbone, so that wrapping changes nothing. T5 has no biases that BitFit could train; its norms are what is left.

peft has the method too. Differs from it: the weights are trained in float32 beside a bfloat16 backbone, where steps below half a
percent of a weight would round to nothing, and merging hands a new head back as well.

Letters: H d_model.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from peft import PeftConfig, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from peft.utils import PeftType
from torch import Tensor, nn
from transformers import PreTrainedModel

from t5peft.compat.peft import register
from t5peft.methods.base import OwnTuner
from t5peft.methods.wrapping import wrap
from t5peft.models.unwrap import ensure_unwrapped


@dataclass
class NormConfig(PeftConfig):
    """Nothing to choose: every norm is trained."""

    modules_to_save: list[str] | None = None
    target_modules: str | None = None
    exclude_modules: list[str] | None = None

    def __post_init__(self) -> None:
        """Name the norms for peft."""
        super().__post_init__()
        self.peft_type = PeftType("T5_NORM")
        self.target_modules = r".*\.(layer_norm|final_layer_norm)"


class NormLayer(nn.Module, BaseTunerLayer):
    """A norm of T5 and its trained copies, one an adapter."""

    adapter_layer_names = ("t5norm",)
    base_layer: Any
    t5norm: Any

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.t5norm = nn.ModuleDict()
        self.merged_adapters: list[str] = []
        self.unmerged_weight: Tensor | None = None

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Normalise hidden_states [.., H] to [.., H], in the dtype that the backbone's own norm returns."""
        names = [] if self.disable_adapters else [name for name in self.active_adapters if name in self.t5norm]
        if not names or self.merged:
            return self.base_layer(hidden_states)
        return self.t5norm[_only(names)](hidden_states).to(self.base_layer.weight.dtype)

    def enable_adapters(self, enabled: bool) -> None:
        """Switch the adapters on or off; a merged one is taken out before it is off."""
        if not enabled and self.merged:
            self.unmerge()
        super().enable_adapters(enabled)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Put the trained weight in the place of the backbone's."""
        names = check_adapters_to_merge(self, adapter_names)
        if names:
            self.unmerged_weight = self.base_layer.weight.detach().clone()
            self.base_layer.weight.data.copy_(self.t5norm[_only([*self.merged_adapters, *names])].weight)
            self.merged_adapters.extend(names)

    def unmerge(self) -> None:
        """Put the backbone's weight back, bit for bit."""
        if self.merged:
            self.base_layer.weight.data.copy_(self.unmerged_weight)
            self.unmerged_weight = None
            self.merged_adapters.clear()


def _only(names: list[str]) -> str:
    if len(names) > 1:
        raise ValueError(f"A norm has one weight, but the adapters {names} each bring their own; activate one of them.")
    return names[0]


class NormTuner(OwnTuner):
    """Puts a :class:`NormLayer` around every norm."""

    prefix = "t5norm"
    tuner_layer_cls = NormLayer

    def _create_and_replace(
        self,
        peft_config: NormConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
    ) -> None:
        layer = target if isinstance(target, NormLayer) else NormLayer(target)
        layer.t5norm[adapter_name] = deepcopy(layer.base_layer)
        if layer.unmerged_weight is not None:
            layer.t5norm[adapter_name].weight.data.copy_(layer.unmerged_weight)
        if layer is not target:
            setattr(parent, target_name, layer)


def norm_wrap(model: PreTrainedModel) -> PeftModel:
    """Wrap ``model`` for norm tuning, in place. Raises ValueError for a wrapped model."""
    ensure_unwrapped(model)
    return wrap(model, NormConfig())


register("t5_norm", NormConfig, NormTuner)
