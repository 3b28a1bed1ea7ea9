"""Export an adapter to a folder that other engines run, and read it back.

    export("outputs/run/adapter", "outputs/served", to="ct2")
    load_exported("outputs/served").predict(["..."], max_new_tokens=32)

LoRA, DoRA, AdaLoRA, IA3 and norm tuning are merged into the weights, always into the unquantized backbone. A prompt becomes a part
of the vocabulary (``bake.py``), and for ONNX a part of the graph, as prefixes, bottleneck adapters and ladders do. Every export is
read back and compared with the adapter (``parity.py``); one that differs is not written.
"""

from __future__ import annotations

import gc
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import transformers
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import t5peft
from t5peft.adapters import is_adapter, load_adapter, load_saved
from t5peft.adapters.load import base_of
from t5peft.adapters.manifest import encoder_of, read_config
from t5peft.adapters.merge import unmergeable
from t5peft.compat.extras import require
from t5peft.compat.lock import hold_folder
from t5peft.compat.paths import as_path
from t5peft.data import Task
from t5peft.data.truncation import encode
from t5peft.methods import method_of
from t5peft.methods.base import has_peft_prompt
from t5peft.models.backbone import correct_config, has_untied_head, load_backbone, load_tokenizer
from t5peft.models.embedded import backbone_name, resolve_backbone
from t5peft.models.families import ensure_has, family_of
from t5peft.models.folders import ensure_holds_model, ensure_output, recover, replacing
from t5peft.models.manifest import MANIFEST, read_json, verify, write_manifest_file
from t5peft.models.unwrap import unwrap_t5
from t5peft.serving.bake import bake, into_one_table, prompt_of
from t5peft.serving.export_ct2 import CT2Model, generation_settings, write_ct2
from t5peft.serving.export_onnx import read_onnx, write_onnx
from t5peft.serving.export_transformers import WITHOUT_PROMPT, TorchModel, read_transformers, write_transformers
from t5peft.serving.exported import (
    TARGETS,
    Details,
    Exported,
    Model,
    Quantize,
    Records,
    Target,
    is_exported,
    kind_of_model,
)
from t5peft.serving.parity import NUM_BEAMS, TEXTS, Parity, ParityError, answers_of, compare, parity_inputs

TASK_FILE = "task.yaml"
_PACKAGES: dict[Target, tuple[str, ...]] = {
    "transformers": ("transformers",),
    "ct2": ("ctranslate2",),
    "onnx": ("onnx", "onnxruntime"),
}


def export(
    model: str | Path,
    output: str | Path,
    *,
    to: Target,
    quantize: Quantize | None = None,
    overwrite: bool = False,
    records: Records | None = None,
) -> Parity:
    """Export an adapter or a whole model. The export is written completely or not at all.

    Args:
        model: The folder of an adapter or of a whole model.
        output: The folder to write to.
        to: ``"transformers"`` (plain transformers 4 and 5), ``"ct2"`` (CTranslate2) or ``"onnx"``.
        quantize: ``"int8"`` stores linear layers in 8 bits, for ``"ct2"`` and ``"onnx"``.
        overwrite: Whether to replace an earlier export in ``output``.
        records: Records of the task in the model's ``task.yaml``, to compare the export with the model on. None: built-in texts.

    Returns:
        The comparison with the adapter, which is also in ``parity.json``.

    Raises:
        ValueError: The target does not support the method or the model, or ``output`` cannot be used.
        FileNotFoundError: ``model`` does not contain a model, or its backbone is not found.
        ImportError: The engine is not installed.
        ParityError: The export differs from the adapter by more than the tolerance.
    """
    folder, output = as_path(model, "model"), as_path(output, "output")
    _check_arguments(to, quantize)
    for package in _PACKAGES[to]:
        require(package, "export")
    with hold_folder(output):
        recover(output)
        ensure_output(output, "an export")
        if is_exported(output) and not overwrite:
            raise ValueError(
                f"Got the output {output}, which holds an export; expected a folder without one. Choose another folder, or use "
                "--overwrite to replace it."
            )
        with replacing(output, keep_others=True) as staging:
            parity = _export(folder, staging, to, quantize, records)
    return parity


def load_exported(folder: str | Path) -> Exported:
    """Load what ``export`` wrote.

    Args:
        folder: The folder.

    Returns:
        An object with the methods ``predict``, ``rank`` and ``classify``. They work like the functions of this library, without
        the arguments model and tokenizer.

    Raises:
        FileNotFoundError: The folder does not contain an export.
        ValueError: Its files are damaged.
        ImportError: The engine is not installed.
    """
    folder = as_path(folder)
    recover(folder)
    details = Details.read(folder)
    problems = verify(folder) if (folder / MANIFEST).is_file() else [f"{MANIFEST} is missing"]
    if problems:
        raise ValueError(
            f"Got a damaged export in {folder}: {'; '.join(problems)}; expected the files as they were written. Restore them, or "
            "export again."
        )
    return _read(folder, details)


def _read(folder: Path, details: Details) -> Exported:
    if details.target == "ct2":
        return CT2Model(folder, details)
    return read_onnx(folder, details) if details.target == "onnx" else read_transformers(folder, details)


def _export(folder: Path, staging: Path, to: Target, quantize: Quantize | None, records: Records | None) -> Parity:
    loaded, tokenizer = _load(folder)
    _check_model(loaded, to)
    details = _details(folder, loaded, to, quantize)
    task = Task.from_yaml(folder / TASK_FILE) if (folder / TASK_FILE).is_file() else None
    inputs = parity_inputs(tokenizer, task, records)
    with _search_of(to, unwrap_t5(loaded)):
        own = answers_of(TorchModel(loaded, tokenizer, details), inputs)
    _write(loaded, tokenizer, staging, details)
    details.write(staging)
    del loaded  # so that one model is in memory
    gc.collect()
    found = _read(staging, details)
    if encode(TEXTS, found.tokenizer) != encode(TEXTS, tokenizer):
        raise ParityError(
            f"Got a tokenizer in {folder} that gives other tokens after it is saved; expected the same tokens. Nothing was "
            "written. Save the backbone with a tokenizer.json."
        )
    parity = compare(own, found, inputs)
    if not parity.passes:
        raise ParityError(
            f"Got an export to {to} that differs from {folder}; expected differences within {parity.tolerance:g}. "
            f"Nothing was written.\n{parity}",
            parity,
        )
    parity.write(staging, details)
    if task is not None:
        shutil.copy(folder / TASK_FILE, staging / TASK_FILE)
    write_manifest_file(staging, {})
    return parity


@contextmanager
def _search_of(to: Target, t5: PreTrainedModel) -> Iterator[None]:
    """Let a search of ``t5`` end as that of the target does, for the block."""
    if to != "ct2" or (settings := t5.generation_config) is None:
        yield
        return
    early, beams = settings.early_stopping, settings.num_beams
    settings.early_stopping, settings.num_beams = True, NUM_BEAMS
    try:
        yield
    finally:
        settings.early_stopping, settings.num_beams = early, beams


def _write(loaded: Model, tokenizer: PreTrainedTokenizerBase, staging: Path, details: Details) -> None:
    """Merge or bake the adapter, and hand the model to its writer."""
    written = tokenizer
    if isinstance(loaded, PeftModel) and not unmergeable(loaded):
        loaded = loaded.merge_and_unload()
    elif isinstance(loaded, PeftModel) and details.prompt_length:
        loaded, written, ids = bake(loaded, tokenizer)
        if details.target == "transformers":
            loaded = into_one_table(loaded, ids)
    if details.target == "onnx":
        write_onnx(loaded, written, staging, details.quantize)
        return
    assert isinstance(loaded, PreTrainedModel)  # by _check_model
    if details.target == "ct2":
        write_ct2(loaded, written, staging, details.quantize)
    else:
        write_transformers(loaded, written, staging)
    if written is not tokenizer:
        tokenizer.save_pretrained(str(staging / WITHOUT_PROMPT))


def _load(folder: Path) -> tuple[Model, PreTrainedTokenizerBase]:
    """Load an adapter beside its unquantized backbone, or a whole model; encoders too."""
    if not is_adapter(folder):
        ensure_holds_model(folder)
        architectures = read_json(folder / "config.json").get("architectures") or [""] if folder.is_dir() else [""]
        if not str(architectures[0]).endswith("EncoderModel"):
            return load_backbone(folder)
        return _load_encoder(folder)
    if encoder_of(read_config(folder)) not in ("states", "embedding"):
        return load_saved(folder)
    encoder, tokenizer = _load_encoder(base_of(folder))
    return load_adapter(folder, model=encoder)[0], tokenizer


def _load_encoder(name: str | Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    encoder = transformers.AutoModelForTextEncoding.from_pretrained(resolve_backbone(name), dtype="float32").eval()
    return encoder, load_tokenizer(name)


def _details(folder: Path, loaded: Model, to: Target, quantize: Quantize | None) -> Details:
    t5 = unwrap_t5(loaded)
    prompt = prompt_of(loaded) if isinstance(loaded, PeftModel) and to != "onnx" else None
    return Details(
        target=to,
        kind=kind_of_model(t5),
        method=(method_of(loaded) or "unknown") if isinstance(loaded, PeftModel) else "full",
        backbone=base_of(folder) if isinstance(loaded, PeftModel) else backbone_name(folder.name),
        quantize=quantize,
        prompt_length=0 if prompt is None else len(prompt),
        generation=generation_settings(t5) if to == "ct2" else {},
        versions={"t5peft": t5peft.__version__, **{name: version(name) for name in _PACKAGES[to]}},
    )


def _check_arguments(to: str, quantize: str | None) -> None:
    problems = []
    if to not in TARGETS:
        problems.append(f"Got to={to!r}; expected one of {', '.join(TARGETS)}.")
    if quantize not in (None, "int8"):
        problems.append(f"Got quantize={quantize!r}; expected None or 'int8'.")
    elif quantize is not None and to == "transformers":
        problems.append(
            "Got quantize='int8' for transformers, which quantizes when it loads; expected None. Load the export with "
            "load_backbone(folder, quantize='int8'), or export to ct2 or onnx."
        )
    if problems:
        raise ValueError(" ".join(problems))


def _check_model(loaded: Model, to: Target) -> None:
    """Refuse what the target cannot run, by name, with what to do instead."""
    t5 = unwrap_t5(loaded)
    kind = kind_of_model(t5)
    if has_peft_prompt(loaded):
        raise ValueError(
            "Got a prompt or prefix of peft itself, which is stored outside of the model; expected one from t5peft. Tune it with "
            "prompt_wrap or prefix_wrap."
        )
    correct_config(t5)
    if to == "ct2":
        ensure_has(t5.config, "CTranslate2", "an export to CTranslate2", "Export to onnx or transformers.")
    fixed = unmergeable(loaded) if isinstance(loaded, PeftModel) else []
    if to == "onnx":
        if "prompt" in fixed:
            ensure_has(t5.config, "prompts in ONNX", "a prompt in ONNX", "Serve the adapter.")
        if kind != "language model":
            ensure_has(t5.config, "class heads in ONNX", "a class head in ONNX", "Export to transformers.")
        return
    if others := [name for name in fixed if name != "prompt"]:
        raise ValueError(
            f"Got a {' and a '.join(others)}, which {to} does not support; expected a method that changes weights, or a prompt. "
            "Export to onnx, whose graph has it, or serve the adapter."
        )
    if fixed:
        ensure_has(t5.config, "baked prompts", "an export of a prompt", "Serve the adapter.")
    if fixed and kind != "language model":
        raise ValueError(
            f"Got a prompt beside a {kind}, whose decoder reads the source too, and would read the prompt; expected a language "
            "model. Export to onnx, whose graph has it."
        )
    if (is_own := type(t5).__module__.startswith("t5peft.")) and to == "transformers":
        raise ValueError(
            f"Got a {type(t5).__name__}, which plain transformers does not have; expected a head of transformers. Export to "
            "onnx, or run `t5peft merge` and load the folder with load_backbone."
        )
    if to == "ct2" and kind != "language model":
        raise ValueError(
            f"Got a {type(t5).__name__}, which CTranslate2 does not support; expected a language model. Export to onnx"
            f"{'' if is_own else ' or transformers'}."
        )
    if (
        to == "transformers"
        and kind == "language model"
        and family_of(t5.config).scales_untied_head
        and has_untied_head(t5)
    ):
        raise ValueError(
            "Got a umT5, whose head transformers 5 scales as if it were tied, whatever its config says; expected T5, mT5 or ByT5. "
            "Export to onnx or ct2, or run `t5peft merge` and load the folder with load_backbone, which corrects it."
        )
