"""Save adapters and whole models: completely or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from t5peft.adapters.card import CARD, write_card
from t5peft.adapters.manifest import CONFIG, describe, write_manifest
from t5peft.compat.disk import reports_disk_errors
from t5peft.compat.filesystem import unfinished
from t5peft.compat.hub import commit_of
from t5peft.compat.lock import LOCK
from t5peft.compat.paths import as_path
from t5peft.compat.peft import adapter_state
from t5peft.models.embedded import backbone_name, is_embedded
from t5peft.models.folders import ADAPTER_FILES, leftovers, replacing
from t5peft.models.manifest import TEMPORARY_MANIFEST, non_finite_names, read_manifest, write_manifest_file
from t5peft.models.unwrap import unwrap_t5


@reports_disk_errors
def save_adapter(
    model: PreTrainedModel | PeftModel, folder: str | Path, *, tokenizer: PreTrainedTokenizerBase | None = None
) -> Path:
    """Save the active adapter of ``model`` to ``folder``, completely or not at all.

    An earlier adapter in the folder is replaced. If the process is killed, either the old or the new adapter can be loaded.

    Args:
        model: A model with one active adapter.
        folder: The folder to save to.
        tokenizer: The tokenizer, if the adapter adds new tokens.

    Returns:
        The folder.

    Raises:
        ValueError: The model has no adapter or several active ones, the adapter contains NaN or infinity, or the folder contains
            anything other than an earlier adapter.
    """
    folder = as_path(folder)
    model, name = _active_adapter(model)
    if broken := non_finite_names(adapter_state(model, name).items()):
        raise ValueError(
            f"Got an adapter that holds NaN or infinity in these tensors: {broken[:5]}; expected finite numbers. It is not saved."
        )
    _check_tokenizer(tokenizer)
    check_output(folder)
    with replacing(folder) as staging:
        model.save_pretrained(str(staging), save_embedding_layers=False, selected_adapters=[name])
        if name != "default":  # peft gives it a folder of its own
            for path in (staging / name).iterdir():
                path.replace(staging / path.name)
            (staging / name).rmdir()
        write_portable_base(staging, revision=commit_of(unwrap_t5(model)))
        if tokenizer is not None:
            tokenizer.save_pretrained(str(staging))
        (staging / CARD).unlink(missing_ok=True)  # peft's empty template
        write_manifest(staging, model)
        write_card(staging)
    return folder


@reports_disk_errors
def save_model(model: PreTrainedModel, folder: str | Path, *, tokenizer: PreTrainedTokenizerBase | None = None) -> Path:
    """Save a fully tuned or merged model with a manifest, which ``load_backbone`` verifies.

    Other files in the folder are kept, such as checkpoints.

    Args:
        model: A model without an adapter.
        folder: Where to save it.
        tokenizer: Its tokenizer.

    Returns:
        The folder.

    Raises:
        ValueError: The model has an adapter or holds NaN or infinity, or the folder holds an adapter.
    """
    folder = as_path(folder)
    if isinstance(model, PeftModel):
        raise ValueError(
            "Got a model with an adapter; expected a whole model. Save it with save_adapter, or merge it first."
        )
    unwrap_t5(model)
    _check_tokenizer(tokenizer)
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
    folder = as_path(folder)
    if foreign := _foreign(folder):
        raise ValueError(
            f"Got {folder} to save an adapter to, which contains files that do not belong to an earlier adapter and would be lost: "
            f"{foreign[:5]}; expected a new folder, an empty folder, or the folder of an adapter. Choose a separate one, such as "
            f"{folder / 'adapter'}."
        )


def ensure_no_adapter(folder: str | Path) -> None:
    """Refuse to save a whole model into the folder of an adapter, which would be loaded in its place.

    Args:
        folder: Where a model is to be saved; it need not exist.

    Raises:
        ValueError: It holds an adapter.
    """
    if (as_path(folder) / CONFIG).is_file():
        raise ValueError(
            f"Got {folder}, which contains an adapter that would be loaded instead of a model in the same folder; expected another "
            "folder."
        )


def write_portable_base(folder: Path, *, revision: str | None = None) -> None:
    """Write the name of the embedded backbone where peft wrote its path on this machine.

    Args:
        folder: What peft has just saved of an adapter.
        revision: The commit of the hub that the backbone was loaded from, which peft's configuration then names.
    """
    path, card = folder / CONFIG, folder / CARD
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    given = config.get("base_model_name_or_path") or ""
    base = backbone_name(given)
    config["base_model_name_or_path"] = base or None
    if revision is not None and not is_embedded(base):
        config["revision"] = revision
    path.write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")
    if base != given and card.is_file():  # its metadata are for models of the hub
        lines = card.read_text(encoding="utf-8").splitlines(keepends=True)
        card.write_text("".join(line for line in lines if given not in line), encoding="utf-8")


def _check_tokenizer(tokenizer: object) -> None:
    if tokenizer is not None and not hasattr(tokenizer, "save_pretrained"):
        raise ValueError(
            f"Got tokenizer={tokenizer!r:.60} ({type(tokenizer).__name__}); expected a tokenizer of transformers. Give one, "
            "or None."
        )


def _active_adapter(model: PreTrainedModel | PeftModel) -> tuple[PeftModel, str]:
    if not isinstance(model, PeftModel):
        raise ValueError(
            f"Got a {type(model).__name__} without an adapter; expected a PeftModel. Save a fully tuned model with "
            "t5peft.adapters.save_model(model, folder)."
        )
    active = model.active_adapters
    if len(active) != 1:
        raise ValueError(
            f"Got a model in which the adapters {active} are active at once; expected one, because a folder contains one. Save "
            "each after model.set_adapter(name)."
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
