"""The manifest of a folder: the hash of each of its files, and what the backbone beside them is.

``t5peft.json`` is written last. A folder without it was not finished, or another library saved it. A folder whose files differ from
it was damaged, and so was one whose manifest cannot be read.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, get_args

import torch
from safetensors import safe_open
from torch import Tensor

from t5peft.compat.filesystem import sync
from t5peft.compat.json_text import RepeatedKeyError, parse_json
from t5peft.compat.lock import LOCK
from t5peft.models.quantized import Quantization

MANIFEST = "t5peft.json"
TEMPORARY_MANIFEST = f".{MANIFEST}"
# It is in a checkpoint while that is saved. transformers gives the same name to those that it saves on a signal.
UNFINISHED = "checkpoint-is-incomplete.txt"
# Files that decide what is loaded: one that the manifest does not list was put there later.
_ESSENTIAL = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "model.safetensors",
    "model.safetensors.index.json",
)
# One more of a checkpoint. Beside a saved model, Trainer.save_state writes it for the user to read.
_ESSENTIAL_OF_CHECKPOINT = "trainer_state.json"
_HASH_LENGTH = 64
_LATEST = 1e11  # seconds since 1970


class _DamagedError(Exception):
    """The reason why a file is damaged, as part of a sentence about it."""


@dataclass(frozen=True)
class Manifest:
    """The content of a manifest; the fields are those of the file."""

    files: Mapping[str, str]
    """SHA-256 of each file, by its path in the folder."""
    backbone: str | None = None
    """Fingerprint of the backbone."""
    maps: str | None = None
    """Fingerprint of the backbone's linear maps; None where it was not taken."""
    parts: Mapping[str, str] | None = None
    """Fingerprints of the backbone's other parts; None in manifests of 0.1."""
    rows: int = 0
    """Rows of the backbone's embeddings."""
    quantized: Quantization | None = None
    quantized_wo: bool = False
    data: Mapping[str, Any] | None = None
    """Facts that a run that resumes must find unchanged."""
    saved: float = 0.0
    """Seconds since 1970."""


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        ValueError: The file is damaged, in whichever way.
    """
    try:
        return _parse_object(path)
    except _DamagedError as error:
        raise ValueError(
            f"Got a damaged file {path}: {error}; expected a JSON object. Restore the file, or the whole folder, as it was saved."
        ) from error


def read_manifest(folder: Path) -> Manifest | None:
    """Read the manifest of ``folder``.

    Returns:
        None for a folder without one.

    Raises:
        ValueError: The manifest is damaged, in whichever way.
    """
    path = folder / MANIFEST
    if not path.exists() and not path.is_symlink():
        return None
    try:
        return _parse_manifest(path)
    except _DamagedError as error:
        raise ValueError(
            f"Got a damaged manifest {path}: {error}; expected one that belongs to the files beside it. Restore the folder as it "
            "was saved."
        ) from error


def write_manifest_file(folder: Path, content: Mapping[str, Any], names: Iterable[str] | None = None) -> None:
    """Write the manifest of ``folder`` in a single step, after its files are on disk.

    Args:
        folder: A folder whose files are complete.
        content: Fields of ``Manifest`` beside ``files`` and ``saved``.
        names: The files to list; None: all but temporary ones.
    """
    temporary = folder / TEMPORARY_MANIFEST
    paths = files_of(folder) if names is None else [folder / name for name in sorted(names)]
    files = {path.relative_to(folder).as_posix(): _hash(path) for path in paths}
    for path in paths:
        sync(path)
    fields = {**content, "files": files, "saved": _later_than_siblings(folder)}
    fields = json.loads(json.dumps(fields, allow_nan=False))  # as they will be read, for the checksum
    text = json.dumps(fields | {"checksum": _checksum(fields)}, indent=1, sort_keys=True)
    try:
        temporary.write_text(text, encoding="utf-8")
        sync(temporary)
        temporary.replace(folder / MANIFEST)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync(folder)


def verify(folder: Path) -> list[str]:
    """Return the problems found in ``folder``; empty if it is intact, or has no manifest and no NaN."""
    path = folder / MANIFEST
    if not path.exists() and not path.is_symlink():
        return _weight_problems(sorted(folder.rglob("*.safetensors")), folder)
    try:
        files = _parse_manifest(path).files
    except _DamagedError as error:
        return [f"{MANIFEST} is damaged: {error}"]
    problems = list(_file_problems(folder, files))
    return problems or _weight_problems([folder / name for name in files if name.endswith(".safetensors")], folder)


def saved_at(folder: Path) -> float:
    """Return when ``folder`` was saved, in seconds since 1970; 0.0 without a manifest that can be read."""
    try:
        manifest = read_manifest(folder)
    except ValueError:
        return 0.0
    return manifest.saved if manifest else 0.0


def files_of(folder: Path) -> list[Path]:
    """Return the files in ``folder`` and below, without the manifest and temporary files."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and path.name not in (MANIFEST, TEMPORARY_MANIFEST, UNFINISHED, LOCK)
    )


def non_finite_names(tensors: Iterable[tuple[str, Tensor]]) -> list[str]:
    """Return the names of the tensors that hold NaN or infinity."""
    return [name for name, tensor in tensors if tensor.is_floating_point() and not _is_finite(tensor)]


def _is_finite(tensor: Tensor) -> bool:
    # torch cannot tell it of 8 bits.
    return bool(torch.isfinite(tensor.float() if tensor.element_size() == 1 else tensor).all())


def _file_problems(folder: Path, files: Mapping[str, str]) -> Iterator[str]:
    for name, expected in files.items():
        path = folder / name
        # A README is a draft of a model card, to be written in; manifests of 0.1.0 may list a temporary file.
        if path.name in ("README.md", UNFINISHED, TEMPORARY_MANIFEST):
            continue
        if not path.is_file():
            yield f"{name} is missing"
            continue
        try:
            if _hash(path) != expected:
                yield f"{name} was changed or damaged since it was saved"
        except OSError as error:
            yield f"{name} cannot be read ({error.strerror})"
    is_checkpoint = folder.name.startswith("checkpoint-")
    for name in (*_ESSENTIAL, *([_ESSENTIAL_OF_CHECKPOINT] if is_checkpoint else [])):
        if name not in files and (folder / name).exists():
            yield f"{name} was put there after the rest was saved"


def _weight_problems(paths: Iterable[Path], folder: Path) -> list[str]:
    problems = []
    for path in paths:
        name = path.relative_to(folder).as_posix()
        try:
            with safe_open(path, "pt") as file:
                broken = non_finite_names((key, file.get_tensor(key)) for key in file.keys())  # noqa: SIM118 (no mapping)
        except Exception as error:  # safetensors has one class for all of its errors, without a base of its own
            problems.append(f"{name} cannot be read ({error})")
        else:
            if broken:
                problems.append(f"in {name} these tensors hold NaN or infinity: {broken[:5]}")
    return problems


def _parse_object(path: Path) -> dict[str, Any]:
    if path.exists() and not path.is_file():  # a folder, or a device, which may have no end
        raise _DamagedError("it is not a file")
    try:
        content = parse_json(path.read_text(encoding="utf-8"), _reject_constant)
    except OSError as error:
        raise _DamagedError(f"it cannot be read ({error.strerror})") from error
    except RecursionError as error:
        raise _DamagedError("it is nested too deeply") from error
    except RepeatedKeyError as error:
        raise _DamagedError(f"in line {error.lineno} {error.msg}") from error
    except ValueError as error:  # of JSON, of UTF-8 and of constants
        raise _DamagedError(f"it is not JSON ({error})") from error
    if not isinstance(content, dict):
        raise _DamagedError(f"it holds a {type(content).__name__}")
    return content


def _reject_constant(constant: str) -> None:
    raise _DamagedError(f"it holds {constant}, which is not a number of JSON")


def _parse_manifest(path: Path) -> Manifest:
    content = _parse_object(path)
    if "checksum" in content and content.pop("checksum") != _checksum(content):  # manifests of 0.1.0 have none
        raise _DamagedError("its content was changed since it was saved")
    problems = [name for name, is_valid in _VALID.items() if name in content and not is_valid(content[name])]
    if "files" not in content:
        problems.append("files")
    if problems:
        raise _DamagedError(f"these fields are missing or of a wrong type: {', '.join(problems)}")
    return Manifest(**{name: content[name] for name in _VALID if content.get(name) is not None})


def _is_text_or_none(value: object) -> bool:
    return value is None or isinstance(value, str)


def _is_file_table(value: object) -> bool:
    return (
        isinstance(value, dict)
        and len(value) > 0
        and all(isinstance(digest, str) and len(digest) == _HASH_LENGTH for digest in value.values())
        and not any(PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts for name in value)
    )


def _is_time(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < _LATEST


_VALID = {
    "files": _is_file_table,
    "backbone": _is_text_or_none,
    "maps": _is_text_or_none,
    "parts": lambda value: (
        value is None or (isinstance(value, dict) and all(isinstance(v, str) for v in value.values()))
    ),
    "rows": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "quantized": lambda value: value in (None, *get_args(Quantization)),
    "quantized_wo": lambda value: isinstance(value, bool),
    "data": lambda value: value is None or isinstance(value, dict),
    "saved": _is_time,
}


def _later_than_siblings(folder: Path) -> float:
    """Return the time, or a little after the newest checkpoint beside ``folder`` where the clock was set back."""
    siblings = folder.parent.glob("checkpoint-*") if folder.name.startswith("checkpoint-") else ()
    return max([time.time(), *(saved_at(path) + 1e-3 for path in siblings if path != folder)])


def _checksum(content: Mapping[str, Any]) -> str:
    try:
        text = json.dumps(content, sort_keys=True)
    except RecursionError as error:
        raise _DamagedError("it is nested too deeply") from error
    return hashlib.sha256(text.encode()).hexdigest()


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
