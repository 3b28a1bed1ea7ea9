"""Names that the modules of this package share today with those that import them from here."""

from __future__ import annotations

from t5peft.adapters.checkpoints import (
    folder_of,
    newest_complete,
    of_another_model,
    read_run_state,
    rotate,
)
from t5peft.adapters.fingerprint import fingerprint, fingerprint_of_maps
from t5peft.adapters.load import backbone_of, base_of, load_adapter
from t5peft.adapters.manifest import CONFIG, MANIFEST, WEIGHTS, quantization_of, write_manifest
from t5peft.adapters.save import check_output, ensure_no_adapter, save_adapter
from t5peft.models.manifest import non_finite_names, verify

__all__ = [
    "CONFIG",
    "MANIFEST",
    "WEIGHTS",
    "backbone_of",
    "base_of",
    "check_output",
    "ensure_no_adapter",
    "fingerprint",
    "fingerprint_of_maps",
    "folder_of",
    "load_adapter",
    "newest_complete",
    "non_finite_names",
    "of_another_model",
    "quantization_of",
    "read_run_state",
    "rotate",
    "save_adapter",
    "verify",
    "write_manifest",
]
