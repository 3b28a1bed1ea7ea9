"""Notes on what the library does by itself, said once a process."""

from __future__ import annotations

import logging
from functools import cache

logger = logging.getLogger("t5peft")


@cache
def say_once(message: str) -> None:
    """Log ``message`` the first time that it is given."""
    logger.info(message)
