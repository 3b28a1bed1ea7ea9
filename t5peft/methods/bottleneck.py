"""Bottleneck adapters on T5: two small linear maps with an activation between them, at one of three published places.

    adapter(x) = up(activation(down(x)))

``houlsby`` (Houlsby et al. 2019, https://arxiv.org/abs/1902.00751): ``y + adapter(y)`` for the output y of the self-attention and
for that of the feed-forward, before dropout and the residual sum. ``pfeiffer`` (Pfeiffer et al. 2021,
https://aclanthology.org/2021.eacl-main.39): the same for the feed-forward alone. ``parallel`` (He et al. 2022,
https://openreview.net/forum?id=0RDcd5Axok): ``feed_forward(x) + 4 * adapter(x)``, x the normalised input of the feed-forward and 4
the paper's scale. The cross-attention gets no adapter in any of them, as in the published runs on T5 (Mahabadi et al. 2021,
https://arxiv.org/abs/2106.04647).

Differs from the papers: the up-projection starts at zero and not near it, so that wrapping changes nothing; the norms of T5 stay
frozen (:func:`~t5peft.methods.norm_wrap` trains them). An adapter is no change of a weight, and cannot be merged.

Letters: B batch, T tokens, H d_model, M size of the bottleneck.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from peft import PeftConfig, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import PeftType
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from t5peft.compat.peft import register
from t5peft.methods.base import OwnTuner, to_device_unless_meta
from t5peft.methods.wrapping import wrap
from t5peft.models.unwrap import ensure_unwrapped

Placement = Literal["pfeiffer", "houlsby", "parallel"]
Activation = Literal["relu", "gelu", "silu"]

_TARGETS: dict[Placement, str] = {
    "pfeiffer": r".*\.DenseReluDense",
    "houlsby": r".*\.(DenseReluDense|SelfAttention\.o)",
    "parallel": r".*\.DenseReluDense",
}
_ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu,
    "gelu": functional.gelu,
    "silu": functional.silu,
}
PARALLEL_SCALE = 4.0


@dataclass
class BottleneckConfig(PeftConfig):
    """Size M of the bottleneck, its placement, and its activation."""

    size: int = 32
    placement: str = "pfeiffer"
    activation: str = "relu"
    modules_to_save: list[str] | None = None
    target_modules: str | None = None
    exclude_modules: list[str] | None = None

    def __post_init__(self) -> None:
        """Name the modules of the placement for peft."""
        super().__post_init__()
        self.peft_type = PeftType("T5_BOTTLENECK")
        self.target_modules = _TARGETS[self.placement]


class Bottleneck(nn.Module):
    """``forward(x [.., H]) -> scale * up(activation(down(x))) [.., H]``."""

    def __init__(self, d_model: int, size: int, activation: Activation, parallel: bool) -> None:
        super().__init__()
        self.down = nn.Linear(d_model, size)
        self.up = nn.Linear(size, d_model)
        self.activation = _ACTIVATIONS[activation]
        self.parallel = parallel
        nn.init.zeros_(self.down.bias)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        """What is added for x [.., H]: computed in the adapter's dtype, returned in that of x."""
        change = self.up(self.activation(self.down(x.to(self.down.weight.dtype)))).to(x.dtype)
        return PARALLEL_SCALE * change if self.parallel else change


class BottleneckLayer(nn.Module, BaseTunerLayer):
    """A feed-forward, or the output map of an attention, with bottlenecks after or beside it."""

    adapter_layer_names = ("t5bottleneck",)
    base_layer: Any
    t5bottleneck: Any

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.t5bottleneck = nn.ModuleDict()

    def forward(self, x: Tensor) -> Tensor:
        """Inputs x [B, T, ..] to outputs [B, T, H]; several active adapters follow on each other."""
        output = self.base_layer(x)
        if self.disable_adapters:
            return output
        for name in self.active_adapters:
            if name in self.t5bottleneck:
                adapter = self.t5bottleneck[name]
                output = output + adapter(x if adapter.parallel else output)
        return output

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Raise ValueError: an adapter with an activation is no change of a weight."""
        raise ValueError(
            "A bottleneck adapter cannot be merged into the weights of T5; it is served as the adapter that it is."
        )


class BottleneckTuner(OwnTuner):
    """Puts a :class:`BottleneckLayer` around the modules of the placement."""

    prefix = "t5bottleneck"
    tuner_layer_cls = BottleneckLayer

    def _create_and_replace(
        self,
        peft_config: BottleneckConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
    ) -> None:
        layer = target if isinstance(target, BottleneckLayer) else BottleneckLayer(target)
        adapter = Bottleneck(
            self.model.config.d_model,
            peft_config.size,
            peft_config.activation,
            parallel=peft_config.placement == "parallel",
        )
        layer.t5bottleneck[adapter_name] = to_device_unless_meta(adapter, next(layer.base_layer.parameters()).device)
        if layer is not target:
            setattr(parent, target_name, layer)


def bottleneck_wrap(
    model: PreTrainedModel,
    *,
    size: int = 32,
    placement: Placement = "pfeiffer",
    activation: Activation = "relu",
) -> PeftModel:
    """Wrap ``model`` for bottleneck adapters, in place.

    Args:
        model: a T5.
        size: M, the width of the bottleneck.
        placement: where the adapters stand.
        activation: between the two maps; relu is what Pfeiffer and He et al. have.

    Raises:
        ValueError: for a wrapped model, a size below one, or an unknown placement or activation; all problems at once.
    """
    ensure_unwrapped(model)
    problems = [
        text
        for wrong, text in (
            (size < 1, f"size={size}; expected a whole number of at least 1"),
            (placement not in _TARGETS, f"placement={placement!r}; expected one of {', '.join(_TARGETS)}"),
            (activation not in _ACTIVATIONS, f"activation={activation!r}; expected one of {', '.join(_ACTIVATIONS)}"),
        )
        if wrong
    ]
    if problems:
        raise ValueError(f"Got {', and '.join(problems)}.")
    return wrap(model, BottleneckConfig(size=size, placement=placement, activation=activation))


register("t5_bottleneck", BottleneckConfig, BottleneckTuner)
