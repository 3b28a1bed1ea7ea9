"""Adapters and checkpoints on disk: complete or not there, and of the backbone that they say.

An adapter's folder is peft's (``adapter_config.json``, ``adapter_model.safetensors``) with one file more, ``t5peft.json``, which
is written last: the hash of every file, and a fingerprint of the backbone. A folder without it was not finished; a folder whose
files do not match it was damaged. Loading checks both, and that the adapter's tensors are those of the model, all of them, and
numbers.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper, ModulesToSaveWrapper, get_peft_model_state_dict, load_peft_weights
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import t5peft.methods  # noqa: F401  (registers our tuners with peft)
from t5peft.methods.base import AdapterLayer
from t5peft.models.backbone import MINI, Quantization, correct_config, load_backbone, quantization_of_model
from t5peft.models.unwrap import ensure_unwrapped, unwrap_t5

logger = logging.getLogger("t5peft")

MANIFEST = "t5peft.json"
WEIGHTS = "adapter_model.safetensors"
UNFINISHED = (
    "checkpoint-is-incomplete.txt"  # beside a checkpoint that transformers saves on a signal, until it is saved
)
OLD_WEIGHTS = "adapter_model.bin"  # of early versions of peft
CONFIG = "adapter_config.json"
# the model of an adapter by its task type, where it is neither a language model nor a classifier of texts
_OTHERS = {
    "TOKEN_CLS": "T5ForTokenClassification",
    "QUESTION_ANS": "T5ForQuestionAnswering",
    "FEATURE_EXTRACTION": "T5EncoderModel",
}
# settings of an adapter that may change when its training goes on: its weights stay what they are
FREE = {"auto_mapping", "base_model_name_or_path", "inference_mode", "init_ia3_weights", "init_lora_weights"}
FREE |= {"lora_dropout", "peft_version", "revision"}
# what peft, `t5peft train` and `t5peft retune` write beside an adapter
BESIDE = (CONFIG, WEIGHTS, MANIFEST, "README.md", "task.yaml", "scores.json", "retuning.json")


def fingerprint(model: PreTrainedModel) -> str:
    """A hash that tells one backbone from another, the same for float32, bfloat16 and quantised copies of it.

    Taken of the geometry and of weights that are never quantised: embeddings and final norms, without an adapter, in bfloat16.
    """
    t5 = unwrap_t5(model)
    config = t5.config
    digest = hashlib.sha256()
    geometry = ("d_model", "d_kv", "d_ff", "num_heads", "num_layers", "num_decoder_layers", "feed_forward_proj")
    digest.update(json.dumps([str(getattr(config, name)) for name in geometry]).encode())
    embeddings = _table(t5)
    digest.update(_bytes(embeddings[:: max(1, len(embeddings) // 256)][:256]))
    for weight in _final_norms(t5):
        digest.update(_bytes(weight.detach()))
    return digest.hexdigest()[:16]


def _table(t5: PreTrainedModel) -> Tensor:
    """The embeddings [V, H] of the backbone itself: an adapter that trains the table, or rows of it, shows its own in its place."""
    table = t5.get_input_embeddings()
    return (table.original_module if isinstance(table, AuxiliaryTrainingWrapper) else table).weight.detach()


def fingerprint_of_maps(model: PreTrainedModel) -> str | None:
    """A hash of samples of the linear maps of all layers: a backbone with an adapter merged in has another than the plain one.

    None where the maps are not those of the backbone: quantised, with an adapter merged into them for the time being, or changed
    by how an adapter starts (PiSSA and the like).
    """
    t5 = unwrap_t5(model)
    if any(_changes_maps(config) for config in getattr(model, "peft_config", {}).values()):
        return None
    if getattr(t5, "is_quantized", False) or any(m.merged for m in t5.modules() if isinstance(m, BaseTunerLayer)):
        return None
    adapters = _adapters(t5)
    digest = hashlib.sha256()
    for name, module in t5.named_modules():
        if isinstance(module, nn.Linear) and ".block." in name and module not in adapters:
            weight = module.weight.detach().flatten()
            digest.update(_bytes(weight[:: max(1, len(weight) // 256)][:256]))
    return digest.hexdigest()[:16]


def _changes_maps(config: PeftConfig) -> bool:
    """Whether an adapter by ``config`` starts by taking a part out of the weights."""
    start = getattr(config, "init_lora_weights", True)
    return isinstance(start, str) and start.lower().startswith(("pissa", "olora", "corda", "loftq"))


def _final_norms(t5: PreTrainedModel) -> list[Tensor]:
    """The weight of the last norm of each stack of the backbone itself, not of an adapter that holds stacks or norms of its own."""
    adapters = _adapters(t5)
    return [
        _plain_weight(module)
        for name, module in t5.named_modules()
        if name.endswith("final_layer_norm") and module not in adapters
    ]


def _plain_weight(norm: nn.Module) -> Tensor:
    """The backbone's weight of ``norm``, in an adapter or not."""
    if isinstance(norm, AdapterLayer) and norm.unmerged_weight is not None:
        return norm.unmerged_weight
    if isinstance(norm, AuxiliaryTrainingWrapper):
        norm = norm.original_module
    return (norm.get_base_layer() if isinstance(norm, BaseTunerLayer) else norm).get_parameter("weight")


def _adapters(t5: PreTrainedModel) -> set[nn.Module]:
    """All modules in ``t5`` that belong to adapters."""
    layers = [module for module in t5.modules() if isinstance(module, BaseTunerLayer)]
    parts = [getattr(layer, name) for layer in layers for name in layer.adapter_layer_names]
    parts += [module.modules_to_save for module in t5.modules() if isinstance(module, ModulesToSaveWrapper)]
    return {module for part in parts for module in part.modules()}


def _bytes(tensor: Tensor) -> bytes:
    return tensor.to("cpu", torch.bfloat16).contiguous().view(torch.uint8).numpy().tobytes()


def save_adapter(model: PeftModel, folder: str | Path, *, tokenizer: PreTrainedTokenizerBase | None = None) -> Path:
    """Save the active adapter of ``model`` to ``folder``: whole, or not at all; an earlier adapter there is replaced.

    Raises:
        ValueError: for a model without an adapter or with several active ones, an adapter that holds NaN or infinity, or a folder
            that holds anything else than an earlier adapter.
    """
    folder = Path(folder)
    if not isinstance(model, PeftModel):
        raise ValueError(
            f"Got a {type(model).__name__} without an adapter; a fully tuned model is saved by model.save_pretrained(folder)."
        )
    if len(active := model.base_model.active_adapters) > 1:
        raise ValueError(
            f"The adapters {active} are active at once and one folder holds one; save each after model.set_adapter(name)."
        )
    name = model.active_adapter
    broken = non_finite_names(get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False).items())
    if broken:
        raise ValueError(f"The adapter is not saved, as these tensors hold NaN or infinity: {broken[:5]}.")
    check_output(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    stays = folder.is_dir() and (folder.is_mount() or not os.access(folder.parent, os.W_OK))
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder if stays else folder.parent))
    staging = temporary / "new"  # mkdtemp's own is closed to other users
    try:
        staging.mkdir()
        model.save_pretrained(str(staging), save_embedding_layers=False, selected_adapters=[name])
        if name != "default":  # peft gives it a folder of its own
            for path in (staging / name).iterdir():
                path.replace(staging / path.name)
            (staging / name).rmdir()
        if tokenizer is not None:
            tokenizer.save_pretrained(str(staging))
        write_manifest(staging, model)
        (_fill if stays else _replace)(staging, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def check_output(folder: str | Path) -> None:
    """Raise ValueError for a folder that holds anything else than an earlier adapter, which :func:`save_adapter` would delete."""
    folder = Path(folder)
    if foreign := _foreign(folder):
        raise ValueError(
            f"The adapter is not saved to {folder}, which holds what is no earlier adapter's and would be lost: {foreign[:5]}. "
            f"Expected a new or empty folder, or that of an adapter; take one of its own, such as {folder / 'adapter'}."
        )


def load_adapter(
    folder: str | Path,
    *,
    model: PreTrainedModel | None = None,
    trainable: bool = False,
    quantize: Quantization | None = None,
) -> tuple[PeftModel, PreTrainedTokenizerBase | None]:
    """Load an adapter beside its backbone.

    Args:
        folder: what :func:`save_adapter`, the Trainer or peft itself saved.
        model: the backbone, without an adapter; None: loaded under the name that the adapter's config holds.
        trainable: whether to train on.
        quantize: how to load the backbone; ``"nf4"`` with ``quantize_wo`` where the adapter was trained so.

    Returns:
        The wrapped model, and the tokenizer of the backbone (None where ``model`` was given).

    Raises:
        FileNotFoundError: no adapter in ``folder``.
        ValueError: the adapter is damaged, or of another backbone, all problems at once; ``model`` has an adapter already.
    """
    folder = Path(folder)
    if model is not None:
        ensure_unwrapped(model)
    if not (folder / CONFIG).is_file() or not any(
        (folder / name).is_file() for name in (WEIGHTS, OLD_WEIGHTS, MANIFEST)
    ):
        raise FileNotFoundError(
            f"{folder} holds no adapter: expected {CONFIG} and {WEIGHTS}, as save_adapter writes them."
        )
    config = json.loads((folder / CONFIG).read_text())
    problems = verify(folder)
    tokenizer = None
    if model is None and not problems:
        model, tokenizer = backbone_of(folder, quantize=quantize)
    if model is not None:
        problems += _of_another_backbone(folder, config, model)
    raise_if_problems(folder, problems)
    assert model is not None
    correct_config(unwrap_t5(model))
    with warnings.catch_warnings():
        # Missing keys are an error below, not a warning.
        warnings.filterwarnings("ignore", message="Found missing adapter keys")
        # peft reads a property that transformers 5 has renamed.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        try:
            wrapped = PeftModel.from_pretrained(model, str(folder), is_trainable=trainable)
        except RuntimeError as error:
            raise ValueError(f"The adapter in {folder} does not fit this model: {error}") from error
    raise_if_problems(folder, _wrong_keys(wrapped, folder))
    return wrapped, tokenizer


def ensure_no_adapter(folder: str | Path) -> None:
    """Raise before a whole model is saved into ``folder`` where an adapter lies, which is what would be loaded from there.

    Raises:
        ValueError: it holds an adapter.
    """
    if (Path(folder) / CONFIG).is_file():
        raise ValueError(
            f"{folder} holds an adapter, which would be taken for the model that was saved beside it; expected another folder."
        )


def base_of(folder: str | Path) -> str:
    """Name of the backbone that the adapter in ``folder`` belongs to, as :func:`~t5peft.load_backbone` takes it."""
    name = json.loads((Path(folder) / CONFIG).read_text()).get("base_model_name_or_path") or ""
    return "mini" if Path(name).parts[-2:] == MINI.parts[-2:] else name


def backbone_of(
    folder: str | Path, *, quantize: Quantization | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The backbone that the adapter in ``folder`` belongs to, with a head of as many classes, and its tokenizer.

    ``quantize="nf4"`` quantises ``wo`` too where it was so in training.

    Raises FileNotFoundError where it is not under the name that it was trained by.
    """
    try:
        return load_backbone(
            base_of(folder),
            quantize=quantize,
            quantize_wo=quantize == "nf4" and _read_manifest(Path(folder)).get("quantized_wo", False),
            num_labels=_labels(Path(folder)),
        )
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"The backbone of the adapter in {folder} cannot be loaded as in training, by {base_of(folder)!r} (in "
            f"{Path.cwd()}): put it, or a link to it, there, or load it from elsewhere and give it to "
            f"load_adapter(folder, model=). {error}"
        ) from error


def quantization_of(folder: str | Path) -> Quantization | None:
    """How the backbone was quantised that the adapter in ``folder`` was trained beside."""
    return _read_manifest(Path(folder)).get("quantized")


def _quantizes_wo(model: PreTrainedModel) -> bool:
    return (
        quantization_of_model(model) == "nf4"
        and "wo" not in unwrap_t5(model).config.quantization_config.llm_int8_skip_modules
    )


def write_manifest(folder: Path, model: PreTrainedModel, data: Mapping[str, Any] | None = None) -> None:
    """Write :data:`MANIFEST` into ``folder``, after all else is on disk; ``data`` says what a run that resumes must go on with."""
    hashes = {str(path.relative_to(folder)): _hash(path) for path in _files(folder)}
    for path in _files(folder):
        _sync(path)
    content = {
        "backbone": fingerprint(model),
        "maps": fingerprint_of_maps(model),
        "rows": len(_table(unwrap_t5(model))),
        "quantized": quantization_of_model(model),
        "quantized_wo": _quantizes_wo(model),
        "files": hashes,
        "data": data,
        "saved": time.time(),  # seconds since 1970
    }
    temporary = folder / f".{MANIFEST}"
    temporary.write_text(json.dumps(content, indent=1, sort_keys=True))
    _sync(temporary)
    temporary.replace(folder / MANIFEST)
    _sync(folder)


def verify(folder: Path) -> list[str]:
    """What is wrong with the files in ``folder``, in words; nothing for one that is whole, or was never sealed."""
    problems = []
    for name, expected in _read_manifest(folder).get("files", {}).items():
        path = folder / name
        if path.name in ("README.md", UNFINISHED):
            continue  # a README is peft's draft of a model card, to be written in
        if not path.is_file():
            problems.append(f"{name} is missing")
        elif _hash(path) != expected:
            problems.append(f"{name} was changed or damaged since it was saved")
    for weights in () if problems else sorted(folder.rglob("*.safetensors")):
        try:
            with safe_open(weights, "pt") as file:
                broken = non_finite_names((name, file.get_tensor(name)) for name in file.keys())  # noqa: SIM118 (no mapping)
        except Exception as error:  # safetensors has one class for all of its errors, without a base of its own
            return [f"{weights.relative_to(folder)} cannot be read ({error})"]
        if broken:
            problems.append(f"these tensors hold NaN or infinity: {broken[:5]}")
    return problems


def read_run_state(checkpoint: Path) -> dict[str, Any]:
    """What :func:`write_manifest` was told of the training data; nothing where it was not."""
    return _read_manifest(checkpoint).get("data") or {}


def folder_of(checkpoint: Path, adapter: str) -> Path:
    """Where peft saves ``adapter`` in ``checkpoint``: all but ``default`` have a folder of their own."""
    return checkpoint if adapter == "default" else checkpoint / adapter


def of_another_model(checkpoint: Path, model: PreTrainedModel | PeftModel) -> list[str]:
    """Why training of ``model`` cannot go on from ``checkpoint``, in words: other adapters, or another frozen backbone."""
    if not isinstance(model, PeftModel):
        return ["it holds an adapter, which the model has not"] if (checkpoint / CONFIG).is_file() else []
    problems = []
    for name in model.active_adapters:
        path = folder_of(checkpoint, name) / CONFIG
        if not path.is_file():
            problems.append(f"it holds no adapter {name!r}")
            continue
        saved, own = json.loads(path.read_text()), model.peft_config[name].to_dict()
        if not problems:
            problems += _of_another_backbone(checkpoint, saved, model)
        pairs = {key: (_plain(saved[key]), _plain(own[key])) for key in sorted((saved.keys() & own.keys()) - FREE)}
        if changed := {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}:
            problems.append(f"its adapter has other settings than the model's ({changed})")
    return problems


def _of_another_backbone(folder: Path, config: dict[str, Any], model: PreTrainedModel) -> list[str]:
    sealed = _read_manifest(folder)
    problems = []
    for name, own in (("backbone", fingerprint(model)), ("maps", fingerprint_of_maps(model))):
        if None not in (sealed.get(name), own) and sealed[name] != own:
            problems.append(
                f"it was trained on another backbone (fingerprint {sealed[name]}, {config.get('base_model_name_or_path')!r}) "
                f"than the given one ({own}, {model.name_or_path!r})"
            )
            break
    rows = len(_table(unwrap_t5(model)))
    if sealed.get("rows", 0) > rows:
        problems.append(
            f"it was trained beside a table of {sealed['rows']} tokens and the given one has {rows}: add the tokens first, or load "
            "it by load_with_tokens where add_tokens added them"
        )
    return problems


def _plain(setting: Any) -> Any:
    """A setting as JSON holds it; of a set, whose order is no one's, and of an enumeration too."""
    if isinstance(setting, list | tuple | set):
        return sorted(map(str, setting))
    return getattr(setting, "value", setting)


def newest_complete(run_folder: str | Path) -> Path | None:
    """The ``checkpoint-N`` sealed last in ``run_folder`` that is undamaged, or None; says which ones it passes over."""
    for folder in reversed(_checkpoints(run_folder)):
        problems = verify(folder) if (folder / MANIFEST).is_file() else ["saving it was not finished"]
        if not problems:
            return folder
        logger.warning("Passing over %s: %s.", folder, "; ".join(problems))
    return None


def rotate(run_folder: str | Path, limit: int | None, best: str | None) -> None:
    """Delete the oldest checkpoints in ``run_folder`` beyond ``limit`` (None or 0: none), but never the newest and ``best``."""
    folders = _checkpoints(run_folder)
    surplus = max(0, len(folders) - limit) if limit and limit > 0 else 0
    for folder in [path for path in folders[:-1] if best is None or path != Path(best)][:surplus]:
        shutil.rmtree(folder, ignore_errors=True)


def _checkpoints(run_folder: str | Path) -> list[Path]:
    """Each ``checkpoint-N``, oldest first: by the time of its seal, as an earlier run may have left higher numbers."""
    folders = [path for path in Path(run_folder).glob("checkpoint-*") if path.name.split("-")[-1].isdigit()]
    return sorted(folders, key=lambda path: (_read_manifest(path).get("saved", 0.0), int(path.name.split("-")[-1])))


def _labels(folder: Path) -> int | None:
    """Number of classes of the head that the adapter brings, or None.

    Raises ValueError for an adapter of a model that ``load_backbone`` does not load.
    """
    kind = json.loads((folder / CONFIG).read_text()).get("task_type")
    if kind in _OTHERS:
        raise ValueError(
            f"The adapter in {folder} is one of a {_OTHERS[kind]}, which is not loaded by itself: give "
            f"model={_OTHERS[kind]}.from_pretrained({base_of(folder)!r})."
        )
    if kind != "SEQ_CLS":
        return None
    weights = load_peft_weights(str(folder), device="cpu")
    return next(len(tensor) for name, tensor in weights.items() if name.endswith("classification_head.out_proj.weight"))


def _wrong_keys(model: PeftModel, folder: Path) -> list[str]:
    saved = set(load_peft_weights(str(folder), device="cpu"))
    expected = set(get_peft_model_state_dict(model, save_embedding_layers=False))
    problems = []
    if missing := sorted(expected - saved):
        problems.append(
            f"{len(missing)} of {len(expected)} tensors of the model are missing from it, such as {missing[0]}"
        )
    if foreign := sorted(saved - expected):
        problems.append(f"{len(foreign)} of its {len(saved)} tensors have no place in the model, such as {foreign[0]}")
    return problems


def raise_if_problems(folder: Path, problems: list[str]) -> None:
    """Raise one ValueError for all ``problems`` of the adapter in ``folder``, if there are any."""
    if problems:
        raise ValueError(
            f"The adapter in {folder} is not loaded: {'; '.join(problems)}. Load it beside the backbone that it was trained "
            "on, from a folder as it was saved."
        )


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    return json.loads(path.read_text()) if path.is_file() else {}


def _files(folder: Path) -> Iterable[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in (MANIFEST, UNFINISHED))


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def non_finite_names(tensors: Iterable[tuple[str, Tensor]]) -> list[str]:
    """Names of the tensors that hold NaN or infinity."""
    return [name for name, tensor in tensors if tensor.is_floating_point() and not torch.isfinite(tensor).all()]


def _foreign(folder: Path) -> list[str]:
    """What is in ``folder``, or the file that it is, beside an earlier adapter and what was sealed or written with it."""
    if not folder.is_dir():
        return [folder.name] if folder.exists() else []
    known = {*BESIDE, *_read_manifest(folder).get("files", {})} if (folder / CONFIG).is_file() else set()
    known -= {"trainer_state.json"}  # a checkpoint is more than an adapter
    own = {path for name in known for path in (folder / name, *(folder / name).parents)}
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path not in own)


def _replace(staging: Path, folder: Path) -> None:
    """Put ``staging`` in the place of ``folder``; the old one goes only when the new one stands."""
    if folder.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{folder.name}-old-", dir=folder.parent))
        folder.replace(old / folder.name)
        staging.replace(folder)
        shutil.rmtree(old)
    else:
        staging.replace(folder)
    _sync(folder.parent)


def _fill(staging: Path, folder: Path) -> None:
    """Put the files of ``staging``, which lies in ``folder``, in the place of those there, where the folder cannot be moved.

    The seal goes last: until then that of the old ones says that they were changed.
    """
    old = [path for path in _files(folder) if staging.parent not in path.parents]
    new = [path.relative_to(staging) for path in _files(staging)]
    for name in (*new, Path(MANIFEST)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (staging / name).replace(folder / name)
    for path in old:
        if path.relative_to(folder) not in new:
            path.unlink()
    _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
