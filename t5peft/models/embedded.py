"""The backbones that come with the package: the only place that knows their names and where they are."""

from __future__ import annotations

from pathlib import Path

from t5peft.compat.paths import as_path

_PACKAGE = Path(__file__).parents[1]
EMBEDDED = {"mini": _PACKAGE / "mini"}
"""Folder of each embedded backbone, by the name that ``load_backbone`` takes."""


def is_embedded(name: str | Path) -> bool:
    """Return whether ``name`` is that of an embedded backbone."""
    return str(name) in EMBEDDED


def resolve_backbone(name: str | Path) -> str:
    """Return what ``from_pretrained`` takes for ``name``: the folder of an embedded backbone, or ``name`` itself."""
    as_path(name, "name")  # or an error, as transformers would look for the name "None" on the hub
    return str(EMBEDDED.get(str(name), name))


def backbone_name(path: str | Path) -> str:
    """Return the name of the embedded backbone that ``path`` is the folder of, on this machine or another, or ``path`` itself."""
    ends = {folder.parts[-2:]: name for name, folder in EMBEDDED.items()}
    return ends.get(Path(path).parts[-2:], str(path))
