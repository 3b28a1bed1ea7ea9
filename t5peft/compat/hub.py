"""The commit of the hub that a model was loaded from, which transformers finds and does not keep."""

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
    file = cached_file(
        path,
        "config.json",
        revision=revision,
        local_files_only=True,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    model.config._commit_hash = extract_commit_hash(file, None)  # transformers does not save this attribute


def commit_of(model: PreTrainedModel) -> str | None:
    """Return the commit of the hub that ``load_backbone`` loaded a model from; None for a folder."""
    commit = getattr(model.config, "_commit_hash", None)
    return commit if isinstance(commit, str) else None
