"""Replace a folder so that it is the old one or the new one at every moment, whenever the process is killed.

The new content is written into ``.NAME-xxxxxxxx/new``, beside the folder, or in it where it cannot be moved. Then, in this order:

* Linux exchanges the two folders in a single step.
* Elsewhere the old folder moves to ``.NAME-xxxxxxxx/old`` and the new one into its place. Between the two moves the folder is
  missing; ``recover`` completes them.
* Where the folder cannot be moved, or holds other files, the new content is renamed to ``.NAME-xxxxxxxx/fill`` and moved into the
  folder file by file, the manifest last. ``recover`` completes this too.

A process holds its temporary folder by a lock, so that no other process touches it meanwhile.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from t5peft.compat.filesystem import claim, exchange, sync
from t5peft.compat.lock import LOCK
from t5peft.models.manifest import MANIFEST, files_of, read_manifest, verify

logger = logging.getLogger("t5peft")

NEW, OLD, FILL = "new", "old", "fill"
# Files of an adapter, and those that ``t5peft train`` and ``t5peft retune`` write beside it.
ADAPTER_FILES = (
    "adapter_config.json",
    "adapter_model.safetensors",
    MANIFEST,
    "README.md",
    "task.yaml",
    "scores.json",
    "retuning.json",
)
# Weights of a whole model, which would be loaded in the place of new ones under another name.
_MODEL_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
# What a folder is the output of, and the file that shows it. The first one that is there decides.
_OUTPUTS: dict[str, tuple[str, ...]] = {
    "a search of `t5peft auto`": ("trials.jsonl",),
    "a search of `t5peft search`": ("study.db",),
    "a pretraining": ("state.pt",),
    "an export": ("export.json", "pytorch_lora_weights.safetensors"),
    "an adapter": ("adapter_config.json",),
    "a training run": ("adapter/adapter_config.json", "checkpoint-*/trainer_state.json"),
    "a model": (*_MODEL_WEIGHTS, "pytorch_model.bin"),
}


@contextmanager
def replacing(folder: Path, *, keep_others: bool = False) -> Iterator[Path]:
    """Yield an empty folder whose content, with a manifest, takes the place of ``folder`` in the end.

    Args:
        folder: The folder to replace, which need not exist.
        keep_others: Keep what is in the folder and is not of an earlier save.

    Raises:
        OSError: The content cannot be put in its place.
    """
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    recover(folder)
    _delete_leftovers(folder)
    if keep_others:
        folder.mkdir(exist_ok=True)
    in_place = (keep_others and _has_others(folder)) or _cannot_be_moved(folder)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder if in_place else folder.parent))
    with claim(temporary):
        try:
            (temporary / NEW).mkdir()  # mkdtemp's own is closed to other users
            yield temporary / NEW
            if in_place or not _swap(temporary, folder):
                _fill(temporary, folder)
        finally:
            if not (temporary / FILL).exists():  # which recover needs, after an error
                shutil.rmtree(temporary, ignore_errors=True)


def recover(folder: Path) -> None:
    """Complete a replacement of ``folder`` that was interrupted, if there is one."""
    folder = folder.resolve()
    for temporary in leftovers(folder):
        try:
            with claim(temporary) as is_abandoned:
                if is_abandoned and _complete(temporary, folder):
                    logger.warning("Completed an interrupted save of %s.", folder)
                    shutil.rmtree(temporary, ignore_errors=True)
        except (OSError, ValueError) as error:
            logger.warning("An interrupted save of %s is not completed: %s.", folder, error)


def _complete(temporary: Path, folder: Path) -> bool:
    """Go on where a process ended, and return whether there was something to do."""
    if (temporary / FILL).is_dir():
        _fill(temporary, folder)
        return True
    if folder.exists():
        return False
    old = temporary / folder.name  # where 0.1.0 put it
    if (temporary / OLD).is_dir() and (temporary / NEW).is_dir():
        (temporary / NEW).replace(folder)
    elif "-old-" in temporary.name and old.is_dir() and not verify(old):
        old.replace(folder)
    else:
        return False
    sync(folder.parent)
    return True


def _cannot_be_moved(folder: Path) -> bool:
    is_held = folder.is_mount() or not os.access(folder.parent, os.W_OK) or Path.cwd().is_relative_to(folder)
    return folder.is_dir() and is_held


def _has_others(folder: Path) -> bool:
    """Return whether a folder holds more than an earlier save and a lock."""
    earlier = {MANIFEST, LOCK, *_outdated(folder, is_adapter=False), *ADAPTER_FILES}
    inner = (path for path in folder.rglob("*") if not path.is_dir())
    return any(path.relative_to(folder).as_posix() not in earlier for path in inner)


def _swap(temporary: Path, folder: Path) -> bool:
    """Put the new folder in the place of the old one, and return whether the old one can be moved."""
    new, old = temporary / NEW, temporary / OLD
    try:
        if not folder.exists():
            new.replace(folder)
        elif not exchange(new, folder):
            folder.replace(old)
            new.replace(folder)
    except OSError as error:
        if old.exists():
            old.replace(folder)
        if not folder.is_dir():
            raise
        logger.info("%s cannot be moved (%s); its files are replaced one by one.", folder, error.strerror)
        return False
    sync(folder.parent)
    return True


def _fill(temporary: Path, folder: Path) -> None:
    """Move the new files into ``folder``, the manifest last: until then the old one says that they were changed."""
    if (temporary / NEW).is_dir():
        sync(temporary / NEW)
        (temporary / NEW).replace(temporary / FILL)
        sync(temporary)
    fill = temporary / FILL
    manifest = read_manifest(fill)
    if manifest is not None:
        for path in files_of(fill):
            target = folder / path.relative_to(fill)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)
        for name in _outdated(folder, is_adapter="adapter_config.json" in manifest.files) - manifest.files.keys():
            (folder / name).unlink(missing_ok=True)
        sync(folder)
        (fill / MANIFEST).replace(folder / MANIFEST)
        sync(folder)
    shutil.rmtree(fill)


def _outdated(folder: Path, *, is_adapter: bool) -> set[str]:
    """Files of an earlier save in ``folder``."""
    try:
        manifest = read_manifest(folder)
    except ValueError:
        manifest = None
    return {*(manifest.files if manifest else ()), *(ADAPTER_FILES if is_adapter else _MODEL_WEIGHTS)} - {MANIFEST}


def leftovers(folder: Path) -> list[Path]:
    """Temporary folders of saves to ``folder`` that run or were interrupted; those of 0.1.0 too."""
    pattern = re.compile(rf"\.{re.escape(folder.name)}-(old-)?[a-z0-9_]{{8}}")
    found = []
    for place in (folder.parent, folder):
        try:
            named = [path for path in place.iterdir() if pattern.fullmatch(path.name)]
            found += [path for path in named if _is_ours(path, folder.name)]
        except OSError:  # no such folder, or one that may not be read
            continue
    return sorted(found)


def _is_ours(path: Path, name: str) -> bool:
    """Whether a folder with the name of a temporary one holds nothing else than such a one."""
    allowed = {name} if path.name.startswith(f".{name}-old-") else {NEW, OLD, FILL}
    return path.is_dir() and not path.is_symlink() and {inner.name for inner in path.iterdir()} <= allowed


def _delete_leftovers(folder: Path) -> None:
    for path in leftovers(folder):
        with claim(path) as is_abandoned:
            if is_abandoned:
                shutil.rmtree(path, ignore_errors=True)


def ensure_output(folder: Path, *own: str) -> None:
    """Refuse a folder that holds the output of another command, whose files would be mixed with new ones or replaced.

    Args:
        folder: Where a command is to write; it need not exist.
        own: What the command may find there, by the names in ``_OUTPUTS``.

    Raises:
        ValueError: It holds something else. Files that no command wrote do not count.
    """
    found = ((kind, path) for kind, names in _OUTPUTS.items() for name in names for path in sorted(folder.glob(name)))
    kind, path = next(found, (None, folder))
    if kind is not None and kind not in own:
        raise ValueError(
            f"Got the output {folder}, which holds {kind} ({path.relative_to(folder)}); expected "
            f"{' or '.join(('a new folder', *own))}. Choose another folder."
        )


def ensure_holds_model(folder: Path) -> None:
    """Refuse a folder that is there and does not hold a model, such as that of an adapter.

    Args:
        folder: A folder, or a name of the hub.

    Raises:
        FileNotFoundError: The folder has no config.json.
    """
    if not folder.is_dir() or (folder / "config.json").is_file():
        return
    found, advice = "which has no config.json", "Give the folder of a model."
    for place, what in ((folder, "which holds an adapter"), (folder / "adapter", "the folder of a run")):
        if (place / "adapter_config.json").is_file():
            found, advice = what, f"load_adapter({str(place)!r}) loads an adapter beside its own backbone."
            break
    raise FileNotFoundError(f"Got {folder}, {found}; expected a whole model, with config.json and weights. {advice}")
