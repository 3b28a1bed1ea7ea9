"""A tuning method outside of the package: a trained factor for each output of every feed-forward. One file and one row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import check_adapters_to_merge
from torch import Tensor, nn
from transformers import PreTrainedModel

from t5peft.compat.peft import register
from t5peft.methods import Method, register_method
from t5peft.methods.base import AdapterConfig, AdapterLayer, AdapterTuner, raise_if_problems, read_size, wrap
from t5peft.models.unwrap import ensure_unwrapped

NAME = "own-scale"


@dataclass
class ScaleConfig(AdapterConfig):
    """The number of factors; the factor of an output is that of its group."""

    groups: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        self.set_targets("own_scale", r".*\.DenseReluDense")


class Scale(nn.Module):
    """``forward(x [.., H]) -> x * scale [.., H]``."""

    def __init__(self, d_model: int, groups: int) -> None:
        super().__init__()
        self.repeats = -(-d_model // groups)
        self.d_model = d_model
        self.weight = nn.Parameter(torch.ones(groups))

    def factors(self) -> Tensor:
        return self.weight.repeat_interleave(self.repeats)[: self.d_model]

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factors().to(x.dtype)


class ScaleLayer(AdapterLayer):
    """A feed-forward with scaled outputs."""

    adapter_layer_names = ("ownscale",)
    kind = "scale"
    merges = True

    def forward(self, x: Tensor) -> Tensor:
        output = cast(Tensor, self.base_layer(x))
        for name in [] if self.merged else self.active_adapters_here():
            output = self.adapters[name](output)
        return output

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        weight = self.base_layer.get_parameter("wo.weight")
        for name in check_adapters_to_merge(self, adapter_names):
            weight.data *= cast(Scale, self.adapters[name]).factors()[:, None].detach()
            self.merged_adapters.append(name)

    def unmerge(self) -> None:
        weight = self.base_layer.get_parameter("wo.weight")
        while self.merged_adapters:
            weight.data /= cast(Scale, self.adapters[self.merged_adapters.pop()]).factors()[:, None].detach()


class ScaleTuner(AdapterTuner[ScaleLayer, ScaleConfig]):
    prefix = "ownscale"
    tuner_layer_cls = ScaleLayer

    def new_adapter(self, layer: ScaleLayer, config: ScaleConfig, adapter_name: str) -> nn.Module:
        return Scale(self.model.config.d_model, config.groups)


def scale_wrap(model: PreTrainedModel, *, groups: int = 4) -> PeftModel:
    ensure_unwrapped(model)
    problems: list[str] = []
    groups = read_size("groups", groups, problems)
    raise_if_problems(problems)
    return wrap(model, ScaleConfig(groups=groups))


METHOD = Method(scale_wrap, 1e-2, ScaleConfig, ScaleLayer, search={"groups": (1, 2, 4)})

register("own_scale", ScaleConfig, ScaleTuner)


def register_own_method() -> None:
    register_method(NAME, METHOD)
