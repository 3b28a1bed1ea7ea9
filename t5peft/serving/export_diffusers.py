"""LoRA of the T5 text encoder of an image model, in the form that diffusers loads.

FLUX has its T5 as ``text_encoder_2``, Stable Diffusion 3 as ``text_encoder_3``. A name of peft becomes one of diffusers:

    base_model.model.encoder.block.0.layer.0.SelfAttention.q.lora_A.weight
    text_encoder_2.encoder.block.0.layer.0.SelfAttention.q.lora_linear_layer.down.weight

Rank and scale are in the metadata of the file, because diffusers reads them from the names of CLIP's maps only. The pipelines of
diffusers hand no weights to their T5 by themselves:

    state, metadata = FluxPipeline.lora_state_dict(folder, return_lora_metadata=True)
    FluxPipeline.load_lora_into_text_encoder(
        state, None, pipeline.text_encoder_2, prefix="text_encoder_2", metadata=metadata
    )
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, get_args

from safetensors.torch import save_file
from torch import Tensor

from t5peft.adapters.load import ensure_intact
from t5peft.adapters.manifest import read_config
from t5peft.compat.filesystem import unfinished
from t5peft.compat.paths import as_path
from t5peft.compat.peft import stored_state
from t5peft.models.folders import ensure_output
from t5peft.serving.weights import module_key

TextEncoder = Literal["text_encoder", "text_encoder_2", "text_encoder_3"]
WEIGHTS = "pytorch_lora_weights.safetensors"
_METADATA = "lora_adapter_metadata"  # the name that diffusers looks for
_OPTIONS = ("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern")
_PARTS = {".lora_A.weight": ".lora_linear_layer.down.weight", ".lora_B.weight": ".lora_linear_layer.up.weight"}


def diffusers_state(
    folder: str | Path, text_encoder: TextEncoder = "text_encoder_2"
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the weights of a LoRA adapter by the names of diffusers, and its settings.

    Args:
        folder: The adapter of an encoder.
        text_encoder: The part of the pipeline: ``"text_encoder_2"`` of FLUX, ``"text_encoder_3"`` of Stable Diffusion 3.

    Returns:
        The weights by name, and the arguments of ``LoraConfig``, each name with the part before it.

    Raises:
        ValueError: The adapter is not plain LoRA of the encoder of a T5, or is damaged.
        FileNotFoundError: ``folder`` holds no adapter.
    """
    ensure_intact(as_path(folder))
    config, stored = read_config(Path(folder)), stored_state(Path(folder))
    names = {name: module_key(name) for name in stored}
    foreign = [name for name, inner in names.items() if not inner.startswith("encoder.") or "lora_" not in inner]
    problems = []
    if text_encoder not in get_args(TextEncoder):
        problems.append(f"text_encoder={text_encoder!r}")
    if config.get("peft_type") != "LORA" or config.get("use_dora") or config.get("trainable_token_indices"):
        problems.append(f"an adapter of {'DoRA' if config.get('use_dora') else config.get('peft_type')}")
    elif foreign:
        problems.append(f"tensors that are not of an encoder, such as {foreign[0]}")
    if problems:
        raise ValueError(
            f"Got {', and '.join(problems)}; expected LoRA without DoRA and tokens, as of load_backbone(name, head='states'), for "
            f"one of {', '.join(get_args(TextEncoder))}. Export the merged encoder with export(folder, output, "
            "to='transformers'), and pass it to the pipeline."
        )
    state = {}
    for name, inner in names.items():
        end = next(end for end in _PARTS if inner.endswith(end))
        state[f"{text_encoder}.{inner.removesuffix(end)}{_PARTS[end]}"] = stored[name].contiguous()
    modules = sorted({module_key(name).rpartition(".lora_")[0] for name in stored})
    settings = {name: config[name] for name in _OPTIONS if config.get(name)} | {"target_modules": modules}
    return state, {f"{text_encoder}.{name}": value for name, value in settings.items()}


def export_diffusers(folder: str | Path, output: str | Path, *, text_encoder: TextEncoder = "text_encoder_2") -> Path:
    """Write the LoRA of a text encoder in a format that diffusers can load.

    Args:
        folder: The adapter of an encoder.
        output: A folder for the file; an earlier file of the name is replaced.
        text_encoder: As for ``diffusers_state``.

    Returns:
        The file.

    Raises:
        ValueError: As for ``diffusers_state``, or ``output`` holds what another command wrote.
        FileNotFoundError: ``folder`` holds no adapter.
    """
    path = as_path(output, "output") / WEIGHTS
    ensure_output(path.parent, "an export")
    state, settings = diffusers_state(folder, text_encoder)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, unfinished(path), {"format": "pt", _METADATA: json.dumps(settings, sort_keys=True)})
    return unfinished(path).replace(path)
