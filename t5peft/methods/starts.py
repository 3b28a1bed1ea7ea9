"""Starts of LoRA that are not zero: PiSSA, OLoRA and LoRA-GA.

PiSSA (Meng et al. 2024, https://arxiv.org/abs/2404.02948) starts A and B from the largest singular values of the weight, OLoRA
(Büyükakyüz 2024, https://arxiv.org/abs/2406.01775) from its QR decomposition. LoRA-GA (Wang et al. 2024,
https://arxiv.org/abs/2407.05000) starts them from the singular vectors of the gradient of full fine-tuning. With start A', B' the
layer is ``W x + scale * (B A x - B' A' x)``, so wrapping changes nothing.

peft takes ``scale * B' A'`` out of W. Its adapters then need W to be changed again when they are loaded, which is not possible for
LoRA-GA. Here W stays as it is: the layer is LoRA of rank 2R, whose second half ``[A'; -B']`` is frozen. So what is saved is plain
LoRA of rank 2R, which every loader, merge, export and server takes on the original backbone. It is twice as large as the trained
part, as are adapters that peft converts.

On a busy CPU with several threads the decompositions wait for each other; one thread is then faster (``OMP_NUM_THREADS=1``).

PiSSA and OLoRA are computed by peft. LoRA-GA is not: peft multiplies B by the singular values of the gradient, which depend on how
the loss is scaled, and leaves A without the factor of the paper. Ours is ``d_out**0.25 / sqrt(gamma)`` times orthogonal vectors in
both, with the paper's gamma of 16.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from t5peft.models.unwrap import evaluation_mode
from t5peft.nn.half_frozen import HalfFrozenLinear

Start = Literal["pissa", "olora", "lora-ga"]
STARTS: tuple[Start, ...] = ("pissa", "olora", "lora-ga")
GAMMA = 16.0
RECORDS = 32

Record = Mapping[str, Any]


def start_records(records: Sequence[Record]) -> list[Record]:
    """Return some records, from all parts of a training set, for the gradient of LoRA-GA."""
    count = min(RECORDS, len(records))
    return [records[index * len(records) // count] for index in range(count)]


def gradients_of_maps(model: PreTrainedModel, targets: Sequence[str], records: Sequence[Record]) -> dict[str, Tensor]:
    """Return the gradient of the loss, summed over ``records``, for the weight of each linear map that ``targets`` names.

    Args:
        model: A T5, not wrapped; it is left as it was.
        targets: The last parts of names of linear maps.
        records: Tokenized records with ``input_ids`` and ``labels``.

    Returns:
        The gradients [O, I] by the names of the maps.
    """
    maps = {name: module for name, module in model.named_modules() if name.rpartition(".")[2] in targets}
    weights = {name: module.get_parameter("weight") for name, module in maps.items() if isinstance(module, nn.Linear)}
    required = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    sums: dict[str, Tensor] = {name: torch.zeros_like(weight, dtype=torch.float32) for name, weight in weights.items()}
    try:
        model.requires_grad_(False)
        for weight in weights.values():
            weight.requires_grad_(True)
        with evaluation_mode(model), torch.enable_grad():
            for record in records:
                batch = {name: torch.tensor([record[name]], device=model.device) for name in ("input_ids", "labels")}
                gradients = torch.autograd.grad(model(**batch).loss, list(weights.values()))
                for name, gradient in zip(weights, gradients, strict=True):
                    sums[name] += gradient
    finally:
        for parameter, requires_grad in required:
            parameter.requires_grad_(requires_grad)
    return sums


@torch.no_grad()
def start_lora(model: PeftModel, start: Start, rank: int, gradients: Mapping[str, Tensor]) -> None:
    """Start the active adapter of ``model`` from the weights or the gradients, in place.

    Args:
        model: A model with new LoRA layers of twice ``rank``.
        start: Where from.
        rank: R, of the part that is trained.
        gradients: The gradient [O, I] of each map by its name in the backbone, for LoRA-GA.
    """
    adapter = str(model.active_adapter)
    for name, layer in model.get_base_model().named_modules():
        if not isinstance(layer, LoraLayer):
            continue
        a, b = cast(nn.Linear, layer.lora_A[adapter]), cast(nn.Linear, layer.lora_B[adapter])
        dtype = a.weight.dtype
        if a.weight.is_meta:
            first, second = a.weight[:rank], b.weight[:, :rank]
        elif start == "lora-ga":
            first, second = from_gradient(gradients[name], rank)
        else:
            first, second = _from_weight(layer, adapter, start, rank)
        layer.lora_A[adapter] = HalfFrozenLinear(first.to(dtype), first.to(dtype), 0)
        layer.lora_B[adapter] = HalfFrozenLinear(second.to(dtype), -second.to(dtype), 1)


def from_gradient(gradient: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return the start of LoRA-GA: A from the first right singular vectors of a gradient, B from the next left ones.

    Args:
        gradient: Of the weight of a linear map.
        rank: R.

    Shapes:
        gradient: [O, I].
        Returned: [R, I] and [O, R].
    """
    left, _, right = torch.svd_lowrank(gradient.float(), q=min(4 * rank, *gradient.shape), niter=4)
    factor = len(gradient) ** 0.25 / GAMMA**0.5
    return factor * right[:, :rank].T, factor * left[:, rank : 2 * rank]


def _from_weight(layer: LoraLayer, adapter: str, start: Start, rank: int) -> tuple[Tensor, Tensor]:
    """Return the start that peft computes, and leave the weight as it was."""
    base = cast(nn.Linear, layer.get_base_layer())
    weight, doubled = base.weight.data, layer.r[adapter]
    base.weight.data = weight.clone()  # of which peft takes the start out
    layer.r[adapter] = rank
    try:
        if start == "pissa":
            layer.pissa_init(adapter, "pissa_niter_16")
        else:
            layer.olora_init(adapter)
    finally:
        base.weight.data, layer.r[adapter] = weight, doubled
    a, b = (cast(nn.Linear, part[adapter]).weight for part in (layer.lora_A, layer.lora_B))
    return a.data, b.data
