"""Load adapters beside their backbones: verified, whole, and on the backbone that they were trained on."""

from __future__ import annotations

import dataclasses
import logging
import warnings
from pathlib import Path
from typing import Any, overload

import torch
from peft import PeftConfig, PeftModel
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

import t5peft.methods  # noqa: F401  (registers our tuners with peft)
from t5peft.adapters.download import local_adapter
from t5peft.adapters.manifest import (
    CONFIG,
    MANIFEST,
    OLD_WEIGHTS,
    WEIGHTS,
    backbone_problems,
    encoder_of,
    ensure_sha256,
    read_config,
)
from t5peft.compat.paths import as_path
from t5peft.compat.peft import adapter_state, share_rows, stored_state
from t5peft.models.backbone import Quantization, correct_config, ensure_trainable_dtype, load_backbone
from t5peft.models.embedded import backbone_name
from t5peft.models.families import FAMILIES
from t5peft.models.folders import recover
from t5peft.models.manifest import non_finite_names, read_manifest, verify
from t5peft.models.tokens import NOT_FOR_PEFT, add_tokens
from t5peft.models.unwrap import ensure_unwrapped, unwrap_t5

logger = logging.getLogger("t5peft")


@overload
def load_adapter(
    folder: str | Path,
    *,
    model: None = None,
    trainable: bool = False,
    quantize: Quantization | None = None,
    sha256: str | None = None,
    revision: str | None = None,
) -> tuple[PeftModel, PreTrainedTokenizerBase]: ...


@overload
def load_adapter(
    folder: str | Path,
    *,
    model: PreTrainedModel,
    trainable: bool = False,
    quantize: Quantization | None = None,
    sha256: str | None = None,
    revision: str | None = None,
) -> tuple[PeftModel, None]: ...


def load_adapter(
    folder: str | Path,
    *,
    model: PreTrainedModel | None = None,
    trainable: bool = False,
    quantize: Quantization | None = None,
    sha256: str | None = None,
    revision: str | None = None,
) -> tuple[PeftModel, PreTrainedTokenizerBase | None]:
    """Load an adapter and its backbone.

    Args:
        folder: A folder from ``save_adapter``, the Trainer or peft, or a name on the hub, such as ``"user/reviews"``.
        model: The backbone, without an adapter. None: load the backbone named in the adapter's configuration.
        trainable: Whether the adapter can be trained further.
        quantize: How to quantize the backbone; ``"nf4"`` includes ``quantize_wo`` if the adapter was trained with it.
        sha256: The expected hash of the adapter's manifest, from ``manifest_sha256``. The hashes in the folder detect damage.
            This one is stored elsewhere, so it also detects that the adapter was replaced.
        revision: The branch, tag or commit of a name on the hub.

    Returns:
        The wrapped model, and the tokenizer of the backbone (None if ``model`` is given).

    Raises:
        FileNotFoundError: ``folder`` does not contain an adapter.
        ValueError: The adapter is damaged or belongs to another backbone, or ``model`` already has an adapter.
    """
    folder = local_adapter(folder, revision)
    if model is not None:
        ensure_unwrapped(model)
    ensure_intact(folder)
    if sha256 is not None:
        ensure_sha256(folder, sha256)
    tokenizer = None
    if model is None:
        model, tokenizer = backbone_of(folder, quantize=quantize)
    if trainable:
        ensure_trainable_dtype(model)
    raise_if_problems(folder, backbone_problems(folder, read_config(folder).get("base_model_name_or_path"), model))
    correct_config(unwrap_t5(model))
    wrapped = _wrap(model, folder, trainable=trainable)
    raise_if_problems(folder, _wrong_keys(wrapped, folder))
    if not (folder / MANIFEST).exists():
        logger.info(
            "%s has no %s, as peft saves none. Shapes, types and finite numbers were verified. The backbone, and settings that no "
            "tensor shows, such as lora_alpha and use_rslora, were not.",
            folder,
            MANIFEST,
        )
    share_rows(unwrap_t5(wrapped), str(wrapped.active_adapter))
    return wrapped, tokenizer


def load_with_tokens(
    folder: str | Path, *, trainable: bool = False, quantize: Quantization | None = None, revision: str | None = None
) -> tuple[PeftModel, PreTrainedTokenizerBase]:
    """Load an adapter that was saved with its tokenizer, and add its new tokens to the backbone.

    Args:
        folder: A folder from ``save_adapter(..., tokenizer=tokenizer)``, or a name on the hub.
        trainable: Whether the adapter can be trained further.
        quantize: How to quantize the backbone.
        revision: As for ``load_adapter``.

    Returns:
        The wrapped model and the tokenizer.

    Raises:
        FileNotFoundError: The folder does not contain an adapter and a tokenizer.
        ValueError: As for ``load_adapter``.
    """
    folder = local_adapter(folder, revision)
    ensure_intact(folder)
    try:
        saved = AutoTokenizer.from_pretrained(str(folder))
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"Got {folder}, which holds no tokenizer; expected one with the adapter. Save the adapter with save_adapter(model, "
            "folder, tokenizer=tokenizer)."
        ) from error
    model, tokenizer = backbone_of(folder, quantize=quantize)
    known = tokenizer.get_vocab()
    new = sorted((index, token) for token, index in saved.get_added_vocab().items() if token not in known)
    if new:
        add_tokens(model, tokenizer, [token for _, token in new])
    return load_adapter(folder, model=model, trainable=trainable)[0], tokenizer


def load_saved(
    folder: str | Path, *, trainable: bool = False, quantize: Quantization | None = None, revision: str | None = None
) -> tuple[PeftModel, PreTrainedTokenizerBase]:
    """Load an adapter and its backbone, including new tokens that the adapter adds.

    Args:
        folder: A folder from ``save_adapter``, or a name on the hub.
        trainable: Whether the adapter can be trained further.
        quantize: How to quantize the backbone.
        revision: As for ``load_adapter``.

    Returns:
        The wrapped model and the tokenizer.

    Raises:
        FileNotFoundError: ``folder`` does not contain an adapter.
        ValueError: As for ``load_adapter``.
    """
    folder = local_adapter(folder, revision)
    load = load_with_tokens if brings_tokens(folder) else load_adapter
    model, tokenizer = load(folder, trainable=trainable, quantize=quantize)
    assert tokenizer is not None  # as no model was given
    return model, tokenizer


def is_adapter(folder: str | Path) -> bool:
    """Return whether ``folder`` holds an adapter, after completing a save that was interrupted."""
    recover(as_path(folder))
    return (Path(folder) / CONFIG).is_file()


def brings_tokens(folder: str | Path) -> bool:
    """Return whether an adapter trains rows of tokens and was saved with the tokenizer that knows them.

    Raises:
        ValueError: The adapter's configuration is damaged.
    """
    if not is_adapter(folder) or not (Path(folder) / "tokenizer_config.json").is_file():
        return False
    return read_config(Path(folder)).get("trainable_token_indices") is not None


def base_of(folder: str | Path) -> str:
    """Return the name of the backbone that the adapter in ``folder`` belongs to, as ``load_backbone`` takes it.

    Raises:
        ValueError: The adapter's configuration is damaged.
    """
    name = read_config(as_path(folder)).get("base_model_name_or_path") or ""
    return backbone_name(name) if name else ""


def backbone_of(
    folder: str | Path, *, quantize: Quantization | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load the backbone that the adapter in ``folder`` belongs to, with a head of as many classes.

    Args:
        folder: An adapter.
        quantize: How to load it. ``"nf4"`` quantizes ``wo`` too where it was so in training.

    Returns:
        The backbone and its tokenizer.

    Raises:
        FileNotFoundError: It is not under the name that it was trained by.
        ValueError: The adapter is damaged, or of a model that ``load_backbone`` does not load.
    """
    folder = as_path(folder)
    manifest = read_manifest(folder)
    try:
        return load_backbone(
            base_of(folder),
            revision=read_config(folder).get("revision"),
            quantize=quantize,
            quantize_wo=quantize == "nf4" and manifest is not None and manifest.quantized_wo,
            **head_options(folder),
        )
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"Got the adapter {folder}, whose backbone cannot be loaded as in training, by {base_of(folder)!r} (in {Path.cwd()}); "
            "expected it there. Put it or a link to it there, or load it from elsewhere and pass it to load_adapter(folder, "
            f"model=). {error}"
        ) from error


def raise_if_problems(folder: Path, problems: list[str]) -> None:
    """Raise one ValueError for all ``problems`` of the adapter in ``folder``, if there are any."""
    if problems:
        raise ValueError(
            f"Got the adapter {folder}, which is not loaded: {'; '.join(problems)}; expected an adapter as it was saved. Load it "
            "with the backbone that it was trained on, from a folder as it was saved."
        )


def ensure_intact(folder: Path) -> None:
    """Refuse a folder without an adapter, or with a damaged one, before anything in it is parsed.

    Args:
        folder: What should hold an adapter.

    Raises:
        FileNotFoundError: ``folder`` does not hold an adapter.
        ValueError: The adapter is damaged.
    """
    recover(folder)
    if not (folder / CONFIG).is_file() or not any(
        (folder / name).is_file() for name in (WEIGHTS, OLD_WEIGHTS, MANIFEST)
    ):
        raise FileNotFoundError(
            f"Got {folder}, which holds no adapter; expected {CONFIG} and {WEIGHTS}, as save_adapter writes them."
        )
    raise_if_problems(folder, verify(folder))
    read_config(folder)


def _wrap(model: PreTrainedModel, folder: Path, *, trainable: bool) -> PeftModel:
    """Let peft load the adapter in ``folder``, with one clear error for whatever it cannot read."""
    with warnings.catch_warnings():
        # Missing keys are an error later, not a warning.
        warnings.filterwarnings("ignore", message="Found missing adapter keys")
        # peft reads a property that transformers 5 has renamed.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        try:
            config = PeftConfig.from_pretrained(str(folder))
            rows = getattr(config, "trainable_token_indices", None)
            marks = {NOT_FOR_PEFT: rows.pop(NOT_FOR_PEFT)} if isinstance(rows, dict) and NOT_FOR_PEFT in rows else {}
            wrapped = PeftModel.from_pretrained(model, str(folder), is_trainable=trainable, config=config)
        except (ImportError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # peft raises whatever a wrong value leads to
            raise ValueError(
                f"Got the adapter {folder}, which does not fit this model, or whose {CONFIG} was changed: {error}; expected an "
                "adapter as it was saved. Restore the folder, or load it with the backbone that it was trained on."
            ) from error
    if rows and marks:
        rows.update(marks)
    return wrapped


def head_options(folder: Path) -> dict[str, Any]:
    """Return the arguments of ``load_backbone`` for the head that an adapter brings.

    Args:
        folder: An adapter.

    Returns:
        ``head`` for an encoder without a decoder, and what its head or a classification head needs.

    Raises:
        ValueError: Its model is not one that ``load_backbone`` loads, or its head is missing.
    """
    config = read_config(folder)
    kind, encoder = config.get("task_type"), encoder_of(config)
    if kind == "QUESTION_ANS":
        raise ValueError(
            f"Got {folder}, an adapter of a T5ForQuestionAnswering, which is not loaded by itself; expected its model. Give "
            f"model=T5ForQuestionAnswering.from_pretrained({base_of(folder)!r})."
        )
    if kind not in ("SEQ_CLS", "TOKEN_CLS") and encoder is None:
        return {}
    state = stored_state(folder)
    if encoder in ("states", "embedding"):
        if not any(name.startswith("base_model.model.transformer.") for name in state):
            return {"head": "states"}
        projection = state.get("base_model.model.embedding_projection.weight")
        return {"head": "embedding", "embedding_size": None if projection is None else len(projection)}
    names = {"classification_head", *(row.class_heads.get("classification_head") for row in FAMILIES.values())}
    ends: dict[str, str | None] = {
        f".{name}.out_proj.weight": "tokens" if kind == "TOKEN_CLS" else None for name in names if name
    }
    ends[".classifier.weight"] = "tokens" if kind == "TOKEN_CLS" else "sequence"
    found = [(head, len(t)) for name, t in state.items() for end, head in ends.items() if name.endswith(end)]
    if not found:
        raise_if_problems(folder, ["the classification head is missing from its weights"])
    head, labels = found[0]
    return {"num_labels": labels} if head is None else {"head": head, "num_labels": labels}


def _wrong_settings(config: PeftConfig) -> list[str]:
    """Return the flags and numbers of a configuration that are neither, as of a text each would be true."""
    kinds = {field.name: getattr(field.type, "__name__", field.type) for field in dataclasses.fields(config)}
    given = {name: getattr(config, name) for name, kind in kinds.items() if kind in ("bool", "int", "float")}
    return [f"{name}={value!r}" for name, value in given.items() if not isinstance(value, int | float | None)]


def _wrong_keys(model: PeftModel, folder: Path) -> list[str]:
    tensors = stored_state(folder)
    state = adapter_state(model, str(model.active_adapter))
    saved, expected = set(tensors), set(state)
    problems = []
    if wrong := _wrong_settings(model.peft_config[str(model.active_adapter)]):
        problems.append(f"these settings have values of a wrong type: {', '.join(wrong)}")
    if broken := non_finite_names(tensors.items()):  # in a file of an early peft, which verify does not read
        problems.append(f"these tensors hold NaN or infinity: {broken[:5]}")
    kinds = (
        (name, tensors[name].is_floating_point(), state[name].is_floating_point()) for name in sorted(expected & saved)
    )
    if others := [name for name, stored, own in kinds if stored != own]:
        problems.append(f"these tensors hold {tensors[others[0]].dtype}, not numbers like the model's: {others[:5]}")
    if missing := sorted(expected - saved):
        problems.append(
            f"{len(missing)} of {len(expected)} tensors of the model are missing from it, such as {missing[0]}"
        )
    if foreign := sorted(saved - expected):
        problems.append(f"{len(foreign)} of its {len(saved)} tensors do not belong to the model, such as {foreign[0]}")
    return problems
