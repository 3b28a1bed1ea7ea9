"""Read from transformers' access to the hub: the commit of a model, which it does not keep, and files that may not be there."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedModel
from transformers.utils import cached_file, extract_commit_hash


def note_commit(model: PreTrainedModel, path: str, revision: str | None) -> None:
    """Note the commit that a model was loaded from, where ``commit_of`` finds it.

    Args:
        model: What ``from_pretrained`` has just returned.
        path: The name or folder that it was given.
        revision: The revision that it was given.
    """
    if Path(path).exists():
        return
    file = _cached(path, "config.json", revision, local_files_only=True)
    model.config._commit_hash = extract_commit_hash(file, None)  # transformers does not save this attribute


def commit_of(model: PreTrainedModel) -> str | None:
    """Return the commit of the hub that ``load_backbone`` loaded a model from; None for a folder."""
    commit = getattr(model.config, "_commit_hash", None)
    return commit if isinstance(commit, str) else None


def optional_file(path: str, name: str, revision: str | None) -> Path | None:
    """Return a file of a folder or of the hub, or None where there is none, or none in the cache and no network.

    Args:
        path: A folder, or a name on the hub.
        name: The file in it.
        revision: The branch, tag or commit of a name on the hub.
    """
    if Path(path).is_dir():
        found = Path(path) / name
        return found if found.is_file() else None
    cached = _cached(path, name, revision)
    return None if cached is None else Path(cached)


def _cached(path: str, name: str, revision: str | None, **options: bool) -> str | None:
    """Return a file of the hub; None where there is none, or none in the cache and no network."""
    return cached_file(
        path,
        name,
        revision=revision,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        **options,
    )
