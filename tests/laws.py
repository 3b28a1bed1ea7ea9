"""The common parts of the laws: their cases, and how outputs and gradients are compared."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import pytest
import torch
from cases import ADAPTERS, CASES, FORMS, trained
from tiny import (
    GEOMETRIES,
)
from torch import Tensor, nn
from transformers import PreTrainedModel

TOLERANCE = 1e-6

all_geometries = pytest.mark.parametrize("geometry", GEOMETRIES)
# "wide" has all that "v1.1" has and more; laws about formulas and files are tested on all three, laws about life on two
two_geometries = pytest.mark.parametrize("geometry", ["v1.0", "wide"])
all_cases = pytest.mark.parametrize("case", CASES, ids=str)
all_adapters = pytest.mark.parametrize("case", ADAPTERS, ids=str)
cases_of_each_form = pytest.mark.parametrize("case", [case for case in CASES if case.variant in FORMS], ids=str)
adapters_of_each_form = pytest.mark.parametrize("case", [case for case in ADAPTERS if case.variant in FORMS], ids=str)

MakeBase = Callable[[], PreTrainedModel]
Model = TypeVar("Model", bound=nn.Module)


def precise(model: Model) -> Model:
    """``model`` in double precision, so that differences are not rounding and tolerances can be tight."""
    return model.double()


def in_double(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.double() for name, tensor in state.items()}


def inputs_of(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


@torch.no_grad()
def logits_of(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return model(**batch).logits


def gradients_of(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    parameters = trained(model)
    gradients = torch.autograd.grad(model(**batch).loss, list(parameters.values()))
    return dict(zip(parameters, gradients, strict=True))


def assert_same(got: Tensor, expected: Tensor, tolerance: float = TOLERANCE) -> None:
    torch.testing.assert_close(got, expected, rtol=0, atol=tolerance)


def assert_same_gradients(got: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = TOLERANCE) -> None:
    """Each tensor's difference, measured against that tensor's own size."""
    assert got.keys() == expected.keys()
    for name in expected:
        assert expected[name].norm() > 0, f"{name} has no gradient"
        assert (got[name] - expected[name]).norm() <= tolerance * expected[name].norm(), name


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer, and the scales of quantized weights, which bitsandbytes keeps elsewhere."""
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    for name, module in model.named_modules():
        if isinstance(scales := getattr(getattr(module, "state", None), "SCB", None), Tensor):
            tensors[f"{name}.SCB"] = scales
    return {name: tensor.detach() for name, tensor in tensors.items()}


# Generation


GREEDY = {"max_new_tokens": 6, "do_sample": False}
BEAMS = {"max_new_tokens": 5, "do_sample": False, "num_beams": 3}
