"""Private parts of bitsandbytes, which is imported only where it is needed."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from bitsandbytes.nn import Linear4bit

CAST_NOTE = "MatMul8bitLt: inputs will be cast"
CAST_LOGGER = "bitsandbytes.autograd._functions"


def linear_nf4(plain: nn.Linear, dtype: torch.dtype) -> Linear4bit:
    """Return ``plain`` in nf4, stored as ``dtype``."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    quantized = Linear4bit(
        plain.in_features, plain.out_features, bias=False, compute_dtype=dtype, quant_storage=dtype, device="meta"
    )
    weight = Params4bit(plain.weight.data, requires_grad=False, quant_type="nf4", quant_storage=dtype)
    quantized.weight = weight.to(plain.weight.device)
    return quantized


def keep_4_bits(model: nn.Module) -> None:
    """Leave weights of 4 bits as they were stored.

    On a CPU that computes in bfloat16, bitsandbytes repacks them at the first evaluation, with scales in bfloat16 that it cannot
    turn back: from then on the model is another one. It repacks to uint8, to which T5 then casts the input of ``wo``.
    """
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def maps_with_wrong_scales(model: nn.Module) -> list[str]:
    """Return the names of 4-bit maps whose weights this processor reads with the scales of others.

    With AVX-512, bitsandbytes 0.50 takes ``inputs // blocksize`` scales for each row of a weight. A block of 64 weights goes on in
    the next row where 64 does not divide the inputs, as in tiny models.
    """
    from bitsandbytes.nn import Linear4bit

    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return []
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, Linear4bit)
        and module.weight.device.type == "cpu"
        and module.in_features % module.weight.blocksize
        and module.in_features % 16 == 0  # others take a slower way, which is right
    ]


def silence_casts() -> None:
    """Drop the note on casting that bitsandbytes writes at every matrix product in 8 bits."""
    warnings.filterwarnings("ignore", message=CAST_NOTE)
    logging.getLogger(CAST_LOGGER).addFilter(_is_not_cast_note)


def plain_weight(module: nn.Module) -> Tensor:
    """Return the weight of a linear map, out of 8 or 4 bits where it is quantized."""
    from peft.utils.integrations import dequantize_module_weight

    return dequantize_module_weight(module).detach()


def stored_numbers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield each parameter by its name; of a quantized one the scales, which are NaN or infinite where the weight was."""
    for name, weight in model.named_parameters():
        state = getattr(weight, "quant_state", None)
        row_scales = getattr(weight, "SCB", None)
        if row_scales is not None:
            yield name, row_scales
        elif state is None:
            yield name, weight
        elif state.nested:
            yield name, state.offset
            yield name, state.state2.absmax
        else:
            yield name, state.absmax


def compute_dtypes(model: nn.Module) -> set[torch.dtype]:
    """Return the dtypes in which the weights of 4 bits are multiplied."""
    found = (
        getattr(module, "compute_dtype", None) for module in model.modules() if type(module).__name__ == "Linear4bit"
    )
    return {dtype for dtype in found if isinstance(dtype, torch.dtype)}


def _is_not_cast_note(record: logging.LogRecord) -> bool:
    return CAST_NOTE not in record.getMessage()
