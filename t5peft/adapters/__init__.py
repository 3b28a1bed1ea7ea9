"""Adapters on disk and on the hub: save, load, verify, merge, push."""

from __future__ import annotations

from t5peft.adapters.card import CardScore, write_card
from t5peft.adapters.download import local_adapter
from t5peft.adapters.fingerprint import fingerprint, fingerprint_of_maps
from t5peft.adapters.hub import check_push, push_adapter
from t5peft.adapters.load import (
    backbone_of,
    base_of,
    brings_tokens,
    is_adapter,
    load_adapter,
    load_saved,
    load_with_tokens,
)
from t5peft.adapters.manifest import manifest_sha256, quantization_of, write_manifest
from t5peft.adapters.merge import Parity, merge
from t5peft.adapters.save import check_output, ensure_no_adapter, save_adapter, save_model

__all__ = [
    "CardScore",
    "Parity",
    "backbone_of",
    "base_of",
    "brings_tokens",
    "check_output",
    "check_push",
    "ensure_no_adapter",
    "fingerprint",
    "fingerprint_of_maps",
    "is_adapter",
    "load_adapter",
    "load_saved",
    "load_with_tokens",
    "local_adapter",
    "manifest_sha256",
    "merge",
    "push_adapter",
    "quantization_of",
    "save_adapter",
    "save_model",
    "write_card",
    "write_manifest",
]
