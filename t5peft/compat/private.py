"""Describe a private touch of another library, so that one test can check all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class PrivateUse:
    """A name of another library that is not offered for use.

    Args:
        owner: Class or module that has the name.
        name: The name.
        parameters: Parameters of the function that are relied on; None for an attribute.
        reason: Why no public name, callback, sampler or collator could do it.
        overridden: Whether it is overridden, and not only called or read.
    """

    owner: Any
    name: str
    parameters: tuple[str, ...] | None
    reason: str
    overridden: bool = False
