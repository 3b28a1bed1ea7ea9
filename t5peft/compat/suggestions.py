"""Suggest the name that was meant. Nothing heavy is imported here, so that the command line answers at once."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return a question that suggests the nearest of ``names``.

    Args:
        name: What came.
        names: What is known.

    Returns:
        `` Did you mean 'x'?``, or nothing where none is near.
    """
    near = get_close_matches(name, list(names), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""
