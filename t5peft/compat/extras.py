"""Optional packages: one clear error where one is missing."""

from __future__ import annotations

from importlib.util import find_spec


def require(package: str, extra: str) -> None:
    """Raise where an optional package is not installed.

    Args:
        package: The name that is imported.
        extra: The extra of t5peft that brings it.

    Raises:
        ImportError: It is not installed.
    """
    try:
        found = find_spec(package) is not None
    except ValueError:  # it is blocked, or half imported
        found = False
    if not found:
        raise ImportError(f"Got no {package}; expected it to be installed. Run `pip install t5peft[{extra}]`.")
