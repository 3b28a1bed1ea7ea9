"""What torch does not offer publicly."""

from __future__ import annotations

import torch


def computes_bfloat16() -> bool:
    """Return whether this machine multiplies matrices in bfloat16 by hardware; in software it is some fifty times slower."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.cpu._is_avx512_bf16_supported()) or bool(torch.cpu._is_amx_tile_supported())
