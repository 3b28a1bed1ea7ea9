"""Take the paths that users give."""

from __future__ import annotations

import os
from pathlib import Path


def as_path(given: str | os.PathLike[str], name: str = "folder") -> Path:
    """Return a path that the user gave.

    Args:
        given: Text or a path.
        name: The argument, for the error.

    Returns:
        The path.

    Raises:
        ValueError: It is neither.
    """
    try:
        return Path(given)
    except TypeError:
        raise ValueError(
            f"Got {name}={given!r:.60} ({type(given).__name__}); expected a path, as text or as a pathlib.Path. Give one."
        ) from None
