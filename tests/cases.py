"""Every tuning method with options small enough for a tiny T5, and how a test wraps, moves and reads it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

import reference
import torch
from own_method import Scale, ScaleLayer
from peft import PeftModel
from peft.tuners.adalora import AdaLoraLayer
from peft.tuners.ia3 import IA3Layer
from peft.tuners.lora import LoraLayer
from tiny import Geometry, tiny_t5
from torch import Tensor, nn
from transformers import PreTrainedModel, T5ForConditionalGeneration

from t5peft import METHODS, load_backbone
from t5peft.methods.bottleneck import Bottleneck, BottleneckLayer
from t5peft.methods.ladder import GatedBlock, SideStack
from t5peft.methods.norm import NormLayer
from t5peft.methods.prefix import PrefixLayer
from t5peft.methods.prompt import PromptEncoder
from t5peft.models.backbone import correct_config

Model = TypeVar("Model", bound=nn.Module)

ATTENDS_ITSELF = {"prefix", "mam"}  # wrapping changes the function that computes attention, for an equal one
UNWRAPPED = {"full"}  # no adapter: the model itself is trained


@dataclass(frozen=True)
class Case:
    """A method with options, small enough for a tiny T5."""

    method: str
    options: dict[str, Any] = field(default_factory=dict)
    variant: str = ""

    def __str__(self) -> str:
        return f"{self.method}{'-' * bool(self.variant)}{self.variant}"


_SMALL: dict[str, dict[str, Any]] = {
    "lora": {"rank": 4},
    "qlora": {"rank": 4},
    "adalora": {"rank": 2, "target_modules": ["q", "wo"]},
    "prefix": {"length": 3},
    "prompt": {"length": 3},
    "houlsby": {"size": 5},
    "pfeiffer": {"size": 5},
    "parallel": {"size": 5},
    "dora": {"rank": 2, "target_modules": ["q", "wo"]},
    "ladder": {"reduction": 4},
    "mam": {"length": 3, "size": 5},
    "lora-all": {"rank": 3, "rank_stabilized": True},
}
CASES = [
    *(Case(name, _SMALL.get(name, {})) for name in METHODS),
    Case("prefix", {"length": 3, "projection_size": 7}, "reparametrized"),
    Case("prefix", {"length": 2, "sites": ["encoder"]}, "encoder"),
    Case("prefix", {"length": 2, "sites": ["decoder"]}, "decoder"),
    Case("prefix", {"length": 2, "sites": ["cross"]}, "cross"),
]
ADAPTERS = [case for case in CASES if case.method not in UNWRAPPED]
# every form of computing, once; only formulas, files and gradients tell single sites apart
FORMS = {"", "reparametrized"}
BY_HAND = [case for case in CASES if METHODS[case.method].quantize is None]


def ready_t5(geometry: Geometry) -> T5ForConditionalGeneration:
    """A tiny T5 as ``load_backbone`` returns it: its config says what its weights are."""
    model = tiny_t5(geometry)
    correct_config(model)
    return model


def base_of(case: Case, geometry: Geometry, folder: Path) -> PreTrainedModel:
    """The backbone of ``case``, always with the same weights; ``folder`` holds them for those that have to be loaded.

    In float32 also where it is quantized and the machine would take bfloat16, so that tests see no more rounding.
    """
    quantize = METHODS[case.method].quantize
    if quantize is None:
        return ready_t5(geometry)
    return load_backbone(folder, quantize=quantize, dtype=torch.float32)[0]


def wrap(case: Case, base: PreTrainedModel) -> PeftModel:
    """Wrap ``base``; full fine-tuning, which returns it as it is, has all that its laws use of a ``PeftModel``."""
    torch.manual_seed(1)
    return cast(PeftModel, METHODS[case.method].wrap(base, **case.options).eval())


@torch.no_grad()
def stir(model: Model, seed: int = 2) -> Model:
    """Moves every trained tensor off its start, so that nothing is hidden by a zero or a one."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in trained(model).values():
        parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def by_hand(model: nn.Module) -> reference.Adapters:
    """The adapters of a wrapped model; their tensors stay parts of its graph."""
    lora, prefixes, prompt, bottlenecks, norms = {}, {}, None, {}, {}
    output_scales: dict[str, Tensor] = {}
    input_scales: dict[str, Tensor] = {}
    for full_name, module in model.named_modules():
        name = full_name.removeprefix("base_model.model.").replace(".base_layer", "").removeprefix("transformer.")
        if isinstance(module, AdaLoraLayer):
            lora[name] = reference.LowRank(
                module.lora_A["default"] * module.lora_E["default"],
                cast(Tensor, module.lora_B["default"]),
                module.scaling["default"] / (float(module.ranknum["default"]) + 1e-5),
            )
        elif isinstance(module, LoraLayer):
            lora[name] = reference.LowRank(
                module.lora_A["default"].get_parameter("weight"),
                module.lora_B["default"].get_parameter("weight"),
                module.scaling["default"],
                module.lora_magnitude_vector["default"].get_parameter("weight")
                if module.lora_magnitude_vector
                else None,
            )
        elif isinstance(module, IA3Layer):
            scales = input_scales if module.is_feedforward else output_scales
            scales[name] = module.ia3_l["default"].flatten()
        elif isinstance(module, PrefixLayer):
            prefixes[name] = reference.KeysValues(*module.adapters["default"]())
        elif isinstance(module, PromptEncoder):
            prompt = module.t5prompt["default"]
        elif isinstance(module, BottleneckLayer):
            adapter = module.adapters["default"]
            assert isinstance(adapter, Bottleneck)
            bottlenecks[name] = reference.Bottleneck(
                adapter.down.weight,
                adapter.down.bias,
                adapter.up.weight,
                adapter.up.bias,
                beside=adapter.is_parallel,
                scale=4.0 if adapter.is_parallel else 1.0,
            )
        elif isinstance(module, ScaleLayer):
            output_scales[f"{name}.wo"] = cast(Scale, module.adapters["default"]).factors()
        elif isinstance(module, NormLayer):
            norms[name] = module.adapters["default"].get_parameter("weight")
    return reference.Adapters(
        lora, output_scales, input_scales, prefixes, prompt, bottlenecks, norms, _ladder_by_hand(model)
    )


def _ladder_by_hand(model: nn.Module) -> reference.Ladder | None:
    sides = {
        "decoder" if module.stack.is_decoder else "encoder": module
        for module in model.modules()
        if isinstance(module, SideStack)
    }
    if not sides:
        return None
    rungs = {
        name: [cast(GatedBlock, rung) for rung in side.stack.get_submodule("block").children()]
        for name, side in sides.items()
    }
    return reference.Ladder(
        state={
            f"{name}.{weight.replace('.block.layer', '.layer')}": parameter
            for name, side in sides.items()
            for weight, parameter in side.stack.named_parameters()
        },
        first={name: side.first.weight for name, side in sides.items()},
        downs={name: [rung.down.weight for rung in rungs[name]] for name in sides},
        gates={name: [rung.gate for rung in rungs[name]] for name in sides},
        up=sides["decoder"].up.weight,
    )


def state_of(case: Case, geometry: Geometry, model: nn.Module) -> dict[str, Tensor]:
    """The base weights, made afresh; for full fine-tuning the trained ones."""
    if case.method in UNWRAPPED:
        return dict(model.named_parameters())
    return dict(tiny_t5(geometry).named_parameters())
