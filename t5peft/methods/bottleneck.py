"""Bottleneck adapters on T5: two small linear maps with an activation between them, at one of three published places.

    adapter(x) = up(activation(down(x)))

``houlsby`` (Houlsby et al. 2019, https://arxiv.org/abs/1902.00751): ``y + adapter(y)`` for the output y of the self-attention and
for that of the feed-forward, before dropout and the residual sum. ``pfeiffer`` (Pfeiffer et al. 2021,
https://aclanthology.org/2021.eacl-main.39): the same for the feed-forward only. ``parallel`` (He et al. 2022,
https://openreview.net/forum?id=0RDcd5Axok): ``feed_forward(x) + 4 * adapter(x)``, where x is the normalized input of the
feed-forward and 4 is the scale of the paper. None of them has an adapter in the cross-attention, as in the published runs on T5
(Mahabadi et al. 2021, https://arxiv.org/abs/2106.04647).

Differs from the papers: the up-projection starts at zero and not near it, so wrapping changes nothing. The norms of T5 stay frozen
(``norm_wrap`` trains them). The adapter is not a change of a weight and cannot be merged.

Letters: B batch, T tokens, H d_model, M size of the bottleneck.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, cast

from peft import PeftModel
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from t5peft.compat.peft import register
from t5peft.methods.base import (
    AdapterConfig,
    AdapterLayer,
    AdapterTuner,
    check_choice,
    ensure_fits,
    raise_if_problems,
    read_size,
    wrap,
)
from t5peft.models.encoders import has_decoder
from t5peft.models.families import Family, family_of, modules_pattern, names_pattern
from t5peft.models.unwrap import ensure_unwrapped

Placement = Literal["pfeiffer", "houlsby", "parallel"]
Activation = Literal["relu", "gelu", "silu"]


def _outputs_of_self_attention(family: Family) -> tuple[str, ...]:
    return tuple(f"{name}.{family.attention[3]}" for name in family.self_attention)


# The modules of a placement, by their names.
_PLACES: dict[Placement, list[Callable[[Family], str | tuple[str, ...]]]] = {
    "pfeiffer": [lambda family: family.feed_forward],
    "houlsby": [lambda family: family.feed_forward, _outputs_of_self_attention],
    "parallel": [lambda family: family.feed_forward],
}
ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu,
    "gelu": functional.gelu,
    "silu": functional.silu,
}
PARALLEL_SCALE = 4.0


@dataclass
class BottleneckConfig(AdapterConfig):
    """The size M of the bottleneck, its placement, and its activation."""

    size: int = 32
    placement: Placement = "pfeiffer"
    activation: Activation = "relu"

    def __post_init__(self) -> None:
        """Target the modules of the placement."""
        super().__post_init__()
        self.set_targets("t5_bottleneck", modules_pattern(rf".*\.{names_pattern(*_PLACES[self.placement])}"))


class Bottleneck(nn.Module):
    """``forward(x [.., H]) -> scale * up(activation(down(x))) [.., H]``."""

    def __init__(self, d_model: int, size: int, activation: Activation, is_parallel: bool) -> None:
        super().__init__()
        self.down = nn.Linear(d_model, size)
        self.up = nn.Linear(size, d_model)
        self.activation = ACTIVATIONS[activation]
        self.is_parallel = is_parallel
        nn.init.zeros_(self.down.bias)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return what is added for x [.., H], computed in the dtype of the adapter and returned in that of x."""
        change = self.up(self.activation(self.down(x.to(self.down.weight.dtype)))).to(x.dtype)
        return cast(Tensor, PARALLEL_SCALE * change if self.is_parallel else change)


class BottleneckLayer(AdapterLayer):
    """A feed-forward, or the output map of an attention, with bottlenecks behind it or beside it."""

    adapter_layer_names = ("t5bottleneck",)
    kind = "bottleneck adapter"

    def forward(self, x: Tensor) -> Tensor:
        """Compute outputs [B, T, H] of inputs x [B, T, ..]. Several active adapters follow on each other."""
        output = cast(Tensor, self.base_layer(x))
        for name in self.active_adapters_here():
            adapter = cast(Bottleneck, self.adapters[name])
            output = output + adapter(x if adapter.is_parallel else output)
        return output


class BottleneckTuner(AdapterTuner[BottleneckLayer, BottleneckConfig]):
    """The tuner that puts a ``BottleneckLayer`` around the modules of the placement."""

    prefix = "t5bottleneck"
    tuner_layer_cls = BottleneckLayer

    def new_adapter(self, layer: BottleneckLayer, config: BottleneckConfig, adapter_name: str) -> nn.Module:
        """Return a bottleneck that adds zero."""
        return Bottleneck(
            width_of(layer.base_layer, family_of(self.model.config)),
            config.size,
            config.activation,
            is_parallel=config.placement == "parallel",
        )


def width_of(target: nn.Module, family: Family) -> int:
    """Return H, the outputs of a feed-forward or of the last map of an attention; the stacks of a model may differ in it."""
    outputs = {family.ungated[-1:], family.gated[-1:]}
    maps = [module for name, module in target.named_modules() if (name.rpartition(".")[2],) in outputs]
    return int(cast(nn.Linear, maps[0] if maps else target).out_features)


def weights_of_bottlenecks(model: PreTrainedModel) -> int:
    """Return the weights that one more unit of width takes in one adapter per layer, of which placements have one or two."""
    return sum(
        2 * stack.d_model * stack.layers
        for stack in family_of(model.config).stacks(model.config)[: 1 + has_decoder(model)]
    )


def bottleneck_wrap(
    model: PreTrainedModel,
    *,
    size: int = 32,
    placement: Placement = "pfeiffer",
    activation: Activation = "relu",
) -> PeftModel:
    """Wrap ``model`` for bottleneck adapters, in place.

    Args:
        model: A T5.
        size: M, the width of the bottleneck.
        placement: The position of the adapters in each block.
        activation: The activation between the two layers; Pfeiffer et al. and He et al. use relu.

    Returns:
        The wrapped model.

    Raises:
        ValueError: The model is already wrapped, the size is below one, or the placement or activation is unknown.
    """
    ensure_unwrapped(model)
    problems: list[str] = []
    size = read_size("size", size, problems)
    check_choice("placement", placement, list(_PLACES), problems)
    check_choice("activation", activation, list(ACTIVATIONS), problems)
    raise_if_problems(problems)
    ensure_fits(model, size=(size, weights_of_bottlenecks(model)))
    return wrap(model, BottleneckConfig(size=size, placement=placement, activation=activation))


register("t5_bottleneck", BottleneckConfig, BottleneckTuner)
