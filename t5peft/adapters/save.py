"""Save adapters and whole models: completely or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import t5peft
from t5peft.adapters.manifest import CONFIG, describe, write_manifest
from t5peft.compat.disk import reports_disk_errors
from t5peft.compat.filesystem import unfinished
from t5peft.compat.lock import LOCK
from t5peft.compat.peft import adapter_state
from t5peft.models.embedded import backbone_name, is_embedded
from t5peft.models.folders import ADAPTER_FILES, leftovers, replacing
from t5peft.models.manifest import TEMPORARY_MANIFEST, non_finite_names, read_manifest, write_manifest_file


@reports_disk_errors
def save_adapter(
    model: PreTrainedModel | PeftModel, folder: str | Path, *, tokenizer: PreTrainedTokenizerBase | None = None
) -> Path:
    """Save the active adapter of ``model`` to ``folder``, completely or not at all.

    An earlier adapter in the folder is replaced. Whenever the process is killed, the old adapter or the new one can be loaded.

    Args:
        model: A model with one active adapter.
        folder: Where to save it.
        tokenizer: The tokenizer, where the adapter trains tokens of its own.

    Returns:
        The folder.

    Raises:
        ValueError: The model has no adapter or several active ones, the adapter holds NaN or infinity, or the folder holds
            anything else than an earlier adapter.
    """
    folder = Path(folder)
    model, name = _active_adapter(model)
    if broken := non_finite_names(adapter_state(model, name).items()):
        raise ValueError(
            f"Got an adapter that holds NaN or infinity in these tensors: {broken[:5]}; expected finite numbers. It is not saved."
        )
    check_output(folder)
    with replacing(folder) as staging:
        model.save_pretrained(str(staging), save_embedding_layers=False, selected_adapters=[name])
        if name != "default":  # peft gives it a folder of its own
            for path in (staging / name).iterdir():
                path.replace(staging / path.name)
            (staging / name).rmdir()
        base = write_portable_base(staging)
        (staging / "README.md").write_text(_model_card(model, name, base), encoding="utf-8")
        if tokenizer is not None:
            tokenizer.save_pretrained(str(staging))
        write_manifest(staging, model)
    return folder


@reports_disk_errors
def save_model(model: PreTrainedModel, folder: str | Path, *, tokenizer: PreTrainedTokenizerBase | None = None) -> Path:
    """Save a fully tuned or merged model with a manifest, which ``load_backbone`` verifies.

    Other files in the folder stay, such as the checkpoints of its training.

    Args:
        model: A model without an adapter.
        folder: Where to save it.
        tokenizer: Its tokenizer.

    Returns:
        The folder.

    Raises:
        ValueError: The model has an adapter or holds NaN or infinity, or the folder holds an adapter.
    """
    folder = Path(folder)
    if isinstance(model, PeftModel):
        raise ValueError(
            "Got a model with an adapter; expected a whole model. Save it by save_adapter, or merge it first."
        )
    if broken := non_finite_names(model.named_parameters()):
        raise ValueError(
            f"Got a model that holds NaN or infinity in these weights: {broken[:5]}; expected finite numbers. It is not saved."
        )
    ensure_no_adapter(folder)
    with replacing(folder, keep_others=True) as staging:
        model.save_pretrained(str(staging))
        if tokenizer is not None:
            tokenizer.save_pretrained(str(staging))
        write_manifest_file(staging, describe(model))
    return folder


def check_output(folder: str | Path) -> None:
    """Refuse a folder that holds anything else than an earlier adapter, which ``save_adapter`` would delete.

    Args:
        folder: Where an adapter is to be saved; it need not exist.

    Raises:
        ValueError: There are other files.
    """
    folder = Path(folder)
    if foreign := _foreign(folder):
        raise ValueError(
            f"Got {folder} to save an adapter to, which holds files that are not of an earlier adapter and would be lost: "
            f"{foreign[:5]}; expected a new or empty folder, or that of an adapter. Take one of its own, such as "
            f"{folder / 'adapter'}."
        )


def ensure_no_adapter(folder: str | Path) -> None:
    """Refuse to save a whole model into the folder of an adapter, which would be loaded in its place.

    Args:
        folder: Where a model is to be saved; it need not exist.

    Raises:
        ValueError: It holds an adapter.
    """
    if (Path(folder) / CONFIG).is_file():
        raise ValueError(
            f"Got {folder}, which holds an adapter that would be loaded in the place of a model saved beside it; expected another "
            "folder."
        )


def write_portable_base(folder: Path) -> str:
    """Write the name of the embedded backbone where peft wrote its path on this machine.

    Args:
        folder: What peft has just saved of an adapter.

    Returns:
        The name of the backbone, whichever it is; empty where it has none.
    """
    path, card = folder / CONFIG, folder / "README.md"
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    given = config.get("base_model_name_or_path") or ""
    base = backbone_name(given)
    config["base_model_name_or_path"] = base or None
    path.write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")
    if base != given and card.is_file():  # its metadata are for models of the hub
        lines = card.read_text(encoding="utf-8").splitlines(keepends=True)
        card.write_text("".join(line for line in lines if given not in line), encoding="utf-8")
    return base


def _active_adapter(model: PreTrainedModel | PeftModel) -> tuple[PeftModel, str]:
    if not isinstance(model, PeftModel):
        raise ValueError(
            f"Got a {type(model).__name__} without an adapter; expected a PeftModel. Save a fully tuned model by "
            "t5peft.adapters.save_model(model, folder)."
        )
    active = model.active_adapters
    if len(active) != 1:
        raise ValueError(
            f"Got a model in which the adapters {active} are active at once; expected one, as one folder holds one. Save each "
            "after model.set_adapter(name)."
        )
    return model, str(active[0])


def _foreign(folder: Path) -> list[str]:
    """Files in ``folder``, or the file that it is, that are not of an earlier adapter, nor temporary, nor written beside one."""
    if not folder.is_dir():
        return [folder.name] if folder.exists() else []
    known = {TEMPORARY_MANIFEST, LOCK, *(unfinished(folder / name).name for name in ADAPTER_FILES)}
    if (folder / CONFIG).is_file():
        try:
            manifest = read_manifest(folder)
        except ValueError:
            manifest = None
        # A checkpoint, which has a trainer_state.json, is more than an adapter.
        known |= {*ADAPTER_FILES, *(manifest.files if manifest else ())} - {"trainer_state.json"}
    own = {path for name in known for path in (folder / name, *(folder / name).parents)}
    temporary = [folder / path.name for path in leftovers(folder.resolve())]
    return sorted(
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path not in own and not any(path.is_relative_to(place) for place in temporary)
    )


def _model_card(model: PeftModel, name: str, base: str) -> str:
    """Return a README that says what the adapter is and how it is loaded, with the metadata that the hub reads."""
    method = str(getattr(model.peft_config[name].peft_type, "value", model.peft_config[name].peft_type)).lower()
    is_on_hub = base != "" and not is_embedded(base) and not Path(base).exists()
    weights = sum(tensor.numel() for tensor in adapter_state(model, name).values())
    lines = [
        "---",
        "library_name: peft",
        *([f"base_model: {base}"] if is_on_hub else []),
        f"tags: [t5peft, {method}]",
        "---",
        "",
        f"# An adapter for {base or 'a T5'}",
        "",
        f"- Method: {method} ({weights:,} weights)",
        f"- Backbone: {base or 'not named'}",
        f"- Saved by t5peft {t5peft.__version__} and peft {peft.__version__}",
        "",
        "```python",
        "from t5peft import load_adapter",
        "",
        'model, tokenizer = load_adapter("path/to/this/folder")',
        "```",
        "",
        "Describe here what it was trained on, what it is for, and how it was evaluated.",
        "",
    ]
    return "\n".join(lines)
